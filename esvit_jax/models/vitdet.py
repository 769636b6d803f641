"""A plain ViT for large images (ViTDet, 2203.16527).

Most blocks attend within windows, a few globally; relative positions are those
of each axis; there is no class token. It takes the weights of a ViT.

Axes: B images, V views, h w a map, s a window, a head, d = dim / heads.
"""

import math
from typing import ClassVar

import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from esvit_jax.errors import UserError
from esvit_jax.models import vit, windows
from esvit_jax.models.backbone import (
  Backbone,
  Features,
  features_of_groups,
)
from esvit_jax.models.layers import (
  DropPath,
  Mlp,
  check_heads,
  layer_norm,
  pack,
  unpack,
)
from esvit_jax.models.patches import PatchEmbed
from esvit_jax.models.positions import position_init, resize_positions
from esvit_jax.models.transformer import Attention

# name -> fields, as `models.BACKBONES` lists them
SIZES = {
  'vitdet_tiny': {**vit.SIZES['vit_tiny_12h'], 'detect_size': 640},
  'vitdet_base': {**vit.SIZES['vit_base'], 'detect_size': 1024},
  'vitdet_28': {**vit.SIZES['vit_28'], 'window': 4, 'detect_size': 96},
}


class ViTDet(Backbone, kw_only=True):
  """A ViT of windows; its regions are its patches.

  Attributes:
    dim, depth, heads, patch: see `vit.ViT`.
    image_size: side in pixels of the images that positions were learned for.
    detect_size: side in pixels of the images that relative positions are made
      for; they are resized for other sizes.
    positions: see `vit.ViT`.
    window: side of a window in patches.
    global_every: the last of every so many blocks has global attention.
    rel_pos: whether there are relative positions.
  """

  dim: int
  depth: int
  heads: int
  patch: int = 16
  image_size: int = 224
  detect_size: int = 640
  positions: str = 'learned'
  window: int = 14
  global_every: int = 3
  rel_pos: bool = True

  DEBUG: ClassVar = {**vit.ViT.DEBUG, 'window': 4, 'detect_size': 56}

  def check(self):
    for field in ('image_size', 'detect_size'):
      if getattr(self, field) % self.patch:
        raise UserError(
          f'{field} {getattr(self, field)} of the model is no multiple of its '
          f'patch {self.patch}'
        )
    check_heads(self.dim, self.heads, 'dim or heads of the model')

  @property
  def num_features(self) -> int:
    return self.dim

  @property
  def layer_ids(self) -> dict[str, int]:
    tokens = dict.fromkeys(('pos_embed', 'patch_embed'), 0)
    return tokens | {f'block{j}': j + 1 for j in range(self.depth)}

  @nn.compact
  def __call__(self, groups, train: bool = False) -> tuple[Features, ...]:
    """Returns Features for each group; see `Backbone`."""
    patches, maps = PatchEmbed(
      self.dim, self.patch, self.dtype, self.init_scale, name='patch_embed'
    )(groups)
    side = self.image_size // self.patch
    init = position_init(self.positions, self.dim, side)
    table = self.param('pos_embed', init, (1, 1 + side**2, self.dim))
    views = []
    for x, (_, h, w) in zip(unpack(patches, maps), maps):
      where = resize_positions(table, (h, w))[:, 1:].reshape(1, h, w, -1)
      views.append(x + where[None].astype(self.dtype))
    block_type = (
      nn.remat(WindowBlock, static_argnums=(2,)) if self.remat else WindowBlock
    )
    rates = np.linspace(0, self.drop_path, self.depth)
    norm = layer_norm('norm')
    blocks = []
    for j, rate in enumerate(rates):
      everywhere = (j + 1) % self.global_every == 0
      table_side = self.detect_size // self.patch
      block = block_type(
        self.heads,
        float(rate),
        self.init_scale,
        self.dtype,
        window=0 if everywhere else self.window,
        table_side=0
        if not self.rel_pos
        else table_side
        if everywhere
        else self.window,
        name=f'block{j}',
      )
      views = [block(x, train) for x in views]
      grids = [norm(x) for x in views]
      blocks.append([x.mean((2, 3)) for x in grids])
    return features_of_groups(blocks, grids, [views])


class WindowBlock(nn.Module):
  """x + attention(norm x) within windows, then x + mlp(norm x).

  Windows at the border are filled with zeros, which attend like tokens.

  Attributes:
    window: side in patches; 0: attention among all patches.
    table_side: side that relative positions are made for; 0: none.
    others: see `transformer.Block`.
  """

  heads: int
  drop_path: float
  init_scale: str
  dtype: jnp.dtype
  window: int = 0
  table_side: int = 0

  @nn.compact
  def __call__(self, x, train: bool):
    """Maps [B, V, h, w, C] -> the same."""
    B, V, h, w, C = x.shape
    y = layer_norm('norm1', self.dtype)(x)
    grid = (self.window,) * 2 if self.window else (h, w)
    if self.window:
      y = windows.cut(windows.pad(y, self.window), self.window)
    else:
      y = y.reshape(B, V, 1, 1, h * w, C)
    cuts = y.shape[:-1]  # B V rows columns n
    y, _ = Attention(
      self.heads,
      self.init_scale,
      self.dtype,
      grid=grid,
      axis_side=self.table_side,
      name='attn',
    )(y.reshape(B, -1, C), ((math.prod(cuts[1:4]), cuts[4]),))
    y = y.reshape(*cuts, C)
    y = windows.paste(y)[:, :, :h, :w] if self.window else y.reshape(x.shape)
    tokens, shapes = pack([x]), (x.shape[1:-1],)
    tokens += DropPath(self.drop_path)(pack([y]), shapes, train)
    y = layer_norm('norm2', self.dtype)(tokens)
    y = Mlp(4 * C, self.init_scale, self.dtype, name='mlp')(y)
    tokens += DropPath(self.drop_path)(y, shapes, train)
    return tokens.reshape(x.shape)
