"""Segmentation by the nearest patches of labelled images (2306.01667).

Nothing is learned: a patch takes the classes of the patches most like it. The
search itself is `evals.neighbours`.
"""

import jax
import jax.numpy as jnp

NEIGHBOURS = 30
TEMPERATURE = 0.02


def rare_first(shares: jax.Array, key: jax.Array, count: int) -> jax.Array:
  """Which patches of an image to remember: those of rare classes first.

  A patch scores the sum, over the classes in it, of how many patches of the
  image hold them, times a uniform number; the smallest scores are taken.

  Args:
    shares: classes of the patches f32[n, C]; all zero: not to be taken.
    key: of the uniform numbers.
    count: at most n.

  Returns:
    i32[count], patches without any class last.
  """
  present = (shares > 0).astype(jnp.float32)
  common = jnp.einsum('nc,c->n', present, present.sum(0))
  score = common * jax.random.uniform(key, common.shape)
  score = jnp.where(present.any(1), score, jnp.inf)
  return jax.lax.top_k(-score, count)[1]


def vote(
  cosine: jax.Array, shares: jax.Array, temperature: float = TEMPERATURE
) -> jax.Array:
  """softmax over the k nearest of cosine / temperature, times their classes.

  Args:
    cosine: f32[q, k].
    shares: classes of the neighbours f32[q, k, C].
    temperature: of the softmax.

  Returns:
    f32[q, C]
  """
  weights = jax.nn.softmax(cosine / temperature, -1)
  return jnp.einsum('qk,qkc->qc', weights, shares, precision='highest')
