"""Published PyTorch checkpoints <-> variables of this project, in memory.

One table per architecture (weights/layouts.py) says which of their keys is
which of ours; it is read in both directions. Every key of both sides has to
be accounted for.
"""

import difflib
import re
from collections.abc import Mapping

import numpy as np
from flax import traverse_util

from esvit_jax.errors import UserError
from esvit_jax.weights.layouts import TABLES, Buffer, Row

Arrays = dict[str, np.ndarray]


def from_published(state: Mapping, arch: str, like: Mapping) -> dict:
  """Variables {'params': ..., 'batch_stats': ...} of a published state_dict.

  Args:
    state: arrays by published key, without prefixes such as `module.`.
    arch: a key of TABLES.
    like: variables (or their shapes, `models.abstract_variables`) that the
      result has to match, leaf by leaf.

  Raises:
    UserError: keys are unexpected, missing, or of another shape, type or, for
      a constant buffer, value.
  """
  table = _table(arch)
  like = traverse_util.flatten_dict(like, sep='/')
  ours, unexpected, differ = {}, [], []
  for key, value in state.items():
    found = _find(table, 'theirs', key, state)
    if found is None:
      unexpected.append(key)
      continue
    row, numbers = found
    if isinstance(row, Buffer):
      source = state.get(row.of.format(**numbers))
      if row.constant and source is not None:
        expected = row.compute(source)
        if not np.array_equal(value, expected):
          differ.append(f'{key} (values)')
      continue
    path = row.ours.format(**numbers)
    if path not in like:
      unexpected.append(key)
      continue
    value = _reorder(value, row.to_ours)
    if value is None or value.shape != like[path].shape:
      shape = _reorder_shape(like[path].shape, row.to_theirs)
      differ.append(f'{key} {state[key].shape}, not {shape}')
    elif value.dtype != like[path].dtype:
      differ.append(f'{key} {value.dtype}, not {like[path].dtype}')
    ours[path] = value
  missing = [_theirs(table, path) for path in like if path not in ours]
  problems = {
    'unexpected': unexpected,
    'missing': missing,
    'different': differ,
  }
  if any(problems.values()):
    text = '; '.join(listed(k, v) for k, v in problems.items() if v)
    raise UserError(f'this checkpoint is not of the {arch} asked for: {text}')
  return traverse_util.unflatten_dict(ours, sep='/')


def implied(state: Mapping, arch: str) -> dict:
  """Zeros of the shapes that a state_dict's own keys ask for.

  For parts whose module only a training config describes, such as decoders:
  a run that starts from them checks them against its own.
  """
  table, ours = _table(arch), {}
  for key, value in state.items():
    found = _find(table, 'theirs', key, state)
    if found is not None and isinstance(found[0], Row):
      row, numbers = found
      shape = _reorder_shape(value.shape, row.to_ours)
      ours[row.ours.format(**numbers)] = np.zeros(shape, np.float32)
  return traverse_util.unflatten_dict(ours, sep='/')


def to_published(variables: Mapping, arch: str) -> Arrays:
  """The state_dict of variables; undoes `from_published`.

  Raises:
    UserError: some variables are not of this architecture.
  """
  table = _table(arch)
  theirs, unexpected = {}, []
  for path, value in traverse_util.flatten_dict(variables, sep='/').items():
    found = _find(table, 'ours', path)
    if found is None:
      unexpected.append(path)
      continue
    row, numbers = found
    theirs[row.theirs.format(**numbers)] = _reorder(
      np.asarray(value), row.to_theirs
    )
  if unexpected:
    raise UserError(
      f'these variables are not of {arch}: {listed("unexpected", unexpected)}'
    )
  for row in table:
    if isinstance(row, Buffer):
      for key in list(theirs):
        numbers = _match(row.of, key)
        if numbers is not None and _applies(row, numbers, theirs):
          buffer = row.compute(theirs[key])
          theirs[row.theirs.format(**numbers)] = buffer
  return theirs


def _table(arch: str):
  if arch not in TABLES:
    close = difflib.get_close_matches(arch, TABLES, 1) or TABLES
    raise UserError(
      f"no conversion for '{arch}': did you mean {' or '.join(close)}?"
    )
  return TABLES[arch]


def _match(template: str, key: str) -> dict[str, str] | None:
  """The numbers that make `template` into `key`."""
  pattern = re.sub(r'\\{(\w)\\}', r'(?P<\1>\\d+)', re.escape(template))
  found = re.fullmatch(pattern, key)
  return found.groupdict() if found else None


def _find(table, side: str, key: str, state: Mapping = {}):
  """The row of a key and its numbers; of theirs, as `state` has it."""
  for row in table:
    numbers = _match(getattr(row, side, ''), key)
    if numbers is not None and _applies(row, numbers, state):
      return row, numbers
  return None


def _applies(row, numbers: Mapping, state: Mapping) -> bool:
  beside = getattr(row, 'beside', ())
  return all(key.format(**numbers) in state for key in beside)


def _theirs(table, path: str) -> str:
  """Their name of one of our variables."""
  found = _find(table, 'ours', path)
  return found[0].theirs.format(**found[1]) if found else path


def _reorder(value: np.ndarray, axes) -> np.ndarray | None:
  if axes is None:
    return value
  if value.ndim != len(axes):
    return None
  return np.ascontiguousarray(value.transpose(axes))


def _reorder_shape(shape: tuple, axes) -> tuple:
  if axes is None or len(axes) != len(shape):
    return shape
  return tuple(shape[a] for a in axes)


def listed(title: str, keys: list[str], most: int = 8) -> str:
  """`keys` for one line: how many, and the first."""
  more = f' and {len(keys) - most} more' if len(keys) > most else ''
  return f'{len(keys)} {title}: {", ".join(keys[:most])}{more}'
