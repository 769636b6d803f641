"""What a run leaves on disk, and what it says while it runs."""

from esvit_jax.workdir.jsonfile import flatten, write_json
from esvit_jax.workdir.lock import FREE, RENAMED, check, claim

__all__ = ['FREE', 'RENAMED', 'check', 'claim', 'flatten', 'write_json']
