"""Layouts of backbones: EsViT's, and the ViT of DINO, DeiT, MAE and timm."""

import numpy as np

from esvit_jax.models import chunks
from esvit_jax.models.positions import grid_index, window_index
from esvit_jax.weights.layouts.rows import (
  Buffer,
  Rows,
  batch_norm,
  conv,
  linear,
  matrix,
  norm,
  same,
)


def _position_index(table: np.ndarray) -> np.ndarray:
  """relative_position_index of a bias table of (2 window - 1)^2 rows."""
  window = (round(len(table) ** 0.5) + 1) // 2
  return window_index(window)


def block(published: str, ours: str) -> Rows:
  """The rows that blocks of Swin and ViT share."""
  return (
    *norm(f'{published}.norm1', f'{ours}/norm1'),
    *linear(f'{published}.attn.proj', f'{ours}/attn/proj'),
    *norm(f'{published}.norm2', f'{ours}/norm2'),
    *linear(f'{published}.mlp.fc1', f'{ours}/mlp/fc1'),
    *linear(f'{published}.mlp.fc2', f'{ours}/mlp/fc2'),
  )


_SWIN_ATTN = 'layers.{i}.blocks.{j}.attn'
_SWIN_TABLE = f'{_SWIN_ATTN}.relative_position_bias_table'

SWIN = (
  *conv('patch_embed.proj', 'patch_embed'),
  *norm('patch_embed.norm', 'patch_norm'),
  *block('layers.{i}.blocks.{j}', 'stage{i}_block{j}'),
  *matrix(f'{_SWIN_ATTN}.qkv', 'stage{i}_block{j}/attn/qkv'),
  *same(f'{_SWIN_ATTN}.qkv.bias', 'stage{i}_block{j}/attn/qkv_bias'),
  *same(_SWIN_TABLE, 'stage{i}_block{j}/attn/bias_table'),
  Buffer(f'{_SWIN_ATTN}.relative_position_index', _SWIN_TABLE, _position_index),
  *norm('layers.{i}.downsample.norm', 'merge{i}/norm'),
  *matrix('layers.{i}.downsample.reduction', 'merge{i}/reduction'),
  *norm('norm', 'norm'),
)

_VIT_TABLE = 'blocks.{i}.attn.relative_position_bias_table'


def _grid_index(table: np.ndarray) -> np.ndarray:
  """relative_position_index of a ViT's table: (2 side - 1)^2 + 3 rows."""
  side = (round((len(table) - 3) ** 0.5) + 1) // 2
  return grid_index(side)


VIT = (
  *same('cls_token', 'cls_token'),
  *same('pos_embed', 'pos_embed'),
  *conv('patch_embed.proj', 'patch_embed'),
  *block('blocks.{i}', 'block{i}'),
  *linear('blocks.{i}.attn.qkv', 'block{i}/attn/qkv'),
  *same('blocks.{i}.attn.q_bias', 'block{i}/attn/q_bias'),
  *same('blocks.{i}.attn.v_bias', 'block{i}/attn/v_bias'),
  *same(_VIT_TABLE, 'block{i}/attn/bias_table'),
  Buffer('blocks.{i}.attn.relative_position_index', _VIT_TABLE, _grid_index),
  *same('blocks.{i}.gamma_1', 'block{i}/gamma_1'),
  *same('blocks.{i}.gamma_2', 'block{i}/gamma_2'),
  *norm('norm', 'norm'),
)

_CVT_BLOCK = 'stage{i}.1.layers.{j}'
_CVT_QKV = f'{_CVT_BLOCK}.0.fn.qkv'
_CVT_ATTN = 'stage{i}_block{j}/attn'


def _cvt_embed(published: str, ours: str) -> Rows:
  return (
    *conv(f'{published}.proj', f'{ours}/conv'),
    *norm(f'{published}.norm', f'{ours}/norm'),
  )


