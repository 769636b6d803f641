"""What the tokens of a map stand for: shares of the classes below them."""

import jax
import jax.numpy as jnp

from esvit_jax.dense import VOID


def class_shares(
  labels: jax.Array, steps: jax.Array, grid: tuple[int, int], classes: int
) -> tuple[jax.Array, jax.Array]:
  """Shares of the classes among the counted pixels of each token.

  A pixel belongs to the token its middle falls into.

  Args:
    labels: u8[B, H, W], classes from 0, VOID where nothing counts.
    steps: size of a pixel in the view, f32[B, 2]; see `views.steps`.
    grid: (h, w) of a map of `views.whole`.
    classes: how many there are.

  Returns:
    shares f32[B, h, w, classes], zeros where no pixel counts, and how many
    pixels count, f32[B, h, w].
  """
  h, w = grid
  _, H, W = labels.shape

  def count(labels, step):
    y, x = (
      jnp.minimum((jnp.arange(n) + 0.5) * side * step[i], side - 1)
      for i, (n, side) in enumerate(((H, h), (W, w)))
    )
    y, x = y.astype(jnp.int32), x.astype(jnp.int32)
    token = (y * w)[:, None] + x[None]
    place = jnp.where(labels == VOID, h * w * classes, token * classes + labels)
    # Pixels that do not count fall out of the array.
    counts = jnp.zeros(h * w * classes).at[place.ravel()].add(1, mode='drop')
    return counts.reshape(h, w, classes)

  counts = jax.vmap(count)(labels.astype(jnp.int32), steps)
  counted = counts.sum(-1)
  return counts / jnp.maximum(counted, 1)[..., None], counted
