"""Signs of collapse: figures to log, with no part in any loss."""

import math

import jax
import jax.numpy as jnp

from esvit_jax.losses import prototypes
from esvit_jax.models.layers import l2_normalize


def feature_spread(features: jax.Array) -> jax.Array:
  """How far unit features lie from their mean: 0 for all alike, at most 1.

  Args:
    features: f[B, V, D], of any length.
  """
  u = l2_normalize(features.astype(jnp.float32))
  # |u| = 1, so the variances add up to 1 - |mean|^2: one pass, one reduce.
  return jnp.sqrt(jnp.maximum(1 - jnp.square(u.mean((0, 1))).sum(), 0))


def teacher_entropy(
  teacher: prototypes.Side, sample: int = 64
) -> dict[str, jax.Array]:
  """What is left of both ways to collapse, from the tokens of some images.

  Args:
    teacher: views of all images.
    sample: at most this many images.

  Returns:
    teacher_entropy: mean entropy of the targets; ln K where they are uniform.
    teacher_kl_uniform: KL of their mean from the uniform distribution; ln K
      where all are the same prototype.
  """
  B, K = len(teacher.tokens), len(teacher.prototypes)
  n = max(n for n in range(1, sample + 1) if B % n == 0)
  # Striding takes images from every device and moves none.
  tokens = teacher.tokens.reshape(n, B // n, *teacher.tokens.shape[1:])[:, 0]
  logits = prototypes.logits(teacher._replace(tokens=tokens))
  log_p = jax.nn.log_softmax(logits)
  p = jnp.exp(log_p)
  mean = p.mean((0, 1))
  return {
    'teacher_entropy': -(p * log_p).sum(-1).mean(),
    'teacher_kl_uniform': math.log(K) + (mean * jnp.log(mean + 1e-12)).sum(),
  }


def distinct_matches(nearest: jax.Array, regions: int) -> jax.Array:
  """Share of distinct regions among those one global view picks in the other.

  Args:
    nearest: i32[B, T, 2], see `prototypes.matching`; global views come first.
    regions: of a global view.
  """
  n = regions
  picks = jnp.stack([nearest[:, n : 2 * n, 0], nearest[:, :n, 1]], 1)  # B 2 n
  return jax.nn.one_hot(picks, n).max(2).mean()  # of B 2 n
