"""Swin Transformer (arXiv 2103.14030) as EsViT trains it.

Crops of all sizes are one forward pass: their tokens are packed as [B, T, C]
for norms and linear layers, and as windows [B, W, n, C] for attention. Views do
not interact, so the result equals that of separate passes.

Axes: B images, V views, h w a map, T tokens of all groups, W windows of all
groups, n = window^2 tokens of a window, a head, d = C / heads.
"""

from typing import ClassVar

import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from esvit_jax.models.backbone import (
  Backbone,
  Features,
  Windows,
  features_of_groups,
)
from esvit_jax.models.layers import (
  DropPath,
  Mlp,
  Shape,
  layer_norm,
  linear_init,
  pack,
  unpack,
)
from esvit_jax.models.patches import PatchEmbed
from esvit_jax.models.positions import window_index
from esvit_jax.models.stages import DEBUG, check_stages, stage_layer_ids
from esvit_jax.models.window_attention import attend
from esvit_jax.models.windows import (
  from_windows,
  stage_window,
  to_windows,
  window_parts,
)


def _size(dim: int, heads: int, depth: int, drop_path: float) -> dict:
  """Four stages; the first has this width, the third this depth."""
  return {
    'dims': tuple(dim * 2**i for i in range(4)),
    'depths': (2, 2, depth, 2),
    'heads': tuple(heads * 2**i for i in range(4)),
    'drop_path': drop_path,
  }


# name -> fields, as `models.BACKBONES` lists them
SIZES = {
  'swin_tiny': _size(96, 3, 6, 0.1),
  'swin_small': _size(96, 3, 18, 0.2),
  'swin_base': _size(128, 4, 18, 0.2),
  'swin_large': _size(192, 6, 18, 0.2),
  # For images of 96 px: maps of 24, 12 and 6 regions a side.
  'swin_96': {
    'dims': (96, 192, 384),
    'depths': (2, 2, 6),
    'heads': (3, 6, 12),
    'window': 6,
    'image_size': 96,
  },
  # For images of 28 px: maps of 7 and 4.
  'swin_28': {
    'dims': (32, 64),
    'depths': (1, 1),
    'heads': (2, 2),
    'image_size': 28,
  },
}


class Swin(Backbone, kw_only=True):
  """Swin with any depths, widths and window.

  Attributes:
    dims, depths, heads: of each stage.
    window: largest window side in tokens.
    patch: side of a patch in pixels.
    image_size: reference side in pixels. It determines the window and shift of
      each stage, so that crops of other sizes use the same weights.
    norm_eps: of the layer norms; 1e-5 in Swins that EsViT did not train.
  """

  dims: tuple[int, ...]
  depths: tuple[int, ...]
  heads: tuple[int, ...]
  window: int = 7
  patch: int = 4
  image_size: int = 224
  norm_eps: float = 1e-6

  DEBUG: ClassVar = {**DEBUG, 'window': 7, 'patch': 4}

  def check(self):
    check_stages(self.dims, self.depths, self.heads)

  @property
  def num_features(self) -> int:
    return self.dims[-1]

  @property
  def layer_ids(self) -> dict[str, int]:
    stem = ('patch_embed', 'patch_norm')
    merges = [f'merge{i}' for i in range(len(self.depths) - 1)]
    return stage_layer_ids(self.depths, stem, merges)

  @nn.compact
  def __call__(self, groups, train: bool = False) -> tuple[Features, ...]:
    """Returns Features for each group; see `Backbone`."""
    block_type = nn.remat(Block, static_argnums=(2, 3)) if self.remat else Block
    last = len(self.depths) - 1
    rates = iter(np.linspace(0, self.drop_path, sum(self.depths)))
    # float32: regions are compared by cosine
    norm = layer_norm('norm', eps=self.norm_eps)
    blocks, stages = [], []

    tokens, shapes = PatchEmbed(
      self.dims[0], self.patch, self.dtype, name='patch_embed'
    )(groups)
    tokens = layer_norm('patch_norm', self.dtype, self.norm_eps)(tokens)
    for i, depth in enumerate(self.depths):
      if i > 0:
        tokens, shapes = Merge(
          self.dims[i],
          self.init_scale,
          self.dtype,
          self.norm_eps,
          name=f'merge{i - 1}',
        )(tokens, shapes)
      window, shift = stage_window(self.image_size, self.patch, self.window, i)
      for j in range(depth):
        tokens = block_type(
          self.heads[i],
          window,
          shift if j % 2 else 0,
          float(next(rates)),
          self.init_scale,
          self.dtype,
          self.norm_eps,
          name=f'stage{i}_block{j}',
        )(tokens, shapes, train)
        # Published: only features of the last stage go through the norm.
        grids = unpack(norm(tokens) if i == last else tokens, shapes)
        blocks.append([x.mean((2, 3), jnp.float32) for x in grids])
      stages.append(unpack(tokens, shapes))
    return features_of_groups(blocks, grids, stages)


