"""Masked auto-encoder (2111.06377) with parts for distillation (2205.14443).

Axes: B images, L patches of an image, k of them visible, P = p p channels
values of a patch in the order (row, column, channel), a and t heads of student
and teacher, n = 1 + k tokens.
"""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn

from esvit_jax.errors import UserError
from esvit_jax.models.layers import (
  check_heads,
  layer_norm,
  linear_init,
  torch_default_init,
)
from esvit_jax.models.positions import mae_table, resize_positions
from esvit_jax.models.transformer import Attention, Block
from esvit_jax.models.vit import BlockTrace


class Outputs(NamedTuple):
  """The output of a masked auto-encoder.

  Attributes:
    pred: predicted patches f32[B, L, P].
    traces: of the encoder's blocks, see `vit.BlockTrace`.
    logits: attention logits to match, adapted to the teacher's heads,
      f32[B, t, n, n]; None without an adapter.
    hidden: hidden states to match, adapted to the teacher's, f[B, n, D_t].
  """

  pred: jax.Array
  traces: tuple[BlockTrace, ...]
  logits: jax.Array | None
  hidden: tuple[jax.Array, ...]


class MAE(nn.Module):
  """A ViT over the visible patches, and a decoder of all pixels.

  Attributes:
    backbone: the encoder, a `vit.ViT`.
    decoder_dim, decoder_depth, decoder_heads: of the decoder's blocks.
    decode_at: number of encoder blocks before the decoder; 0: all.
    tail: whether one more block computes the attention logits to match:
      decoupled distillation (2404.12210).
    match: number of the block, from 1, whose logits are matched without a tail.
    teacher_heads: heads of the teacher's logits; 0: no distillation.
    hidden: hidden states to match, see `hidden_state`.
    teacher_dim: width of the teacher.
  """

  backbone: nn.Module
  decoder_dim: int
  decoder_depth: int
  decoder_heads: int
  decode_at: int = 0
  tail: bool = False
  match: int = 0
  teacher_heads: int = 0
  hidden: tuple[int, ...] = ()
  teacher_dim: int = 0

  def setup(self):
    net = self.backbone
    if not 0 <= self.decode_at <= net.depth:
      raise UserError(
        f'mae.decode_at is {self.decode_at}: the encoder has {net.depth} blocks'
      )
    self.decoder = Decoder(
      self.decoder_dim,
      self.decoder_depth,
      self.decoder_heads,
      net.patch,
      net.side,
      net.init_scale,
      net.dtype,
    )
    if self.tail:
      self.tail_block = Tail(net.heads, net.init_scale, net.dtype)
    if self.teacher_heads:
      self.attn_adapter = HeadAdapter(self.teacher_heads)
      for i in self.hidden:
        adapter = nn.Dense(
          self.teacher_dim,
          use_bias=False,
          kernel_init=torch_default_init(net.dim),
          dtype=net.dtype,
        )
        setattr(self, f'hidden_adapter{i}', adapter)

  def __call__(self, images, order, k: int, train: bool = False) -> Outputs:
    """Encodes the first `k` patches in an order, and predicts all.

    Args:
      images: f[B, H, W, channels].
      order: a permutation of the patches of each image, i32[B, L].
      k: number of visible patches.
      train: whether drop path is on.
    """
    traces = self.backbone.encode_visible(images, order[:, :k], train)
    # As published, the final norm precedes the decoder after any block.
    latent = traces[self.decode_at - 1].output
    _, H, W, channels = images.shape
    size = (H // self.backbone.patch, W // self.backbone.patch)
    pred = self.decoder(latent, order, size, channels)
    logits, hidden = None, ()
    if self.tail:
      logits = self.tail_block(traces[-1].tokens)
    elif self.teacher_heads:
      logits = traces[self.match - 1].logits
    if self.teacher_heads:
      logits = self.attn_adapter(logits)
      hidden = tuple(
        getattr(self, f'hidden_adapter{i}')(hidden_state(traces, i))
        for i in self.hidden
      )
    return Outputs(pred, traces, logits, hidden)


class Decoder(nn.Module):
  """Blocks over visible patches and mask tokens; predicts pixels."""

  dim: int
  depth: int
  heads: int
  patch: int
  side: int
  init_scale: str
  dtype: jnp.dtype

  def __post_init__(self):
    fields = 'mae.decoder_dim or mae.decoder_heads'
    check_heads(self.dim, self.heads, fields)
    super().__post_init__()

  @nn.compact
  def __call__(self, latent, order, size: tuple[int, int], channels: int):
    """Latent f[B, 1 + k, D], order i32[B, L] -> patches f32[B, L, P]."""
    B, L, k = *order.shape, latent.shape[1] - 1
    linear = {
      'kernel_init': linear_init(self.init_scale),
      'dtype': self.dtype,
    }
    mask_token = self.param(
      'mask_token', nn.initializers.normal(0.02), (1, 1, self.dim)
    )
    table = self.param(
      'pos_embed',
      lambda key: jnp.asarray(mae_table(self.dim, self.side)),
    )
    x = nn.Dense(self.dim, name='embed', **linear)(latent)  # B 1+k dim
    hidden = jnp.broadcast_to(mask_token, (B, L - k, self.dim))
    patches = jnp.concatenate([x[:, 1:], hidden.astype(self.dtype)], 1)
    place = jnp.argsort(order, 1)
    patches = jnp.take_along_axis(patches, place[:, :, None], 1)  # B L dim
    x = jnp.concatenate([x[:, :1], patches], 1)  # B 1+L dim
    x += resize_positions(table, size).astype(self.dtype)
    for j in range(self.depth):
      x, _, _ = Block(
        self.heads, 0.0, self.init_scale, self.dtype, name=f'block{j}'
      )(x, ((1, 1 + L),), False)
    x = layer_norm('norm')(x[:, 1:])
    x = nn.Dense(self.patch**2 * channels, name='pred', **linear)(x)
    return x.astype(jnp.float32)


class Tail(nn.Module):
  """A block up to its attention logits."""

  heads: int
  init_scale: str
  dtype: jnp.dtype

  @nn.compact
  def __call__(self, tokens) -> jax.Array:
    """Tokens f[B, n, D] -> logits f32[B, a, n, n]."""
    normed = layer_norm('norm1', self.dtype)(tokens)
    _, (logits,) = Attention(
      self.heads, self.init_scale, self.dtype, logits_only=True, name='attn'
    )(normed, ((1, tokens.shape[1]),))
    return logits[:, 0]


class HeadAdapter(nn.Module):
  """Mixes heads linearly, a 1x1 convolution: f[B, a, n, n] -> f[B, t, n, n].

  As published, it exists even if both have the same number of heads.
  """

  heads: int

  @nn.compact
  def __call__(self, logits):
    a = logits.shape[1]
    kernel = self.param('kernel', torch_default_init(a), (1, 1, a, self.heads))
    return jnp.einsum('Baqk,at->Btqk', logits, kernel[0, 0])


def hidden_state(traces: Sequence[BlockTrace], i: int) -> jax.Array:
  """The normed input of block i, from 0; beyond the last, the final output."""
  return traces[i].normed if i < len(traces) else traces[-1].output


def patch_moments(patches) -> tuple[jax.Array, jax.Array]:
  """Mean and (unbiased) deviation of each patch, f[B, L, 1]."""
  mean = patches.mean(-1, keepdims=True)
  var = patches.var(-1, keepdims=True, ddof=1)
  return mean, jnp.sqrt(var + 1e-6)


def reconstruction_loss(pred, target, mask) -> jax.Array:
  """mean over removed patches of mean((pred - target)^2).

  Args:
    pred, target: f32[B, L, P].
    mask: 1 where a patch was removed, f32[B, L].
  """
  error = jnp.square(pred - target).mean(-1)  # B L
  return (mask * error).sum() / mask.sum()
