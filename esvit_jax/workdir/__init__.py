"""What a run leaves on disk, and what it says while it runs."""

from esvit_jax.workdir.files import (
  flatten,
  parse_json,
  read_json,
  write_json,
  writing,
)
from esvit_jax.workdir.lock import FREE, RENAMED, check, claim

__all__ = [
  'FREE',
  'RENAMED',
  'check',
  'claim',
  'flatten',
  'parse_json',
  'read_json',
  'write_json',
  'writing',
]
