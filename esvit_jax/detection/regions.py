"""Regions: what the heads learn from proposals, and make of them.

Of K classes the background is the last, number K.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from esvit_jax.detection import boxes as boxes_lib
from esvit_jax.detection import matching
from esvit_jax.detection.nms import nms
from esvit_jax.detection.proposals import Proposals

FOREGROUND = 0.5  # IoU with an object


class Regions(NamedTuple):
  """Sampled proposals of an image, those of objects first.

  Attributes:
    boxes: f32[R, 4].
    object: each stands for, i32[R].
    classes: of the object; K background, -1 padding, i32[R].
  """

  boxes: jax.Array
  object: jax.Array
  classes: jax.Array


class Detections(NamedTuple):
  """Objects found in an image, the surest first.

  Attributes:
    boxes: f32[n, 4], inside the image.
    scores: f32[n].
    classes: i32[n], -1 padding.
    region: each comes from, i32[n].
  """

  boxes: jax.Array
  scores: jax.Array
  classes: jax.Array
  region: jax.Array


def choose(
  proposals: Proposals,
  boxes: jax.Array,
  classes: jax.Array,
  key: jax.Array,
  count: int,
  fraction: float,
  background: int,
) -> Regions:
  """The proposals that the heads learn from; the true boxes are among them.

  Args:
    proposals: of an image.
    boxes: of its objects f32[M, 4].
    classes: of its objects, -1 padding, i32[M].
    key: of the sample.
    count: regions in it.
    fraction: largest share that stands for objects.
    background: number of that class.
  """
  real = classes >= 0
  every = jnp.concatenate([proposals.boxes, boxes])
  there = jnp.concatenate([proposals.there, real])
  matches = matching.match(boxes_lib.iou(boxes, every), real, (FOREGROUND,))
  label = jnp.where(there, matches.label, matching.IGNORED)
  sampled = matching.sample(label, key, count, fraction)
  rank, index = jax.lax.top_k(
    jnp.where(sampled, 1 + label, 0), min(count, len(label))
  )
  object_ = matches.object[index]
  kind = jnp.where(rank == 2, classes[object_], background)
  return Regions(every[index], object_, jnp.where(rank > 0, kind, -1))


def box_losses(
  scores: jax.Array,
  deltas: jax.Array,
  classes: jax.Array,
  proposals: jax.Array,
  boxes: jax.Array,
) -> tuple[jax.Array, jax.Array]:
  """Losses of the box head over all regions of all images.

    class = mean over regions of -log softmax(scores)_class
    box = sum over foreground of |deltas of the class - code|_1 / regions

  Args:
    scores: f32[n, K + 1].
    deltas: f32[n, K, 4].
    classes: K background, -1 padding, i32[n].
    proposals: f32[n, 4].
    boxes: of the objects they stand for f32[n, 4].
  """
  K = deltas.shape[1]
  there, foreground = classes >= 0, (classes >= 0) & (classes < K)
  count = jnp.maximum(there.sum(), 1)
  log_p = jax.nn.log_softmax(scores)
  entropy = -_own(log_p, jnp.maximum(classes, 0))
  codes = boxes_lib.encode(
    *(boxes_lib.solid(x, foreground) for x in (boxes, proposals)),
    boxes_lib.ROI_WEIGHTS,
  )
  distance = jnp.abs(_own(deltas, jnp.clip(classes, 0, K - 1)) - codes).sum(-1)
  return (
    jnp.where(there, entropy, 0).sum() / count,
    jnp.where(foreground, distance, 0).sum() / count,
  )


def mask_loss(
  logits: jax.Array, classes: jax.Array, targets: jax.Array
) -> jax.Array:
  """Mean binary cross-entropy of the masks of foreground's own classes.

  Args:
    logits: f32[n, S, S, K].
    classes: i32[n]; beyond 0..K-1 no foreground.
    targets: bool[n, S, S].
  """
  _, S, _, K = logits.shape
  foreground = (classes >= 0) & (classes < K)
  own = of_class(logits, jnp.clip(classes, 0, K - 1))
  entropy = jnp.logaddexp(0, own) - targets * own
  sums = jnp.where(foreground[:, None, None], entropy, 0).sum()
  return sums / jnp.maximum(foreground.sum() * S * S, 1)


def of_class(logits: jax.Array, classes: jax.Array) -> jax.Array:
  """The masks f[n, S, S] of one class each, of f[n, S, S, K]."""
  chosen = jax.nn.one_hot(classes, logits.shape[-1], dtype=logits.dtype)
  return jnp.einsum('nyxk,nk->nyx', logits, chosen, precision='highest')


def detect(
  boxes: jax.Array,
  probs: jax.Array,
  there: jax.Array,
  size: jax.Array,
  score: float,
  threshold: float,
  top: int,
) -> Detections:
  """What the regions of an image show.

  A region may show several classes; suppression is within a class.

  Args:
    boxes: for each class f32[R, K, 4].
    probs: of classes and background f32[R, K + 1].
    there: which regions are no padding, bool[R].
    size: valid height and width, i32[2].
    score: least probability, exclusive.
    threshold: of suppression.
    top: detections at most.
  """
  R, K = boxes.shape[:2]
  boxes = boxes_lib.clip(boxes, size).swapaxes(0, 1)  # K R 4
  probs = probs[:, :K].T
  sure = there[None] & (probs > score)

  def of_class(args):
    return nms(*args[:2], threshold, args[2])

  keep = jax.lax.map(of_class, (boxes, probs, sure))
  short = max(top - R * K, 0)
  found = jnp.pad(jnp.where(keep, probs, 0).ravel(), (0, short))
  scores, index = jax.lax.top_k(found, top)
  real = scores > 0
  index = jnp.where(real, index, 0)
  return Detections(
    jnp.where(real[:, None], boxes.reshape(-1, 4)[index], 0),
    scores,
    jnp.where(real, index // R, -1),
    index % R,
  )


def _own(x: jax.Array, classes: jax.Array) -> jax.Array:
  """x f[n, K, ...] at each row's class, f[n, ...]."""
  return x[jnp.arange(len(x)), classes]
