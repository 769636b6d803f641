"""Laws of the reader of torch files: what it reads, and what it must not.

`torch_writer` makes the files; what is in their pickles is the affair of
test_torch_pickle.py.
"""

import functools
import os
import pathlib
import pickle
import struct
import zipfile

import ml_dtypes
import numpy as np
import pytest
import torch_writer as writer

from esvit_jax.weights.torch.file import read

TORCH = pathlib.Path(__file__).parent / 'goldens' / 'torch'


@pytest.fixture
def save(tmp_path):
  """Writes a tree as torch.save would; returns the path."""
  return functools.partial(writer.save, tmp_path / 'a.pth')


# What it reads.


@pytest.mark.parametrize('protocol', ['legacy', 2, 3, 4, 5])
def test_reads_everything_a_checkpoint_holds(save, tmp_path, protocol):
  # Protocol 5 pickles numpy's arrays another way, which torch never does.
  tree = writer.checkpoint(arrays=protocol != 5)
  if protocol == 'legacy':
    found = read(writer.save_legacy(tmp_path / 'a.pth', tree))
  else:
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
  if protocol != 5:
    assert type(found['lr']) is float and found['lr'] == 0.1
    assert found['seen'] is True
    for name in ('rng', 'columns'):
      np.testing.assert_array_equal(found[name], tree[name], strict=True)


@pytest.mark.parametrize('name', ['legacy', 'zip'])
def test_reads_what_torch_itself_has_written(name):
  tree = read(TORCH / f'{name}.pth')
  arrays = tree['state_dict']
  expected = {
    '0.weight': np.float32(
      [
        [-0.0043181954, 0.30940613, -0.47471017],
        [-0.4244697, -0.2221466, 0.15466590],
      ]
    ),
    '0.bias': np.float32([-0.011427705, 0.45731717]),
    '1.weight': np.float32([0.999, 0.999]),
    '1.bias': np.float32([-0.1, -0.1]),
    '1.running_mean': np.float32([-0.018123118, -0.003466791]),
    '1.running_var': np.float32([0.9, 0.9]),
    '1.num_batches_tracked': np.int64(1),
    'view': np.float32([[1, 2], [5, 6], [9, 10]]),
    'transposed': np.arange(12, dtype=np.float32).reshape(3, 4).T,
    'half': np.float16([0.5, -1.5]),
    'scalar': np.int64(7),
    'parameter': np.ones(2, np.float32),
  }
  assert list(arrays) == list(expected)
  for key, value in expected.items():
    assert arrays[key].dtype == value.dtype
    np.testing.assert_allclose(arrays[key], value, rtol=1e-6)
  assert tree['epoch'] == 3 and tree['args'] == {'arch': 'tiny', 'lr': 0.1}


def test_reads_old_files_of_a_newer_protocol():
  arrays = read(TORCH / 'legacy_protocol4.pth')
  bias = np.float32([-0.41928163, 0.43711239])
  np.testing.assert_allclose(arrays['bias'], bias, rtol=1e-6)
  assert arrays['weight'].shape == (2, 2)


@pytest.mark.parametrize('code', writer.KINDS)
@pytest.mark.parametrize('order', ['little', 'big'])
def test_reads_each_type_of_storage(save, code, order):
  values = np.array([0, 1, 0, 1, 1, 1]).astype(code)
  storage = writer.store(values.astype(values.dtype.newbyteorder(order)))
  path = save({'a': writer.view(storage, (6,), (1,))}, order=order.encode())
  np.testing.assert_array_equal(read(path)['a'], values, strict=True)


def test_a_file_from_before_16_is_read_and_checked(tmp_path):
  """Storages of several types, of which two tensors are views."""
  halves = np.arange(5, dtype='f2')
  floats = writer.store(np.arange(6, dtype='f4'))
  tree = {
    'a': writer.tensor(halves),
    'b': writer.view(floats, (2, 2), (3, 1), 1),
    'c': writer.view(floats, (3,), (1,)),
    'n': writer.tensor(np.arange(3)),
  }
  path = writer.save_legacy(tmp_path / 'a.pth', tree)
  found = read(path)
  np.testing.assert_array_equal(found['a'], halves, strict=True)
  np.testing.assert_array_equal(found['b'], [[1, 2], [4, 5]])
  np.testing.assert_array_equal(found['c'], [0, 1, 2])
  np.testing.assert_array_equal(found['n'], np.arange(3), strict=True)
  raw = path.read_bytes()
  for length in range(20, len(raw), 7):
    path.write_bytes(raw[:length])
    writer.refusal(path)
  count = raw.rindex(np.int64(6).tobytes())
  path.write_bytes(raw[:count] + np.int64(5).tobytes() + raw[count + 8 :])
  assert 'which holds 5' in writer.refusal(path)


