"""Names that other libraries give to the arrays of published networks.

A row holds in both directions. Networks with other arrays beside these are
not the same networks, and refused.
"""

import numpy as np

from esvit_jax.weights.libraries.rows import Rows, batch_norm, pair, same

_BLOCK = 'layers.{i}.blocks.{j}'
_TABLE = f'{_BLOCK}.attn.relative_position_bias_table'
_INDEX = f'{_BLOCK}.attn.relative_position_index'
_DOWN = 'layers.{i}.downsample'


def _square(index: np.ndarray) -> np.ndarray:
  """A flat index of pairs of tokens as a matrix."""
  return index.reshape(round(len(index) ** 0.5), -1)


def _blocks(published: str, library: str, numbers=None) -> Rows:
  """Blocks of the published names on both sides."""
  names = 'norm1', 'attn.qkv', 'attn.proj', 'norm2', 'mlp.fc1', 'mlp.fc2'
  return tuple(
    row
    for name in names
    for row in pair(
      f'{published}.{name}', f'{library}.{name}', numbers=numbers or {}
    )
  )


# The published names.
TIMM_VIT = (
  *same('cls_token', 'cls_token'),
  *same('pos_embed', 'pos_embed'),
  *pair('patch_embed.proj', 'patch_embed.proj'),
  *_blocks('blocks.{i}', 'blocks.{i}'),
  *pair('norm', 'norm'),
  *pair('fc_norm', 'fc_norm'),
  *pair('head', 'head'),
)


def _resnet(layer: str, norm: str) -> Rows:
  return (*same(f'{layer}.weight', f'{layer}.weight'), *batch_norm(norm, norm))


RESNET = (
  *_resnet('conv1', 'bn1'),
  *(
    row
    for layer, norm in (
      ('conv1', 'bn1'),
      ('conv2', 'bn2'),
      ('conv3', 'bn3'),
      ('downsample.0', 'downsample.1'),
    )
    for row in _resnet(f'layer{{i}}.{{j}}.{layer}', f'layer{{i}}.{{j}}.{norm}')
  ),
  *pair('fc', 'fc'),
)

# timm counts the downsampling between two stages to the second of them.
_NEXT = {'i': (1, 1)}
TIMM_SWIN = (
  *pair('patch_embed.proj', 'patch_embed.proj'),
  *pair('patch_embed.norm', 'patch_embed.norm'),
  *_blocks(_BLOCK, _BLOCK),
  *same(_TABLE, _TABLE),
  *same(_INDEX, _INDEX, written=False),
  *pair(f'{_DOWN}.norm', f'{_DOWN}.norm', numbers=_NEXT),
  *same(
    f'{_DOWN}.reduction.weight', f'{_DOWN}.reduction.weight', numbers=_NEXT
  ),
  *pair('norm', 'norm'),
  *pair('head', 'head.fc'),
)

# Stages and the downsamplings between them are one list.
_STAGE = 'features.{i}.{j}'
_ODD, _EVEN = {'i': (2, 1)}, {'i': (2, 2)}
TORCHVISION_SWIN = (
  *pair('patch_embed.proj', 'features.0.0'),
  *pair('patch_embed.norm', 'features.0.2'),
  *(
    row
    for ours, theirs in (
      ('norm1', 'norm1'),
      ('attn.qkv', 'attn.qkv'),
      ('attn.proj', 'attn.proj'),
      ('norm2', 'norm2'),
      ('mlp.fc1', 'mlp.0'),
      ('mlp.fc2', 'mlp.3'),
    )
    for row in pair(f'{_BLOCK}.{ours}', f'{_STAGE}.{theirs}', numbers=_ODD)
  ),
  *same(_TABLE, f'{_STAGE}.attn.relative_position_bias_table', numbers=_ODD),
  *same(
    _INDEX,
    f'{_STAGE}.attn.relative_position_index',
    numbers=_ODD,
    outward=np.ravel,
    inward=_square,
  ),
  *pair(f'{_DOWN}.norm', 'features.{i}.norm', numbers=_EVEN),
  *same(
    f'{_DOWN}.reduction.weight', 'features.{i}.reduction.weight', numbers=_EVEN
  ),
  *pair('norm', 'norm'),
  *pair('head', 'head'),
)

_ENCODER = 'encoder.layers.encoder_layer_{i}'
TORCHVISION_VIT = (
  *same('cls_token', 'class_token'),
  *same('pos_embed', 'encoder.pos_embedding'),
  *pair('patch_embed.proj', 'conv_proj'),
  *pair('blocks.{i}.norm1', f'{_ENCODER}.ln_1'),
  *same(
    'blocks.{i}.attn.qkv.weight', f'{_ENCODER}.self_attention.in_proj_weight'
  ),
  *same('blocks.{i}.attn.qkv.bias', f'{_ENCODER}.self_attention.in_proj_bias'),
  *pair('blocks.{i}.attn.proj', f'{_ENCODER}.self_attention.out_proj'),
  *pair('blocks.{i}.norm2', f'{_ENCODER}.ln_2'),
  *pair('blocks.{i}.mlp.fc1', f'{_ENCODER}.mlp.0'),
  *pair('blocks.{i}.mlp.fc2', f'{_ENCODER}.mlp.3'),
  *pair('norm', 'encoder.ln'),
  *pair('head', 'heads.head'),
)


