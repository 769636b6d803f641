"""Laws of the interpreter of torch's pickles: nothing runs."""

import ast
import collections
import functools
import os
import pathlib
import pickletools
import struct
import sys
import threading
import time

import numpy as np
import pytest
import torch_writer as writer

from esvit_jax.errors import UserError
from esvit_jax.weights.torch import array as torch_array
from esvit_jax.weights.torch import file as torch_file
from esvit_jax.weights.torch import legacy, names
from esvit_jax.weights.torch import pickle as torch_pickle
from esvit_jax.weights.torch.file import read


@pytest.fixture
def save(tmp_path):
  """Writes a tree as torch.save would; returns the path."""
  return functools.partial(writer.save, tmp_path / 'a.pth')


@pytest.fixture
def save_pickle(tmp_path):
  """Writes a torch file around a pickle; returns the path."""
  return functools.partial(writer.save_pickle, tmp_path / 'a.pth')


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
  'esvit_jax.weights.torch.file read',
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
  line = writer.refusal(save_pickle(b'\x80\2}X\1\0\0\0a' + ask + b')Rs.'))
  assert f"asks for the Python object '{module}.{name}'" in line
  assert 'nothing was run' in line


def test_nothing_of_an_exploit_runs(save, tmp_path):
  class Exploit:
    def __reduce__(self):
      return os.system, (f'touch {tmp_path}/canary',)

  for protocol in (2, 4):
    line = writer.refusal(save({'a': Exploit()}, protocol=protocol))
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
  assert word in writer.refusal(save_pickle(code))


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
  assert word in writer.refusal(path)
  assert time.perf_counter() - start < 8


def test_names_of_one_list_count_each_time(save_pickle):
  # Twice as long with each level, of few bytes: 2 ** 60 items to a walker.
  code = b'(]q\0' + b'](h\0h\0eq\0' * 60 + b't'
  head = b'}X\1\0\0\0a'
  assert 'more than' in writer.refusal(save_pickle(head + code + b's.'))


def test_depth_hidden_by_a_second_mention_counts(save_pickle):
  # Each list of the outer one is 60 deep, but holds the one before.
  code = b'](Nq\0' + (b']h\0a' + b'q\1]h\1a' * 60 + b'q\0') * 3 + b'e'
  head = b'}X\1\0\0\0a'
  assert 'nests more' in writer.refusal(save_pickle(head + code + b's.'))


@pytest.mark.parametrize(
  'module', [torch_array, torch_file, torch_pickle, legacy, names]
)
def test_only_numpy_and_the_standard_library_are_imported(module):
  text = pathlib.Path(module.__file__).read_text()
  found = set()
  for node in ast.walk(ast.parse(text)):
    if isinstance(node, ast.Import):
      found |= {alias.name.split('.')[0] for alias in node.names}
    elif isinstance(node, ast.ImportFrom):
      found.add(node.module.split('.')[0])
  assert found - set(sys.stdlib_module_names) <= {'numpy', 'esvit_jax'}
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
  tree = {'aim': f'touch {canary}'} | writer.checkpoint()
  path = tmp_path / 'a.pth'
  rng = np.random.default_rng(0)
  whole = {p: writer.members(tree, protocol=p) for p in (2, 4)}
  raw = writer.write_zip(path, whole[2]).read_bytes()
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
      writer.write_zip(path, members)
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
