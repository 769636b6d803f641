"""Vision Longformer (arXiv 2103.15358) as EsViT trains it.

Early stages attend within 3x3 chunks of their map and to a few global tokens;
late stages have global attention. Crops of all sizes are one forward pass, with
tokens packed as [B, T, C], the global tokens of a view before its map.

Axes: B images, V views, h w a map, g global tokens of a view, T tokens of all
groups, C channels.
"""

import functools
import math
from collections.abc import Callable
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from esvit_jax.errors import UserError
from esvit_jax.models.backbone import Backbone, Features, features_of_groups
from esvit_jax.models.layers import (
  DropPath,
  Mlp,
  Shape,
  layer_norm,
  pack,
  unpack,
)
from esvit_jax.models.longformer import FullAttention, SparseAttention, lines
from esvit_jax.models.patches import PatchEmbed
from esvit_jax.models.stages import DEBUG, check_stages

# name -> fields, as `models.BACKBONES` lists them
SIZES = {
  'vil_2262': {
    'dims': (96, 192, 384, 768),
    'depths': (2, 2, 6, 2),
    'heads': (3, 6, 12, 24),
    'sparse': (True, True, False, False),
    'global_tokens': (1, 1, 1, 0),
    'patches': (4, 2, 2, 2),
    'drop_path': 0.1,
  },
}