class Block(nn.Module):
  """x + attention(norm x), then x + mlp(norm x)."""

  heads: int
  window: int
  shift: int
  drop_path: float
  init_scale: str
  dtype: jnp.dtype
  eps: float

  @nn.compact
  def __call__(self, tokens, shapes: tuple[Shape, ...], train: bool):
    y = layer_norm('norm1', self.dtype, self.eps)(tokens)
    y = WindowAttention(
      self.heads,
      self.window,
      self.shift,
      self.init_scale,
      self.dtype,
      name='attn',
    )(y, shapes)
    tokens += DropPath(self.drop_path)(y, shapes, train)
    y = layer_norm('norm2', self.dtype, self.eps)(tokens)
    y = Mlp(4 * y.shape[-1], self.init_scale, self.dtype, name='mlp')(y)
    return tokens + DropPath(self.drop_path)(y, shapes, train)


class WindowAttention(nn.Module):
  """softmax(q k^T / sqrt(d) + bias + mask) v within (shifted) windows.

  Maps are padded to whole windows. q, k and v of a zero pad are the bias of the
  projection, so only real tokens are projected, and the bias is added after
  padding. As published, pads are not masked.
  """

  heads: int
  window: int
  shift: int
  init_scale: str
  dtype: jnp.dtype

  @nn.compact
  def __call__(self, tokens, shapes: tuple[Shape, ...]):
    C, a = tokens.shape[-1], self.heads
    init = linear_init(self.init_scale)
    qkv = nn.Dense(
      3 * C, use_bias=False, kernel_init=init, dtype=self.dtype, name='qkv'
    )(tokens)
    qkv_bias = self.param('qkv_bias', nn.initializers.zeros, (3 * C,))
    table = self.param(
      'bias_table',
      nn.initializers.normal(0.02),
      ((2 * self.window - 1) ** 2, a),
    )

    qkv = to_windows(unpack(qkv, shapes), self.window, self.shift)
    qkv += qkv_bias.astype(self.dtype)[None, None, None]
    qkv = qkv.reshape(*qkv.shape[:3], 3, a, C // a).transpose(3, 0, 1, 4, 2, 5)
    bias = table[window_index(self.window)].transpose(2, 0, 1)  # a n n
    part = None
    if self.shift:
      part = jnp.asarray(window_parts(shapes, self.window, self.shift))  # W n
    out, probs = attend(qkv, bias, part)
    seen = Windows(probs, *shapes[0][1:], self.window, self.shift)
    self.sow('intermediates', 'attention', seen)
    out = out.swapaxes(2, 3)  # B W n a d
    out = out.reshape(*out.shape[:3], C)
    out = pack(from_windows(out, shapes, self.window, self.shift))
    return nn.Dense(C, kernel_init=init, dtype=self.dtype, name='proj')(out)


class Merge(nn.Module):
  """Halves the map: concatenates 2x2 neighbours, norm, linear."""

  dim: int
  init_scale: str
  dtype: jnp.dtype
  eps: float

  @nn.compact
  def __call__(self, tokens, shapes):
    merged = []
    for x in unpack(tokens, shapes):
      B, V, h, w, C = x.shape
      x = jnp.pad(x, ((0, 0), (0, 0), (0, h % 2), (0, w % 2), (0, 0)))
      h, w = x.shape[2] // 2, x.shape[3] // 2
      x = x.reshape(B, V, h, 2, w, 2, C)
      # In the published order of the four, the row changes first.
      x = x.transpose(0, 1, 2, 4, 5, 3, 6)  # B V h w column row C
      merged.append(x.reshape(B, V, h, w, 4 * C))
    shapes = tuple(x.shape[1:-1] for x in merged)
    y = layer_norm('norm', self.dtype, self.eps)(pack(merged))
    y = nn.Dense(
      self.dim,
      use_bias=False,
      kernel_init=linear_init(self.init_scale),
      dtype=self.dtype,
      name='reduction',
    )(y)
    return y, shapes
