"""Files and directories of weights are written whole or not at all."""

import contextlib
import os
import shutil
from collections.abc import Iterator

from esvit_jax.errors import UserError


def check_free(path: str) -> None:
  """Raises UserError if `path` exists, or its folder does not."""
  if os.path.isdir(path) and not os.listdir(path):
    return
  if os.path.lexists(path):
    raise UserError(f'{path} exists: name another, or remove it')
  folder = os.path.dirname(os.path.abspath(path))
  if not os.path.isdir(folder):
    raise UserError(f'there is no folder {folder} to write in')


@contextlib.contextmanager
def unfinished(path: str) -> Iterator[str]:
  """A temporary path to write to, which replaces `path` at the end.

  Raises:
    UserError: it cannot be written. Nothing is left behind.
  """
  part = f'{path.rstrip("/")}.{os.getpid()}.tmp'
  try:
    yield part
    os.replace(part, path)
  except OSError as e:
    raise UserError(f'cannot write {path}: {e.strerror or e}') from None
  finally:
    shutil.rmtree(part, ignore_errors=True)
    with contextlib.suppress(OSError):
      os.remove(part)
