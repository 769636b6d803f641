"""Reads what torch.save wrote, without torch and without running anything.

The file is a zip: `NAME/data.pkl` is a pickle that describes the tree,
`NAME/data/N` are the bytes of storage N. The zip stays where it is (it is
mapped, never extracted). The pickle goes through an interpreter of its own
that knows the few instructions torch.save writes and a closed table of names;
a pickle can reach no other Python object through it.
"""

import dataclasses
import math
import mmap
import os
import pickle
import re
import stat
import struct
import zipfile
import zlib
from collections.abc import Callable
from typing import Any

import numpy as np

from esvit_jax.errors import UserError

# What a file may cost. Swin-B with optimiser, 1,900 arrays, takes 95,000 steps.
_STEPS = 1_000_000  # pickle instructions, and nodes of the tree
_DEPTH = 100  # containers in containers
_DIMS = 32  # axes of an array
_PICKLE = 32 << 20  # bytes of data.pkl
_GROWTH, _SLACK = 8, 64 << 20  # bytes unpacked: 8 times the file + 64 MiB

# numpy's names of the element types; bf16 is ours, numpy has none.
_STORED = {'bf16': 'u2', 'b1': 'u1'}
_CODES = {
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
_STORAGES = {
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


def read(path: str | os.PathLike) -> dict:
  """Reads a checkpoint that torch.save wrote.

  Tensors and parameters become read-only numpy arrays that view the file
  (nothing is copied until it is used; overwriting the file in place changes
  them). float16 stays float16; bfloat16 becomes float32, which is exact.
  OrderedDict and argparse.Namespace become dict, torch.Size a tuple,
  torch.device and torch.dtype str, numpy scalars Python numbers. Python
  attributes of a state dict (`_metadata`) are dropped.

  Args:
    path: a .pth, .pth.tar, .pt or .ckpt file; the name does not matter.

  Returns:
    The tree: dict, list, tuple, set, str, bytes, numbers, None and arrays.

  Raises:
    UserError: no such file, another format, damage, or a pickle that asks for
      anything else than the above.
  """
  try:
    archive = _Archive(_map(path))
    tree = _Machine(archive).run()
    if not isinstance(tree, dict):
      raise _RefusedError(
        f'holds a {type(tree).__name__} where a checkpoint holds a dict: '
        'torch.save a state_dict or a dict of them'
      )
    return tree
  except _RefusedError as error:
    raise UserError(f'{os.fspath(path)!r}: {error}') from None


class _RefusedError(Exception):
  """Why a file is not read, without its name."""


# The file and its zip.


def _map(path: str | os.PathLike) -> mmap.mmap:
  """Maps a file that starts like a zip into memory, read-only."""
  try:
    # Looking first: opening a pipe would wait for ever.
    mode = os.stat(path).st_mode
    if stat.S_ISDIR(mode):
      raise _RefusedError('is a folder: name the checkpoint file in it')
    if not stat.S_ISREG(mode):
      raise _RefusedError('is not a regular file: name a checkpoint file')
    with open(path, 'rb') as file:
      head = file.read(512)
      if not head.startswith(b'PK\3\4'):
        raise _RefusedError(_other_format(head))
      return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
  except FileNotFoundError:
    raise _RefusedError('no such file') from None
  except (OSError, ValueError) as error:
    why = getattr(error, 'strerror', None) or error
    raise _RefusedError(f'cannot be read: {why}') from None


def _other_format(head: bytes) -> str:
  """Says what a file is, given how it starts, and what to do."""
  if not head:
    return 'is empty: download or copy it again'
  if head[:2] == b'\x80\2' and b'\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8' in head[:16]:
    return (
      "is in torch's format from before 1.6: load it with torch and torch.save "
      'it again'
    )
  if head[8:9] == b'{' and int.from_bytes(head[:8], 'little') < 1 << 40:
    return 'is a safetensors file, not one of torch.save: load it as such'
  kinds = {
    b'PK': 'a zip without members',
    b'\x1f\x8b': 'a gzip file: unpack it first',
    b'\x93NUMPY': 'a NumPy array',
    b'\x89HDF': 'an HDF5 file',
    b'\x80': 'a bare pickle',
  }
  for start, kind in kinds.items():
    if head.startswith(start):
      return f'is {kind}, not a file of torch.save'
  if head[257:262] == b'ustar':
    return 'is a tar file, not one of torch.save: unpack it first'
  text = head.decode('utf-8', 'ignore')
  printable = all(c.isprintable() or c.isspace() for c in text)
  if printable and len(text.encode()) > len(head) - 4:  # 4: a cut character
    return (
      f'is a text file that starts with {_short(text.strip()[:40])}, not a '
      'checkpoint: did the download fail?'
    )
  return 'is not a file of torch.save: its format is unknown'


class _Archive:
  """The members of a torch zip, checked, as bytes in memory."""

  def __init__(self, data: mmap.mmap):
    """Reads the list of members.

    Args:
      data: the whole file.

    Raises:
      _RefusedError: not a sound zip, or not one of torch.save.
    """
    self.data = data
    self.members = {}
    self.limit = _GROWTH * len(data) + _SLACK
    try:
      with zipfile.ZipFile(_Window(data)) as archive:
        entries = archive.infolist()
    except Exception as error:  # zipfile raises a dozen kinds
      raise _RefusedError(
        f'is a zip file cut short or damaged ({_short(str(error))}): '
        'download or copy it again'
      ) from None
    names = [entry.orig_filename for entry in entries]
    for name in names:
      parts = name.removesuffix('/').split('/')
      if (
        {'', '.', '..'} & set(parts)
        or '\\' in name
        or re.match('[A-Za-z]:', name)
        or not name.isprintable()
      ):
        raise _RefusedError(
          f'has a member named {_short(name)}, which no torch.save writes: '
          'refused'
        )
    if len(set(names)) < len(names):
      raise _RefusedError('has two members of one name: refused')
    if sum(entry.file_size for entry in entries) > self.limit:
      raise _RefusedError(
        'claims to unpack to more than 8 times its size, which no torch.save '
        'writes: refused'
      )
    self.entries = dict(zip(names, entries))
    pickles = [name for name in names if re.fullmatch(r'[^/]+/data\.pkl', name)]
    if len(pickles) != 1:
      raise _RefusedError(
        'is a zip file but not one of torch.save (it has no single '
        'NAME/data.pkl)'
      )
    self.root = pickles[0].removesuffix('data.pkl')
    if self.root + 'constants.pkl' in self.entries:
      raise _RefusedError(
        'is a TorchScript program: load it with torch and torch.save its '
        'state_dict()'
      )
    # torch.serialization.set_crc32_options(False) leaves all of them 0.
    self.summed = any(entry.CRC for entry in entries)

  def member(self, name: str) -> memoryview:
    """The bytes of one member, read and checked once."""
    if name not in self.members:
      self.members[name] = self._bytes(name)
    return self.members[name]

  def _bytes(self, name: str) -> memoryview:
    """Unpacks a member and checks it against its checksum."""
    entry = self.entries.get(self.root + name)
    if entry is None:
      raise _RefusedError(f'lacks its member {_short(name)}: it is damaged')
    if entry.flag_bits & 1:
      raise _RefusedError(
        'is encrypted: unpack it and zip it without a password'
      )
    begin = entry.header_offset
    header = self.data[begin : begin + 30] if begin >= 0 else b''
    if len(header) < 30 or header[:4] != b'PK\3\4':
      raise _RefusedError(f'is damaged at its member {name!r}')
    begin += 30 + sum(struct.unpack('<HH', header[26:]))
    raw = memoryview(self.data)[begin : begin + entry.compress_size]
    if entry.compress_type == zipfile.ZIP_DEFLATED:
      try:
        unzip = zlib.decompressobj(-zlib.MAX_WBITS)
        raw = memoryview(unzip.decompress(raw, entry.file_size + 1))
      except zlib.error as error:
        raise _RefusedError(
          f'is damaged at its member {name!r}: {error}'
        ) from None
    elif entry.compress_type != zipfile.ZIP_STORED:
      raise _RefusedError(
        'is compressed in a way torch.save does not use: zip it again without '
        'compression'
      )
    if len(raw) != entry.file_size:
      raise _RefusedError(
        f'holds another number of bytes in its member {name!r} than it claims: '
        'it is damaged'
      )
    if self.summed and zlib.crc32(raw) != entry.CRC:
      raise _RefusedError(
        f'is damaged: the checksum of its member {name!r} differs; download or '
        'copy it again'
      )
    return raw


class _Window:
  """A mapped file as zipfile wants it (3.12's mmap lacks seekable)."""

  def __init__(self, data: mmap.mmap):
    self.read, self.seek, self.tell = data.read, data.seek, data.tell

  def seekable(self) -> bool:
    return True


def _short(thing: object) -> str:
  """What a file says, fit for one line; containers can be endless."""
  if type(thing) not in (str, int, float):
    return f'<{type(thing).__name__}>'
  return repr(thing)[:80]


# What the names of the pickle stand for. A maker gets the machine first.


@dataclasses.dataclass(frozen=True)
class _Kind:
  """A class of storages; `code` is its element type."""

  code: str


@dataclasses.dataclass(frozen=True)
class _Maker:
  """A name that may be called, or made an object of."""

  make: Callable[..., Any]


@dataclasses.dataclass(frozen=True)
class _Storage:
  """A storage the pickle points to."""

  key: str
  code: str


@dataclasses.dataclass
class _Pending:
  """A numpy dtype or array between its making and its state."""

  code: str | None = None  # of a dtype, with its byte order
  array: np.ndarray | None = None


class _Fields(dict):
  """The fields of an argparse.Namespace."""


def _tensor(
  machine, storage, offset, size, stride, grad=None, hooks=None, bits=None
):
  """torch._utils._rebuild_tensor_v2; bits mark a lazy conjugate or minus."""
  if type(storage) is not _Storage or bits:
    raise _RefusedError('has a tensor that is not plain values: refused')
  return machine.view(storage, offset, size, stride)


def _untyped_tensor(
  machine, storage, offset, size, stride, grad, hooks, dtype, bits=None
):
  """torch._utils._rebuild_tensor_v3, whose storage has no type of its own."""
  known = type(dtype) is str and dtype.removeprefix('torch.') in _CODES
  if type(storage) is not _Storage or not known:
    raise _RefusedError(f'has a tensor of type {_short(dtype)}: not read')
  code = _CODES[dtype.removeprefix('torch.')]
  storage = dataclasses.replace(storage, code=code)
  return _tensor(machine, storage, offset, size, stride, bits=bits)


def _parameter(machine, data, grad=None, hooks=None, state=None):
  return data


def _size(machine, values=()):
  return _naturals(values)


def _device(machine, kind, index=None):
  if type(kind) is not str or type(index) not in (int, type(None)):
    raise TypeError
  machine.spend(len(kind) // 64)
  device = kind if index is None else f'{kind}:{index}'
  if not re.fullmatch('[a-z]{1,16}(:[0-9]{1,4})?', device):
    raise _RefusedError('has a torch.device that is none: it is damaged')
  return device


def _set(machine, values=()):
  machine.spend(len(values))
  return set(map(_key, values))


def _bytes(machine, text='', encoding='latin1'):
  """How protocol 2 writes bytes: _codecs.encode(text, 'latin1')."""
  if type(text) is not str or not _says(encoding, 'latin1'):
    raise _RefusedError(
      'has bytes in an encoding torch.save does not use: refused'
    )
  machine.spend(len(text) // 64)
  return text.encode('latin1')


def _numpy_dtype(machine, code, align=False, copy=False):
  if not _says(code, *_CODES.values()) or code == 'bf16':
    raise _RefusedError(f'has numpy values of type {_short(code)}: not read')
  return _Pending(code=code)


def _numpy_scalar(machine, dtype, raw):
  return _numpy_values(machine, dtype, raw, (), 'C').item()


def _numpy_values(machine, dtype, raw, shape, order):
  if type(dtype) is not _Pending or type(raw) is not bytes:
    raise _RefusedError('has a numpy value that is not plain numbers: refused')
  machine.spend(len(raw) // 64)
  values = _elements(raw, dtype.code[-2:], dtype.code[:-2])
  return values.reshape(_naturals(shape), order=order)


_TABLE = {
  **{f'torch.{name}': _Kind(code) for name, code in _STORAGES.items()},
  'torch.storage.UntypedStorage': _Kind('u1'),
  **{f'torch.{name}': f'torch.{name}' for name in _CODES},
  'torch._utils._rebuild_tensor_v2': _Maker(_tensor),
  'torch._utils._rebuild_tensor_v3': _Maker(_untyped_tensor),
  'torch._utils._rebuild_parameter': _Maker(_parameter),
  'torch._utils._rebuild_parameter_with_state': _Maker(_parameter),
  'torch.Size': _Maker(_size),
  'torch.device': _Maker(_device),
  'collections.OrderedDict': _Maker(lambda machine: {}),
  'argparse.Namespace': _Maker(lambda machine: _Fields()),
  '__builtin__.set': _Maker(_set),
  'builtins.set': _Maker(_set),
  '__builtin__.bytes': _Maker(_bytes),
  '_codecs.encode': _Maker(_bytes),
  'numpy.ndarray': 'numpy.ndarray',
  'numpy.dtype': _Maker(_numpy_dtype),
}
for _place in ('numpy.core.multiarray', 'numpy._core.multiarray'):
  _TABLE[f'{_place}.scalar'] = _Maker(_numpy_scalar)
  _TABLE[f'{_place}._reconstruct'] = _Maker(lambda machine, *_: _Pending())


def _elements(raw: memoryview | bytes, code: str, order: str) -> np.ndarray:
  """Bytes -> [n] values in this machine's byte order; `code` as in _CODES."""
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


def _naturals(values: object) -> tuple[int, ...]:
  """Checks that the values can be a shape, strides or an offset."""
  if (
    type(values) not in (tuple, list)
    or len(values) > _DIMS
    or not all(type(value) is int and value >= 0 for value in values)
  ):
    raise _RefusedError('has an array whose shape, strides or offset are none')
  return tuple(values)


def _says(value: object, *words: str) -> bool:
  """Whether a value is one of the words; == alone is an array's own affair."""
  return type(value) is str and value in words


def _key(key: object) -> object:
  """Checks that a value may be a key.

  Tuples are out because hashing nested ones overflows the C stack, integers
  beyond 60 bits because they can be made to share one hash.
  """
  if type(key) is int and abs(key) < 1 << 60:
    return key
  if type(key) not in (str, bytes, float, bool, type(None)):
    raise _RefusedError(f'has a key of type {type(key).__name__}: refused')
  return key


# The interpreter.

_CONSTANTS = {pickle.NONE: None, pickle.NEWTRUE: True, pickle.NEWFALSE: False}
_EMPTY = {
  pickle.EMPTY_DICT: dict,
  pickle.EMPTY_LIST: list,
  pickle.EMPTY_TUPLE: tuple,
  pickle.EMPTY_SET: set,
}
_NUMBERS = {
  pickle.BININT: '<i',
  pickle.BININT1: '<B',
  pickle.BININT2: '<H',
  pickle.BINFLOAT: '>d',
}
_SIZED = {  # bytes of the length; what the rest becomes
  pickle.SHORT_BINUNICODE: (1, lambda raw: raw.decode()),
  pickle.BINUNICODE: (4, lambda raw: raw.decode()),
  pickle.SHORT_BINBYTES: (1, bytes),
  pickle.BINBYTES: (4, bytes),
  pickle.LONG1: (1, lambda raw: int.from_bytes(raw, 'little', signed=True)),
}
_TUPLES = {pickle.TUPLE1: 1, pickle.TUPLE2: 2, pickle.TUPLE3: 3}
_PUT = {pickle.BINPUT: 1, pickle.LONG_BINPUT: 4}
_GET = {pickle.BINGET: 1, pickle.LONG_BINGET: 4}
_SKIP = {pickle.PROTO: 1, pickle.FRAME: 8}
_PLAIN = (type(None), bool, int, float, str, bytes)
_ODD = (
  IndexError,
  KeyError,
  TypeError,
  ValueError,
  OverflowError,
  MemoryError,
  RecursionError,
  struct.error,
)


class _Machine:
  """Runs the pickle of an archive on a stack of plain values."""

  def __init__(self, archive: _Archive):
    if archive.entries[archive.root + 'data.pkl'].file_size > _PICKLE:
      raise _RefusedError('has a pickle of more than 32 MiB: refused')
    self.code = bytes(archive.member('data.pkl'))
    self.at = 0
    self.steps = _STEPS
    self.room = archive.limit
    self.archive = archive
    self.order = '<'
    if archive.root + 'byteorder' in archive.entries:
      orders = {b'little': '<', b'big': '>'}
      self.order = orders.get(bytes(archive.member('byteorder')))
      if self.order is None:
        raise _RefusedError('names an unknown byte order: it is damaged')
    self.stack, self.marks, self.memo = [], [], {}
    self.arrays = {}

  def run(self) -> Any:
    """Returns the tree the pickle describes, plain containers only."""
    try:
      while (code := bytes(self.take(1))) != pickle.STOP:
        self.spend(1)
        self.step(code)
      (root,) = self.stack
      return _Plainer(self).plain(root, 0)[0]
    except _ODD as error:
      raise _RefusedError(
        f'has a damaged pickle ({type(error).__name__} at byte {self.at}): '
        'download or copy it again'
      ) from None

  def step(self, code: bytes):
    """Runs one instruction."""
    if code in _GET:
      self.stack.append(self.memo[self.number(_GET[code])])
    elif code in _PUT:
      self.put(self.number(_PUT[code]))
    elif code in _CONSTANTS:
      self.stack.append(_CONSTANTS[code])
    elif code in _NUMBERS:
      form = _NUMBERS[code]
      (value,) = struct.unpack(form, self.take(struct.calcsize(form)))
      self.stack.append(value)
    elif code in _SIZED:
      width, form = _SIZED[code]
      self.stack.append(form(self.take(self.number(width))))
    elif code in _EMPTY:
      self.stack.append(_EMPTY[code]())
    elif code in _TUPLES:
      self.stack.append(tuple(self.last(_TUPLES[code])))
    elif code in _SKIP:
      self.take(_SKIP[code])
    elif code in _OTHERS:
      _OTHERS[code](self)
    else:
      raise _RefusedError(
        f'has the pickle instruction {code!r}, which torch.save never writes: '
        'refused, nothing was run'
      )

  def spend(self, steps: int):
    """Counts work, so that a small file cannot ask for hours of it."""
    self.steps -= steps
    if self.steps < 0:
      raise _RefusedError(
        f'asks for more than {_STEPS:,} steps to read its pickle: refused'
      )

  def take(self, count: int) -> bytes:
    begin, self.at = self.at, self.at + count
    if self.at > len(self.code):
      raise _RefusedError('has a pickle that ends too early: it is damaged')
    return self.code[begin : self.at]

  def number(self, width: int) -> int:
    return int.from_bytes(self.take(width), 'little')

  def line(self) -> str:
    text = self.take(self.code.index(b'\n', self.at) + 1 - self.at)
    return text[:-1].decode()

  def mark(self):
    self.marks.append(len(self.stack))

  def to_mark(self) -> list:
    begin = self.marks.pop()
    if begin > len(self.stack):
      raise IndexError
    items = self.stack[begin:]
    del self.stack[begin:]
    return items

  def last(self, count: int) -> list:
    items = self.stack[-count:]
    if len(items) < count:
      raise IndexError
    del self.stack[-count:]
    return items

  def put(self, index: int):
    self.memo[index] = self.stack[-1]

  def extend(self, items: list, kind: type = list):
    target = self.stack[-1]
    if type(target) is not kind:
      raise TypeError
    if kind is list:
      target.extend(items)
    else:
      target.update(map(_key, items))

  def set_items(self, items: list):
    target = self.stack[-1]
    if type(target) is not dict:
      raise TypeError
    for key, value in zip(items[::2], items[1::2], strict=True):
      target[_key(key)] = value

  def name(self, module: str, name: str, known: bool = True):
    """Looks a global up in the table; there is no other way to one."""
    if type(module) is not str or type(name) is not str:
      raise TypeError
    whole = f'{module}.{name}'
    if whole not in _TABLE or not known:
      raise _RefusedError(
        f'asks for the Python object {_short(whole)}, which is no array or '
        'plain container: refused, nothing was run; torch.save state_dicts '
        'and plain values only'
      )
    self.stack.append(_TABLE[whole])

  def call(self, maker: object, args: object):
    if type(maker) is not _Maker or type(args) is not tuple:
      raise _RefusedError('calls something that is no maker of values: refused')
    self.spend(10)
    self.stack.append(maker.make(self, *args))

  def build(self, state: Any):
    """Gives the object on top of the stack its state."""
    target = self.stack[-1]
    if type(target) is _Fields:
      if type(state) is not dict or not all(type(k) is str for k in state):
        raise TypeError
      self.spend(len(state))
      target.update(state)
    elif type(target) is _Pending and target.code:
      if not _says(state[1], '<', '>', '=', '|'):
        raise ValueError
      target.code = state[1] + target.code[-2:]
    elif type(target) is _Pending:
      _, shape, dtype, fortran, raw = state
      order = 'F' if fortran else 'C'
      target.array = _numpy_values(self, dtype, raw, shape, order)
    elif type(target) is not dict:  # of an OrderedDict: its Python attributes
      raise _RefusedError(
        f'sets attributes of an object of type {type(target).__name__}: '
        'refused, nothing was run'
      )

  def point(self, target: object):
    """Puts the storage on the stack that a persistent id names."""
    if type(target) is not tuple or len(target) != 5:
      raise _RefusedError('points to something that is no storage: refused')
    word, kind, key, _, count = target
    if (
      not _says(word, 'storage')
      or type(kind) is not _Kind
      or type(key) is not str
      or not re.fullmatch('[0-9]{1,9}', key)
    ):
      raise _RefusedError('points to something that is no storage: refused')
    storage = _Storage(key, kind.code)
    held = len(self.elements(storage))
    if type(count) is not int or count != held:
      raise _RefusedError(
        f'claims {_short(count)} values in storage {key}, which holds {held}: '
        'refused'
      )
    self.stack.append(storage)

  def elements(self, storage: _Storage) -> np.ndarray:
    """The values of a storage, [n]; read and checked once."""
    if storage not in self.arrays:
      raw = self.archive.member(f'data/{storage.key}')
      self.arrays[storage] = _elements(raw, storage.code, self.order)
    return self.arrays[storage]

  def view(self, storage: _Storage, offset: int, size, stride) -> np.ndarray:
    """A strided view of a storage, after a check of every bound."""
    values = self.elements(storage)
    size, stride = _naturals(size), _naturals(stride)
    (offset,) = _naturals((offset,))
    if len(size) != len(stride):
      raise _RefusedError('has a tensor with more axes than strides: refused')
    # Strides of 0 can make one value into any number of them.
    self.room -= values.itemsize * math.prod(max(n, 1) for n in size)
    if self.room < 0:
      raise _RefusedError(
        'has tensors that unpack to more than 8 times the file: refused'
      )
    last = offset + sum((n - 1) * s for n, s in zip(size, stride))
    if 0 in size:
      offset, stride = 0, (0,) * len(size)
    elif last >= len(values):
      raise _RefusedError(
        f'has a tensor that reaches value {last} of storage {storage.key}, '
        f'which holds {len(values)}: refused'
      )
    steps = [s * values.itemsize if n > 1 else 0 for n, s in zip(size, stride)]
    start = offset * values.itemsize
    return np.ndarray(size, values.dtype, values, start, steps)


_OTHERS = {
  pickle.MARK: _Machine.mark,
  pickle.TUPLE: lambda m: m.stack.append(tuple(m.to_mark())),
  pickle.APPEND: lambda m: m.extend([m.stack.pop()]),
  pickle.APPENDS: lambda m: m.extend(m.to_mark()),
  pickle.ADDITEMS: lambda m: m.extend(m.to_mark(), set),
  pickle.SETITEM: lambda m: m.set_items(m.last(2)),
  pickle.SETITEMS: lambda m: m.set_items(m.to_mark()),
  pickle.GLOBAL: lambda m: m.name(m.line(), m.line()),
  pickle.STACK_GLOBAL: lambda m: m.name(*m.last(2)),
  pickle.INST: lambda m: m.name(m.line(), m.line(), False),
  pickle.REDUCE: lambda m: m.call(*m.last(2)),
  pickle.NEWOBJ: lambda m: m.call(*m.last(2)),
  pickle.BUILD: lambda m: m.build(m.stack.pop()),
  pickle.BINPERSID: lambda m: m.point(m.stack.pop()),
  pickle.MEMOIZE: lambda m: m.put(len(m.memo)),
}


class _Plainer:
  """Turns what the machine built into plain values, all of it checked.

  A tree that names one container many times is small in the file and large
  for whoever walks it, so each mention counts, in nodes and in depth.
  """

  def __init__(self, machine: _Machine):
    self.machine = machine
    self.done = {}

  def plain(self, item: Any, depth: int) -> tuple[Any, int, int]:
    """Returns the plain value, the number of its nodes and its height."""
    if type(item) in _PLAIN or type(item) is np.ndarray:
      return item, 1, 0
    if type(item) is _Storage:
      return self.machine.elements(item), 1, 0
    if type(item) is _Pending and item.array is not None:
      return item.array, 1, 0
    if type(item) not in (dict, _Fields, list, tuple, set):
      raise _RefusedError('has a name where a value should be: refused')
    if depth < _DEPTH and id(item) not in self.done:
      self.done[id(item)] = self.copy(item, depth)
    # What is not done lies too deep: it may hold itself.
    found = self.done.get(id(item))
    if found is None or depth + found[2] > _DEPTH:
      raise _RefusedError(f'nests more than {_DEPTH} containers: refused')
    return found

  def copy(self, item: Any, depth: int) -> tuple[Any, int, int]:
    inner = item.values() if isinstance(item, dict) else item
    values, nodes, height = [], 1, 0
    for value, count, below in (self.plain(x, depth + 1) for x in inner):
      values.append(value)
      nodes += count
      height = max(height, below)
    if nodes > _STEPS:
      raise _RefusedError(f'describes more than {_STEPS:,} values: refused')
    if isinstance(item, dict):
      return dict(zip(item, values)), nodes, height + 1
    return type(item)(values), nodes, height + 1