def test_bfloat16_becomes_float32_exactly(save):
  values = np.array([1, -0.3, 1e-40, np.inf, 3e38], ml_dtypes.bfloat16)
  storage = writer.Storage(writer.TORCH.BFloat16Storage, values.tobytes(), 5)
  found = read(save({'a': writer.view(storage, (5,), (1,))}))['a']
  np.testing.assert_array_equal(found, values.astype('f4'), strict=True)
  assert not found.flags.writeable


def test_an_untyped_storage_takes_the_type_of_its_tensor(save):
  storage = writer.Storage(
    writer.UNTYPED, np.arange(4, dtype='u2').tobytes(), 8
  )
  args = (storage, 1, (3,), (1,), False, {}, writer.TORCH.uint16)
  tree = {
    'a': writer.Call(writer.UTILS._rebuild_tensor_v3, args),
    'raw': storage,
  }
  found = read(save(tree))
  np.testing.assert_array_equal(found['a'], np.array([1, 2, 3], 'u2'))
  np.testing.assert_array_equal(found['raw'].view('u2'), np.arange(4))


def test_a_bool_is_what_torch_takes_it_for(save):
  storage = writer.Storage(writer.TORCH.BoolStorage, b'\0\1\2\xff', 4)
  found = read(save({'a': writer.view(storage, (4,), (1,))}))['a']
  assert found.tolist() == [False, True, True, True]
  assert found.view('u1').max() == 1


