"""Labels carried from frame to frame by alike tokens (DINO's protocol).

Legend: n context frames, h w a map, D channels, C objects (0: the ground).
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from esvit_jax.dense import resize

RECENT = 7  # frames before the target, beside the first one
RADIUS = 12  # rows and columns, tokens
NEAREST = 5
TEMPERATURE = 0.1
_QUERIES = 512  # tokens at a time: 512 x n h w affinities in memory


class Context(NamedTuple):
  """Frames whose labels are known: the first, then a ring of recent ones.

  Attributes:
    features: unit vectors f32[n, h, w, D].
    labels: f32[n, h, w, C].
    valid: which of the frames are there, bool[n].
  """

  features: jax.Array
  labels: jax.Array
  valid: jax.Array


def start(
  features: jax.Array, labels: jax.Array, recent: int = RECENT
) -> Context:
  """The context of the second frame: the first, f32[h, w, D or C], alone."""
  ring = [
    jnp.concatenate([x[None], jnp.zeros((recent, *x.shape), x.dtype)])
    for x in (features, labels)
  ]
  return Context(*ring, jnp.arange(recent + 1) == 0)


def remember(
  context: Context, features: jax.Array, labels: jax.Array, t: jax.Array
) -> Context:
  """Puts frame t (from 1) in place of the oldest recent one."""
  recent = len(context.valid) - 1
  place = 1 + (t - 1) % jnp.maximum(recent, 1)
  put = place if recent else len(context.valid)  # past the end: dropped
  return Context(
    context.features.at[put].set(features, mode='drop'),
    context.labels.at[put].set(labels, mode='drop'),
    context.valid.at[put].set(True, mode='drop'),
  )


def propagate(
  context: Context,
  target: jax.Array,
  radius: int = RADIUS,
  nearest: int = NEAREST,
  temperature: float = TEMPERATURE,
) -> jax.Array:
  """Soft labels of a frame f32[h, w, C].

    label(q) = sum of a_j label(j) / sum of a_j
    a_j = exp(cosine of q and j / temperature)

  over the `nearest` largest of all context tokens within `radius` rows and
  columns of q; equals of the last one count too.

  Args:
    context: what is known.
    target: unit vectors f32[h, w, D].
    radius: in tokens; 0 takes tokens from everywhere.
    nearest: how many.
    temperature: of the affinity.
  """
  n, h, w, D = context.features.shape
  known = context.features.reshape(n * h * w, D)
  labels = context.labels.reshape(n * h * w, -1)
  valid = jnp.repeat(context.valid, h * w)
  place = jnp.stack(jnp.mgrid[:h, :w], -1).reshape(-1, 2)  # hw 2
  where = jnp.tile(place, (n, 1))

  def ask(query):
    feature, at = query
    cosine = jnp.einsum('kd,d->k', known, feature, precision='highest')
    near = valid
    if radius:
      near &= jnp.abs(where - at[None]).max(1) <= radius
    affinity = jnp.where(near, jnp.exp(cosine / temperature), 0)
    # Not [-1]: of a slice XLA makes a full sort on a CPU, 50 times slower.
    least = jax.lax.top_k(affinity, nearest)[0].min()
    weights = jnp.where(affinity >= least, affinity, 0)
    return jnp.einsum('k,kc->c', weights, labels, precision='highest') / (
      weights.sum()
    )

  queries = target.reshape(h * w, D), place
  out = jax.lax.map(ask, queries, batch_size=min(_QUERIES, h * w))
  return out.reshape(h, w, -1)


def objects(labels: jax.Array, size: tuple[int, int]) -> jax.Array:
  """Soft labels f32[h, w, C] -> the object at each pixel, i32[*size].

  Bilinear; each channel is stretched to 0..1 before the largest is taken.
  """
  return stretched(labels, size).argmax(-1)


def stretched(labels: jax.Array, size: tuple[int, int]) -> jax.Array:
  """Bilinear to `size`; channels that are not empty become 0..1."""
  x = resize.bilinear(labels, size)
  low, high = x.min((0, 1), keepdims=True), x.max((0, 1), keepdims=True)
  spread = jnp.where(high > low, high - low, 1)
  return jnp.where(high > 0, (x - low) / spread, x)