class ViL(Backbone, kw_only=True):
  """ViL with any depths, widths and kinds of stages.

  Attributes:
    dims, depths, heads: of each stage.
    sparse: whether each stage attends within chunks or globally.
    global_tokens: number of global tokens of each stage, which are new in each.
      The first, if there is one, is the view feature.
    patches: side of a patch, in pixels in the first stage, else in tokens of
      the stage before.
    window: side of a chunk in tokens.
    mode: chunks that a chunk attends to in sparse stages: 0 the 3x3 chunks
      around it, -1 only itself, 1 as 0, but in training itself and one random
      neighbour, drawn for each layer and the whole batch from rng 'neighbour'.
    image_size: side in pixels that the biases of global attention are made for;
      they are resized for other sizes.
  """

  dims: tuple[int, ...]
  depths: tuple[int, ...]
  heads: tuple[int, ...]
  sparse: tuple[bool, ...]
  global_tokens: tuple[int, ...]
  patches: tuple[int, ...]
  window: int = 7
  mode: int = 0
  image_size: int = 224

  DEBUG: ClassVar = {
    **DEBUG,
    'sparse': (True, False),
    'global_tokens': (1, 0),
    'patches': (4, 2),
    'window': 3,
  }

  def check(self):
    check_stages(self.dims, self.depths, self.heads)
    for field in ('sparse', 'global_tokens', 'patches'):
      if len(getattr(self, field)) != len(self.dims):
        raise UserError(
          f'{field} of the model is {getattr(self, field)}: use one entry per '
          f'stage, {len(self.dims)}'
        )
    if self.mode not in (-1, 0, 1):
      raise UserError(
        f'mode of the model is {self.mode}: use 0 (all nine chunks), 1 (a '
        'random neighbour in training) or -1 (no neighbours)'
      )
    if min(self.patches) < 1 or min(self.global_tokens) < 0:
      raise UserError(
        f'patches {self.patches} of the model have to be 1 or more, and '
        f'global_tokens {self.global_tokens} 0 or more'
      )
    if self.image_size < math.prod(self.patches):
      raise UserError(
        f'image_size {self.image_size} of the model leaves no token in the '
        f'last stage: use {math.prod(self.patches)} or more'
      )

  @property
  def num_features(self) -> int:
    return self.dims[-1]

  @property
  def layer_ids(self) -> dict[str, int]:
    ids, block = {}, 0
    for i, depth in enumerate(self.depths):
      # The embedding belongs to the block after it.
      ids[f'layer{i + 1}_0'] = block + 1 if i else 0
      for j in range(depth):
        block += 1
        ids |= {f'layer{i + 1}_{2 * j + part}': block for part in (1, 2)}
    return ids

  @nn.compact
  def __call__(self, groups, train: bool = False) -> tuple[Features, ...]:
    """Returns Features for each group; see `Backbone`.

    `stages` hold maps, without global tokens.
    """
    block_type = nn.remat(Block, static_argnums=(2, 3)) if self.remat else Block
    last = len(self.depths) - 1
    rates = iter(np.linspace(0, self.drop_path, sum(self.depths)))
    norm = layer_norm('norm')  # float32: regions are compared by cosine
    maps, side = groups, self.image_size
    blocks, stages = [], []

    for i, depth in enumerate(self.depths):
      # Modules are named after the published ones, whose stages count from 1:
      # layer1_0 embeds, odd ones attend, even ones are MLPs.
      name, g = f'layer{i + 1}', self.global_tokens[i]
      maps = [self._whole_patches(x, i) for x in maps]
      tokens, shapes = Embed(
        self.dims[i], self.patches[i], g, self.dtype, name=f'{name}_0'
      )(maps)
      side //= self.patches[i]
      attention = (
        functools.partial(
          SparseAttention, self.heads[i], g, self.window, self.mode
        )
        if self.sparse[i]
        else functools.partial(FullAttention, self.heads[i], g, side)
      )
      shared = (g, self.init_scale, self.dtype)
      for j in range(depth):
        rate = float(next(rates))
        for k, function in ((1, attention), (2, None)):
          block = block_type(
            function, rate, *shared, name=f'{name}_{2 * j + k}'
          )
          tokens = block(tokens, shapes, train)
        # Published: only features of the last stage go through the norm.
        views = unpack(norm(tokens) if i == last else tokens, lines(shapes, g))
        blocks.append([_pooled(x, g) for x in views])
      maps = _maps(unpack(tokens, lines(shapes, g)), shapes)
      stages.append(maps)
    return features_of_groups(blocks, _maps(views, shapes), stages)

  def _whole_patches(self, x, stage: int):
    """Crops a map to whole patches; images have to consist of whole ones."""
    if stage == 0:
      return x
    p, (h, w) = self.patches[stage], x.shape[2:4]
    if min(h, w) < p:
      least = math.prod(self.patches)
      raise UserError(
        f'a view is too small: stage {stage + 1} of the model gets a map of '
        f'{h}x{w} for patches of {p}; use {least}x{least} px or more'
      )
    # As published: a strided convolution drops the others.
    return x[:, :, : h // p * p, : w // p * p]


class Embed(nn.Module):
  """Maps -> normed tokens of patches, after new global tokens."""

  dim: int
  patch: int
  global_tokens: int
  dtype: jnp.dtype

  @nn.compact
  def __call__(self, maps) -> tuple[jax.Array, tuple[Shape, ...]]:
    """Returns tokens [B, T, dim] and the (V, h, w) of each group."""
    tokens, shapes = PatchEmbed(self.dim, self.patch, self.dtype, name='proj')(
      maps
    )
    tokens = layer_norm('norm_embed', self.dtype)(tokens)
    g = self.global_tokens
    if g == 0:
      return tokens, shapes
    init = nn.initializers.normal(0.02)
    first = self.param('cls_token', init, (1, g, self.dim))
    views = []
    for x, (V, h, w) in zip(unpack(tokens, shapes), shapes):
      x = x.reshape(len(x), V, h * w, self.dim)
      before = jnp.broadcast_to(first[None], (len(x), V, g, self.dim))
      views.append(jnp.concatenate([before.astype(self.dtype), x], 2))
    return pack(views), shapes


class Block(nn.Module):
  """x + f(norm x), where f is attention or, without one, an MLP."""

  attention: Callable[..., nn.Module] | None  # without the two last fields
  drop_path: float
  global_tokens: int
  init_scale: str
  dtype: jnp.dtype

  @nn.compact
  def __call__(self, tokens, shapes: tuple[Shape, ...], train: bool):
    y = layer_norm('norm', self.dtype)(tokens)
    if self.attention is not None:
      attention = self.attention(self.init_scale, self.dtype, name='attn')
      y = attention(y, shapes, train)
    else:
      y = Mlp(4 * y.shape[-1], self.init_scale, self.dtype, name='mlp')(y)
    owners = lines(shapes, self.global_tokens)
    return tokens + DropPath(self.drop_path)(y, owners, train)


def _pooled(tokens, g: int) -> jax.Array:
  """The feature f[B, V, C] of views [B, V, g + h w, C]."""
  if g:
    return tokens[:, :, 0].astype(jnp.float32)
  return tokens.mean(2, jnp.float32)


def _maps(views, shapes: tuple[Shape, ...]) -> list[jax.Array]:
  """Tokens [B, V, g + h w, C] of each group -> maps [B, V, h, w, C]."""
  return [
    x[:, :, x.shape[2] - h * w :].reshape(len(x), V, h, w, x.shape[-1])
    for x, (V, h, w) in zip(views, shapes)
  ]
