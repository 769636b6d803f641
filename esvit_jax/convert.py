"""Published PyTorch checkpoints <-> variables of this project, in memory.

One table per architecture says which of their keys is which of ours; it is
read in both directions. `{i}` stands for a number. Every key of both sides has
to be accounted for.
"""

import difflib
import re
from collections.abc import Callable, Mapping
from typing import NamedTuple

import numpy as np
from flax import traverse_util

from esvit_jax.errors import UserError
from esvit_jax.models.swin import relative_position_index

Arrays = dict[str, np.ndarray]


class Row(NamedTuple):
  """A tensor that both sides have."""

  theirs: str
  ours: str  # with its collection: params/... or batch_stats/...
  to_ours: tuple[int, ...] | None = None  # order of axes, if it changes
  to_theirs: tuple[int, ...] | None = None


class Buffer(NamedTuple):
  """A tensor only they have: a function of another of theirs."""

  theirs: str
  of: str
  compute: Callable[[np.ndarray], np.ndarray]
  constant: bool = True  # the value found must be the value computed


def _same(theirs: str, ours: str) -> tuple[Row, ...]:
  return (Row(theirs, f'params/{ours}'),)


def _matrix(theirs: str, ours: str) -> tuple[Row, ...]:
  """(out, in) <-> (in, out)."""
  return (Row(f'{theirs}.weight', f'params/{ours}/kernel', (1, 0), (1, 0)),)


def _linear(theirs: str, ours: str) -> tuple[Row, ...]:
  return _matrix(theirs, ours) + _same(f'{theirs}.bias', f'{ours}/bias')


def _conv(theirs: str, ours: str) -> tuple[Row, ...]:
  """OIHW <-> HWIO, and a bias."""
  weight = Row(
    f'{theirs}.weight', f'params/{ours}/kernel', (2, 3, 1, 0), (3, 2, 0, 1)
  )
  return (weight, *_same(f'{theirs}.bias', f'{ours}/bias'))


def _norm(theirs: str, ours: str) -> tuple[Row, ...]:
  return (
    *_same(f'{theirs}.weight', f'{ours}/scale'),
    *_same(f'{theirs}.bias', f'{ours}/bias'),
  )


def _batch_norm(theirs: str, ours: str) -> tuple[Row | Buffer, ...]:
  return (
    *_norm(theirs, ours),
    Row(f'{theirs}.running_mean', f'batch_stats/{ours}/mean'),
    Row(f'{theirs}.running_var', f'batch_stats/{ours}/var'),
    # Counts steps, used by nothing: the momentum is fixed.
    Buffer(
      f'{theirs}.num_batches_tracked',
      f'{theirs}.running_mean',
      lambda mean: np.zeros((), np.int64),
      constant=False,
    ),
  )


def _position_index(table: np.ndarray) -> np.ndarray:
  """relative_position_index of a bias table of (2 window - 1)^2 rows."""
  window = (round(len(table) ** 0.5) + 1) // 2
  return relative_position_index(window).astype(np.int64)


def _block(theirs: str, ours: str) -> tuple[Row, ...]:
  """What the blocks of Swin and ViT have in common."""
  return (
    *_norm(f'{theirs}.norm1', f'{ours}/norm1'),
    *_linear(f'{theirs}.attn.proj', f'{ours}/attn/proj'),
    *_norm(f'{theirs}.norm2', f'{ours}/norm2'),
    *_linear(f'{theirs}.mlp.fc1', f'{ours}/mlp/fc1'),
    *_linear(f'{theirs}.mlp.fc2', f'{ours}/mlp/fc2'),
  )


_SWIN_ATTN = 'layers.{i}.blocks.{j}.attn'
_SWIN_TABLE = f'{_SWIN_ATTN}.relative_position_bias_table'

_SWIN = (
  *_conv('patch_embed.proj', 'patch_embed'),
  *_norm('patch_embed.norm', 'patch_norm'),
  *_block('layers.{i}.blocks.{j}', 'stage{i}_block{j}'),
  *_matrix(f'{_SWIN_ATTN}.qkv', 'stage{i}_block{j}/attn/qkv'),
  *_same(f'{_SWIN_ATTN}.qkv.bias', 'stage{i}_block{j}/attn/qkv_bias'),
  *_same(_SWIN_TABLE, 'stage{i}_block{j}/attn/bias_table'),
  Buffer(f'{_SWIN_ATTN}.relative_position_index', _SWIN_TABLE, _position_index),
  *_norm('layers.{i}.downsample.norm', 'merge{i}/norm'),
  *_matrix('layers.{i}.downsample.reduction', 'merge{i}/reduction'),
  *_norm('norm', 'norm'),
)

_VIT = (
  *_same('cls_token', 'cls_token'),
  *_same('pos_embed', 'pos_embed'),
  *_conv('patch_embed.proj', 'patch_embed'),
  *_block('blocks.{i}', 'block{i}'),
  *_linear('blocks.{i}.attn.qkv', 'block{i}/attn/qkv'),
  *_norm('norm', 'norm'),
)

_PROTOTYPES = (
  *_same('last_layer.weight_v', 'last_layer/v'),
  *_same('last_layer.weight_g', 'last_layer/g'),
)
_LAYERS = range(8)  # of a head's MLP, at most

# name -> rows; a DINO head numbers its layers with the activations between
TABLES = {
  'swin': _SWIN,
  'vit': _VIT,
  'dino_head': (
    *(row for k in _LAYERS for row in _linear(f'mlp.{2 * k}', f'fc{k}')),
    *_PROTOTYPES,
  ),
  'dino_head_bn': (
    *(row for k in _LAYERS for row in _linear(f'mlp.{3 * k}', f'fc{k}')),
    *(
      row
      for k in _LAYERS
      for row in _batch_norm(f'mlp.{3 * k + 1}', f'norm{k}')
    ),
    *_PROTOTYPES,
  ),
}


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
    found = _find(table, 'theirs', key)
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
        if numbers is not None:
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


def _find(table, side: str, key: str):
  for row in table:
    numbers = _match(getattr(row, side, ''), key)
    if numbers is not None:
      return row, numbers
  return None


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
  return shape if axes is None else tuple(shape[a] for a in axes)


def listed(title: str, keys: list[str], most: int = 8) -> str:
  """`keys` for one line: how many, and the first."""
  more = f' and {len(keys) - most} more' if len(keys) > most else ''
  return f'{len(keys)} {title}: {", ".join(keys[:most])}{more}'


if __name__ == '__main__':
  import sys

  from esvit_jax.interop import conversion

  sys.exit(conversion.main(sys.argv[1:]))