def _hugging_face_blocks(published: str, library: str, attention: str) -> Rows:
  """Blocks with queries, keys and values apart."""
  qkv = (
    f'{library}.attention.{attention}.{k}' for k in ('query', 'key', 'value')
  )
  return (
    *pair(f'{published}.norm1', f'{library}.layernorm_before'),
    *pair(f'{published}.attn.qkv', *qkv),
    *pair(f'{published}.attn.proj', f'{library}.attention.output.dense'),
    *pair(f'{published}.norm2', f'{library}.layernorm_after'),
    *pair(f'{published}.mlp.fc1', f'{library}.intermediate.dense'),
    *pair(f'{published}.mlp.fc2', f'{library}.output.dense'),
  )


_HF_STAGE = 'encoder.layers.{i}'
_HF_BLOCK = f'{_HF_STAGE}.blocks.{{j}}'
HUGGING_FACE_SWIN = (
  *pair('patch_embed.proj', 'embeddings.patch_embeddings.projection'),
  *pair('patch_embed.norm', 'embeddings.norm'),
  *_hugging_face_blocks(_BLOCK, _HF_BLOCK, 'self'),
  *same(_TABLE, f'{_HF_BLOCK}.attention.self.relative_position_bias_table'),
  *same(
    _INDEX,
    f'{_HF_BLOCK}.attention.self.relative_position_index',
    written=False,
  ),
  *pair(f'{_DOWN}.norm', f'{_HF_STAGE}.downsample.norm'),
  *same(
    f'{_DOWN}.reduction.weight', f'{_HF_STAGE}.downsample.reduction.weight'
  ),
  *pair('norm', 'layernorm'),
  *pair('head', 'classifier'),
)
HUGGING_FACE_VIT = (
  *same('cls_token', 'embeddings.cls_token'),
  *same('pos_embed', 'embeddings.position_embeddings'),
  *pair('patch_embed.proj', 'embeddings.patch_embeddings.projection'),
  *_hugging_face_blocks('blocks.{i}', 'encoder.layer.{i}', 'attention'),
  *pair('norm', 'layernorm'),
  *pair('head', 'classifier'),
)
_HF_DECODER = 'decoder.decoder_layers.{i}'
_HF_DECODER_5 = 'decoder.decoder_encoder.layer.{i}'  # of transformers 5
HUGGING_FACE_MAE = (
  *HUGGING_FACE_VIT[:-2],
  *pair('decoder_embed', 'decoder.decoder_embed'),
  *same('mask_token', 'decoder.mask_token'),
  *same('decoder_pos_embed', 'decoder.decoder_pos_embed'),
  *_hugging_face_blocks('decoder_blocks.{i}', _HF_DECODER, 'attention'),
  *_hugging_face_blocks('decoder_blocks.{i}', _HF_DECODER_5, 'attention'),
  *pair('decoder_norm', 'decoder.decoder_norm'),
  *pair('decoder_pred', 'decoder.decoder_pred'),
)
_HF_LAYER = 'encoder.stages.{i}.layers.{j}'
_FROM_ONE = {'i': (1, -1)}
HUGGING_FACE_RESNET = (
  *same('conv1.weight', 'embedder.embedder.convolution.weight'),
  *batch_norm('bn1', 'embedder.embedder.normalization'),
  *(
    row
    for ours, norm, theirs in (
      ('conv1', 'bn1', 'layer.0'),
      ('conv2', 'bn2', 'layer.1'),
      ('conv3', 'bn3', 'layer.2'),
      ('downsample.0', 'downsample.1', 'shortcut'),
    )
    for row in (
      *same(
        f'layer{{i}}.{{j}}.{ours}.weight',
        f'{_HF_LAYER}.{theirs}.convolution.weight',
        numbers=_FROM_ONE,
      ),
      *batch_norm(
        f'layer{{i}}.{{j}}.{norm}',
        f'{_HF_LAYER}.{theirs}.normalization',
        numbers=_FROM_ONE,
      ),
    )
  ),
  *pair('fc', 'classifier.1'),
)


