"""The core of windowed attention: softmax(q k^T / sqrt(d) + bias) v.

Scores and probabilities are the largest arrays of a network. They are kept in
the dtype of the computation; float32 lives inside the loops that read them.

Axes: B images, W windows, a head, n tokens of a window, d = C / heads.
"""

import jax
import jax.numpy as jnp

MASKED = -100.0  # as published; not -inf


def attend(qkv: jax.Array, bias: jax.Array, part=None):
  """Attention within windows.

  Args:
    qkv: f[3, B, W, a, n, d], heads before tokens, so that products need no
      transposition.
    bias: f32[a, n, n], added to all windows.
    part: i32[W, n], the part of its window that a token belongs to; tokens
      see their own part only. None where all see all.

  Returns:
    Values f[B, W, a, n, d] and probabilities f[B, W, a, n, n].
  """
  q, k, v = qkv
  scores = jnp.einsum('BWaqd,BWakd->BWaqk', q, k)
  probs = _softmax(q.shape[-1] ** -0.5, part, scores, bias)
  return jnp.einsum('BWaqk,BWakd->BWaqd', probs, v), probs


def _probabilities(scale, part, scores, bias):
  x = scale * scores.astype(jnp.float32) + bias[None, None]
  if part is not None:
    same = part[:, :, None] == part[:, None, :]
    x += jnp.where(same, 0.0, MASKED)[None, :, None]
  # Exponentials made twice are cheaper than kept in float32.
  lse = jax.nn.logsumexp(x, -1, keepdims=True)
  return jnp.exp(x - lse).astype(scores.dtype)


@jax.custom_vjp
def _softmax(scale, part, scores, bias):
  return _probabilities(scale, part, scores, bias)


def _softmax_forward(scale, part, scores, bias):
  # Autodiff would keep a copy in float32.
  probs = _probabilities(scale, part, scores, bias)
  return probs, (scale, probs)


def _softmax_backward(kept, upstream):
  scale, probs = kept
  p, g = probs.astype(jnp.float32), upstream.astype(jnp.float32)
  p_g = p * g
  dx = p_g - p * p_g.sum(-1, keepdims=True)
  # The bias sums up what is stored for the scores anyway.
  dx = dx.astype(probs.dtype)
  return None, None, scale * dx, dx.sum((0, 1), jnp.float32)


_softmax.defvjp(_softmax_forward, _softmax_backward)
