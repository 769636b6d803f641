"""Files that together hold one set: patterns of names, splits, byte spans."""

import glob
import itertools
import os
import re
from collections.abc import Sequence

from esvit_jax.data import splits
from esvit_jax.data.unreadable import Unreadable
from esvit_jax.errors import UserError

LARGEST = 2**28  # bytes of one encoded image in an archive
_BRACES = re.compile(r'\{([^{}]*)\}')


def expand(place: str, endings: Sequence[str]) -> list[str]:
  """The files that a place names, in order.

  Args:
    place: a file, a folder (all files of these endings below it, sorted), a
      pattern with * and ?, or with braces: '{0000..0146}' and '{a,b}'.
    endings: such as ('.tar',).

  Raises:
    UserError: a file is missing, or there is none.
  """
  place = os.path.expanduser(place)
  if os.path.isdir(place):
    files = sorted(
      os.path.join(top, name)
      for top, _, names in os.walk(place)
      for name in names
      if name.lower().endswith(tuple(endings)) and not name.startswith('.')
    )
  elif os.path.exists(place):
    files = [place]
  else:
    files = []
    for name in _braces(place):
      matches = sorted(glob.glob(name)) if glob.has_magic(name) else [name]
      files += matches
    missing = [file for file in files if not os.path.isfile(file)]
    if missing:
      raise UserError(
        f'{place!r}: {len(missing)} of {len(files)} files do not exist, such '
        f'as {missing[0]!r}'
      )
  if not files:
    raise UserError(f'{place!r} names no file that ends in {endings[0]}')
  return files


def _braces(place: str) -> list[str]:
  """'a{00..02}.{x,y}' -> its six names."""
  parts = _BRACES.split(place)
  options = [
    _alternatives(part) if k % 2 else [part] for k, part in enumerate(parts)
  ]
  return [''.join(name) for name in itertools.product(*options)]


def _alternatives(text: str) -> list[str]:
  numbers = re.fullmatch(r'(\d+)\.\.(\d+)', text)
  if not numbers:
    return text.split(',')
  first, last = numbers.groups()
  width = len(first) if first.startswith('0') or len(first) == len(last) else 0
  return [f'{n:0{width}d}' for n in range(int(first), int(last) + 1)]


def by_split(files: Sequence[str]) -> dict[str, list[str]]:
  """Split -> its files, told by a word of the file's or its folder's name.

  'train-00000-of-00002.parquet' and 'val/0000.tar' are of 'train' and 'val';
  files without such a word are all 'train'.
  """
  found = {}
  for file in files:
    folder, name = os.path.split(file)
    words = re.split('[^A-Za-z]+', name) + [os.path.basename(folder)]
    split = next((word for word in words if splits.kind(word)), 'train')
    found.setdefault(split, []).append(file)
  return found


def read_span(path: str, offset: int, size: int, changed: float) -> bytes:
  """Bytes of a file.

  Args:
    path: the file.
    offset, size: in bytes.
    changed: time of its last change (ns) when the offset was found.

  Raises:
    Unreadable: the file has changed since, or ends before, or there are more
      than `LARGEST` bytes.
    OSError: it cannot be read.
  """
  if size > LARGEST:
    raise too_large(size)
  # Opened anew each time: a big set has more files than a process may hold.
  with open(path, 'rb', buffering=0) as file:
    if os.fstat(file.fileno()).st_mtime_ns != changed:
      raise Unreadable(f'{path} has changed since this run began')
    record = os.pread(file.fileno(), size, offset)
  if len(record) < size:
    raise Unreadable(f'{path} ends after {len(record):,} of its {size:,} bytes')
  return record


def too_large(size: int) -> Unreadable:
  """Said of an image that would fill the memory."""
  return Unreadable(
    f'it unpacks to {size:,} bytes, more than the {LARGEST:,} of any image'
  )
