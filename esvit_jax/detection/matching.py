"""Which object each box stands for, and which boxes a loss looks at."""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp

IGNORED = -1


class Matches(NamedTuple):
  """Of n boxes with an image's objects.

  Attributes:
    object: the one each box overlaps most, i32[n]; of equals the first.
    label: 1 foreground, 0 background, IGNORED between them, i32[n].
  """

  object: jax.Array
  label: jax.Array


def match(
  overlap: jax.Array,
  there: jax.Array,
  thresholds: Sequence[float],
  low_quality: bool = False,
) -> Matches:
  """Matches boxes with objects.

  Args:
    overlap: IoU of objects and boxes f32[M, n].
    there: which objects are no padding, bool[M].
    thresholds: foreground from the last on, background below the first.
    low_quality: whether the boxes that overlap some object most, if at all, are
      foreground too. They still stand for the object they overlap most.
  """
  overlap = jnp.where(there[:, None], overlap, 0)
  best = overlap.max(0)
  label = jnp.where(best >= thresholds[-1], 1, IGNORED)
  label = jnp.where(best < thresholds[0], 0, label)
  if low_quality:
    most = overlap.max(1, keepdims=True)
    # Not of padding, whose best is 0 everywhere.
    ties = (overlap == most) & (most > 0)
    label = jnp.where(ties.any(0), 1, label)
  return Matches(overlap.argmax(0), label)


def sample(
  label: jax.Array, key: jax.Array, count: int, fraction: float
) -> jax.Array:
  """Which boxes to look at, bool[n]: at most `count`, drawn at random.

  At most a `fraction` of them is foreground; background fills up.

  Args:
    label: of `Matches`, i32[n].
    key: of the draw.
    count: of boxes.
    fraction: largest share of foreground.
  """
  order = jax.random.uniform(key, label.shape)
  most = min(count, len(label))
  limit = int(count * fraction)
  foreground = _first(label == 1, order, most, limit)
  background = _first(label == 0, order, most, count - foreground.sum())
  return foreground | background


def _first(wanted: jax.Array, order: jax.Array, most: int, limit) -> jax.Array:
  """The wanted ones with the largest `order`, bool[n]: `limit`, or `most`."""
  order, index = jax.lax.top_k(jnp.where(wanted, order, -1), most)
  chosen = (order >= 0) & (jnp.arange(most) < limit)
  return jnp.zeros(len(wanted), bool).at[index].set(chosen)
