"""Dot-product attention within sets of tokens.

Axes: n queries and m keys of a set, a heads, d = C / a.
"""

import jax
import jax.numpy as jnp


def split_heads(x: jax.Array, parts: int, heads: int) -> tuple[jax.Array, ...]:
  """Concatenated projections f[..., n, parts C] -> parts of f[..., n, a, d]."""
  *axes, width = x.shape
  x = x.reshape(*axes, parts, heads, width // (parts * heads))
  return tuple(x[..., i, :, :] for i in range(parts))


def attention_logits(q, k, scale: float | None = None) -> jax.Array:
  """scale q k^T, computed in float32; the scale is 1 / sqrt(d) by default.

  Args:
    q: f[..., n, a, d].
    k: f[..., m, a, d].
    scale: if another.

  Returns:
    f32[..., a, n, m].
  """
  scale = q.shape[-1] ** -0.5 if scale is None else scale
  return scale * jnp.einsum(
    '...nad,...mad->...anm', q, k, preferred_element_type=jnp.float32
  )


def weighted_values(probs: jax.Array, v: jax.Array) -> jax.Array:
  """probs v, heads joined: f[..., a, n, m], f[..., m, a, d] -> f[..., n, C]."""
  out = jnp.einsum('...anm,...mad->...nad', probs.astype(v.dtype), v)
  *axes, a, d = out.shape
  return out.reshape(*axes, a * d)
