"""Vision Transformer with a class token, as DINO, DeiT and MAE have it.

Axes: B images, V views, h w a map, n = 1 + h w tokens of a view, T tokens of
all groups, a head, d = dim / heads.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from esvit_jax.errors import UserError
from esvit_jax.models.layers import (
  DropPath,
  Features,
  Mlp,
  PatchEmbed,
  Shape,
  layer_norm,
  linear_init,
  pack,
  resize_bicubic,
  unpack,
)
from esvit_jax.models.positions import mae_table, moco_table

CHOICES = {
  'positions': ('learned', 'mae', 'moco'),
  'pool': ('cls', 'mean'),
  'qkv_bias': ('qkv', 'qv'),
}


class BlockTrace(NamedTuple):
  """What a block made of n tokens.

  Attributes:
    normed: its input after its first norm, f[B, n, dim].
    logits: its attention before the softmax, f32[B, a, n, n].
    tokens: its output.
    output: its output after the network's final norm.
  """

  normed: jax.Array
  logits: jax.Array
  tokens: jax.Array
  output: jax.Array


class ViT(nn.Module):
  """ViT; its regions are its patches.

  Attributes:
    dim, depth, heads: width, number of blocks, attention heads.
    patch: side of a patch in pixels.
    image_size: side in pixels the position embedding is made for; it is
      resized for others.
    drop_path, dtype, remat: as in `swin.Swin`.
    init_scale: see `layers.linear_init`.
    positions: what the position embedding starts as: 'learned' (noise), or
      the sines and cosines of 'mae' or 'moco'. Whether it then learns is the
      optimiser's matter.
    pool: the view feature: the class token ('cls') or the 'mean' of the
      patches, after the final norm.
    final_norm: False leaves the last norm out; a classifier with a norm of
      its own has none.
    rel_pos: a learned bias of the attention for each offset between patches.
    layer_scale: what the gains of the blocks' outputs start as; 0: no gains.
    qkv_bias: biases of queries, keys and values, or of 'qv' only.
    resize_extra: added to the sides of a map before positions are resized to
      it. SiT's 0.1, a guard against rounding, moves them visibly.
  """

  dim: int
  depth: int
  heads: int
  patch: int = 16
  image_size: int = 224
  drop_path: float = 0.0
  init_scale: str = 'published'
  dtype: jnp.dtype = jnp.float32
  remat: bool = False
  positions: str = 'learned'
  pool: str = 'cls'
  final_norm: bool = True
  rel_pos: bool = False
  layer_scale: float = 0.0
  qkv_bias: str = 'qkv'
  resize_extra: float = 0.0

  def __post_init__(self):
    if self.dim % self.heads:
      raise UserError(
        f'{self.dim} channels do not split into {self.heads} heads: change '
        'dim or heads of the model'
      )
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
    super().__post_init__()

  @property
  def num_features(self) -> int:
    return self.dim

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
    self.pos_embed = self.param(
      'pos_embed', self._first_positions, (1, 1 + self.side**2, self.dim)
    )
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
    """Returns Features for each group; see `swin.Swin`.

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
    blocks = []
    for j in range(self.depth):
      tokens, _, _ = getattr(self, f'block{j}')(tokens, shapes, train)
      views = unpack(self.norm(tokens), shapes)
      blocks.append([self._pooled(x) for x in views])
    return tuple(
      Features(
        outputs[-1],
        _grid(view, V, h, w),
        (_grid(raw, V, h, w),),
        outputs,
      )
      for outputs, view, raw, (V, h, w) in zip(
        zip(*blocks), views, unpack(tokens, shapes), maps
      )
    )

  def encode_visible(
    self, images, ids, train: bool = False
  ) -> tuple[BlockTrace, ...]:
    """Sees some patches of each image only, in any order.

    Args:
      images: f[B, H, W, channels].
      ids: numbers of the patches, row by row, i32[B, k].
      train: whether drop path is on.

    Returns:
      One trace per block, of n = 1 + k tokens: the class token, then the
      patches in the order of `ids`.
    """
    if self.rel_pos:
      raise UserError(
        'relative positions are for whole images: set model.rel_pos=False in '
        'pre-training'
      )
    (B, H, W, C), p, k = images.shape, self.patch, ids.shape[1]
    patches = images.reshape(B, H // p, p, W // p, p, C).swapaxes(2, 3)
    patches = patches.reshape(B, -1, p * p * C)  # B h*w p*p*C
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

  def _first_positions(self, key, shape):
    if self.positions == 'learned':
      return nn.initializers.normal(0.02)(key, shape)
    table = mae_table if self.positions == 'mae' else moco_table
    return jnp.asarray(table(self.dim, self.side))

  def _positions(self, size: tuple[int, int]):
    return resize_positions(self.pos_embed, size, self.resize_extra)

  def _pooled(self, tokens):
    """Tokens [B, V, n, dim] -> view features [B, V, dim]."""
    return tokens[:, :, 0] if self.pool == 'cls' else tokens[:, :, 1:].mean(2)


class Block(nn.Module):
  """x + attention(norm x), then x + mlp(norm x).

  Returns the tokens, the attention's input and its logits for each group.
  """

  heads: int
  drop_path: float
  init_scale: str
  dtype: jnp.dtype
  side: int = 0
  layer_scale: float = 0.0
  qkv_bias: str = 'qkv'
  depth: int = 0

  @nn.compact
  def __call__(self, tokens, shapes: tuple[Shape, ...], train: bool):
    normed = layer_norm('norm1', self.dtype)(tokens)
    for x in unpack(normed, shapes):
      self.sow('intermediates', 'normed', x)
    y, logits = Attention(
      self.heads,
      self.init_scale,
      self.dtype,
      side=self.side,
      qkv_bias=self.qkv_bias,
      depth=self.depth,
      name='attn',
    )(normed, shapes)
    y = self._scaled('gamma_1', y)
    tokens += DropPath(self.drop_path)(y, shapes, train)
    y = layer_norm('norm2', self.dtype)(tokens)
    y = Mlp(
      4 * y.shape[-1], self.init_scale, self.dtype, self.depth, name='mlp'
    )(y)
    y = self._scaled('gamma_2', y)
    return tokens + DropPath(self.drop_path)(y, shapes, train), normed, logits

  def _scaled(self, name: str, y):
    """`y` times a learned gain for each channel (LayerScale, 2103.17239)."""
    if not self.layer_scale:
      return y
    init = nn.initializers.constant(self.layer_scale)
    gamma = self.param(name, init, (y.shape[-1],))
    return y * gamma.astype(self.dtype)[None, None]


class Attention(nn.Module):
  """softmax(q k^T / sqrt(d) + bias) v among the tokens of a view.

  Attributes:
    side: side of the grid of patches that have relative positions; 0: none.
    logits_only: whether it ends before the softmax.
    others: see Block.
  """

  heads: int
  init_scale: str
  dtype: jnp.dtype
  side: int = 0
  qkv_bias: str = 'qkv'
  depth: int = 0
  logits_only: bool = False

  @nn.compact
  def __call__(self, tokens, shapes: tuple[Shape, ...]):
    """Tokens [B, T, C] -> the same (None if `logits_only`), and logits."""
    B, _, C = tokens.shape
    a, d = self.heads, C // self.heads
    qkv = self._qkv(tokens)
    bias = self._bias()
    outputs, all_logits = [], []
    for x, (V, n) in zip(unpack(qkv, shapes), shapes):
      x = x.reshape(B, V, n, 3, a, d)
      q, k, v = x[:, :, :, 0], x[:, :, :, 1], x[:, :, :, 2]  # B V n a d
      logits = d**-0.5 * jnp.einsum(
        'BVqad,BVkad->BVaqk', q, k, preferred_element_type=jnp.float32
      )
      if bias is not None:
        logits += bias[None, None]
      self.sow('intermediates', 'logits', logits)
      all_logits.append(logits)
      if self.logits_only:
        continue
      probs = jax.nn.softmax(logits)  # B V a n n
      self.sow('intermediates', 'attention', probs)
      out = jnp.einsum('BVaqk,BVkad->BVqad', probs.astype(self.dtype), v)
      outputs.append(out.reshape(B, V, n, C))
    if self.logits_only:
      return None, tuple(all_logits)
    proj = nn.Dense(
      C,
      kernel_init=linear_init(self.init_scale, depth=self.depth),
      dtype=self.dtype,
      name='proj',
    )
    return proj(pack(outputs)), tuple(all_logits)

  def _qkv(self, tokens):
    C = tokens.shape[-1]
    qkv = nn.Dense(
      3 * C,
      use_bias=self.qkv_bias == 'qkv',
      kernel_init=linear_init(self.init_scale, parts=3),
      dtype=self.dtype,
      name='qkv',
    )(tokens)
    if self.qkv_bias == 'qv':
      zeros = nn.initializers.zeros
      q = self.param('q_bias', zeros, (C,))
      v = self.param('v_bias', zeros, (C,))
      bias = jnp.concatenate([q, jnp.zeros_like(q), v])
      qkv += bias.astype(self.dtype)[None, None]
    return qkv

  def _bias(self):
    """The bias of each head for each pair of tokens, f32[a, n, n] or None."""
    if not self.side:
      return None
    index = relative_position_index(self.side)
    table = self.param(
      'bias_table', nn.initializers.zeros, (index.max() + 1, self.heads)
    )
    return table[index].transpose(2, 0, 1)


def relative_position_index(side: int) -> np.ndarray:
  """Row of the bias table for each (query, key), i64[n, n].

  Patches at an offset of (dr, dc) rows and columns share row
  (dr + side - 1) (2 side - 1) + dc + side - 1; the last three are from the
  class token to any, from any to it, and from it to itself.
  """
  at = np.stack(np.mgrid[:side, :side]).reshape(2, -1)  # 2 h*w
  delta = at[:, :, None] - at[:, None] + side - 1
  width = 2 * side - 1
  index = np.zeros((1 + side**2, 1 + side**2), np.int64)
  index[1:, 1:] = delta[0] * width + delta[1]
  index[0] = width**2
  index[:, 0] = width**2 + 1
  index[0, 0] = width**2 + 2
  return index


def resize_positions(
  embedding: jax.Array, size: tuple[int, int], extra: float = 0.0
) -> jax.Array:
  """The position embedding f[1, 1 + N, C] for a map of `size` (rows, columns).

  The class token's part stays; the rest is resized as an image. For square
  maps the factor is the published sqrt(h w / N), or with `extra` added to the
  sides of the map.
  """
  cls, patches = embedding[:, :1], embedding[0, 1:]
  side = round(len(patches) ** 0.5)
  image = patches.reshape(side, side, -1)
  if size != (side, side):
    scales = tuple((length + extra) / side for length in size)
    image = resize_bicubic(image, size, scales)
  return jnp.concatenate([cls, image.reshape(1, -1, image.shape[-1])], 1)


def _grid(tokens, V: int, h: int, w: int) -> jax.Array:
  """Tokens of a view [B, V, n, C] without the class token, as a map."""
  return tokens[:, :, 1:].reshape(len(tokens), V, h, w, -1)


def _float32(tokens):
  return tokens.astype(jnp.float32)
