"""The names that a torch pickle may use: a closed table.

The first argument of a maker is the machine that runs the pickle, where its
work is counted.
"""

import dataclasses
import re
from collections.abc import Callable
from typing import Any

import numpy as np

from esvit_jax.weights.torch.array import (
  CODES,
  KINDS,
  RefusedError,
  Storage,
  elements,
  naturals,
  short,
)


@dataclasses.dataclass(frozen=True)
class Kind:
  """A class of storages; `code` is its element type."""

  code: str


@dataclasses.dataclass(frozen=True)
class Maker:
  """A function or class that a pickle may call."""

  make: Callable[..., Any]


@dataclasses.dataclass
class Pending:
  """A NumPy dtype or array that has not got its state yet."""

  code: str | None = None  # of a dtype, with its byte order
  array: np.ndarray | None = None


class Fields(dict):
  """The fields of an argparse.Namespace."""


def _tensor(
  machine, storage, offset, size, stride, grad=None, hooks=None, bits=None
):
  """torch._utils._rebuild_tensor_v2; bits mark a lazy conjugate or minus."""
  if type(storage) is not Storage or bits:
    raise RefusedError('has a tensor that is not plain values: refused')
  return machine.storages.view(storage, offset, size, stride)


def _untyped_tensor(
  machine, storage, offset, size, stride, grad, hooks, dtype, bits=None
):
  """torch._utils._rebuild_tensor_v3, whose storage has no type of its own."""
  known = type(dtype) is str and dtype.removeprefix('torch.') in CODES
  if type(storage) is not Storage or not known:
    raise RefusedError(f'has a tensor of type {short(dtype)}: not read')
  code = CODES[dtype.removeprefix('torch.')]
  storage = dataclasses.replace(storage, code=code)
  return _tensor(machine, storage, offset, size, stride, bits=bits)


def _parameter(machine, data, grad=None, hooks=None, state=None):
  return data


def _size(machine, values=()):
  return naturals(values)


def _device(machine, kind, index=None):
  if type(kind) is not str or type(index) not in (int, type(None)):
    raise TypeError
  machine.spend(len(kind) // 64)
  device = kind if index is None else f'{kind}:{index}'
  if not re.fullmatch('[a-z]{1,16}(:[0-9]{1,4})?', device):
    raise RefusedError('has a torch.device that is none: it is damaged')
  return device


def _set(machine, values=()):
  machine.spend(len(values))
  return set(map(checked_key, values))


def _bytes(machine, text='', encoding='latin1'):
  """How protocol 2 writes bytes: _codecs.encode(text, 'latin1')."""
  if type(text) is not str or not says(encoding, 'latin1'):
    raise RefusedError(
      'has bytes in an encoding torch.save does not use: refused'
    )
  machine.spend(len(text) // 64)
  return text.encode('latin1')


def _numpy_dtype(machine, code, align=False, copy=False):
  if not says(code, *CODES.values()) or code == 'bf16':
    raise RefusedError(f'has numpy values of type {short(code)}: not read')
  return Pending(code=code)


def _numpy_scalar(machine, dtype, raw):
  return numpy_values(machine, dtype, raw, (), 'C').item()


def numpy_values(machine, dtype, raw, shape, order):
  if type(dtype) is not Pending or type(raw) is not bytes:
    raise RefusedError('has a numpy value that is not plain numbers: refused')
  machine.spend(len(raw) // 64)
  values = elements(raw, dtype.code[-2:], dtype.code[:-2])
  return values.reshape(naturals(shape), order=order)


NAMES = {
  **{f'torch.{name}': Kind(code) for name, code in KINDS.items()},
  'torch.storage.UntypedStorage': Kind('u1'),
  **{f'torch.{name}': f'torch.{name}' for name in CODES},
  'torch._utils._rebuild_tensor_v2': Maker(_tensor),
  'torch._utils._rebuild_tensor_v3': Maker(_untyped_tensor),
  'torch._utils._rebuild_parameter': Maker(_parameter),
  'torch._utils._rebuild_parameter_with_state': Maker(_parameter),
  'torch.Size': Maker(_size),
  'torch.device': Maker(_device),
  'collections.OrderedDict': Maker(lambda machine: {}),
  'argparse.Namespace': Maker(lambda machine: Fields()),
  '__builtin__.set': Maker(_set),
  'builtins.set': Maker(_set),
  '__builtin__.bytes': Maker(_bytes),
  '_codecs.encode': Maker(_bytes),
  'numpy.ndarray': 'numpy.ndarray',
  'numpy.dtype': Maker(_numpy_dtype),
}
for _place in ('numpy.core.multiarray', 'numpy._core.multiarray'):
  NAMES[f'{_place}.scalar'] = Maker(_numpy_scalar)
  NAMES[f'{_place}._reconstruct'] = Maker(lambda machine, *_: Pending())


def says(value: object, *words: str) -> bool:
  """Whether a value is one of the words; arrays would compare elementwise."""
  return type(value) is str and value in words


def checked_key(key: object) -> object:
  """Checks that a value may be a key.

  Tuples are out because hashing nested ones overflows the C stack, integers
  beyond 60 bits because they can be made to share one hash.
  """
  if type(key) is int and abs(key) < 1 << 60:
    return key
  if type(key) not in (str, bytes, float, bool, type(None)):
    raise RefusedError(f'has a key of type {type(key).__name__}: refused')
  return key
