"""Random access to TFRecord files without TensorFlow."""

import concurrent.futures
import os
import struct
from collections.abc import Sequence
from typing import Protocol

import numpy as np

from esvit_jax.errors import UserError

# A record is: u64 length, u32 crc of it, `length` bytes, u32 crc of them.
_LENGTH = struct.Struct('<Q')
_HEAD, _TAIL = 12, 4


class Instruction(Protocol):
  """Which records of a file belong to a split, as tfds writes it down."""

  filename: str
  skip: int
  take: int
  examples_in_shard: int


class TFRecords:
  """The records of a split as a sequence of bytes; safe for many threads.

  The files are walked once from length to length, at a few hundred thousand
  records a second where they are cached.
  """

  def __init__(self, instructions: Sequence[Instruction]):
    """Walks the files.

    Raises:
      UserError: a file is missing, cut short or not what it should be.
    """
    self._files = [each.filename for each in instructions]
    with concurrent.futures.ThreadPoolExecutor(16) as pool:
      spans = list(pool.map(_spans, instructions))
    # One row per record: its file, where its bytes begin, how many they are.
    file = np.repeat(np.arange(len(spans)), [len(span) for span in spans])
    self._rows = np.column_stack([file, np.concatenate(spans)])

  def __len__(self) -> int:
    return len(self._rows)

  def __getitem__(self, i: int) -> bytes:
    file, start, length = self._rows[i].tolist()
    # Opened anew each time: a big set has more files than a process may hold.
    with open(self._files[file], 'rb', buffering=0) as records:
      records.seek(start)
      return records.read(length)


def _spans(instruction: Instruction) -> np.ndarray:
  """(start, length) in bytes of the records wanted from one file, i64[n,2]."""
  spans = []
  path = instruction.filename
  try:
    with open(path, 'rb', buffering=0) as records:
      end = os.fstat(records.fileno()).st_size
      position = 0
      while position + _HEAD + _TAIL <= end:
        records.seek(position)
        (length,) = _LENGTH.unpack(records.read(_LENGTH.size))
        spans.append((position + _HEAD, length))
        position += _HEAD + length + _TAIL
  except OSError as error:
    raise UserError(f'cannot read {path!r}: {error.strerror}') from error
  expected = instruction.examples_in_shard
  if position != end or len(spans) != expected:
    whole = len(spans) - (position > end)
    raise UserError(
      f'{path!r} is damaged: it holds {whole} whole records of the {expected} '
      'that its dataset_info.json promises. Copy or prepare the set again'
    )
  first = instruction.skip
  wanted = spans[first : first + instruction.take]
  return np.array(wanted, np.int64).reshape(-1, 2)
