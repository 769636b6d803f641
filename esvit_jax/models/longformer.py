"""Attention of Vision Longformer: within 3x3 chunks, or global.

Axes: B images, V views, h w a map, g global tokens of a view, which come
before its map, T tokens of all groups, W chunks of all groups, n = window^2
tokens of a chunk, m chunks that a chunk attends to, a head, d = C / heads.
"""

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from esvit_jax.models import chunks
from esvit_jax.models.attention import (
  attention_logits,
  split_heads,
  weighted_values,
)
from esvit_jax.models.layers import Shape, linear_init, pack, unpack
from esvit_jax.models.positions import window_index
from esvit_jax.models.resize import resize_bicubic
from esvit_jax.models.windows import cut, from_windows, pad, to_windows

MASKED = np.finfo(np.float32).min  # -inf, yet with finite gradients


class SparseAttention(nn.Module):
  """Attention of tokens to nearby chunks and to global tokens.

    map token:    softmax over [g global tokens | m n tokens of chunks]
    global token: softmax over [g global tokens | h w tokens of the map]

  Both use the same projections. Pads and chunks beyond the border are masked.
  """

  heads: int
  global_tokens: int
  window: int
  mode: int
  init_scale: str
  dtype: jnp.dtype

  @nn.compact
  def __call__(self, tokens, shapes: tuple[Shape, ...], train: bool):
    B, _, C = tokens.shape
    a, g, n = self.heads, self.global_tokens, self.window**2
    linear = {
      'kernel_init': linear_init(self.init_scale),
      'dtype': self.dtype,
    }
    q = nn.Dense(C, name='query', **linear)(tokens)
    kv = nn.Dense(2 * C, name='kv', **linear)(tokens)
    table = self.param(
      'bias_table',
      nn.initializers.normal(0.02),
      ((4 * self.window - 1) ** 2, a),
    )
    g2l, g2g = global_biases(self, a, g)

    which = self._which(train)
    firsts, queries, keys, real = [], [], [], []
    for x, y, (V, h, w) in zip(
      unpack(q, lines(shapes, g)), unpack(kv, lines(shapes, g)), shapes
    ):
      firsts.append(attend(x[:, :, :g], y, from_global(g2l, g2g, h * w))[0])
      maps = x[:, :, g:].reshape(B, V, h, w, C)
      queries.append(to_windows([maps], self.window, 0))
      near = pad(y[:, :, g:].reshape(B, V, h, w, 2 * C), self.window)
      near = chunks.around(cut(near, self.window), which)
      far = y[:, :, None, None, :g]
      far = jnp.broadcast_to(far, (*near.shape[:4], g, 2 * C))
      near = jnp.concatenate([far, near], 4)  # B V r c g+mn 2C
      keys.append(near.reshape(B, -1, *near.shape[4:]))
      real += [chunks.on_map((h, w), self.window, which)] * V

    near = chunk_bias(table, self.window, which)
    bias = jnp.concatenate([to_global(g2l, n), near], 2)
    real = jnp.concatenate(real)  # W mn
    out, probs = attend(
      jnp.concatenate(queries, 1),
      jnp.concatenate(keys, 1),
      bias,
      jnp.pad(real, ((0, 0), (g, 0)), constant_values=True),
    )
    self.sow('intermediates', 'attention', probs)  # B W a n g+mn
    views = []
    for first, x in zip(firsts, from_windows(out, shapes, self.window, 0)):
      x = x.reshape(B, len(first[0]), -1, C)
      views.append(jnp.concatenate([first, x], 2))
    return nn.Dense(C, name='proj', **linear)(pack(views))

  def _which(self, train: bool):
    """Numbers of the chunks to attend to, i32[m]; traced if drawn."""
    if self.mode == -1:
      return np.array([chunks.OWN])
    if self.mode == 0 or not train:
      return chunks.ALL
    # The published code draws once for each size of crop.
    return jnp.stack([chunks.OWN, draw_neighbour(self.make_rng('neighbour'))])


