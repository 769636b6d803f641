"""Which of their keys is which of ours, for every published architecture.

A table is read in both directions. `{i}` stands for a number.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from esvit_jax.models import chunks, vit
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
  beside: tuple[str, ...] = ()  # only where they have these keys too


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

_VIT_TABLE = 'blocks.{i}.attn.relative_position_bias_table'


def _grid_index(table: np.ndarray) -> np.ndarray:
  """relative_position_index of a ViT's table: (2 side - 1)^2 + 3 rows."""
  side = (round((len(table) - 3) ** 0.5) + 1) // 2
  return vit.relative_position_index(side)


def _vit(ours: str) -> tuple[Row | Buffer, ...]:
  """A ViT of any kind, which has some of these; `ours` ends with a slash."""
  block = f'{ours}block{{i}}'
  return (
    *_same('cls_token', f'{ours}cls_token'),
    *_same('pos_embed', f'{ours}pos_embed'),
    *_conv('patch_embed.proj', f'{ours}patch_embed'),
    *_block('blocks.{i}', block),
    *_linear('blocks.{i}.attn.qkv', f'{block}/attn/qkv'),
    *_same('blocks.{i}.attn.q_bias', f'{block}/attn/q_bias'),
    *_same('blocks.{i}.attn.v_bias', f'{block}/attn/v_bias'),
    *_same(_VIT_TABLE, f'{block}/attn/bias_table'),
    Buffer('blocks.{i}.attn.relative_position_index', _VIT_TABLE, _grid_index),
    *_same('blocks.{i}.gamma_1', f'{block}/gamma_1'),
    *_same('blocks.{i}.gamma_2', f'{block}/gamma_2'),
    *_norm('norm', f'{ours}norm'),
  )


# Pre-training files; where a tail stands after the blocks, see _D2MAE.
_MAE = (
  *_vit('backbone/'),
  *_linear('decoder_embed', 'decoder/embed'),
  *_same('mask_token', 'decoder/mask_token'),
  *_same('decoder_pos_embed', 'decoder/pos_embed'),
  *_block('decoder_blocks.{i}', 'decoder/block{i}'),
  *_linear('decoder_blocks.{i}.attn.qkv', 'decoder/block{i}/attn/qkv'),
  *_norm('decoder_norm', 'decoder/norm'),
  *_linear('decoder_pred', 'decoder/pred'),
  *_conv('attn_adapter.adapter11', 'attn_adapter')[:1],  # the last of 12 blocks
  *_matrix('hidden_adapter.adapter{i}', 'hidden_adapter{i}'),
)
_D2MAE = (
  *_norm('blocks.12.norm1', 'tail_block/norm1'),
  *_linear('blocks.12.attn.qkv', 'tail_block/attn/qkv'),
  *_MAE,
)


def _mlp(theirs: str, ours: str, batch_norms: int) -> tuple[Row | Buffer, ...]:
  """Linear, batch norm, activation and so on; the last norm has no gain."""
  rows = []
  for k in range(batch_norms):
    rows += _linear(f'{theirs}.{3 * k}', f'{ours}/fc{k}')
    norm = _batch_norm(f'{theirs}.{3 * k + 1}', f'{ours}/norm{k}')
    rows += norm if k < batch_norms - 1 else norm[2:]
  return tuple(rows)


_MOCO_BASE = (*_vit('backbone/'), *_mlp('head', 'head', 3))
_MOCO_PREDICTOR = _mlp('predictor', 'predictor', 2)
_SIT_PAINT = 'head_recons.convTrans'


def _within(prefix: str, rows: tuple) -> tuple[Row | Buffer, ...]:
  """Rows of a network that has a name in theirs."""
  return tuple(
    row._replace(theirs=prefix + row.theirs)
    if isinstance(row, Row)
    else row._replace(theirs=prefix + row.theirs, of=prefix + row.of)
    for row in rows
  )


_SIT = (
  *_within('backbone.', _vit('backbone/')),
  *_mlp('head.mlp', 'head', 3),
  *(
    row
    for k in range(3)
    for row in _linear(f'head_recons.mlp.{2 * k}', f'head_recons/fc{k}')
  ),
  Row(
    f'{_SIT_PAINT}.weight',
    'params/head_recons/kernel',
    (0, 2, 3, 1),
    (0, 3, 1, 2),
  ),
  *_same(f'{_SIT_PAINT}.bias', 'head_recons/bias'),
)

_STAGES = range(8)  # of a multi-stage network, at most
_CVT_BLOCK = 'stage{i}.1.layers.{j}'
_CVT_QKV = f'{_CVT_BLOCK}.0.fn.qkv'
_CVT_ATTN = 'stage{i}_block{j}/attn'


def _cvt_embed(theirs: str, ours: str) -> tuple[Row, ...]:
  return (
    *_conv(f'{theirs}.proj', f'{ours}/conv'),
    *_norm(f'{theirs}.norm', f'{ours}/norm'),
  )


