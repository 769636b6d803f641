"""An interpreter of torch's pickles that runs no code.

It knows the few instructions that torch.save writes and a closed table of
names; a pickle can reach no other Python object.
"""

import pickle
import re
import struct
from typing import Any

import numpy as np

from esvit_jax.weights.torch.array import RefusedError, Storage, Storages, short
from esvit_jax.weights.torch.names import (
  NAMES,
  Fields,
  Kind,
  Maker,
  Pending,
  checked_key,
  numpy_values,
  says,
)

# What a file may cost. Swin-B with optimiser, 1,900 arrays, takes 95,000 steps.
_STEPS = 1_000_000  # pickle instructions, and nodes of the tree
_DEPTH = 100  # containers in containers


def run(code: bytes, storages: Storages) -> Any:
  """The tree a pickle describes, plain containers and arrays only.

  Args:
    code: the pickle.
    storages: what its tensors are views of.

  Raises:
    RefusedError: it is damaged, or asks for anything else.
  """
  return run_at(code, storages)[0]


def run_at(code: bytes, storages: Storages) -> tuple[Any, int]:
  """As `run`, of a pickle with bytes behind it; also returns its length."""
  machine = _Machine(code, storages)
  return machine.run(), machine.at


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
  """Runs a pickle on a stack of plain values."""

  def __init__(self, code: bytes, storages: Storages):
    self.code, self.storages = code, storages
    self.at = 0
    self.steps = _STEPS
    self.stack, self.marks, self.memo = [], [], {}

  def run(self) -> Any:
    """Returns the tree the pickle describes, plain containers only."""
    try:
      while (code := bytes(self.take(1))) != pickle.STOP:
        self.spend(1)
        self.step(code)
      (root,) = self.stack
      return _Plainer(self).plain(root, 0)[0]
    except _ODD as error:
      raise RefusedError(
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
      raise RefusedError(
        f'has the pickle instruction {code!r}, which torch.save never writes: '
        'refused, nothing was run'
      )

  def spend(self, steps: int):
    """Counts work, so that a small file cannot ask for hours of it."""
    self.steps -= steps
    if self.steps < 0:
      raise RefusedError(
        f'asks for more than {_STEPS:,} steps to read its pickle: refused'
      )

  def take(self, count: int) -> bytes:
    begin, self.at = self.at, self.at + count
    if self.at > len(self.code):
      raise RefusedError('has a pickle that ends too early: it is damaged')
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
      target.update(map(checked_key, items))

  def set_items(self, items: list):
    target = self.stack[-1]
    if type(target) is not dict:
      raise TypeError
    for key, value in zip(items[::2], items[1::2], strict=True):
      target[checked_key(key)] = value

  def name(self, module: str, name: str, known: bool = True):
    """Looks up a global in the table; there is no other way to get one."""
    if type(module) is not str or type(name) is not str:
      raise TypeError
    whole = f'{module}.{name}'
    if whole not in NAMES or not known:
      raise RefusedError(
        f'asks for the Python object {short(whole)}, which is no array or '
        'plain container: refused, nothing was run; torch.save state_dicts '
        'and plain values only'
      )
    self.stack.append(NAMES[whole])

  def call(self, maker: object, args: object):
    if type(maker) is not Maker or type(args) is not tuple:
      raise RefusedError('calls something that is no maker of values: refused')
    self.spend(10)
    self.stack.append(maker.make(self, *args))

  def build(self, state: Any):
    """Gives the object on top of the stack its state."""
    target = self.stack[-1]
    if type(target) is Fields:
      if type(state) is not dict or not all(type(k) is str for k in state):
        raise TypeError
      self.spend(len(state))
      target.update(state)
    elif type(target) is Pending and target.code:
      if not says(state[1], '<', '>', '=', '|'):
        raise ValueError
      target.code = state[1] + target.code[-2:]
    elif type(target) is Pending:
      _, shape, dtype, fortran, raw = state
      order = 'F' if fortran else 'C'
      target.array = numpy_values(self, dtype, raw, shape, order)
    elif type(target) is not dict:  # of an OrderedDict: its Python attributes
      raise RefusedError(
        f'sets attributes of an object of type {type(target).__name__}: '
        'refused, nothing was run'
      )

  def point(self, target: object):
    """Puts the storage on the stack that a persistent id names."""
    # The older format has a sixth field, for views, that is always None.
    if type(target) is not tuple or target[5:] not in ((), (None,)):
      raise RefusedError('points to something that is no storage: refused')
    word, kind, key, _, count = target[:5]
    if (
      not says(word, 'storage')
      or type(kind) is not Kind
      or type(key) is not str
      or not re.fullmatch('[0-9]{1,20}', key)
    ):
      raise RefusedError('points to something that is no storage: refused')
    storage = Storage(key, kind.code)
    self.storages.claim(storage, count)
    self.stack.append(storage)


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
    if type(item) is Storage:
      return self.machine.storages.elements(item), 1, 0
    if type(item) is Pending and item.array is not None:
      return item.array, 1, 0
    if type(item) not in (dict, Fields, list, tuple, set):
      raise RefusedError('has a name where a value should be: refused')
    if depth < _DEPTH and id(item) not in self.done:
      self.done[id(item)] = self.copy(item, depth)
    # What is not done lies too deep: it may hold itself.
    done = self.done.get(id(item))
    if done is None or depth + done[2] > _DEPTH:
      raise RefusedError(f'nests more than {_DEPTH} containers: refused')
    return done

  def copy(self, item: Any, depth: int) -> tuple[Any, int, int]:
    inner = item.values() if isinstance(item, dict) else item
    values, nodes, height = [], 1, 0
    for value, count, below in (self.plain(x, depth + 1) for x in inner):
      values.append(value)
      nodes += count
      height = max(height, below)
    if nodes > _STEPS:
      raise RefusedError(f'describes more than {_STEPS:,} values: refused')
    if isinstance(item, dict):
      return dict(zip(item, values)), nodes, height + 1
    return type(item)(values), nodes, height + 1
