"""Region proposals: anchors scored and moved (1506.01497)."""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp

from esvit_jax.detection import boxes as boxes_lib
from esvit_jax.detection import matching
from esvit_jax.detection.nms import nms

THRESHOLDS = (0.3, 0.7)


class Proposals(NamedTuple):
  """Boxes that may hold an object, the best first.

  Attributes:
    boxes: f32[n, 4], inside the image.
    logits: f32[n]; of padding -inf.
    there: which are no padding, bool[n].
  """

  boxes: jax.Array
  logits: jax.Array
  there: jax.Array


def targets(
  anchors: jax.Array,
  boxes: jax.Array,
  there: jax.Array,
  key: jax.Array,
  count: int,
  fraction: float,
) -> matching.Matches:
  """What each anchor should say of an image, those not sampled IGNORED.

  Args:
    anchors: f32[A, 4].
    boxes: of objects f32[M, 4].
    there: which of them are no padding, bool[M].
    key: of the sample.
    count: anchors in it.
    fraction: largest share that stands for objects.
  """
  overlap = boxes_lib.iou(boxes, anchors)
  matches = matching.match(overlap, there, THRESHOLDS, low_quality=True)
  sampled = matching.sample(matches.label, key, count, fraction)
  label = jnp.where(sampled, matches.label, matching.IGNORED)
  return matches._replace(label=label)


def losses(
  logits: jax.Array,
  deltas: jax.Array,
  label: jax.Array,
  anchors: jax.Array,
  boxes: jax.Array,
) -> tuple[jax.Array, jax.Array]:
  """Sums over the anchors of an image.

    objectness = sum over sampled of the binary cross-entropy
    location = sum over foreground of |deltas - code of the box|_1

  Divide both by the sample's size times images.

  Args:
    logits: f32[A].
    deltas: f32[A, 4].
    label: 1, 0 or IGNORED, i32[A].
    anchors: f32[A, 4].
    boxes: of the object each anchor stands for f32[A, 4].
  """
  foreground = label == 1
  entropy = jnp.logaddexp(0, logits) - foreground * logits
  codes = boxes_lib.encode(boxes_lib.solid(boxes, foreground), anchors)
  distance = jnp.abs(deltas - codes).sum(-1)
  return (
    jnp.where(label == matching.IGNORED, 0, entropy).sum(),
    jnp.where(foreground, distance, 0).sum(),
  )


def propose(
  boxes: Sequence[jax.Array],
  logits: Sequence[jax.Array],
  size: jax.Array,
  pre: int,
  post: int,
  threshold: float,
) -> Proposals:
  """The best boxes of an image.

  Args:
    boxes: of each level f32[A_l, 4].
    logits: of each level f32[A_l].
    size: valid height and width, i32[2].
    pre: boxes of a level to begin with.
    post: boxes in the end.
    threshold: of suppression among the boxes of a level.
  """

  def of_level(boxes, logits):
    logits, index = jax.lax.top_k(logits, min(pre, len(logits)))
    boxes = boxes_lib.clip(boxes[index], size)
    keep = nms(boxes, logits, threshold, boxes_lib.nonempty(boxes))
    return boxes, jnp.where(keep, logits, -jnp.inf)

  levels = [of_level(*level) for level in zip(boxes, logits)]
  boxes, logits = (jnp.concatenate(x) for x in zip(*levels))
  short = max(post - len(logits), 0)
  boxes = jnp.pad(boxes, ((0, short), (0, 0)))
  logits = jnp.pad(logits, (0, short), constant_values=-jnp.inf)
  logits, index = jax.lax.top_k(logits, post)
  there = logits > -jnp.inf
  return Proposals(jnp.where(there[:, None], boxes[index], 0), logits, there)