_CVT = (
  *_cvt_embed('stage0.0', 'patch_embed'),
  *(row for k in _STAGES for row in _cvt_embed(f'stage{k + 1}.0', f'merge{k}')),
  *_norm(f'{_CVT_BLOCK}.0.norm', 'stage{i}_block{j}/norm1'),
  *_conv(f'{_CVT_QKV}.dw', f'{_CVT_ATTN}/depthwise')[:1],  # no bias
  *_batch_norm(f'{_CVT_QKV}.bn', f'{_CVT_ATTN}/bn'),
  *_conv(f'{_CVT_QKV}.pw', f'{_CVT_ATTN}/qkv'),
  *_conv(f'{_CVT_BLOCK}.0.fn.proj_out', f'{_CVT_ATTN}/proj'),
  *_norm(f'{_CVT_BLOCK}.1.norm', 'stage{i}_block{j}/norm2'),
  *_conv(f'{_CVT_BLOCK}.1.fn.net.0', 'stage{i}_block{j}/mlp/fc1'),
  *_conv(f'{_CVT_BLOCK}.1.fn.net.2', 'stage{i}_block{j}/mlp/fc2'),
  *_norm('norm', 'norm'),
)


def _resnet_layer(conv: str, norm: str, ours: tuple[str, str]):
  """A convolution without bias and its batch norm."""
  return (*_conv(conv, ours[0])[:1], *_batch_norm(norm, ours[1]))


def _resnet_stage(theirs: str, ours: str) -> tuple[Row | Buffer, ...]:
  skip = f'{theirs}.downsample'
  return (
    *(
      row
      for n in (1, 2, 3)
      for row in _resnet_layer(
        f'{theirs}.conv{n}',
        f'{theirs}.bn{n}',
        (f'{ours}/conv{n}', f'{ours}/norm{n}'),
      )
    ),
    *_resnet_layer(
      f'{skip}.0', f'{skip}.1', (f'{ours}/skip', f'{ours}/skip_norm')
    ),
  )


_RESNET = (
  *_resnet_layer('conv1', 'bn1', ('patch_embed', 'patch_norm')),
  *(
    row
    for k in _STAGES
    for row in _resnet_stage(f'layer{k + 1}.{{j}}', f'stage{k}_block{{j}}')
  ),
)

_PROTOTYPES = (
  *_same('last_layer.weight_v', 'last_layer/v'),
  *_same('last_layer.weight_g', 'last_layer/g'),
)
_LAYERS = range(8)  # of a head's MLP, at most

_VIL_ATTN = 'layer{i}.{j}.attn'
_VIL_TABLE = f'{_VIL_ATTN}.local_relative_position_bias_table'
_VIL_INDEX = f'{_VIL_ATTN}.relative_position_index'
_VIL_SPARSE = f'{_VIL_ATTN}.query.weight'
_VIL_GLOBAL = f'{_VIL_ATTN}.g2l_relative_position_bias'


def _chunk_index(table: np.ndarray) -> np.ndarray:
  """relative_position_index of a bias table of (4 window - 1)^2 rows."""
  window = (round(len(table) ** 0.5) + 1) // 4
  return chunks.relative_position_index(window).astype(np.int64)


def _shared(theirs: str) -> tuple[Buffer, ...]:
  """The second name of a module, under which their files hold a copy."""
  return tuple(
    Buffer(
      f'{theirs}_global.{k}',
      f'{theirs}.{k}',
      lambda same: same,
      beside=(_VIL_SPARSE, _VIL_GLOBAL),
    )
    for k in ('weight', 'bias')
  )


_VIL = (
  *_conv('layer{i}.0.proj', 'layer{i}_0/proj'),
  *_norm('layer{i}.0.norm_embed', 'layer{i}_0/norm_embed'),
  *_same('layer{i}.0.cls_token', 'layer{i}_0/cls_token'),
  *_norm('layer{i}.{j}.norm', 'layer{i}_{j}/norm'),
  *(
    row
    for k in ('query', 'kv', 'qkv', 'proj')
    for row in _linear(f'{_VIL_ATTN}.{k}', f'layer{{i}}_{{j}}/attn/{k}')
  ),
  *_same(_VIL_TABLE, 'layer{i}_{j}/attn/bias_table'),
  *(
    row
    for k in ('g2l', 'g2g')
    for row in _same(
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
  *_linear('layer{i}.{j}.mlp.fc1', 'layer{i}_{j}/mlp/fc1'),
  *_linear('layer{i}.{j}.mlp.fc2', 'layer{i}_{j}/mlp/fc2'),
  *_norm('norm', 'norm'),
)

# name -> rows; a DINO head numbers its layers with the activations between
TABLES = {
  'swin': _SWIN,
  'vil': _VIL,
  'vit': _vit(''),
  'mae': _MAE,
  'd2mae': _D2MAE,
  # An encoder with its projector, whose files hold two, and the predictor.
  'moco': (*_MOCO_BASE, *_MOCO_PREDICTOR),
  'sit': _SIT,
  'vit_classifier': (
    *_vit('backbone/'),
    *_norm('fc_norm', 'fc_norm'),
    *_linear('head', 'head'),
  ),
  'cvt': _CVT,
  'resnet': _RESNET,
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
