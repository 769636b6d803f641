"""Vision Transformer with a class token, as DINO, DeiT and MAE have it.

Axes: B images, V views, h w a map, n = 1 + h w tokens of a view, T tokens of
all groups, a head, d = dim / heads.
"""

from typing import ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from esvit_jax.errors import UserError
from esvit_jax.models.backbone import Backbone, Features, features_of_groups
from esvit_jax.models.layers import check_heads, layer_norm, pack, unpack
from esvit_jax.models.patches import PatchEmbed, patchify
from esvit_jax.models.positions import position_init, resize_positions
from esvit_jax.models.transformer import Block

# MAE has fixed positions and mean features, MoCo-v3 fixed positions.
_MAE = {'positions': 'mae', 'init_scale': 'mae', 'pool': 'mean'}
_MOCO = {'positions': 'moco', 'init_scale': 'moco'}
# With the numbers of heads of MAE-Lite, which exceed DeiT's.
_SIZES = {
  'tiny': {'dim': 192, 'depth': 12, 'heads': 12},
  'small': {'dim': 384, 'depth': 12, 'heads': 12},
  'base': {'dim': 768, 'depth': 12, 'heads': 12},
  'large': {'dim': 1024, 'depth': 24, 'heads': 16},
  'huge': {'dim': 1280, 'depth': 32, 'heads': 16, 'patch': 14},
}
_28 = {'dim': 64, 'depth': 4, 'heads': 4, 'patch': 4, 'image_size': 28}
_96 = {'dim': 384, 'depth': 12, 'heads': 6, 'patch': 8, 'image_size': 96}

# name -> fields, as `models.BACKBONES` lists them
SIZES = {
  'vit_tiny': {'dim': 192, 'depth': 12, 'heads': 3, 'drop_path': 0.1},
  'vit_small': {'dim': 384, 'depth': 12, 'heads': 6, 'drop_path': 0.1},
  'vit_base': {'dim': 768, 'depth': 12, 'heads': 12, 'drop_path': 0.1},
  'vit_tiny_12h': _SIZES['tiny'],  # as MAE-Lite fine-tunes
  **{f'mae_{name}': {**size, **_MAE} for name, size in _SIZES.items()},
  **{
    f'moco_{name}': {**_SIZES[name], **_MOCO}
    for name in ('tiny', 'small', 'base')
  },
  # For images of 96 px, of 12x12 patches, and of 28 px, of 7x7.
  'vit_96': _96,
  'mae_96': {**_96, **_MAE},
  'vit_28': _28,
  'mae_28': {**_28, **_MAE},
  'moco_28': {**_28, **_MOCO},
}
SIZES |= {f'deit_{size}': SIZES[f'vit_{size}'] for size in ('tiny', 'small')}

CHOICES = {
  'positions': ('learned', 'mae', 'moco'),
  'pool': ('cls', 'mean'),
  'qkv_bias': ('qkv', 'qv'),
}


class BlockTrace(NamedTuple):
  """Activations of a block.

  Attributes:
    normed: the input after the first norm, f[B, n, dim].
    logits: attention before the softmax, f32[B, a, n, n].
    tokens: the output.
    output: the output after the network's final norm.
  """

  normed: jax.Array
  logits: jax.Array
  tokens: jax.Array
  output: jax.Array


