"""Layouts of heads, decoders and classifiers, with their backbones."""

from esvit_jax.weights.layouts.backbones import VIT, block
from esvit_jax.weights.layouts.rows import (
  Row,
  Rows,
  batch_norm,
  conv,
  linear,
  matrix,
  norm,
  same,
  within,
)

_LAYERS = range(8)  # of a head's MLP, at most

_PROTOTYPES = (
  *same('last_layer.weight_v', 'last_layer/v'),
  *same('last_layer.weight_g', 'last_layer/g'),
)
# DINO's heads count the activations between their layers.
DINO = (
  *(row for k in _LAYERS for row in linear(f'mlp.{2 * k}', f'fc{k}')),
  *_PROTOTYPES,
)
DINO_BN = (
  *(row for k in _LAYERS for row in linear(f'mlp.{3 * k}', f'fc{k}')),
  *(row for k in _LAYERS for row in batch_norm(f'mlp.{3 * k + 1}', f'norm{k}')),
  *_PROTOTYPES,
)

_VIT = within(VIT, ours='backbone/')

# Pre-training files; where a tail stands after the blocks, see D2MAE.
MAE = (
  *_VIT,
  *linear('decoder_embed', 'decoder/embed'),
  *same('mask_token', 'decoder/mask_token'),
  *same('decoder_pos_embed', 'decoder/pos_embed'),
  *block('decoder_blocks.{i}', 'decoder/block{i}'),
  *linear('decoder_blocks.{i}.attn.qkv', 'decoder/block{i}/attn/qkv'),
  *norm('decoder_norm', 'decoder/norm'),
  *linear('decoder_pred', 'decoder/pred'),
  *conv('attn_adapter.adapter11', 'attn_adapter')[:1],  # the last of 12 blocks
  *matrix('hidden_adapter.adapter{i}', 'hidden_adapter{i}'),
)
D2MAE = (
  *norm('blocks.12.norm1', 'tail_block/norm1'),
  *linear('blocks.12.attn.qkv', 'tail_block/attn/qkv'),
  *MAE,
)


def _mlp(published: str, ours: str, batch_norms: int) -> Rows:
  """Linear layers, each with batch norm; the last norm has no gain."""
  rows = []
  for k in range(batch_norms):
    rows += linear(f'{published}.{3 * k}', f'{ours}/fc{k}')
    rows_of_norm = batch_norm(f'{published}.{3 * k + 1}', f'{ours}/norm{k}')
    rows += rows_of_norm if k < batch_norms - 1 else rows_of_norm[2:]
  return tuple(rows)


# An encoder, its projector and its predictor.
MOCO = (*_VIT, *_mlp('head', 'head', 3), *_mlp('predictor', 'predictor', 2))

_PIXELS = 'head_recons.convTrans'
SIT = (
  *within(VIT, 'backbone.', 'backbone/'),
  *_mlp('head.mlp', 'head', 3),
  *(
    row
    for k in range(3)
    for row in linear(f'head_recons.mlp.{2 * k}', f'head_recons/fc{k}')
  ),
  Row(f'{_PIXELS}.weight', 'params/head_recons/kernel', (0, 2, 3, 1)),
  *same(f'{_PIXELS}.bias', 'head_recons/bias'),
)


def classifier(backbone: Rows, head: str = 'head') -> Rows:
  """A backbone with a linear head, after a norm of the mean or without one."""
  return (
    *within(backbone, ours='backbone/'),
    *norm('fc_norm', 'fc_norm'),
    *linear(head, 'head'),
  )


# SiT's `classify=True`: two layers on [class token, mean of patches].
SIT_CLASSIFIER = (
  *_VIT,
  *linear('head.0', 'hidden'),
  *linear('head.2', 'head'),
)
