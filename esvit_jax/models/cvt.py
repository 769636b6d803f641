"""CvT (arXiv 2103.15808) as EsViT trains it: windows, no positions.

A depth-wise convolution before queries, keys and values encodes positions; it
is followed by batch norm. As published, each group of views is a forward pass
of its own, with its own batch statistics; running statistics are updated once
for each group, in order.

Axes: B images, V views of a group, h w a map, W windows, n tokens of a window,
a head, d = C / heads.
"""

from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from esvit_jax.models.attention import (
  attention_logits,
  split_heads,
  weighted_values,
)
from esvit_jax.models.backbone import (
  Backbone,
  Features,
  Windows,
  features_of_groups,
)
from esvit_jax.models.convolutions import Pointwise, channels_of, drop_path
from esvit_jax.models.layers import BatchNorm, linear_init
from esvit_jax.models.patches import check_images
from esvit_jax.models.stages import DEBUG, check_stages, stage_layer_ids
from esvit_jax.models.windows import from_windows, pad, to_windows

# Kernel, stride and padding of the embedding of the first and of later stages.
FIRST, LATER = (7, 4, 2), (3, 2, 1)

# name -> fields, as `models.BACKBONES` lists them
SIZES = {
  'cvt_tiny': {
    'dims': (64, 192, 384, 768),
    'depths': (2, 2, 6, 2),
    'heads': (1, 3, 6, 12),
    'drop_path': 0.1,
  },
}


class CvT(Backbone, kw_only=True):
  """CvT with any depths and widths.

  Attributes:
    dims, depths, heads: of each stage.
    window: largest window side in tokens; smaller maps are one window.
    image_size: side in pixels of the images it is made for. Nothing depends on
      it.
  """

  dims: tuple[int, ...]
  depths: tuple[int, ...]
  heads: tuple[int, ...]
  window: int = 7
  image_size: int = 224

  DEBUG: ClassVar = DEBUG

  def check(self):
    check_stages(self.dims, self.depths, self.heads)

  @property
  def num_features(self) -> int:
    return self.dims[-1]

  @property
  def layer_ids(self) -> dict[str, int]:
    embeds = [f'embed{i}' for i in range(len(self.depths))]
    return stage_layer_ids(self.depths, embeds[:1], embeds[1:])

  @nn.compact
  def __call__(self, groups, train: bool = False) -> tuple[Features, ...]:
    """Returns Features for each group; see `Backbone`."""
    kernel, _, pad = FIRST
    channels = channels_of(self, 'embed0', 'conv')
    check_images(groups, channels, least=kernel - 2 * pad)
    block_type = nn.remat(Block, static_argnums=(2,)) if self.remat else Block
    last = len(self.depths) - 1
    rates = iter(np.linspace(0, self.drop_path, sum(self.depths)))
    norm = layer_norm('norm')  # float32: regions are compared by cosine
    blocks, stages = [], []

    maps = groups
    for i, depth in enumerate(self.depths):
      embed = Embed(
        self.dims[i],
        *(LATER if i else FIRST),
        self.init_scale,
        self.dtype,
        name=f'embed{i}',
      )
      maps = [embed(x) for x in maps]
      for j in range(depth):
        block = block_type(
          self.heads[i],
          self.window,
          float(next(rates)),
          self.init_scale,
          self.dtype,
          name=f'stage{i}_block{j}',
        )
        maps = [block(x, train) for x in maps]
        # Published: only features of the last stage go through the norm.
        grids = [norm(x) for x in maps] if i == last else maps
        blocks.append([x.mean((2, 3), jnp.float32) for x in grids])
      stages.append(maps)
    return features_of_groups(blocks, grids, stages)


class Embed(nn.Module):
  """Overlapping patches -> tokens: a strided convolution, then a norm."""

  dim: int
  kernel: int
  stride: int
  pad: int
  init_scale: str
  dtype: jnp.dtype

  @nn.compact
  def __call__(self, x):
    x = nn.Conv(
      self.dim,
      (self.kernel, self.kernel),
      self.stride,
      self.pad,
      kernel_init=linear_init(self.init_scale),
      dtype=self.dtype,
      name='conv',
    )(x)
    return layer_norm('norm', self.dtype)(x)


class Block(nn.Module):
  """x + attention(norm x), then x + mlp(norm x)."""

  heads: int
  window: int
  drop_path: float
  init_scale: str
  dtype: jnp.dtype

  @nn.compact
  def __call__(self, x, train: bool):
    y = layer_norm('norm1', self.dtype)(x)
    y = WindowAttention(
      self.heads, self.window, self.init_scale, self.dtype, name='attn'
    )(y, train)
    x += drop_path(self.drop_path, y, train)
    y = layer_norm('norm2', self.dtype)(x)
    y = Mlp(self.init_scale, self.dtype, name='mlp')(y)
    return x + drop_path(self.drop_path, y, train)


class WindowAttention(nn.Module):
  """softmax(q k^T / sqrt(C)) v in windows, after a convolution.

  As published, the scale is that of the whole width C, not of a head; pads are
  added before the projection, count in its batch statistics and are not
  masked; the convolution crosses the borders of windows.
  """

  heads: int
  window: int
  init_scale: str
  dtype: jnp.dtype

  @nn.compact
  def __call__(self, x, train: bool):
    _, V, h, w, C = x.shape
    window = min(self.window, h, w)
    init = linear_init(self.init_scale)

    x = pad(x, window)
    x = nn.Conv(
      C,
      (3, 3),
      feature_group_count=C,
      use_bias=False,
      kernel_init=init,
      dtype=self.dtype,
      name='depthwise',
    )(x)
    x = BatchNorm(dtype=self.dtype, name='bn')(x, train)
    x = Pointwise(3 * C, init, dtype=self.dtype, name='qkv')(x)
    q, k, v = split_heads(to_windows([x], window, 0), 3, self.heads)
    probs = jax.nn.softmax(attention_logits(q, k, C**-0.5))  # B W a n n
    seen = Windows(probs, h, w, window, 0)
    self.sow('intermediates', 'attention', seen)
    (out,) = from_windows(weighted_values(probs, v), ((V, h, w),), window, 0)
    return Pointwise(C, init, dtype=self.dtype, name='proj')(out)


class Mlp(nn.Module):
  """Two linear layers with QuickGELU, x sigmoid(1.702 x), between them."""

  init_scale: str
  dtype: jnp.dtype

  @nn.compact
  def __call__(self, x):
    C, init = x.shape[-1], linear_init(self.init_scale)
    y = Pointwise(4 * C, init, dtype=self.dtype, name='fc1')(x)
    y *= jax.nn.sigmoid(1.702 * y)
    return Pointwise(C, init, dtype=self.dtype, name='fc2')(y)


def layer_norm(name: str, dtype=jnp.float32) -> nn.LayerNorm:
  """LayerNorm with CvT's eps, ten times that of the other backbones."""
  return nn.LayerNorm(1e-5, dtype=dtype, use_fast_variance=False, name=name)
