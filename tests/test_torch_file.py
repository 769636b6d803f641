"""Laws of the reader of torch files: what it reads, and what it must not.

The files are made here, with a small writer of torch.save's format: the real
pickler writes the names of a few stand-in modules in place of torch's.
"""

import argparse
import ast
import collections
import dataclasses
import io
import os
import pathlib
import pickle
import pickletools
import struct
import sys
import threading
import time
import types
import zipfile
from unittest import mock

import ml_dtypes
import numpy as np
import pytest

from esvit_jax import torch_file
from esvit_jax.errors import UserError
from esvit_jax.torch_file import read

_KINDS = {
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


# The writer.


def _stand_ins() -> dict[str, types.ModuleType]:
  """Modules whose classes pickle as torch's do."""
  names = {
    'torch': [
      *_KINDS.values(),
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


_MODULES = _stand_ins()
_TORCH, _UTILS = _MODULES['torch'], _MODULES['torch._utils']
_UNTYPED = _MODULES['torch.storage'].UntypedStorage


@dataclasses.dataclass(eq=False)
class _Storage:
  """Bytes of one kind; `count` is what the pickle claims it holds."""

  kind: type
  raw: bytes
  count: object


@dataclasses.dataclass(eq=False)
class _Call:
  """What pickles as a call: a tensor, a parameter, a size."""

  maker: object
  args: tuple


def _store(array: np.ndarray) -> _Storage:
  kind = getattr(_TORCH, _KINDS[array.dtype.str[1:]])
  return _Storage(kind, array.tobytes(), array.size)


def _view(storage, size, stride, offset=0) -> _Call:
  hooks = collections.OrderedDict()
  args = (storage, offset, size, stride, False, hooks)
  return _Call(_UTILS._rebuild_tensor_v2, args)


def _tensor(array: np.ndarray) -> _Call:
  stride = tuple(s // array.itemsize for s in array.strides)
  return _view(_store(array), array.shape, stride)


class _Pickler(pickle.Pickler):
  """Writes storages as persistent ids, as torch.save does."""

  def __init__(self, file, protocol):
    super().__init__(file, protocol)
    self.storages = []

  def persistent_id(self, item):
    if not isinstance(item, _Storage):
      return None
    if item not in self.storages:
      self.storages.append(item)
    key = str(self.storages.index(item))
    return ('storage', item.kind, key, 'cpu', item.count)

  def reducer_override(self, item):
    return (item.maker, item.args) if type(item) is _Call else NotImplemented


def _members(tree, protocol=2, order=b'little') -> dict[str, bytes]:
  """The members of a torch file of a tree."""
  file = io.BytesIO()
  pickler = _Pickler(file, protocol)
  with mock.patch.dict(sys.modules, _MODULES):
    pickler.dump(tree)
  return {
    'data.pkl': file.getvalue(),
    'byteorder': order,
    **{f'data/{i}': s.raw for i, s in enumerate(pickler.storages)},
    'version': b'3\n',
  }


def _zip(path, members, root='archive/', method=zipfile.ZIP_STORED):
  """Writes a zip whose members begin at multiples of 64, as torch's do."""
  with open(path, 'wb') as file, zipfile.ZipFile(file, 'w') as archive:
    for name, raw in members.items():
      entry = zipfile.ZipInfo(root + name)
      entry.compress_type = method
      room = -(file.tell() + 34 + len(entry.filename.encode())) % 64
      entry.extra = struct.pack('<HH', 0x4246, room) + bytes(room)
      archive.writestr(entry, raw)
  return path


@pytest.fixture
def save(tmp_path):
  """Writes a tree as torch.save would; returns the path."""

  def write(tree, **settings):
    return _zip(tmp_path / 'a.pth', _members(tree, **settings))

  return write


@pytest.fixture
def save_pickle(tmp_path):
  """Writes a torch file around a pickle; storage 0 has 4 floats."""

  def write(code: bytes):
    members = {'data.pkl': code, 'data/0': np.arange(4, dtype='f4').tobytes()}
    return _zip(tmp_path / 'a.pth', members)

  return write


def _refusal(path) -> str:
  """The one line with which a file is refused."""
  with pytest.raises(UserError) as caught:
    read(path)
  line = str(caught.value)
  assert '\n' not in line and len(line) < 400
  assert line.startswith(repr(os.fspath(path)))
  return line


# What it reads.


def _tree(arrays=True) -> dict:
  """A checkpoint with one of everything that may stand in one."""
  rng = np.random.default_rng(0)
  weight = rng.normal(size=(3, 4)).astype('f4')
  state = collections.OrderedDict(weight=_tensor(weight))
  state['again'] = _Call(_UTILS._rebuild_parameter, (state['weight'], True, {}))
  state._metadata = {'': {'version': 1}}
  tree = {
    'model': state,
    'args': argparse.Namespace(lr=1e-3, arch='swin_tiny', crops=(2, 8)),
    'size': _Call(_TORCH.Size, ((3, 4),)),
    'device': _Call(_TORCH.device, ('cuda', 1)),
    'cpu': _Call(_TORCH.device, ('cpu',)),
    'dtype': _TORCH.float32,
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


@pytest.mark.parametrize('protocol', [2, 3, 4, 5])
def test_reads_everything_a_checkpoint_holds(save, protocol):
  # Protocol 5 pickles numpy's arrays another way, which torch never does.
  tree = _tree(arrays=protocol < 5)
  found = read(save(tree, protocol=protocol))
  assert list(found) == list(tree)
  model = found.pop('model')
  assert type(model) is dict and list(model) == ['weight', 'again']
  want = np.frombuffer(tree['model']['weight'].args[0].raw, 'f4')
  np.testing.assert_array_equal(model['weight'], want.reshape(3, 4))
  assert np.shares_memory(model['weight'], model['again'])
  assert found['args'] == {'lr': 1e-3, 'arch': 'swin_tiny', 'crops': (2, 8)}
  assert found['size'] == (3, 4)
  assert (found['device'], found['cpu']) == ('cuda:1', 'cpu')
  assert found['dtype'] == 'torch.float32'
  for name in ('plain', 'sets', 'empty', 7):
    assert found[name] == tree[name]
    assert type(found[name]) is type(tree[name])
  if protocol < 5:
    assert type(found['lr']) is float and found['lr'] == 0.1
    assert found['seen'] is True
    for name in ('rng', 'columns'):
      np.testing.assert_array_equal(found[name], tree[name], strict=True)


@pytest.mark.parametrize('code', _KINDS)
@pytest.mark.parametrize('order', ['little', 'big'])
def test_reads_each_type_of_storage(save, code, order):
  values = np.array([0, 1, 0, 1, 1, 1]).astype(code)
  storage = _store(values.astype(values.dtype.newbyteorder(order)))
  path = save({'a': _view(storage, (6,), (1,))}, order=order.encode())
  np.testing.assert_array_equal(read(path)['a'], values, strict=True)


def test_bfloat16_becomes_float32_exactly(save):
  values = np.array([1, -0.3, 1e-40, np.inf, 3e38], ml_dtypes.bfloat16)
  storage = _Storage(_TORCH.BFloat16Storage, values.tobytes(), 5)
  found = read(save({'a': _view(storage, (5,), (1,))}))['a']
  np.testing.assert_array_equal(found, values.astype('f4'), strict=True)
  assert not found.flags.writeable


def test_an_untyped_storage_takes_the_type_of_its_tensor(save):
  storage = _Storage(_UNTYPED, np.arange(4, dtype='u2').tobytes(), 8)
  args = (storage, 1, (3,), (1,), False, {}, _TORCH.uint16)
  tree = {'a': _Call(_UTILS._rebuild_tensor_v3, args), 'raw': storage}
  found = read(save(tree))
  np.testing.assert_array_equal(found['a'], np.array([1, 2, 3], 'u2'))
  np.testing.assert_array_equal(found['raw'].view('u2'), np.arange(4))


def test_a_bool_is_what_torch_takes_it_for(save):
  storage = _Storage(_TORCH.BoolStorage, b'\0\1\2\xff', 4)
  found = read(save({'a': _view(storage, (4,), (1,))}))['a']
  assert found.tolist() == [False, True, True, True]
  assert found.view('u1').max() == 1


def test_views_are_strided_shared_and_read_only(save):
  values = np.arange(24, dtype='f4')
  store = _store(values)
  found = read(
    save(
      {
        'turned': _view(store, (6, 4), (1, 6)),
        'every_other': _view(store, (3, 2), (8, 2), 5),
        'overlapping': _view(store, (22, 3), (1, 1)),
        'spread': _view(store, (2, 3), (0, 0), 7),
        'one': _view(store, (), (), 23),
        'thin': _view(store, (1, 24), (2**70, 1)),
        'none': _view(store, (3, 0), (1, 1), 24),
      }
    )
  )
  windows = np.lib.stride_tricks.sliding_window_view(values, 3)
  want = {
    'turned': values.reshape(4, 6).T,
    'every_other': values[5:].reshape(-1)[[0, 2, 8, 10, 16, 18]].reshape(3, 2),
    'overlapping': windows,
    'spread': np.full((2, 3), 7, 'f4'),
    'one': values[23],
    'thin': values[None],
    'none': np.zeros((3, 0), 'f4'),
  }
  for name, array in want.items():
    np.testing.assert_array_equal(found[name], array)
    assert found[name].shape == array.shape
    assert not found[name].flags.writeable
  assert np.shares_memory(found['turned'], found['one'])


def test_the_file_is_mapped_not_copied(save):
  path = save({'a': _tensor(np.zeros(1 << 20, 'f4'))})
  found = read(path)['a']
  raw = bytearray(path.read_bytes())
  place = raw.index(bytes(1 << 20))
  with open(path, 'r+b') as file:
    file.seek(place + 64)
    file.write(np.full(8, 5, 'f4').tobytes())
  assert found.max() > 0


@pytest.mark.parametrize('root', ['archive/', 'my run (1)/', 'Ü/'])
def test_reads_a_file_that_was_zipped_again(tmp_path, root):
  members = _members({'a': _tensor(np.arange(1000, dtype='f4'))})
  path = _zip(tmp_path / 'a', members, root, zipfile.ZIP_DEFLATED)
  np.testing.assert_array_equal(read(path)['a'], np.arange(1000))


def test_reads_files_without_checksums(save):
  # torch.serialization.set_crc32_options(False) writes zeros for all.
  path = save({'a': _tensor(np.arange(3, dtype='f4'))})
  with zipfile.ZipFile(path) as archive:
    sums = [struct.pack('<I', entry.CRC) for entry in archive.infolist()]
  raw = path.read_bytes()
  for crc in sums:
    raw = raw.replace(crc, bytes(4))
  path.write_bytes(raw)
  np.testing.assert_array_equal(read(path)['a'], np.arange(3))


# What it must not read: the wrong file.


@pytest.mark.parametrize(
  'raw, word',
  [
    (b'', 'is empty'),
    (b'<!DOCTYPE html>\n<p>no', "text file that starts with '<!DOCTYPE html>"),
    ('ключ: ä\n'.encode() * 99, 'text file'),
    (b'\x80\2\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19.\x80\2M\xe9\3.', 'before 1.6'),
    (pickle.dumps({'a': 1}), 'bare pickle'),
    (b'\x10\0\0\0\0\0\0\0{"a":{}}        ', 'safetensors'),
    (b'\x1f\x8b\x08' + bytes(99), 'gzip'),
    (b'\x93NUMPY\1\0', 'NumPy'),
    (b'PK\5\6' + bytes(18), 'zip without members'),
    (bytes(257) + b'ustar' + bytes(250), 'tar file'),
    (b'\x7fELF\2\1' + bytes(range(256)), 'unknown'),
  ],
)
def test_another_format_is_named(tmp_path, raw, word):
  path = tmp_path / 'a.pth'
  path.write_bytes(raw)
  assert word in _refusal(path)


def test_places_that_are_no_file(tmp_path):
  os.mkfifo(tmp_path / 'pipe')
  assert 'is a folder' in _refusal(tmp_path)
  assert 'no such file' in _refusal(tmp_path / 'b\nc.pth')
  assert 'regular file' in _refusal(tmp_path / 'pipe')
  assert 'null byte' in _refusal('a\0b')


def test_a_zip_of_something_else(tmp_path):
  path = tmp_path / 'a.npz'
  np.savez(path, a=np.zeros(3))
  assert 'not one of torch.save' in _refusal(path)
  members = _members({'a': 1}) | {'constants.pkl': b'', 'code/a.py': b''}
  assert 'TorchScript' in _refusal(_zip(tmp_path / 'b.pt', members))


@pytest.mark.parametrize('tree', [[1], 3, 'a', _tensor(np.zeros(2))])
def test_a_file_of_one_thing_is_no_checkpoint(save, tree):
  assert 'where a checkpoint holds a dict' in _refusal(save(tree))


# The zip.


def test_a_truncated_file_is_refused_wherever_it_ends(save):
  raw = save({'a': _tensor(np.arange(99, dtype='f4'))}).read_bytes()
  path = save({})
  for end in range(4, len(raw), 7):
    path.write_bytes(raw[:end])
    assert 'download' in _refusal(path)


def test_a_changed_weight_is_noticed(save):
  values = np.arange(99, dtype='f4')
  path = save({'a': _tensor(values)})
  raw = path.read_bytes()
  changed = values.copy()
  changed[50] = 0
  path.write_bytes(raw.replace(values.tobytes(), changed.tobytes()))
  assert "checksum of its member 'data/0'" in _refusal(path)


@pytest.mark.parametrize(
  'name', ['../data.pkl', '/etc/passwd', 'a/../../b', 'C:/b', 'a\\b', 'a//b']
)
def test_path_tricks_are_refused(tmp_path, name):
  path = _zip(tmp_path / 'a.pth', _members({'a': 1}))
  with zipfile.ZipFile(path, 'a') as archive:
    archive.writestr(name, b'x')
  assert 'no torch.save writes' in _refusal(path)
  assert os.listdir(tmp_path) == ['a.pth']


def test_two_members_of_one_name_are_refused(tmp_path):
  path = _zip(tmp_path / 'a.pth', _members({'a': 1}) | {'dat2.pkl': b'N.'})
  path.write_bytes(path.read_bytes().replace(b'dat2.pkl', b'data.pkl'))
  assert 'two members' in _refusal(path)


def test_bombs_are_refused(tmp_path, save):
  bomb = _members({'a': 1}) | {'data/0': bytes(100 << 20)}
  path = _zip(tmp_path / 'b.pth', bomb, method=zipfile.ZIP_DEFLATED)
  assert path.stat().st_size < 1 << 20
  assert '8 times its size' in _refusal(path)
  code = _members({'a': 1}) | {'data.pkl': bytes(40 << 20)}
  path = _zip(tmp_path / 'c.pth', code, method=zipfile.ZIP_DEFLATED)
  assert 'more than 32 MiB' in _refusal(path)
  spread = _view(_store(np.zeros(1, 'f4')), (1 << 20, 1 << 20), (0, 0))
  assert '8 times the file' in _refusal(save({'a': spread}))


def test_a_member_that_lies_about_its_size_is_refused(tmp_path):
  members = _members({'a': _tensor(np.zeros(1000, 'f4'))})
  path = _zip(tmp_path / 'a', members, method=zipfile.ZIP_DEFLATED)
  raw = path.read_bytes()
  for lie in (400, 4_000_000):
    claim = raw.replace(struct.pack('<I', 4000), struct.pack('<I', lie))
    path.write_bytes(claim)
    assert 'another number of bytes' in _refusal(path)


def test_an_encrypted_member_is_refused(save):
  path = save({'a': 1})
  raw = bytearray(path.read_bytes())
  raw[raw.index(b'PK\1\2') + 8] |= 1
  path.write_bytes(raw)
  assert 'encrypted' in _refusal(path)


# The tensors.


@pytest.mark.parametrize(
  'size, stride, offset, word',
  [
    ((25,), (1,), 0, 'reaches value 24'),
    ((24,), (1,), 1, 'reaches value 24'),
    ((4, 6), (7, 1), 0, 'reaches value 26'),
    ((2,), (2**62,), 0, 'reaches value'),
    ((2,), (2**70,), 0, 'reaches value'),
    ((1,), (1,), 2**64, 'reaches value'),
    ((2**61,), (1,), 0, '8 times'),
    ((2**40, 2**40), (0, 0), 0, '8 times'),
    ((0, 2**61), (1, 1), 0, '8 times'),
    ((2,), (-1,), 3, 'shape, strides or offset'),
    ((-2,), (1,), 3, 'shape, strides or offset'),
    ((2,), (1,), -1, 'shape, strides or offset'),
    ((2.0,), (1,), 0, 'shape, strides or offset'),
    ((True,), (1,), 0, 'shape, strides or offset'),
    ((1,) * 40, (1,) * 40, 0, 'shape, strides or offset'),
    ('12', (1, 1), 0, 'shape, strides or offset'),
    (None, None, None, 'shape, strides or offset'),
    ((2, 2), (1,), 0, 'more axes than strides'),
  ],
)
def test_a_tensor_stays_inside_its_storage(save, size, stride, offset, word):
  store = _store(np.arange(24, dtype='f4'))
  assert word in _refusal(save({'a': _view(store, size, stride, offset)}))


@pytest.mark.parametrize('count', [25, 23, 2**62, -1, 0, None, 24.0, '24'])
def test_a_storage_holds_what_it_claims(save, count):
  store = _store(np.arange(24, dtype='f4'))
  store.count = count
  assert 'holds 24' in _refusal(save({'a': _view(store, (1,), (1,))}))


def test_a_missing_or_odd_storage_is_refused(tmp_path):
  members = _members({'a': _tensor(np.zeros(2, 'f4'))})
  path = tmp_path / 'a.pth'
  for odd in ({'data/0': bytes(7)}, {'byteorder': b'middle'}):
    assert 'damaged' in _refusal(_zip(path, members | odd))
  del members['data/0']
  assert "lacks its member 'data/0'" in _refusal(_zip(path, members))


def test_lazy_signs_and_unknown_types_are_refused(save):
  call = _view(_store(np.zeros(2, 'f4')), (2,), (1,))
  call.args += ({'neg': True},)
  assert 'not plain values' in _refusal(save({'a': call}))


# The pickle.

_HOSTILE = [
  'os system',
  'posix system',
  'subprocess Popen',
  'builtins eval',
  '__builtin__ eval',
  'builtins getattr',
  'torch load',
  'torch._utils __builtins__',
  'torch.storage _load_from_bytes',
  'numpy load',
  'numpy.testing._private.utils runstring',
  'collections OrderedDict.__init__',
  'argparse FileType',
  'functools partial',
  'models.swin SwinTransformer',
  'esvit_jax.torch_file read',
]


@pytest.mark.parametrize('place', _HOSTILE)
@pytest.mark.parametrize('form', ['global', 'stack', 'inst'])
def test_a_foreign_name_is_refused_and_named(save_pickle, place, form):
  module, name = place.split(' ')
  ask = f'c{module}\n{name}\n'.encode()
  if form == 'stack':
    words = (module.encode(), name.encode())
    ask = (
      b''.join(b'X' + struct.pack('<I', len(w)) + w for w in words) + b'\x93'
    )
  elif form == 'inst':
    ask = f'(i{module}\n{name}\n'.encode()
  line = _refusal(save_pickle(b'\x80\2}X\1\0\0\0a' + ask + b')Rs.'))
  assert f"asks for the Python object '{module}.{name}'" in line
  assert 'nothing was run' in line


def test_nothing_of_an_exploit_runs(save, tmp_path):
  class Exploit:
    def __reduce__(self):
      return os.system, (f'touch {tmp_path}/canary',)

  for protocol in (2, 4):
    line = _refusal(save({'a': Exploit()}, protocol=protocol))
    assert 'system' in line
  assert os.listdir(tmp_path) == ['a.pth']


@pytest.mark.parametrize(
  'code, word',
  [
    (b'}(cos\nsystem\no.', "'os.system'"),
    (b'}(}o.', 'instruction'),
    (b'(icollections\nOrderedDict\n.', "'collections.OrderedDict'"),
    (b'\x82\1.', 'instruction'),
    (b'\x83\1\0.', 'instruction'),
    (b'\x84\1\0\0\0.', 'instruction'),
    (b'P0\n.', 'instruction'),
    (b'S"a"\n.', 'instruction'),
    (b'\x8b\0\0\0\x7f.', 'instruction'),
    (b'}X\0\0\0\0)R.', 'calls'),
    (b'}])R.', 'calls'),
    (b'ctorch\nFloatStorage\n)R.', 'calls'),
    (b'ctorch\nFloatStorage\n)\x81.', 'calls'),
    (b']}b.', 'sets attributes of an object of type list'),
    (b'ctorch\nSize\n}b.', 'sets attributes'),
    (b'ctorch\nFloatStorage\n}b.', 'sets attributes'),
    (b'}Q.', 'no storage'),
    (b'(U\0tQ.', 'instruction'),
    (b'X\6\0\0\0systemQ.', 'no storage'),
    (b'}X\1\0\0\0actorch\nFloatStorage\ns.', 'a name where a value'),
    (b'}X\1\0\0\0acnumpy\nndarray\n)Rs.', 'calls'),
    (b'}}}s.', 'has a key of type'),
    (b'})Ns.', 'has a key of type'),
    (b'0.', 'instruction'),
    (b'.', 'damaged'),
    (b't.', 'damaged'),
    (b'(1.', 'instruction'),
    (b'}u.', 'damaged'),
    (b'}(Nu.', 'damaged'),
    (b'h\0.', 'damaged'),
    (b'j\xff\xff\xff\xff.', 'damaged'),
    (b'q\0.', 'damaged'),
    (b'X\xff\xff\xff\xffa.', 'ends too early'),
    (b'\x8a\xff\0.', 'ends too early'),
    (b'cos.', 'damaged'),
    (b'', 'ends too early'),
    (b'}}.', 'damaged'),
    (b'cargparse\nNamespace\n)\x81}K\1Nsb.', 'damaged'),
    (b'ccollections\nOrderedDict\nK\1\x85R.', 'damaged'),
    (b'c_codecs\nencode\nX\1\0\0\0aX\5\0\0\0zip_a\x86R.', 'encoding'),
    (b'c_codecs\nencode\nX\1\0\0\0aX\5\0\0\0rot13\x86R.', 'encoding'),
    (b'cnumpy\ndtype\nX\1\0\0\0O\x85R.', 'numpy values of type'),
    (b'ctorch\ndevice\nX\3\0\0\0a b\x85R.', 'device'),
  ],
)
def test_an_odd_pickle_is_refused(save_pickle, code, word):
  assert word in _refusal(save_pickle(code))


_SET = b'c__builtin__\nset\nh\0\x85R'  # of the list in memo 0
_ALIKE = [(i * (2**61 - 1)).to_bytes(11, 'little') for i in range(100_000)]
_LONG = b'X' + struct.pack('<I', 8 << 20) + b'a' * (8 << 20)


@pytest.mark.parametrize(
  'code, word',
  [
    (b']' * 300_000 + b'a' * 299_999 + b'.', 'nests more'),
    (b'(' * 300_000 + b't' * 300_000 + b'.', 'nests more'),
    (b'N' + b'\x85' * 300_000 + b'.', 'nests more'),
    (b'}N' + b'\x85' * 300_000 + b'Ns.', 'has a key of type'),
    (b'N' * 2_000_000 + b'.', 'steps'),
    (b']q\0h\0a.', 'nests more'),
    (b'}q\0X\1\0\0\0ah\0s.', 'nests more'),
    (b'](' + b'N' * 50_000 + b'eq\0' + _SET * 5000 + b'.', 'steps'),
    (
      b'](' + b''.join(b'\x8a\x0b' + n for n in _ALIKE) + b'eq\0' + _SET,
      'has a key of type',
    ),
    (
      _LONG + b'X\6\0\0\0latin1\x86q\0' + b'c_codecs\nencode\nh\0R' * 9999,
      'steps',
    ),
    (b'ctorch\nSize\n((' + b'K\1' * 99 + b'ttR.', 'shape'),
  ],
  ids=range(11),
)
def test_a_small_file_cannot_ask_for_much_work(save_pickle, code, word):
  path = save_pickle(code)
  start = time.perf_counter()
  assert word in _refusal(path)
  assert time.perf_counter() - start < 8


def test_names_of_one_list_count_each_time(save_pickle):
  # Twice as long with each level, of few bytes: 2 ** 60 items to a walker.
  code = b'(]q\0' + b'](h\0h\0eq\0' * 60 + b't'
  head = b'}X\1\0\0\0a'
  assert 'more than' in _refusal(save_pickle(head + code + b's.'))


def test_depth_hidden_by_a_second_mention_counts(save_pickle):
  # Each list of the outer one is 60 deep, but holds the one before.
  code = b'](Nq\0' + (b']h\0a' + b'q\1]h\1a' * 60 + b'q\0') * 3 + b'e'
  head = b'}X\1\0\0\0a'
  assert 'nests more' in _refusal(save_pickle(head + code + b's.'))


def test_only_numpy_and_the_standard_library_are_imported():
  text = pathlib.Path(torch_file.__file__).read_text()
  found = set()
  for node in ast.walk(ast.parse(text)):
    if isinstance(node, ast.Import):
      found |= {alias.name.split('.')[0] for alias in node.names}
    elif isinstance(node, ast.ImportFrom):
      found.add(node.module.split('.')[0])
  assert found - set(sys.stdlib_module_names) == {'numpy', 'esvit_jax'}
  for call in ('pickle.load', 'Unpickler', 'eval(', 'exec(', 'import_module'):
    assert call not in text


# Fuzzing.

_WATCHED = ('exec', 'compile', 'import', 'os.', 'subprocess.', 'socket.')
_seen = []
_watch = []  # the thread whose audit events are written down


def _audit(event, args):
  if not _watch or threading.get_ident() != _watch[0]:
    return
  writes = os.O_WRONLY | os.O_RDWR | os.O_CREAT
  if event.startswith(_WATCHED) or (event == 'open' and args[2] & writes):
    _seen.append((event, args))


@pytest.fixture
def watched():
  """Python's own record of what runs or is written, of this thread."""
  if not _seen and not getattr(_audit, 'on', False):
    sys.addaudithook(_audit)  # for the life of the process
    _audit.on = True
  _seen.clear()
  return _seen


def _flip(rng, raw: bytes) -> bytes:
  raw = bytearray(raw)
  for place in rng.integers(len(raw), size=rng.integers(1, 5)):
    raw[place] = rng.integers(256)
  return bytes(raw)


def _cut(rng, raw: bytes) -> bytes:
  begin, end = sorted(rng.integers(len(raw) + 1, size=2))
  again = raw[begin:end] * rng.integers(3)
  return raw[:begin] + again + raw[end:]


def _swap(rng, raw: bytes) -> bytes:
  """Puts other instructions where there were some."""
  places = [place for _, _, place in pickletools.genops(raw)]
  codes = [op.code.encode('latin1') for op in pickletools.opcodes]
  raw = bytearray(raw)
  for place in rng.choice(places, size=rng.integers(1, 4)):
    raw[place : place + 1] = codes[rng.integers(len(codes))]
  return bytes(raw)


def _rename(rng, raw: bytes) -> bytes:
  """Puts a hostile name, or another name of the table, for one."""
  names = [name for op, name, _ in pickletools.genops(raw) if op.code == 'c']
  old = names[rng.integers(len(names))]
  new = rng.choice(_HOSTILE + names)
  forms = [f'c{name}\n'.replace(' ', '\n', 1).encode() for name in (old, new)]
  return raw.replace(forms[0], forms[1], rng.integers(1, 3))


def _renumber(rng, raw: bytes) -> bytes:
  """Puts an extreme number for a small one."""
  places = [at for op, _, at in pickletools.genops(raw) if op.code == 'K']
  at = rng.choice(places)
  value = int(rng.choice([-1, 0, 1, 255, 2**31, 2**40, 2**62]))
  number = b'\x8a\x09' + value.to_bytes(9, 'little', signed=True)
  return raw[:at] + number + raw[at + 2 :]


def _assert_plain(item, depth=0):
  assert depth <= 100
  if type(item) is np.ndarray:
    assert item.dtype.kind in 'biuf' and item.dtype.isnative
    assert len(item.tobytes()) < 1 << 28  # touches every value
  elif type(item) is dict:
    for key, value in item.items():
      assert type(key) in (str, int, float, bool, bytes, type(None))
      _assert_plain(value, depth + 1)
  elif type(item) in (list, tuple, set):
    for value in item:
      _assert_plain(value, depth + 1)
  else:
    assert type(item) in (str, int, float, bool, bytes, type(None))


def test_fuzz(tmp_path, watched):
  """Mutated files are read or refused in one line, and nothing else happens."""
  count = 600 if os.environ.get('ESVIT_FUZZ') else 120
  canary = tmp_path / 'canary'
  tree = {'aim': f'touch {canary}'} | _tree()
  path = tmp_path / 'a.pth'
  rng = np.random.default_rng(0)
  whole = {p: _members(tree, protocol=p) for p in (2, 4)}
  raw = _zip(path, whole[2]).read_bytes()
  read(path)
  'a'.encode('cp437')  # zipfile imports the codec of old names
  ends = collections.Counter()
  for i in range(count):
    if i % 7 < 2:
      path.write_bytes((_flip, _cut)[i % 7](rng, raw))
    else:
      members = dict(whole[2 if i % 7 > 4 else rng.choice([2, 4])])
      change = (_flip, _cut, _swap, _rename, _renumber)[i % 7 - 2]
      members['data.pkl'] = change(rng, members['data.pkl'])
      _zip(path, members)
    _watch.append(threading.get_ident())
    try:
      found = read(path)
    except UserError as error:
      found = None
      assert '\n' not in str(error) and len(str(error)) < 400
    finally:
      _watch.clear()
    assert not watched
    if found is not None:
      _assert_plain(found)
    ends['refused' if found is None else 'read'] += 1
  assert os.listdir(tmp_path) == ['a.pth'] and not canary.exists()
  assert ends['refused'] > count / 2 and ends['read'] > count / 50
