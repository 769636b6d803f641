"""Mixup (arXiv 1710.09412) and CutMix (1905.04899) of a batch with itself.

As in timm's "batch" mode, one draw holds for the whole global batch, and image
b is mixed with image B - 1 - b.
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp

from esvit_jax.augment import erasing


class Mix(NamedTuple):
  """What chance decided for a batch.

  Attributes:
    share: of the own label in the target, f32[].
    cut: whether a box is exchanged instead of all pixels blended, bool[].
    box: top, bottom, left, right, i32[4].
  """

  share: jax.Array
  cut: jax.Array
  box: jax.Array


def draw(
  key: jax.Array,
  size: tuple[int, int],
  mixup: float,
  cutmix: float,
  switch: float,
) -> Mix:
  """Draws how to mix.

  Args:
    key: typed PRNG key, of the whole batch.
    size: height and width of the views, pixels.
    mixup: share ~ Beta(mixup, mixup); 0 for no mixup.
    cutmix: likewise.
    switch: probability of CutMix where both are given.
  """
  switch_key, mixup_key, cutmix_key, place_key = jax.random.split(key, 4)
  cut = jnp.full((), cutmix > 0)
  if mixup and cutmix:
    cut = jax.random.bernoulli(switch_key, switch)
  blend = jax.random.beta(mixup_key, mixup, mixup) if mixup else jnp.ones(())
  kept = jax.random.beta(cutmix_key, cutmix, cutmix) if cutmix else 1.0
  full = jnp.asarray(size)  # height, width
  length = jnp.floor(full * jnp.sqrt(1.0 - kept)).astype(jnp.int32)
  centre = jax.random.randint(place_key, (2,), 0, full)
  start = jnp.maximum(centre - length // 2, 0)
  stop = jnp.minimum(centre + length // 2, full)
  area = jnp.prod(stop - start)
  box = jnp.stack([start, stop], 1).reshape(4)
  # The share is that of the box as it was clipped.
  return Mix(jnp.where(cut, 1.0 - area / math.prod(size), blend), cut, box)


def mix_views(views: jax.Array, mix: Mix) -> jax.Array:
  """Mixes views f32[B, V, h, w, C] with those of the batch turned round."""
  other = views[::-1]
  box = erasing.inside(mix.box, *views.shape[2:4])[None, None, :, :, None]
  blend = mix.share * views + (1.0 - mix.share) * other
  return jnp.where(mix.cut, jnp.where(box, other, views), blend)


def targets(
  labels: jax.Array, classes: int, smoothing: float, mix: Mix
) -> jax.Array:
  """What the classifier should say.

  Args:
    labels: i32[B].
    classes: number of classes.
    smoothing: share of a target that is spread over all classes.
    mix: of the batch.

  Returns:
    Probabilities f32[B, classes].
  """
  own = jax.nn.one_hot(labels, classes)
  own = (1.0 - smoothing) * own + smoothing / classes
  return mix.share * own + (1.0 - mix.share) * own[::-1]


def multi_label_targets(
  labels: jax.Array, mix: Mix
) -> tuple[jax.Array, jax.Array]:
  """What the classifier should say of images of several classes.

  Args:
    labels: 1 (there), 0 (not there) or -1 (not counted), i32[B, classes].
    mix: of the batch.

  Returns:
    Probabilities f32[B, classes], and which of them count bool[B, classes]:
    those known of both images, or of the own where nothing is mixed.
  """
  own = jnp.maximum(labels, 0).astype(jnp.float32)
  known = labels >= 0
  return (
    mix.share * own + (1.0 - mix.share) * own[::-1],
    known & (known[::-1] | (mix.share == 1.0)),
  )