class FullAttention(nn.Module):
  """softmax(q k^T / sqrt(d) + bias) v among the tokens of a view.

  Attributes:
    side: of the map that the biases are made for.
  """

  heads: int
  global_tokens: int
  side: int
  init_scale: str
  dtype: jnp.dtype

  @nn.compact
  def __call__(self, tokens, shapes: tuple[Shape, ...], train: bool):
    C = tokens.shape[-1]
    a, g = self.heads, self.global_tokens
    linear = {
      'kernel_init': linear_init(self.init_scale),
      'dtype': self.dtype,
    }
    qkv = nn.Dense(3 * C, name='qkv', **linear)(tokens)
    table = self.param(
      'bias_table', nn.initializers.normal(0.02), ((2 * self.side - 1) ** 2, a)
    )
    g2l, g2g = global_biases(self, a, g)
    outputs = []
    for x, (_, h, w) in zip(unpack(qkv, lines(shapes, g)), shapes):
      near = expanded_bias(table, self.side, h * w)
      bias = jnp.concatenate([to_global(g2l, h * w), near], 2)
      bias = jnp.concatenate([from_global(g2l, g2g, h * w), bias], 1)
      out, probs = attend(x[..., :C], x[..., C:], bias)
      self.sow('intermediates', 'attention', probs)  # B V a g+hw g+hw
      outputs.append(out)
    return nn.Dense(C, name='proj', **linear)(pack(outputs))


def attend(q, kv, bias, real=None) -> tuple[jax.Array, jax.Array]:
  """softmax(q k^T / sqrt(d) + bias) v within each of W sets of tokens.

  Args:
    q: f[B, W, L, C].
    kv: concatenated keys and values, f[B, W, S, 2 C].
    bias: f[a, L, S].
    real: keys that are not masked, bool[W, S]; all by default.

  Returns:
    f[B, W, L, C], and the softmax f32[B, W, a, L, S].
  """
  (q,), (k, v) = split_heads(q, 1, len(bias)), split_heads(kv, 2, len(bias))
  logits = attention_logits(q, k) + bias[None, None]
  if real is not None:
    logits = jnp.where(real[None, :, None, None], logits, MASKED)
  probs = jax.nn.softmax(logits)
  return weighted_values(probs, v), probs


def draw_neighbour(key) -> jax.Array:
  """A random one of the eight chunks around a chunk; see `chunks.around`."""
  i = jax.random.randint(key, (), 0, 8)
  return i + (i >= chunks.OWN)


def lines(shapes: tuple[Shape, ...], global_tokens: int) -> list[Shape]:
  """Shapes (V, h, w) of maps -> (V, g + h w), with their global tokens."""
  return [(V, global_tokens + h * w) for V, h, w in shapes]


def global_biases(module: nn.Module, heads: int, g: int):
  """Parameters of `module`: biases of its g global tokens.

  Returns:
    g2l f[2, a, g], of global queries and of global keys; g2g f[a, g, g].
  """
  if g == 0:
    return jnp.zeros((2, heads, 0)), jnp.zeros((heads, 0, 0))
  init = nn.initializers.normal(0.02)
  return (
    module.param('g2l_bias', init, (2, heads, g)),
    module.param('g2g_bias', init, (heads, g, g)),
  )


def from_global(g2l, g2g, count: int) -> jax.Array:
  """Biases f[a, g, g + count] of global queries to all keys of a view."""
  regions = jnp.broadcast_to(g2l[0][:, :, None], (*g2l.shape[1:], count))
  return jnp.concatenate([g2g, regions], 2)


def to_global(g2l, count: int) -> jax.Array:
  """Biases f[a, count, g] of other queries to global keys."""
  _, a, g = g2l.shape
  return jnp.broadcast_to(g2l[1][:, None], (a, count, g))


def chunk_bias(table: jax.Array, window: int, which) -> jax.Array:
  """Biases f[a, n, m n] of the queries of a chunk to the m chunks `which`."""
  n = window**2
  index = chunks.relative_position_index(window).reshape(n, 9, n)
  index = jnp.asarray(index)[:, which].reshape(n, -1)
  return jnp.asarray(table)[index].transpose(2, 0, 1)


def expanded_bias(table: jax.Array, side: int, count: int) -> jax.Array:
  """Biases f[a, count, count] among the tokens of a map.

  As published, maps of another size resize the matrix of biases of a `side` x
  `side` map as an image, instead of looking up their own offsets.
  """
  bias = table[window_index(side)]  # side^2 side^2 a
  if count != side**2:
    bias = resize_bicubic(bias, (count, count), (count / side**2,) * 2)
  return bias.transpose(2, 0, 1)
