"""A linear read-out of tokens in one solve: ridge regression on class shares.

  W = argmin sum over tokens of w |x W - t|^2 / sum of w + penalty |W|^2

x is standardised, t holds the shares of the classes below a token. All that
the solve needs are sums over tokens, so that the images are read once and no
features are kept.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

# Of the mean square of a feature, which is 1.
PENALTIES = (1e-4, 1e-3, 1e-2, 1e-1, 1.0)


class Sums(NamedTuple):
  """Sums over tokens of weight w, of z = (x, 1).

  Attributes:
    gram: of w z z^T, f[D + 1, D + 1].
    cross: of w z t^T, f[D + 1, C].
  """

  gram: np.ndarray
  cross: np.ndarray


class Readout(NamedTuple):
  """logits = x kernel + bias.

  Attributes:
    kernel: f32[D, C].
    bias: f32[C].
    penalty: that was chosen.
  """

  kernel: np.ndarray
  bias: np.ndarray
  penalty: float

  def __call__(self, x: jax.Array) -> jax.Array:
    """f[..., D] -> logits f32[..., C]."""
    logits = jnp.dot(x, self.kernel, precision='highest')
    return logits + jnp.broadcast_to(self.bias, logits.shape)


def sums(x: jax.Array, shares: jax.Array, weight: jax.Array) -> Sums:
  """Sums over the tokens of a batch.

  Args:
    x: f[..., D].
    shares: f[..., C].
    weight: f[...]; 0 leaves a token out.
  """
  z = jnp.concatenate([x, jnp.ones_like(x[..., :1])], -1)
  z, t = (a.reshape(-1, a.shape[-1]).astype(jnp.float32) for a in (z, shares))
  weighted = z * weight.reshape(-1, 1)
  return Sums(
    jnp.einsum('nd,ne->de', weighted, z, precision='highest'),
    jnp.einsum('nd,nc->dc', weighted, t, precision='highest'),
  )


def solve(kept: Sums, held: Sums) -> Readout:
  """The read-out of all tokens, its penalty the best of PENALTIES.

  The penalty that is best for the tokens held out, in the sense of least
  squares, when only the others are learned from.

  Args:
    kept: f64 sums of the images to learn from.
    held: of those that choose the penalty.
  """
  every = Sums(kept.gram + held.gram, kept.cross + held.cross)
  standard, centre = _standard(every)
  kept, held, every = (
    Sums(
      standard @ s.gram @ standard.T / s.gram[-1, -1],
      standard @ _centred(s, centre) / s.gram[-1, -1],
    )
    for s in (kept, held, every)
  )

  def held_out_error(penalty):
    w = _ridge(kept, penalty)
    # |z w - t|^2 but for |t|^2, which no penalty changes.
    return np.sum(w * (held.gram @ w - 2 * held.cross))

  penalty = min(PENALTIES, key=held_out_error)
  weights = standard.T @ _ridge(every, penalty)
  weights[-1] += centre
  weights = weights.astype(np.float32)
  return Readout(weights[:-1], weights[-1], penalty)


def _standard(sums: Sums) -> tuple[np.ndarray, np.ndarray]:
  """The matrix that makes z standard, f64[D, D + 1]; the mean of t, f64[C].

  A constant feature becomes 0.
  """
  count = sums.gram[-1, -1]
  mean = sums.gram[-1, :-1] / count
  square = np.diag(sums.gram)[:-1] / count
  deviation = np.sqrt(np.maximum(square - mean**2, 0))
  # Sums came in float32: less of a spread is rounding.
  constant = deviation <= 1e-3 * np.abs(mean) + 1e-12
  scale = np.where(constant, 0, 1 / np.where(constant, 1, deviation))
  standard = np.concatenate([np.diag(scale), -(mean * scale)[:, None]], 1)
  return standard, sums.cross[-1] / count


def _centred(sums: Sums, centre: np.ndarray) -> np.ndarray:
  """Sums of w z (t - centre)^T."""
  return sums.cross - sums.gram[:, -1:] * centre[None]


def _ridge(mean: Sums, penalty: float) -> np.ndarray:
  return np.linalg.solve(
    mean.gram + penalty * np.eye(len(mean.gram)), mean.cross
  )
