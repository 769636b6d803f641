"""Arrays of a torch file: element types, storages, and views of storages.

A storage is a sequence of bytes and a tensor a strided view of it. All bounds
are checked before NumPy sees them.
"""

import dataclasses
import math
from collections.abc import Callable

import numpy as np

_DIMS = 32  # axes of an array

# numpy's names of the element types; bf16 is ours, numpy has none.
_STORED = {'bf16': 'u2', 'b1': 'u1'}
CODES = {
  'float16': 'f2',
  'bfloat16': 'bf16',
  'float32': 'f4',
  'float64': 'f8',
  'int8': 'i1',
  'int16': 'i2',
  'int32': 'i4',
  'int64': 'i8',
  'uint8': 'u1',
  'uint16': 'u2',
  'uint32': 'u4',
  'uint64': 'u8',
  'bool': 'b1',
}
KINDS = {
  'HalfStorage': 'f2',
  'BFloat16Storage': 'bf16',
  'FloatStorage': 'f4',
  'DoubleStorage': 'f8',
  'CharStorage': 'i1',
  'ShortStorage': 'i2',
  'IntStorage': 'i4',
  'LongStorage': 'i8',
  'ByteStorage': 'u1',
  'BoolStorage': 'b1',
  'UntypedStorage': 'u1',
}


class RefusedError(Exception):
  """Why a file is refused; the message does not name the file."""


@dataclasses.dataclass(frozen=True)
class Storage:
  """A storage that the pickle refers to; `code` is its element type."""

  key: str
  code: str


class Storages:
  """The storages of one file.

  Args:
    member: name of a member of the file -> its bytes.
    order: byte order, '<' or '>'.
    room: bytes that all tensors together may occupy.
  """

  def __init__(
    self, member: Callable[[str], memoryview], order: str, room: int
  ):
    self.member, self.order, self.room = member, order, room
    self.arrays = {}

  def claim(self, storage: Storage, count: int) -> None:
    """Checks the number of values that the pickle claims for a storage."""
    held = len(self.elements(storage))
    if type(count) is not int or count != held:
      raise RefusedError(
        f'claims {short(count)} values in storage {storage.key}, which holds '
        f'{held}: refused'
      )

  def elements(self, storage: Storage) -> np.ndarray:
    """The values of a storage, [n]; read and checked once."""
    if storage not in self.arrays:
      raw = self.member(f'data/{storage.key}')
      self.arrays[storage] = elements(raw, storage.code, self.order)
    return self.arrays[storage]

  def view(self, storage: Storage, offset: int, size, stride) -> np.ndarray:
    """A strided view of a storage, after a check of every bound."""
    values = self.elements(storage)
    size, stride = naturals(size), naturals(stride)
    (offset,) = naturals((offset,))
    if len(size) != len(stride):
      raise RefusedError('has a tensor with more axes than strides: refused')
    # Strides of 0 can make one value into any number of them.
    self.room -= values.itemsize * math.prod(max(n, 1) for n in size)
    if self.room < 0:
      raise RefusedError(
        'has tensors that unpack to more than 8 times the file: refused'
      )
    last = offset + sum((n - 1) * s for n, s in zip(size, stride))
    if 0 in size:
      offset, stride = 0, (0,) * len(size)
    elif last >= len(values):
      raise RefusedError(
        f'has a tensor that reaches value {last} of storage {storage.key}, '
        f'which holds {len(values)}: refused'
      )
    steps = [s * values.itemsize if n > 1 else 0 for n, s in zip(size, stride)]
    start = offset * values.itemsize
    return np.ndarray(size, values.dtype, values, start, steps)


def itemsize(code: str) -> int:
  """Bytes of a value in a file; `code` as in CODES."""
  return np.dtype(_STORED.get(code, code)).itemsize


def elements(raw: memoryview | bytes, code: str, order: str) -> np.ndarray:
  """Bytes -> [n] values in this machine's byte order; `code` as in CODES."""
  stored = np.dtype(_STORED.get(code, code)).newbyteorder(order or '=')
  values = np.frombuffer(raw, stored)
  if code == 'bf16':  # the upper half of a float32
    values = (values.astype('u4') << 16).view('f4')
  elif code == 'b1':  # a byte that is neither 0 nor 1 is no numpy bool
    values = values != 0
  elif not values.flags.aligned or not values.dtype.isnative:
    values = values.astype(stored.newbyteorder('='))
  values.flags.writeable = False
  return values


def naturals(values: object) -> tuple[int, ...]:
  """Checks that the values can be a shape, strides or an offset."""
  if (
    type(values) not in (tuple, list)
    or len(values) > _DIMS
    or not all(type(value) is int and value >= 0 for value in values)
  ):
    raise RefusedError('has an array whose shape, strides or offset are none')
  return tuple(values)


def short(thing: object) -> str:
  """A value from a file, for one line; containers can be endless."""
  if type(thing) not in (str, int, float):
    return f'<{type(thing).__name__}>'
  return repr(thing)[:80]
