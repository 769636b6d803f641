"""Vision Transformer with a class token, as DINO and DeiT have it.

Axes: B images, V views, h w a map, n = 1 + h w tokens of a view, T tokens of
all groups, a head, d = dim / heads.
"""

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


class ViT(nn.Module):
  """ViT; its regions are its patches.

  Attributes:
    dim, depth, heads: width, number of blocks, attention heads.
    patch: side of a patch in pixels.
    image_size: side in pixels the position embedding is made for; it is
      resized for others.
    drop_path, init_scale, dtype, remat: as in `swin.Swin`.
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
    super().__post_init__()

  @property
  def num_features(self) -> int:
    return self.dim

  @nn.compact
  def __call__(self, groups, train: bool = False) -> tuple[Features, ...]:
    """Returns Features for each group; see `swin.Swin`.

    `blocks` holds the class token of each block after the final norm.
    """
    block_type = nn.remat(Block, static_argnums=(2, 3)) if self.remat else Block
    rates = np.linspace(0, self.drop_path, self.depth)
    side = self.image_size // self.patch
    init = nn.initializers.normal(0.02)
    cls = self.param('cls_token', init, (1, 1, self.dim))
    positions = self.param('pos_embed', init, (1, 1 + side**2, self.dim))
    norm = layer_norm('norm')

    patches, maps = PatchEmbed(
      self.dim, self.patch, self.dtype, name='patch_embed'
    )(groups)
    views = []
    for x, (V, h, w) in zip(unpack(patches, maps), maps):
      x = x.reshape(len(x), V, h * w, self.dim)
      first = jnp.broadcast_to(cls[None], (len(x), V, 1, self.dim))
      x = jnp.concatenate([first.astype(self.dtype), x], 2)  # B V n dim
      where = resize_positions(positions, (h, w))
      views.append(x + where.astype(self.dtype)[None])
    shapes = tuple(x.shape[1:-1] for x in views)
    tokens = pack(views)
    blocks = []
    for j in range(self.depth):
      tokens = block_type(
        self.heads,
        float(rates[j]),
        self.init_scale,
        self.dtype,
        name=f'block{j}',
      )(tokens, shapes, train)
      views = unpack(norm(tokens), shapes)
      blocks.append([x[:, :, 0] for x in views])
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


class Block(nn.Module):
  """x + attention(norm x), then x + mlp(norm x)."""

  heads: int
  drop_path: float
  init_scale: str
  dtype: jnp.dtype

  @nn.compact
  def __call__(self, tokens, shapes: tuple[Shape, ...], train: bool):
    y = layer_norm('norm1', self.dtype)(tokens)
    y = Attention(self.heads, self.init_scale, self.dtype, name='attn')(
      y, shapes
    )
    tokens += DropPath(self.drop_path)(y, shapes, train)
    y = layer_norm('norm2', self.dtype)(tokens)
    y = Mlp(4 * y.shape[-1], self.init_scale, self.dtype, name='mlp')(y)
    return tokens + DropPath(self.drop_path)(y, shapes, train)


class Attention(nn.Module):
  """softmax(q k^T / sqrt(d)) v among the tokens of a view."""

  heads: int
  init_scale: str
  dtype: jnp.dtype

  @nn.compact
  def __call__(self, tokens, shapes: tuple[Shape, ...]):
    B, _, C = tokens.shape
    a, d = self.heads, C // self.heads
    init = linear_init(self.init_scale)
    qkv = nn.Dense(3 * C, kernel_init=init, dtype=self.dtype, name='qkv')(
      tokens
    )
    outputs = []
    for x, (V, n) in zip(unpack(qkv, shapes), shapes):
      x = x.reshape(B, V, n, 3, a, d)
      q, k, v = x[:, :, :, 0], x[:, :, :, 1], x[:, :, :, 2]  # B V n a d
      logits = d**-0.5 * jnp.einsum(
        'BVqad,BVkad->BVaqk', q, k, preferred_element_type=jnp.float32
      )
      probs = jax.nn.softmax(logits)  # B V a n n
      self.sow('intermediates', 'attention', probs)
      out = jnp.einsum('BVaqk,BVkad->BVqad', probs.astype(self.dtype), v)
      outputs.append(out.reshape(B, V, n, C))
    return nn.Dense(C, kernel_init=init, dtype=self.dtype, name='proj')(
      pack(outputs)
    )


def resize_positions(embedding: jax.Array, size: tuple[int, int]) -> jax.Array:
  """The position embedding f[1, 1 + N, C] for a map of `size` (rows, columns).

  The class token's part stays; the rest is resized as an image. For square
  maps the factor is the published sqrt(h w / N).
  """
  cls, patches = embedding[:, :1], embedding[0, 1:]
  side = round(len(patches) ** 0.5)
  image = patches.reshape(side, side, -1)
  if size != (side, side):
    image = resize_bicubic(image, size)
  return jnp.concatenate([cls, image.reshape(1, -1, image.shape[-1])], 1)


def _grid(tokens, V: int, h: int, w: int) -> jax.Array:
  """Tokens of a view [B, V, n, C] without the class token, as a map."""
  return tokens[:, :, 1:].reshape(len(tokens), V, h, w, -1)
