"""A small writer of torch.save's format, for tests.

The real pickler writes the names of a few stand-in modules in place of
torch's.
"""

import argparse
import collections
import dataclasses
import io
import os
import pickle
import struct
import sys
import types
import zipfile
from unittest import mock

import numpy as np
import pytest

from esvit_jax.errors import UserError
from esvit_jax.weights.torch.file import read

KINDS = {
  'f2': 'HalfStorage',
  'f4': 'FloatStorage',
  'f8': 'DoubleStorage',
  'i1': 'CharStorage',
  'i2': 'ShortStorage',
  'i4': 'IntStorage',
  'i8': 'LongStorage',
  'u1': 'ByteStorage',
  'b1': 'BoolStorage',
}


def _stand_ins() -> dict[str, types.ModuleType]:
  """Modules whose classes pickle as torch's do."""
  names = {
    'torch': [
      *KINDS.values(),
      'BFloat16Storage',
      'Size',
      'device',
      'float32',
      'uint16',
    ],
    'torch._utils': [
      '_rebuild_tensor_v2',
      '_rebuild_tensor_v3',
      '_rebuild_parameter',
    ],
    'torch.storage': ['UntypedStorage'],
  }
  modules = {}
  for place, members in names.items():
    modules[place] = types.ModuleType(place)
    for name in members:
      fields = {'__module__': place, '__qualname__': name}
      setattr(modules[place], name, type(name, (), fields))
  return modules


MODULES = _stand_ins()
TORCH, UTILS = MODULES['torch'], MODULES['torch._utils']
UNTYPED = MODULES['torch.storage'].UntypedStorage


@dataclasses.dataclass(eq=False)
class Storage:
  """Bytes of one kind; `count` is what the pickle claims it holds."""

  kind: type
  raw: bytes
  count: object


@dataclasses.dataclass(eq=False)
class Call:
  """What pickles as a call: a tensor, a parameter, a size."""

  maker: object
  args: tuple


def store(array: np.ndarray) -> Storage:
  kind = getattr(TORCH, KINDS[array.dtype.str[1:]])
  return Storage(kind, array.tobytes(), array.size)


def view(storage, size, stride, offset=0) -> Call:
  hooks = collections.OrderedDict()
  args = (storage, offset, size, stride, False, hooks)
  return Call(UTILS._rebuild_tensor_v2, args)


def tensor(array: np.ndarray) -> Call:
  stride = tuple(s // array.itemsize for s in array.strides)
  return view(store(array), array.shape, stride)


class _Pickler(pickle.Pickler):
  """Writes storages as persistent ids, as torch.save does."""

  def __init__(self, file, protocol, view=()):
    super().__init__(file, protocol)
    self.storages, self.view = [], view

  def persistent_id(self, item):
    if not isinstance(item, Storage):
      return None
    if item not in self.storages:
      self.storages.append(item)
    key = str(self.storages.index(item))
    return ('storage', item.kind, key, 'cpu', item.count, *self.view)

  def reducer_override(self, item):
    return (item.maker, item.args) if type(item) is Call else NotImplemented


def members(tree, protocol=2, order=b'little') -> dict[str, bytes]:
  """The members of a torch file of a tree."""
  file = io.BytesIO()
  pickler = _Pickler(file, protocol)
  with mock.patch.dict(sys.modules, MODULES):
    pickler.dump(tree)
  return {
    'data.pkl': file.getvalue(),
    'byteorder': order,
    **{f'data/{i}': s.raw for i, s in enumerate(pickler.storages)},
    'version': b'3\n',
  }


def write_zip(path, members, root='archive/', method=zipfile.ZIP_STORED):
  """Writes a zip whose members begin at multiples of 64, as torch's do."""
  with open(path, 'wb') as file, zipfile.ZipFile(file, 'w') as archive:
    for name, raw in members.items():
      entry = zipfile.ZipInfo(root + name)
      entry.compress_type = method
      room = -(file.tell() + 34 + len(entry.filename.encode())) % 64
      entry.extra = struct.pack('<HH', 0x4246, room) + bytes(room)
      archive.writestr(entry, raw)
  return path


def save(path, tree, **settings):
  """Writes a tree as torch.save would; returns the path."""
  return write_zip(path, members(tree, **settings))


def save_legacy(path, tree):
  """Writes a tree as torch.save did before 1.6."""
  with open(path, 'wb') as file, mock.patch.dict(sys.modules, MODULES):
    sizes = {'short': 2, 'int': 4, 'long': 4}
    facts = {'protocol_version': 1001, 'little_endian': True}
    pickle.dump(0x1950A86A20F9469CFC6C, file, 2)
    pickle.dump(1001, file, 2)
    pickle.dump(facts | {'type_sizes': sizes}, file, 2)
    pickler = _Pickler(file, 2, (None,))
    pickler.dump(tree)
    # Not in the order in which the pickle names them.
    order = list(reversed(range(len(pickler.storages))))
    pickle.dump([str(i) for i in order], file, 2)
    for i in order:
      storage = pickler.storages[i]
      file.write(struct.pack('<q', storage.count) + storage.raw)
  return path


def save_pickle(path, code: bytes):
  """Writes a torch file around a pickle; storage 0 has 4 floats."""
  members = {'data.pkl': code, 'data/0': np.arange(4, dtype='f4').tobytes()}
  return write_zip(path, members)


def checkpoint(arrays=True) -> dict:
  """A checkpoint with one of everything that may stand in one."""
  rng = np.random.default_rng(0)
  weight = rng.normal(size=(3, 4)).astype('f4')
  state = collections.OrderedDict(weight=tensor(weight))
  state['again'] = Call(UTILS._rebuild_parameter, (state['weight'], True, {}))
  state._metadata = {'': {'version': 1}}
  tree = {
    'model': state,
    'args': argparse.Namespace(lr=1e-3, arch='swin_tiny', crops=(2, 8)),
    'size': Call(TORCH.Size, ((3, 4),)),
    'device': Call(TORCH.device, ('cuda', 1)),
    'cpu': Call(TORCH.device, ('cpu',)),
    'dtype': TORCH.float32,
    'plain': [None, True, False, -1, 300, 70000, 2**40, 2.5, 'ä', b'\xff\0'],
    'sets': {1, 'a'},
    'empty': [(), {}, [], set(), b'', ''],
    7: (1, (2, (3, (4, 5)))),
  }
  if arrays:
    tree['lr'] = np.float64(0.1)
    tree['seen'] = np.bool_(True)
    tree['rng'] = np.arange(6, dtype='u4').reshape(2, 3)
    tree['columns'] = np.asfortranarray(np.arange(6.0).reshape(2, 3))
  return tree


def refusal(path) -> str:
  """The one line with which a file is refused."""
  with pytest.raises(UserError) as caught:
    read(path)
  line = str(caught.value)
  assert '\n' not in line and len(line) < 400
  assert line.startswith(repr(os.fspath(path)))
  return line