def test_views_are_strided_shared_and_read_only(save):
  values = np.arange(24, dtype='f4')
  store = writer.store(values)
  found = read(
    save(
      {
        'turned': writer.view(store, (6, 4), (1, 6)),
        'every_other': writer.view(store, (3, 2), (8, 2), 5),
        'overlapping': writer.view(store, (22, 3), (1, 1)),
        'spread': writer.view(store, (2, 3), (0, 0), 7),
        'one': writer.view(store, (), (), 23),
        'thin': writer.view(store, (1, 24), (2**70, 1)),
        'none': writer.view(store, (3, 0), (1, 1), 24),
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
  path = save({'a': writer.tensor(np.zeros(1 << 20, 'f4'))})
  found = read(path)['a']
  raw = bytearray(path.read_bytes())
  place = raw.index(bytes(1 << 20))
  with open(path, 'r+b') as file:
    file.seek(place + 64)
    file.write(np.full(8, 5, 'f4').tobytes())
  assert found.max() > 0


@pytest.mark.parametrize('root', ['archive/', 'my run (1)/', 'Ü/'])
def test_reads_a_file_that_was_zipped_again(tmp_path, root):
  members = writer.members({'a': writer.tensor(np.arange(1000, dtype='f4'))})
  path = writer.write_zip(tmp_path / 'a', members, root, zipfile.ZIP_DEFLATED)
  np.testing.assert_array_equal(read(path)['a'], np.arange(1000))


def test_reads_files_without_checksums(save):
  # torch.serialization.set_crc32_options(False) writes zeros for all.
  path = save({'a': writer.tensor(np.arange(3, dtype='f4'))})
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
    (b'\x80\2\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19.\x80\2M\xe9\3.', 'too early'),
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
  assert word in writer.refusal(path)


def test_places_that_are_no_file(tmp_path):
  os.mkfifo(tmp_path / 'pipe')
  assert 'is a folder' in writer.refusal(tmp_path)
  assert 'no such file' in writer.refusal(tmp_path / 'b\nc.pth')
  assert 'regular file' in writer.refusal(tmp_path / 'pipe')
  assert 'null byte' in writer.refusal('a\0b')


def test_a_zip_of_something_else(tmp_path):
  path = tmp_path / 'a.npz'
  np.savez(path, a=np.zeros(3))
  assert 'not one of torch.save' in writer.refusal(path)
  members = writer.members({'a': 1}) | {'constants.pkl': b'', 'code/a.py': b''}
  assert 'TorchScript' in writer.refusal(
    writer.write_zip(tmp_path / 'b.pt', members)
  )


@pytest.mark.parametrize('tree', [[1], 3, 'a', writer.tensor(np.zeros(2))])
def test_a_file_of_one_thing_is_no_checkpoint(save, tree):
  assert 'where a checkpoint holds a dict' in writer.refusal(save(tree))


# The zip.


def test_a_truncated_file_is_refused_wherever_it_ends(save):
  raw = save({'a': writer.tensor(np.arange(99, dtype='f4'))}).read_bytes()
  path = save({})
  for end in range(4, len(raw), 7):
    path.write_bytes(raw[:end])
    assert 'download' in writer.refusal(path)


def test_a_changed_weight_is_noticed(save):
  values = np.arange(99, dtype='f4')
  path = save({'a': writer.tensor(values)})
  raw = path.read_bytes()
  changed = values.copy()
  changed[50] = 0
  path.write_bytes(raw.replace(values.tobytes(), changed.tobytes()))
  assert "checksum of its member 'data/0'" in writer.refusal(path)


@pytest.mark.parametrize(
  'name', ['../data.pkl', '/etc/passwd', 'a/../../b', 'C:/b', 'a\\b', 'a//b']
)
def test_path_tricks_are_refused(tmp_path, name):
  path = writer.write_zip(tmp_path / 'a.pth', writer.members({'a': 1}))
  with zipfile.ZipFile(path, 'a') as archive:
    archive.writestr(name, b'x')
  assert 'no torch.save writes' in writer.refusal(path)
  assert os.listdir(tmp_path) == ['a.pth']


def test_two_members_of_one_name_are_refused(tmp_path):
  path = writer.write_zip(
    tmp_path / 'a.pth', writer.members({'a': 1}) | {'dat2.pkl': b'N.'}
  )
  path.write_bytes(path.read_bytes().replace(b'dat2.pkl', b'data.pkl'))
  assert 'two members' in writer.refusal(path)


def test_bombs_are_refused(tmp_path, save):
  bomb = writer.members({'a': 1}) | {'data/0': bytes(100 << 20)}
  path = writer.write_zip(tmp_path / 'b.pth', bomb, method=zipfile.ZIP_DEFLATED)
  assert path.stat().st_size < 1 << 20
  assert '8 times its size' in writer.refusal(path)
  code = writer.members({'a': 1}) | {'data.pkl': bytes(40 << 20)}
  path = writer.write_zip(tmp_path / 'c.pth', code, method=zipfile.ZIP_DEFLATED)
  assert 'more than 32 MiB' in writer.refusal(path)
  spread = writer.view(
    writer.store(np.zeros(1, 'f4')), (1 << 20, 1 << 20), (0, 0)
  )
  assert '8 times the file' in writer.refusal(save({'a': spread}))


def test_a_member_that_lies_about_its_size_is_refused(tmp_path):
  members = writer.members({'a': writer.tensor(np.zeros(1000, 'f4'))})
  path = writer.write_zip(tmp_path / 'a', members, method=zipfile.ZIP_DEFLATED)
  raw = path.read_bytes()
  for lie in (400, 4_000_000):
    claim = raw.replace(struct.pack('<I', 4000), struct.pack('<I', lie))
    path.write_bytes(claim)
    assert 'another number of bytes' in writer.refusal(path)


def test_an_encrypted_member_is_refused(save):
  path = save({'a': 1})
  raw = bytearray(path.read_bytes())
  raw[raw.index(b'PK\1\2') + 8] |= 1
  path.write_bytes(raw)
  assert 'encrypted' in writer.refusal(path)


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
  store = writer.store(np.arange(24, dtype='f4'))
  assert word in writer.refusal(
    save({'a': writer.view(store, size, stride, offset)})
  )


@pytest.mark.parametrize('count', [25, 23, 2**62, -1, 0, None, 24.0, '24'])
def test_a_storage_holds_what_it_claims(save, count):
  store = writer.store(np.arange(24, dtype='f4'))
  store.count = count
  assert 'holds 24' in writer.refusal(
    save({'a': writer.view(store, (1,), (1,))})
  )


def test_a_missing_or_odd_storage_is_refused(tmp_path):
  members = writer.members({'a': writer.tensor(np.zeros(2, 'f4'))})
  path = tmp_path / 'a.pth'
  for odd in ({'data/0': bytes(7)}, {'byteorder': b'middle'}):
    assert 'damaged' in writer.refusal(writer.write_zip(path, members | odd))
  del members['data/0']
  assert "lacks its member 'data/0'" in writer.refusal(
    writer.write_zip(path, members)
  )


def test_lazy_signs_and_unknown_types_are_refused(save):
  call = writer.view(writer.store(np.zeros(2, 'f4')), (2,), (1,))
  call.args += ({'neg': True},)
  assert 'not plain values' in writer.refusal(save({'a': call}))
