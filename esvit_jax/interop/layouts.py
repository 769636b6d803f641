"""Which of their keys is which of ours, for every published architecture.

A table is read in both directions. `{i}` stands for a number.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from esvit_jax.models.swin import relative_position_index


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