CVT = (
  *_cvt_embed('stage{i}.0', 'embed{i}'),
  *norm(f'{_CVT_BLOCK}.0.norm', 'stage{i}_block{j}/norm1'),
  *conv(f'{_CVT_QKV}.dw', f'{_CVT_ATTN}/depthwise')[:1],  # no bias
  *batch_norm(f'{_CVT_QKV}.bn', f'{_CVT_ATTN}/bn'),
  *conv(f'{_CVT_QKV}.pw', f'{_CVT_ATTN}/qkv'),
  *conv(f'{_CVT_BLOCK}.0.fn.proj_out', f'{_CVT_ATTN}/proj'),
  *norm(f'{_CVT_BLOCK}.1.norm', 'stage{i}_block{j}/norm2'),
  *conv(f'{_CVT_BLOCK}.1.fn.net.0', 'stage{i}_block{j}/mlp/fc1'),
  *conv(f'{_CVT_BLOCK}.1.fn.net.2', 'stage{i}_block{j}/mlp/fc2'),
  *norm('norm', 'norm'),
)


def _resnet_layer(layer: str, bn: str, ours: tuple[str, str]) -> Rows:
  """A convolution without bias and its batch norm."""
  return (*conv(layer, ours[0])[:1], *batch_norm(bn, ours[1]))


def _resnet_stage(published: str, ours: str) -> Rows:
  skip = f'{published}.downsample'
  return (
    *(
      row
      for n in (1, 2, 3)
      for row in _resnet_layer(
        f'{published}.conv{n}',
        f'{published}.bn{n}',
        (f'{ours}/conv{n}', f'{ours}/norm{n}'),
      )
    ),
    *_resnet_layer(
      f'{skip}.0', f'{skip}.1', (f'{ours}/skip', f'{ours}/skip_norm')
    ),
  )


RESNET = (
  *_resnet_layer('conv1', 'bn1', ('stem', 'stem_norm')),
  *(
    row
    for k in range(8)  # stages, at most
    for row in _resnet_stage(f'layer{k + 1}.{{j}}', f'stage{k}_block{{j}}')
  ),
)

_VIL_ATTN = 'layer{i}.{j}.attn'
_VIL_TABLE = f'{_VIL_ATTN}.local_relative_position_bias_table'
_VIL_INDEX = f'{_VIL_ATTN}.relative_position_index'
_VIL_SPARSE = f'{_VIL_ATTN}.query.weight'
_VIL_GLOBAL = f'{_VIL_ATTN}.g2l_relative_position_bias'


def _chunk_index(table: np.ndarray) -> np.ndarray:
  """relative_position_index of a bias table of (4 window - 1)^2 rows."""
  window = (round(len(table) ** 0.5) + 1) // 4
  return chunks.relative_position_index(window)


def _shared(published: str) -> tuple[Buffer, ...]:
  """Copies of a module's arrays, which files hold under a second name."""
  return tuple(
    Buffer(
      f'{published}_global.{k}',
      f'{published}.{k}',
      lambda same: same,
      beside=(_VIL_SPARSE, _VIL_GLOBAL),
    )
    for k in ('weight', 'bias')
  )


VIL = (
  *conv('layer{i}.0.proj', 'layer{i}_0/proj'),
  *norm('layer{i}.0.norm_embed', 'layer{i}_0/norm_embed'),
  *same('layer{i}.0.cls_token', 'layer{i}_0/cls_token'),
  *norm('layer{i}.{j}.norm', 'layer{i}_{j}/norm'),
  *(
    row
    for k in ('query', 'kv', 'qkv', 'proj')
    for row in linear(f'{_VIL_ATTN}.{k}', f'layer{{i}}_{{j}}/attn/{k}')
  ),
  *same(_VIL_TABLE, 'layer{i}_{j}/attn/bias_table'),
  *(
    row
    for k in ('g2l', 'g2g')
    for row in same(
      f'{_VIL_ATTN}.{k}_relative_position_bias',
      f'layer{{i}}_{{j}}/attn/{k}_bias',
    )
  ),
  # Tables of 729 rows are of 3x3 chunks of 7x7 tokens, or of 14x14 tokens.
  Buffer(_VIL_INDEX, _VIL_TABLE, _chunk_index, beside=(_VIL_SPARSE,)),
  Buffer(
    _VIL_INDEX,
    _VIL_TABLE,
    _position_index,
    beside=(f'{_VIL_ATTN}.qkv.weight',),
  ),
  *_shared(f'{_VIL_ATTN}.query'),
  *_shared(f'{_VIL_ATTN}.kv'),
  *_shared(f'{_VIL_ATTN}.proj'),
  *linear('layer{i}.{j}.mlp.fc1', 'layer{i}_{j}/mlp/fc1'),
  *linear('layer{i}.{j}.mlp.fc2', 'layer{i}_{j}/mlp/fc2'),
  *norm('norm', 'norm'),
)
