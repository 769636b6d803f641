"""What was found out of files once, kept until they change."""

import contextlib
import fcntl
import hashlib
import os
import pathlib
import sys
import zipfile
from collections.abc import Callable, Iterator

import numpy as np

Arrays = dict[str, np.ndarray]

VERSION = 1  # of what is kept


def directory() -> pathlib.Path:
  """$ESVIT_JAX_CACHE, or esvit_jax in the user's folder for caches."""
  given = os.environ.get('ESVIT_JAX_CACHE')
  if given:
    return pathlib.Path(given).expanduser()
  caches = os.environ.get('XDG_CACHE_HOME') or '~/.cache'
  return pathlib.Path(caches).expanduser() / 'esvit_jax'


def place(path: str, kind: str) -> pathlib.Path:
  """Where something of the file `path` is kept."""
  name = hashlib.sha256(os.path.abspath(path).encode()).hexdigest()[:24]
  return directory() / f'{kind}-{name}.npz'


def stamp(path: str) -> np.ndarray:
  """What changes when a file does: size and time, i64[3]."""
  status = os.stat(path)
  return np.array([VERSION, status.st_size, status.st_mtime_ns], np.int64)


def kept(path: str, kind: str, build: Callable[[], Arrays]) -> Arrays:
  """Arrays about a file: as kept, or built and kept if the file is another.

  Processes that ask for the same at the same time build it once. Where nothing
  can be written it is built each time, and a line on stderr says so.

  Args:
    path: the file.
    kind: what the arrays are, a word.
    build: makes them.
  """
  file = place(path, kind)
  arrays = _read(file, path)
  if arrays is not None:
    return arrays
  with contextlib.ExitStack() as stack:
    try:
      stack.enter_context(locked(file))
    except OSError as error:
      print(f'note: nothing is kept in {file.parent}: {error}', file=sys.stderr)
      return build()
    arrays = _read(file, path)  # another process may have built it by now
    if arrays is not None:
      return arrays
    before = stamp(path)
    arrays = build()
    partial = file.with_name(f'{file.name}.{os.getpid()}')
    try:
      with partial.open('wb') as out:
        np.savez(out, stamp=before, **arrays)
      partial.replace(file)
    except OSError as error:
      print(f'note: {file} is not kept: {error}', file=sys.stderr)
    finally:
      partial.unlink(missing_ok=True)
  return arrays


@contextlib.contextmanager
def locked(file: pathlib.Path) -> Iterator[None]:
  """One process at a time. Raises OSError where no lock can be written."""
  file.parent.mkdir(parents=True, exist_ok=True)
  with open(file.with_suffix('.lock'), 'w') as lock:
    fcntl.flock(lock, fcntl.LOCK_EX)
    yield


def _read(file: pathlib.Path, path: str) -> Arrays | None:
  try:
    with np.load(file, allow_pickle=False) as arrays:
      if np.array_equal(arrays['stamp'], stamp(path)):
        return {k: arrays[k] for k in arrays.files if k != 'stamp'}
  except (OSError, EOFError, KeyError, ValueError, zipfile.BadZipFile):
    pass  # not kept, or damaged
  return None


def joined(texts: list[str]) -> np.ndarray:
  """Many texts as u8[n], which `apart` takes apart."""
  encoded = ''.join(f'{text}\0' for text in texts)
  return np.array(bytearray(encoded, 'utf-8', 'surrogateescape'), np.uint8)


def apart(array: np.ndarray) -> list[str]:
  """The texts that `joined` has put together."""
  text = array.tobytes().decode('utf-8', 'surrogateescape')
  return text.split('\0')[:-1]
