"""Published PyTorch arrays <-> variables of this project, in memory.

A layout (weights/layouts) maps published keys to paths of our variables, and
is used in both directions. Every key on both sides has to be accounted for.
"""

import functools
import re
from collections.abc import Mapping

import numpy as np
from flax import traverse_util

from esvit_jax.errors import UserError, suggestion
from esvit_jax.weights.layouts import LAYOUTS, Buffer, Row

Arrays = dict[str, np.ndarray]


def from_published(arrays: Mapping, layout: str, like: Mapping) -> dict:
  """Variables {'params': ..., 'batch_stats': ...} of a published state_dict.

  Args:
    arrays: by published key, without prefixes such as `module.`.
    layout: a key of LAYOUTS.
    like: variables, or their shapes (`models.abstract_variables`), that the
      result must match leaf by leaf.

  Raises:
    UserError: keys are unexpected or missing, or have another shape, type or,
      if they are constant buffers, another value.
  """
  rows = _rows(layout)
  like = traverse_util.flatten_dict(like, sep='/')
  ours, unexpected, differ = {}, [], []
  for key, value in arrays.items():
    match = _row_of_key(rows, key, arrays)
    if match is None:
      unexpected.append(key)
      continue
    row, numbers = match
    if isinstance(row, Buffer):
      source = arrays.get(row.source.format(**numbers))
      checked = row.constant and source is not None
      if checked and not np.array_equal(value, row.compute(source)):
        differ.append(f'{key} (values)')
      continue
    path = row.ours.format(**numbers)
    if path not in like:
      unexpected.append(key)
      continue
    ours[path] = _transposed(value, row.axes)
    shape = _transposed_shape(like[path].shape, row.inverse)
    if value.shape != shape:
      differ.append(f'{key} {value.shape}, not {shape}')
    elif value.dtype != like[path].dtype:
      differ.append(f'{key} {value.dtype}, not {like[path].dtype}')
  missing = [_published_key(rows, path) for path in like if path not in ours]
  problems = {
    'unexpected': unexpected,
    'missing': missing,
    'different': differ,
  }
  if any(problems.values()):
    text = '; '.join(listed(k, v) for k, v in problems.items() if v)
    raise UserError(f'its arrays are not those of the {layout}: {text}')
  return traverse_util.unflatten_dict(ours, sep='/')


def implied(arrays: Mapping, layout: str) -> dict:
  """Zeros of the shapes that a state_dict itself implies.

  For parts such as decoders, whose fields only a training config knows; a run
  that starts from them checks their shapes.
  """
  ours = {}
  for key, value in arrays.items():
    match = _row_of_key(_rows(layout), key, arrays)
    if match is not None and isinstance(match[0], Row):
      row, numbers = match
      zeros = np.zeros_like(_transposed(value, row.axes), np.float32)
      ours[row.ours.format(**numbers)] = zeros
  return traverse_util.unflatten_dict(ours, sep='/')


def to_published(variables: Mapping, layout: str) -> Arrays:
  """The state_dict of variables; undoes `from_published`.

  Raises:
    UserError: some variables are not of this layout.
  """
  rows = _rows(layout)
  arrays, unexpected = {}, []
  for path, value in traverse_util.flatten_dict(variables, sep='/').items():
    match = _row_of_path(rows, path)
    if match is None:
      unexpected.append(path)
      continue
    row, numbers = match
    arrays[row.published.format(**numbers)] = _transposed(
      np.asarray(value), row.inverse
    )
  if unexpected:
    raise UserError(
      f'these variables are not of {layout}: {listed("unexpected", unexpected)}'
    )
  for row in rows:
    if isinstance(row, Buffer):
      for key in list(arrays):
        numbers = _numbers(row.source, key)
        if numbers is not None and _applies(row, numbers, arrays):
          buffer = row.compute(arrays[key])
          arrays[row.published.format(**numbers)] = buffer
  return arrays


def listed(title: str, keys: list[str], most: int = 8) -> str:
  """The number of keys and the first of them, for one line."""
  more = f' and {len(keys) - most} more' if len(keys) > most else ''
  return f'{len(keys)} {title}: {", ".join(keys[:most])}{more}'


def _rows(layout: str):
  if layout not in LAYOUTS:
    raise UserError(f"no layout '{layout}': {suggestion(layout, LAYOUTS)}")
  return LAYOUTS[layout]


@functools.lru_cache(maxsize=1024)
def _pattern(template: str) -> re.Pattern:
  return re.compile(re.sub(r'\\{(\w)\\}', r'(?P<\1>\\d+)', re.escape(template)))


def _numbers(template: str, key: str) -> dict[str, str] | None:
  """The numbers that make `template` into `key`."""
  match = _pattern(template).fullmatch(key)
  return match.groupdict() if match else None


def _row_of_key(rows, key: str, arrays: Mapping):
  """The row of a published key among `arrays`, and its numbers."""
  matches = ((row, _numbers(row.published, key)) for row in rows)
  return next(
    (m for m in matches if m[1] is not None and _applies(*m, arrays)), None
  )


def _row_of_path(rows, path: str):
  """The row of one of our variables, and its numbers."""
  rows = (row for row in rows if isinstance(row, Row))
  matches = ((row, _numbers(row.ours, path)) for row in rows)
  return next((m for m in matches if m[1] is not None), None)


def _applies(row, numbers: Mapping, arrays: Mapping) -> bool:
  beside = row.beside if isinstance(row, Buffer) else ()
  return all(key.format(**numbers) in arrays for key in beside)


def _published_key(rows, path: str) -> str:
  match = _row_of_path(rows, path)
  return match[0].published.format(**match[1]) if match else path


def _transposed(value: np.ndarray, axes) -> np.ndarray:
  """`value` with its axes in this order; unchanged if their number differs."""
  if axes is None or value.ndim != len(axes):
    return value
  return np.ascontiguousarray(value.transpose(axes))


def _transposed_shape(shape: tuple, axes) -> tuple:
  if axes is None or len(axes) != len(shape):
    return tuple(shape)
  return tuple(shape[a] for a in axes)