# mmdetection gathers the four tokens that it merges by nn.Unfold: channels are
# the slower index, and the tokens come row by row.
def _unfold(array: np.ndarray) -> np.ndarray:
  """Of the last axis, [4 tokens by columns, C] -> [C, 4 tokens by rows]."""
  parts = array.reshape(*array.shape[:-1], 4, -1)[..., (0, 2, 1, 3), :]
  return np.ascontiguousarray(parts.swapaxes(-1, -2).reshape(array.shape))


_MM_STAGE = 'stages.{i}'
_MM_BLOCK = f'{_MM_STAGE}.blocks.{{j}}'
MM_SWIN = (
  *pair('patch_embed.proj', 'patch_embed.projection'),
  *pair('patch_embed.norm', 'patch_embed.norm'),
  *pair(f'{_BLOCK}.norm1', f'{_MM_BLOCK}.norm1'),
  *pair(f'{_BLOCK}.attn.qkv', f'{_MM_BLOCK}.attn.w_msa.qkv'),
  *pair(f'{_BLOCK}.attn.proj', f'{_MM_BLOCK}.attn.w_msa.proj'),
  *same(_TABLE, f'{_MM_BLOCK}.attn.w_msa.relative_position_bias_table'),
  *same(_INDEX, f'{_MM_BLOCK}.attn.w_msa.relative_position_index'),
  *pair(f'{_BLOCK}.norm2', f'{_MM_BLOCK}.norm2'),
  *pair(f'{_BLOCK}.mlp.fc1', f'{_MM_BLOCK}.ffn.layers.0.0'),
  *pair(f'{_BLOCK}.mlp.fc2', f'{_MM_BLOCK}.ffn.layers.1'),
  *pair(f'{_DOWN}.norm', f'{_MM_STAGE}.downsample.norm', outward=_unfold),
  *same(
    f'{_DOWN}.reduction.weight',
    f'{_MM_STAGE}.downsample.reduction.weight',
    outward=_unfold,
  ),
  *pair('norm', 'norm3'),
)
# mmsegmentation's VisionTransformer.
MM_VIT = (
  *same('cls_token', 'cls_token'),
  *same('pos_embed', 'pos_embed'),
  *pair('patch_embed.proj', 'patch_embed.projection'),
  *pair('blocks.{i}.norm1', 'layers.{i}.ln1'),
  *same('blocks.{i}.attn.qkv.weight', 'layers.{i}.attn.attn.in_proj_weight'),
  *same('blocks.{i}.attn.qkv.bias', 'layers.{i}.attn.attn.in_proj_bias'),
  *pair('blocks.{i}.attn.proj', 'layers.{i}.attn.attn.out_proj'),
  *pair('blocks.{i}.norm2', 'layers.{i}.ln2'),
  *pair('blocks.{i}.mlp.fc1', 'layers.{i}.ffn.layers.0.0'),
  *pair('blocks.{i}.mlp.fc2', 'layers.{i}.ffn.layers.1'),
  *pair('norm', 'ln1'),
)


# ViTDet's backbone: positions with that of the class token, blocks, no norm.
DETECTRON2_VIT = (
  *same('cls_token', 'cls_token', written=False),
  *pair('norm', 'norm', written=False),
  *same('pos_embed', 'backbone.net.pos_embed'),
  *pair('patch_embed.proj', 'backbone.net.patch_embed.proj'),
  *_blocks('blocks.{i}', 'backbone.net.blocks.{i}'),
)


LIBRARIES: dict[str, dict[str, Rows]] = {
  'timm': {'swin': TIMM_SWIN, 'vit': TIMM_VIT, 'resnet': RESNET},
  'torchvision': {
    'swin': TORCHVISION_SWIN,
    'vit': TORCHVISION_VIT,
    'resnet': RESNET,
  },
  'hf': {
    'swin': HUGGING_FACE_SWIN,
    'vit': HUGGING_FACE_VIT,
    'mae': HUGGING_FACE_MAE,
    'resnet': HUGGING_FACE_RESNET,
  },
  'mm': {'swin': MM_SWIN, 'vit': MM_VIT, 'resnet': RESNET},
  'detectron2': {'vit': DETECTRON2_VIT},
}

# (library, kind) -> a key that such files have and published ones do not.
MARKS = {
  ('timm', 'swin'): 'head.fc.weight',
  ('torchvision', 'swin'): 'features.1.0.attn.qkv.weight',
  ('torchvision', 'vit'): 'conv_proj.weight',
  ('hf', 'swin'): 'encoder.layers.0.blocks.0.attention.self.query.weight',
  ('hf', 'mae'): 'decoder.decoder_pos_embed',
  ('hf', 'vit'): 'encoder.layer.0.attention.attention.query.weight',
  ('hf', 'resnet'): 'embedder.embedder.convolution.weight',
}
TITLES = {
  'timm': 'timm',
  'torchvision': 'torchvision',
  'hf': 'Hugging Face',
  'mm': 'OpenMMLab',
  'detectron2': 'detectron2',
}