class ViT(Backbone, kw_only=True):
  """ViT; its regions are its patches.

  Attributes:
    dim, depth, heads: width, number of blocks, attention heads.
    patch: side of a patch in pixels.
    image_size: side in pixels that the position embedding is made for; it is
      resized for other sizes.
    positions: initial position embedding: 'learned' (noise), or the sines and
      cosines of 'mae' or 'moco'. The optimiser decides whether it is trained.
    pool: the view feature after the final norm: the class token ('cls') or the
      'mean' of the patches.
    final_norm: whether there is one; classifiers with their own norm have none.
    rel_pos: whether attention has a learned bias for each relative position.
    layer_scale: initial gains of the outputs of blocks; 0: no gains.
    qkv_bias: which of queries, keys and values have biases, 'qkv' or 'qv'.
    resize_extra: added to the sides of a map when positions are resized to it:
      0.1 in DINO and SiT, against rounding, which shifts positions visibly.
    taps: numbers, from 1, of the blocks whose maps are `stages`; the last is
      the last block. By default it is the only one.
  """

  dim: int
  depth: int
  heads: int
  patch: int = 16
  image_size: int = 224
  positions: str = 'learned'
  pool: str = 'cls'
  final_norm: bool = True
  rel_pos: bool = False
  layer_scale: float = 0.0
  qkv_bias: str = 'qkv'
  resize_extra: float = 0.0
  taps: tuple[int, ...] = ()

  DEBUG: ClassVar = {
    'dim': 32,
    'depth': 2,
    'heads': 2,
    'patch': 4,
    'image_size': 28,
  }

  def check(self):
    check_heads(self.dim, self.heads, 'dim or heads of the model')
    if self.image_size % self.patch:
      raise UserError(
        f'image_size {self.image_size} of the model is no multiple of its '
        f'patch {self.patch}'
      )
    for field, choices in CHOICES.items():
      if getattr(self, field) not in choices:
        raise UserError(
          f"{field} of the model is '{getattr(self, field)}': use one of "
          f'{", ".join(choices)}'
        )
    taps = tuple(self.taps)
    if taps and (
      sorted(set(taps)) != list(taps) or taps[0] < 1 or taps[-1] != self.depth
    ):
      raise UserError(
        f'taps of the model are {taps}: name blocks from 1, rising, the last '
        f'of them the last block, {self.depth}'
      )

  @property
  def num_features(self) -> int:
    return self.dim

  @property
  def layer_ids(self) -> dict[str, int]:
    tokens = dict.fromkeys(('cls_token', 'pos_embed', 'patch_embed'), 0)
    return tokens | {f'block{j}': j + 1 for j in range(self.depth)}

  @property
  def side(self) -> int:
    """Patches along a side of the images it is made for."""
    return self.image_size // self.patch

  def setup(self):
    block_type = nn.remat(Block, static_argnums=(2, 3)) if self.remat else Block
    rates = np.linspace(0, self.drop_path, self.depth)
    normal = nn.initializers.normal
    cls_init = normal(1e-6 if self.init_scale == 'moco' else 0.02)
    self.cls_token = self.param('cls_token', cls_init, (1, 1, self.dim))
    pos_init = position_init(self.positions, self.dim, self.side)
    shape = (1, 1 + self.side**2, self.dim)
    self.pos_embed = self.param('pos_embed', pos_init, shape)
    self.patch_embed = PatchEmbed(
      self.dim, self.patch, self.dtype, self.init_scale
    )
    for j, rate in enumerate(rates):
      block = block_type(
        self.heads,
        float(rate),
        self.init_scale,
        self.dtype,
        side=self.side if self.rel_pos else 0,
        layer_scale=self.layer_scale,
        qkv_bias=self.qkv_bias,
        depth=j + 1,
      )
      setattr(self, f'block{j}', block)
    self.norm = layer_norm(None) if self.final_norm else _float32

  def __call__(self, groups, train: bool = False) -> tuple[Features, ...]:
    """Returns Features for each group; see `Backbone`.

    `blocks` holds the view feature of each block, after the final norm.
    """
    patches, maps = self.patch_embed(groups)
    views = []
    for x, (V, h, w) in zip(unpack(patches, maps), maps):
      if self.rel_pos and (h, w) != (self.side, self.side):
        raise UserError(
          f'images of {h * self.patch}x{w * self.patch} px: relative positions '
          f'are made for {self.image_size} px, set model.image_size'
        )
      x = x.reshape(len(x), V, h * w, self.dim)
      first = jnp.broadcast_to(self.cls_token[None], (len(x), V, 1, self.dim))
      x = jnp.concatenate([first.astype(self.dtype), x], 2)  # B V n dim
      where = self._positions((h, w))
      views.append(x + where.astype(self.dtype)[None])
    shapes = tuple(x.shape[1:-1] for x in views)
    tokens = pack(views)
    blocks, tapped = [], []
    for j in range(self.depth):
      tokens, _, _ = getattr(self, f'block{j}')(tokens, shapes, train)
      if j + 1 in (self.taps or (self.depth,)):
        tapped.append(unpack(tokens, shapes))
      views = unpack(self.norm(tokens), shapes)
      blocks.append([self._pooled(x) for x in views])
    grids = _grids(views, maps)
    return features_of_groups(blocks, grids, [_grids(x, maps) for x in tapped])

  def encode_visible(
    self, images, ids, train: bool = False
  ) -> tuple[BlockTrace, ...]:
    """Encodes some patches of each image, in any order.

    Args:
      images: f[B, H, W, channels].
      ids: numbers of the patches, row by row, i32[B, k].
      train: whether drop path is on.

    Returns:
      A trace for each block, of n = 1 + k tokens: the class token, then the
      patches in the order of `ids`.
    """
    if self.rel_pos:
      raise UserError(
        'relative positions are for whole images: set model.rel_pos=False in '
        'pre-training'
      )
    (B, H, W, C), p, k = images.shape, self.patch, ids.shape[1]
    patches = patchify(images, p)  # B h*w p*p*C
    seen = jnp.take_along_axis(patches, ids[:, :, None], 1)
    # As one view each: a column of patches.
    x, _ = self.patch_embed((seen.reshape(B, 1, k * p, p, C),))  # B k dim
    where = self._positions((H // p, W // p))[0]
    x += where[1:][ids].astype(self.dtype)
    first = (self.cls_token[0] + where[:1]).astype(self.dtype)
    first = jnp.broadcast_to(first[None], (B, 1, self.dim))
    tokens = jnp.concatenate([first, x], 1)  # B n dim
    traces = []
    for j in range(self.depth):
      tokens, normed, (logits,) = getattr(self, f'block{j}')(
        tokens, ((1, 1 + k),), train
      )
      traces.append(BlockTrace(normed, logits[:, 0], tokens, self.norm(tokens)))
    return tuple(traces)

  def _positions(self, size: tuple[int, int]):
    return resize_positions(self.pos_embed, size, self.resize_extra)

  def _pooled(self, tokens):
    """Tokens [B, V, n, dim] -> view features [B, V, dim]."""
    return tokens[:, :, 0] if self.pool == 'cls' else tokens[:, :, 1:].mean(2)


def _grids(views, maps) -> list[jax.Array]:
  """Tokens [B, V, n, C] without class tokens, as maps of shapes (V, h, w)."""
  return [
    x[:, :, 1:].reshape(len(x), *shape, -1) for x, shape in zip(views, maps)
  ]


def _float32(tokens):
  return tokens.astype(jnp.float32)
