"""Blocks of ViTs: attention among all tokens of a view, and an MLP.

Axes: B images, V views, n tokens of a view, T tokens of all groups, C
channels, a head, d = C / heads.
"""

import jax
import jax.numpy as jnp
from flax import linen as nn

from esvit_jax.models.attention import (
  attention_logits,
  split_heads,
  weighted_values,
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
from esvit_jax.models.positions import axis_offsets, grid_index


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
    grid: (h, w) of the tokens, for `axis_side`.
    axis_side: side of the map whose relative positions, of rows and of columns
      apart, are learned (MViT-v2, 2112.01526, equation 4); 0: none.
    logits_only: whether it ends before the softmax.
    others: see Block.
  """

  heads: int
  init_scale: str
  dtype: jnp.dtype
  side: int = 0
  qkv_bias: str = 'qkv'
  depth: int = 0
  grid: tuple[int, int] = (0, 0)
  axis_side: int = 0
  logits_only: bool = False

  @nn.compact
  def __call__(self, tokens, shapes: tuple[Shape, ...]):
    """Tokens [B, T, C] -> the same (None if `logits_only`), and logits."""
    qkv = self._qkv(tokens)
    bias = self._bias()
    outputs, all_logits = [], []
    for x in unpack(qkv, shapes):
      q, k, v = split_heads(x, 3, self.heads)  # B V n a d
      logits = attention_logits(q, k)
      if bias is not None:
        logits += bias[None, None]
      if self.axis_side:
        logits += self._of_axes(q)
      self.sow('intermediates', 'logits', logits)
      all_logits.append(logits)
      if self.logits_only:
        continue
      probs = jax.nn.softmax(logits)  # B V a n n
      self.sow('intermediates', 'attention', probs)
      outputs.append(weighted_values(probs, v))
    if self.logits_only:
      return None, tuple(all_logits)
    proj = nn.Dense(
      tokens.shape[-1],
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
    index = grid_index(self.side)
    table = self.param(
      'bias_table', nn.initializers.zeros, (index.max() + 1, self.heads)
    )
    return table[index].transpose(2, 0, 1)

  def _of_axes(self, q):
    """q . R_row + q . R_column for queries [B, V, n, a, d]: [B, V, a, n, n]."""
    B, V, n, a, d = q.shape
    (h, w), shape = self.grid, (2 * self.axis_side - 1, d)
    zeros = nn.initializers.zeros
    rows, columns = (
      axis_offsets(self.param(f'rel_pos_{axis}', zeros, shape), side)
      for axis, side in (('h', h), ('w', w))
    )
    q = q.reshape(B, V, h, w, a, d).astype(jnp.float32)
    of_rows = jnp.einsum('BVyxad,yrd->BVayxr', q, rows)
    of_columns = jnp.einsum('BVyxad,xcd->BVayxc', q, columns)
    bias = of_rows[..., :, None] + of_columns[..., None, :]
    return bias.reshape(B, V, a, n, n)
