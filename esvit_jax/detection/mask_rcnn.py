"""Mask R-CNN (1703.06870): from maps to losses, and to objects found.

  maps -> scored anchors -> proposals -> regions -> classes, boxes, masks

The networks come as functions. Legend: B images, R regions of an image, A
anchors of all levels, K classes.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from esvit_jax.detection import (
  anchors,
  proposals,
  regions,
  roi_align,
  shapes,
)
from esvit_jax.detection import boxes as boxes_lib


class Heads(NamedTuple):
  """Networks over maps.

  Attributes:
    rpn: maps f[B, h_l, w_l, C] -> logits f[B, h_l, w_l, a] and deltas
      f[B, h_l, w_l, 4 a] of each.
    box: features of regions f[n, 7, 7, C] -> scores f[n, K + 1], deltas
      f[n, K, 4].
    mask: f[n, 14, 14, C] -> logits f[n, 28, 28, K].
  """

  rpn: Callable
  box: Callable
  mask: Callable


class Targets(NamedTuple):
  """Objects of images, padded.

  Attributes:
    boxes: f32[B, M, 4].
    classes: -1 padding, i32[B, M].
    shapes: their masks f32[B, M, S, T] in 0..1.
    frames: boxes that the shapes fill, beyond the image where it cuts them
      f32[B, M, 4].
  """

  boxes: jax.Array
  classes: jax.Array
  shapes: jax.Array
  frames: jax.Array


class Settings(NamedTuple):
  """Numbers, as detectron2 has them.

  Attributes:
    strides: of the maps.
    sizes: of the anchors of each map, pixels.
    rpn_samples, rpn_fraction: anchors that the loss sees; share of objects'.
    pre, post: proposals of a level before, and of all after suppression.
    rpn_nms: its threshold.
    samples, fraction: regions that the heads learn from; share of objects'.
    sampling: of RoIAlign, 0: adaptive.
    score, nms, top: of detections: least score, threshold, how many.
    bins, mask_bins: sides of the regions' features.
  """

  strides: tuple[int, ...] = (4, 8, 16, 32, 64)
  sizes: tuple[float, ...] = (32, 64, 128, 256, 512)
  rpn_samples: int = 256
  rpn_fraction: float = 0.5
  pre: int = 2000
  post: int = 1000
  rpn_nms: float = 0.7
  samples: int = 512
  fraction: float = 0.25
  sampling: int = 0
  score: float = 0.05
  nms: float = 0.5
  top: int = 100
  bins: int = 7
  mask_bins: int = 14


def losses(
  heads: Heads,
  maps: Sequence[jax.Array],
  targets: Targets,
  sizes: jax.Array,
  keys: jax.Array,
  c: Settings,
) -> dict[str, jax.Array]:
  """The five losses, whose sum is learned.

  Args:
    heads: networks.
    maps: f[B, h_l, w_l, C], the finest first. Boxes are pooled from those with
      strides up to 32, masks too.
    targets: the objects.
    sizes: valid height and width of images, i32[B, 2].
    keys: of the images, [B].
    c: numbers.

  Returns:
    'rpn_class', 'rpn_box', 'class', 'box', 'mask': f32[] each.
  """
  logits, deltas, fixed = score_anchors(heads, maps, c)
  real = targets.classes >= 0
  # Sampling of anchors and of regions draw apart.
  keys = jax.vmap(lambda key: jax.random.split(key, 2))(keys)

  def rpn_losses(logits, deltas, boxes, real, key):
    every = np.concatenate(fixed)
    matches = proposals.targets(
      every, boxes, real, key, c.rpn_samples, c.rpn_fraction
    )
    return proposals.losses(
      jnp.concatenate(logits),
      jnp.concatenate(deltas),
      matches.label,
      every,
      boxes[matches.object],
    )

  rpn_class, rpn_box = jax.vmap(rpn_losses)(
    logits, deltas, targets.boxes, real, keys[:, 0]
  )
  K = heads_classes(heads, maps, c)
  proposed = propose(logits, deltas, fixed, sizes, c)
  chosen = jax.vmap(
    lambda *args: regions.choose(*args, c.samples, c.fraction, K)
  )(proposed, targets.boxes, targets.classes, keys[:, 1])
  scores, codes = _flat_head(heads.box, pool(maps, chosen.boxes, c.bins, c))
  own = _gather(targets.boxes, chosen.object)
  class_, box = regions.box_losses(
    scores,
    codes,
    chosen.classes.ravel(),
    chosen.boxes.reshape(-1, 4),
    own.reshape(-1, 4),
  )
  return {
    'rpn_class': rpn_class.sum() / (c.rpn_samples * len(sizes)),
    'rpn_box': rpn_box.sum() / (c.rpn_samples * len(sizes)),
    'class': class_,
    'box': box,
    'mask': _mask_loss(heads, maps, targets, chosen, K, c),
  }


def detect(
  heads: Heads,
  maps: Sequence[jax.Array],
  sizes: jax.Array,
  c: Settings,
) -> tuple[regions.Detections, jax.Array]:
  """Objects of images, and their masks in their boxes f32[B, top, 28, 28].

  Args:
    heads, maps, sizes, c: see `losses`.
  """
  logits, deltas, fixed = score_anchors(heads, maps, c)
  proposed = propose(logits, deltas, fixed, sizes, c)
  B, R = proposed.there.shape
  scores, codes = _flat_head(heads.box, pool(maps, proposed.boxes, c.bins, c))
  moved = boxes_lib.decode(
    codes, proposed.boxes.reshape(-1, 4), boxes_lib.ROI_WEIGHTS
  )
  found = jax.vmap(lambda *args: regions.detect(*args, c.score, c.nms, c.top))(
    moved.reshape(B, R, *moved.shape[1:]),
    jax.nn.softmax(scores).reshape(B, R, -1),
    proposed.there,
    sizes,
  )
  masks = _flat_head(heads.mask, pool(maps, found.boxes, c.mask_bins, c))
  own = regions.of_class(masks, jnp.maximum(found.classes, 0).ravel())
  return found, jax.nn.sigmoid(own).reshape(B, c.top, *own.shape[1:])


def score_anchors(heads: Heads, maps, c: Settings):
  """Logits f32[B, A_l] and codes f32[B, A_l, 4] of the anchors f32[A_l, 4]."""
  logits, deltas = heads.rpn(maps)
  B = len(maps[0])
  fixed = [
    anchors.of_map(x.shape[1:3], stride, (size,))
    for x, stride, size in zip(maps, c.strides, c.sizes, strict=True)
  ]
  logits = [x.reshape(B, -1).astype(jnp.float32) for x in logits]
  deltas = [x.reshape(B, -1, 4).astype(jnp.float32) for x in deltas]
  return logits, deltas, fixed


def propose(logits, deltas, fixed, sizes, c: Settings) -> proposals.Proposals:
  """The proposals of each image; no gradient flows through them."""

  def of_image(logits, deltas, size):
    boxes = [boxes_lib.decode(*level) for level in zip(deltas, fixed)]
    return proposals.propose(boxes, logits, size, c.pre, c.post, c.rpn_nms)

  return jax.vmap(of_image)(*jax.lax.stop_gradient((logits, deltas)), sizes)


def pool(maps, boxes: jax.Array, bins: int, c: Settings) -> jax.Array:
  """Features of the boxes f32[B, R, 4] of each image, f[B, R, bins, bins, C].

  The coarsest map of five has proposals only.
  """
  maps = maps[: max(len(maps) - 1, 1)]
  strides = c.strides[: len(maps)]
  return jax.vmap(
    lambda maps, boxes: roi_align.pool(maps, strides, boxes, bins, c.sampling)
  )(maps, boxes)


def heads_classes(heads: Heads, maps, c: Settings) -> int:
  """How many classes the box head knows; computes nothing."""
  shape = (1, c.bins, c.bins, maps[0].shape[-1])
  x = jax.ShapeDtypeStruct(shape, maps[0].dtype)
  return jax.eval_shape(heads.box, x)[1].shape[1]


def _mask_loss(heads, maps, targets, chosen, K: int, c: Settings):
  # Those of objects come first: the head sees no more than may be.
  most = max(min(int(c.samples * c.fraction), chosen.classes.shape[1]), 1)
  chosen = jax.tree.map(lambda x: x[:, :most], chosen)
  logits = _flat_head(heads.mask, pool(maps, chosen.boxes, c.mask_bins, c))
  classes = chosen.classes.ravel()
  foreground = (classes >= 0) & (classes < K)
  frames, truth = (
    _gather(x, chosen.object) for x in (targets.frames, targets.shapes)
  )
  truth = shapes.from_shapes(
    truth.reshape(-1, *truth.shape[2:]),
    *(
      boxes_lib.solid(x.reshape(-1, 4), foreground)
      for x in (frames, chosen.boxes)
    ),
    logits.shape[1],
  )
  return regions.mask_loss(logits, classes, truth)


def _flat_head(head: Callable, pooled: jax.Array):
  """A head on the features f[B, R, ...] of all images' regions."""
  out = head(pooled.reshape(-1, *pooled.shape[2:]))
  return jax.tree.map(lambda x: x.astype(jnp.float32), out)


def _gather(x: jax.Array, index: jax.Array) -> jax.Array:
  """Rows i32[B, R] of f[B, M, ...], f[B, R, ...]."""
  return jax.vmap(lambda x, i: x[i])(x, index)
