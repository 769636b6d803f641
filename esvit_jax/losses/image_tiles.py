"""The prototype loss by chunks of images, which see whole rows of scores.

In the notation of `prototypes`, with q_i and p_i of sum 1 and |q_i| their
weight, all of a student token i comes from its row of scores s_i:

  G_i  = softmax(s_i) - q_i
  dU_i = |q_i| G_i W_s / temp_s,    dW_s = sum_i |q_i| G_i^T u_i / temp_s
  L_i  = |q_i| (lse(s_i) - E[s_i] + <u_i, G_i W_s> / temp_s)

with E[s_i] the mean score under softmax(s_i), summed up beside lse: the loss
needs no pass of its own.
"""

from functools import partial

import jax
import jax.numpy as jnp

from esvit_jax.losses.chunks import cut
from esvit_jax.losses.prototypes import Match, Side

F32 = {'preferred_element_type': jnp.float32}
# G times this in float16: shares down to 1e-9 keep some digits.
SHARE_UNIT = 4096.0
LOWEST = -1e30  # below any logit; -inf less -inf would be no number


def tiled(
  chunk: int, student: Side, teacher: Side, match: Match
) -> tuple[jax.Array, jax.Array, jax.Array]:
  """The loss summed over images, and its gradients.

  Tokens of 16 bits have scores and shares in float16, whatever sums them up
  in float32. Prototypes are divided by the length of the longest, so that no
  score leaves the range.

  Args:
    chunk: about how many images at a time.
    student, teacher, match: see `prototypes.cross_entropy`.

  Returns:
    f32[], dU f32[B, S, P], dW f32[K, P].
  """
  _, S, P = student.tokens.shape
  dtype, unit, longest = jnp.float32, 1.0, 1.0
  if student.tokens.dtype.itemsize == 2:
    dtype, unit = jnp.float16, SHARE_UNIT
    (student, longest), (teacher, _) = map(_shortened, (student, teacher))
  w_s, w_t = (x.prototypes.astype(dtype) for x in (student, teacher))
  heaviest = jnp.max(match.weights)

  def step(sums, tile):
    u, w, weights, rows = tile  # b S P, b T P, b S Q, b S Q
    b, T = w.shape[:2]
    u = u.reshape(-1, P).astype(dtype)  # R P, R = b S
    w = w.reshape(-1, P).astype(dtype)
    rows += T * jnp.arange(b, dtype=rows.dtype)[:, None, None]
    rows, weights = (x.reshape(-1, x.shape[-1]) for x in (rows, weights))
    s, t = _scores(u, w_s), _scores(w, w_t)
    lse_s, mean_s = _log_sum_exp(_logits(s, student))
    lse_t, _ = _log_sum_exp(_logits(t, teacher))
    weight = weights.sum(-1)
    share = jnp.exp(_logits(s, student) - lse_s[:, None])
    for j in range(rows.shape[-1]):
      part = weights[:, j] / jnp.maximum(weight, 1e-30)
      row = partial(jnp.take, indices=rows[:, j], axis=0, mode='clip')
      p = jnp.exp(_logits(row(t), teacher) - row(lse_t)[:, None])
      share -= part[:, None] * p
    G = (unit * share).astype(dtype)
    GW = jnp.einsum('rk,kp->rp', G, w_s, **F32)
    GW /= unit * student.temperature
    dot = (u.astype(jnp.float32) * GW).sum(-1)
    value = jnp.sum(weight * (lse_s - mean_s + dot))
    dU = (weight[:, None] * GW).reshape(b, S, P)
    weighted = (weight / heaviest)[:, None] * u
    dW = jnp.einsum('rk,rp->kp', G, weighted.astype(dtype), **F32)
    return jax.tree.map(jnp.add, sums, (value, dW)), dU

  weights = jnp.broadcast_to(match.weights, match.tokens.shape)
  sums = jnp.zeros(()), jnp.zeros(w_s.shape)
  tiles = cut((student.tokens, teacher.tokens, weights, match.tokens), chunk)
  (value, dW), dU = jax.lax.scan(step, sums, tiles)
  dW *= heaviest / (unit * student.temperature * longest)
  return value, dU.reshape(-1, S, P)[: len(weights)], dW


def _shortened(side: Side) -> tuple[Side, jax.Array]:
  """The same logits from prototypes of length 1 at most, and the factor."""
  square = jnp.square(side.prototypes.astype(jnp.float32)).sum(-1)
  longest = jnp.sqrt(jnp.maximum(square.max(), 1e-12))
  return side._replace(
    prototypes=side.prototypes / longest,
    temperature=side.temperature / longest,
    center=side.center / longest,
  ), longest


def _scores(tokens, prototypes) -> jax.Array:
  """Products f[R, K] in the dtype of the tokens."""
  return jnp.einsum(
    'rp,kp->rk', tokens, prototypes, preferred_element_type=tokens.dtype
  )


def _logits(scores, side: Side) -> jax.Array:
  """f32, made anew by whatever reads the scores: only these are stored."""
  center = jnp.broadcast_to(side.center, scores.shape[-1:])
  return (scores.astype(jnp.float32) - center[None]) / side.temperature


def _log_sum_exp(x) -> tuple[jax.Array, jax.Array]:
  """log sum exp of each row f32[R, K], and the mean of x under its softmax."""
  if jax.default_backend() == 'cpu':
    highest = x.max(-1)
    e = jnp.exp(x - highest[:, None])
    total, weighted = e.sum(-1), (e * x).sum(-1)
  else:
    # The highest so far and the sums below it: one pass over memory, not two.
    highest, total, weighted = jax.lax.reduce(
      (x, jnp.ones_like(x), x), (LOWEST, 0.0, 0.0), _join, (1,)
    )
  return jnp.log(total) + highest, weighted / total


def _join(a, b):
  """Sums of exp(x - highest) and of x times it, of two parts of a row."""
  highest = jnp.maximum(a[0], b[0])
  by_a, by_b = jnp.exp(a[0] - highest), jnp.exp(b[0] - highest)
  return highest, a[1] * by_a + b[1] * by_b, a[2] * by_a + b[2] * by_b
