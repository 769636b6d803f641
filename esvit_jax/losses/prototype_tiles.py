"""The prototype loss by chunks of prototypes, which stay on the chip.

The logarithms of the softmax's sums come from a first pass over all chunks,
the loss and its gradients from a second.
"""

import jax
import jax.numpy as jnp

from esvit_jax.losses.chunks import cut, even
from esvit_jax.losses.prototypes import Match, Side, logits

F32 = {'preferred_element_type': jnp.float32}
# Centre of a prototype that only fills a tile: its share of any softmax is 0.
FILLER = 1e30


def tiled(
  chunk: int, student: Side, teacher: Side, match: Match
) -> tuple[jax.Array, jax.Array, jax.Array]:
  """The loss summed over images, and its gradients.

  Args:
    chunk: about how many prototypes at a time.
    student, teacher, match: see `prototypes.cross_entropy`.

  Returns:
    f32[], dU f32[B, S, P], dW f32[K, P].
  """
  K, P = student.prototypes.shape
  A = match.dense(teacher.tokens.shape[1])
  dtype = student.tokens.dtype
  student, teacher = (
    side._replace(
      tokens=side.tokens.astype(dtype), prototypes=side.prototypes.astype(dtype)
    )
    for side in (student, teacher)
  )
  tiles = _pieces(student, chunk), _pieces(teacher, chunk)

  def with_tile(tile):
    return [
      side._replace(prototypes=w, center=center)
      for side, (w, center) in zip((student, teacher), tile)
    ]

  def add_up(sums, tile):
    return tuple(
      jnp.logaddexp(lse, jax.nn.logsumexp(logits(side), -1, keepdims=True))
      for lse, side in zip(sums, with_tile(tile))
    ), None

  minus_infinity = tuple(
    jnp.full((*side.tokens.shape[:2], 1), -jnp.inf)
    for side in (student, teacher)
  )
  (lse_s, lse_t), _ = jax.lax.scan(add_up, minus_infinity, tiles)

  def step(sums, tile):
    s, t = with_tile(tile)
    value, dU, dW = _tile(s, logits(s) - lse_s, logits(t) - lse_t, A)
    return jax.tree.map(jnp.add, sums, (value, dU)), dW

  zero = jnp.zeros(()), jnp.zeros(student.tokens.shape)
  (value, dU), dW = jax.lax.scan(step, zero, tiles)
  return value, dU, dW.reshape(-1, P)[:K]


def _pieces(side: Side, chunk: int):
  """Prototypes [n, c, P] and their centres [n, c]."""
  K = len(side.prototypes)
  n, c = even(K, chunk)
  center = jnp.broadcast_to(side.center, (K,))
  center = jnp.pad(center, (0, n * c - K), constant_values=FILLER)
  return cut(side.prototypes, chunk), center.reshape(n, c)


def _tile(student: Side, log_s, log_t, A):
  """The loss of one tile, summed, its G W_s and its G^T U.

  Args:
    student: with the tile's prototypes.
    log_s, log_t: log softmax of both sides, f32[B, S, c] and f32[B, T, c].
    A: f32[B, S, T], see `prototypes`.

  Returns:
    f32[], f32[B, S, P], f32[c, P].
  """
  u, w_s = student.tokens, student.prototypes
  weight = jnp.sum(A, -1, keepdims=True)
  # Shares of a token's weight are halves and ones, exact in bfloat16.
  share = (A / jnp.maximum(weight, 1e-30)).astype(u.dtype)
  q = jnp.einsum('bij,bjk->bik', share, jnp.exp(log_t).astype(u.dtype), **F32)
  value = -jnp.sum(weight * q * log_s)
  G = weight / student.temperature * (jnp.exp(log_s) - q)
  G = G.astype(u.dtype)
  dU = jnp.einsum('bik,kp->bip', G, w_s, **F32)
  dW = jnp.einsum('bik,bip->kp', G, u, **F32)
  return value, dU, dW
