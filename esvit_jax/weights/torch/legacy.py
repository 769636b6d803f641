"""Files of torch.save from before 1.6: five pickles, then the storages.

The pickles are a magic number, a protocol, facts about the machine, the tree,
and the keys of the storages in the order in which these follow: a count of
values as int64, then the values.
"""

import mmap
import struct

import numpy as np

from esvit_jax.weights.torch import pickle as torch_pickle
from esvit_jax.weights.torch.array import (
  RefusedError,
  Storage,
  Storages,
  itemsize,
  short,
)

_MAGIC = b'\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19'
_PICKLES = 32 << 20  # bytes of all pickles


def recognised(head: bytes) -> bool:
  """Whether a file that begins with these bytes has this format."""
  return head[:1] == b'\x80' and head[1:2] <= b'\5' and _MAGIC in head


def read(data: mmap.mmap, room: int):
  """The tree of a file.

  Args:
    data: the file.
    room: bytes that all its tensors together may take.

  Raises:
    RefusedError: it is damaged, or asks for anything but plain values.
  """
  code, begin = bytes(data[:_PICKLES]), 0
  header = []
  for _ in range(3):
    value, length = torch_pickle.run_at(code[begin:], _Sizes())
    header.append(value)
    begin += length
  machine = header[2] if isinstance(header[2], dict) else {}
  if header[1] != 1001 or machine.get('little_endian') is not True:
    raise RefusedError(
      'is of another protocol or byte order than torch.save has on a PC: load '
      'it with torch and torch.save it again'
    )
  # The first pass collects the sizes of storages, hence where each begins.
  sizes = _Sizes()
  _, length = torch_pickle.run_at(code[begin:], sizes)
  keys, more = torch_pickle.run_at(code[begin + length :], _Sizes())
  members = _members(data, begin + length + more, keys, sizes)
  storages = Storages(members.__getitem__, '<', room)
  return torch_pickle.run_at(code[begin : begin + length], storages)[0]


class _Sizes:
  """Stands in for `Storages` while their places in the file are unknown."""

  def __init__(self):
    self.counts = {}

  def claim(self, storage: Storage, count: int) -> None:
    if type(count) is not int or count < 0:
      raise RefusedError(f'claims {short(count)} values in a storage: refused')
    known = self.counts.setdefault(storage.key, (storage.code, count))
    if known != (storage.code, count):
      raise RefusedError(f'has a storage {storage.key} of two types: refused')

  def elements(self, storage: Storage) -> np.ndarray:
    del storage
    return np.zeros(0)

  def view(self, storage, offset, size, stride) -> np.ndarray:
    del storage, offset, size, stride
    return np.zeros(0)


def _members(data, begin: int, keys, sizes: _Sizes) -> dict[str, memoryview]:
  """The bytes of every storage, by the name that `Storages` asks for."""
  if not isinstance(keys, list) or {*map(str, keys)} != {*sizes.counts}:
    raise RefusedError('names other storages than it holds: it is damaged')
  members = {}
  for key in keys:
    code, count = sizes.counts[key]
    end = begin + 8 + count * itemsize(code)
    if end > len(data):
      raise RefusedError('ends too early: download or copy it again')
    (held,) = struct.unpack('<q', data[begin : begin + 8])
    if held != count:
      raise RefusedError(
        f'claims {count} values in storage {key}, which holds {held}: refused'
      )
    members[f'data/{key}'] = memoryview(data)[begin + 8 : end]
    begin = end
  return members
