"""Boxes: how much they overlap, and codes of one relative to another."""

import math

import jax
import jax.numpy as jnp

RPN_WEIGHTS = (1.0, 1.0, 1.0, 1.0)
ROI_WEIGHTS = (10.0, 10.0, 5.0, 5.0)
# Largest log of a factor that a code may ask for.
CLAMP = math.log(1000 / 16)


def sides(boxes: jax.Array) -> jax.Array:
  """Width and height, f32[..., 2]."""
  return boxes[..., 2:] - boxes[..., :2]


def area(boxes: jax.Array) -> jax.Array:
  """f32[...], 0 of inverted boxes."""
  return jnp.maximum(sides(boxes), 0).prod(-1)


def iou(a: jax.Array, b: jax.Array) -> jax.Array:
  """Intersection over union, f32[n, m]; 0 where nothing is shared.

  Args:
    a: f32[n, 4].
    b: f32[m, 4].
  """
  low = jnp.maximum(a[:, None, :2], b[None, :, :2])
  high = jnp.minimum(a[:, None, 2:], b[None, :, 2:])
  shared = jnp.maximum(high - low, 0).prod(-1)
  union = area(a)[:, None] + area(b)[None] - shared
  return jnp.where(shared > 0, shared / jnp.where(union > 0, union, 1), 0)


def clip(boxes: jax.Array, size: jax.Array) -> jax.Array:
  """Boxes cut to an image of `size` (height, width), f32[..., 4]."""
  limit = jnp.stack([size[1], size[0]] * 2).astype(boxes.dtype)
  return jnp.clip(boxes, 0, limit.reshape((1,) * (boxes.ndim - 1) + (4,)))


def encode(boxes: jax.Array, anchors: jax.Array, weights=RPN_WEIGHTS):
  """Codes f32[n, 4] that lead from anchors to boxes, both f32[n, 4].

  (dx, dy) = weights (centre - anchor's centre) / anchor's sides
  (dw, dh) = weights log(sides / anchor's sides)

  Anchors and boxes must have an area; see `nonempty`.
  """
  ours, others = sides(anchors), sides(boxes)
  shift = (boxes[:, :2] + others / 2 - anchors[:, :2] - ours / 2) / ours
  codes = jnp.concatenate([shift, jnp.log(others / ours)], -1)
  return codes * jnp.asarray(weights, codes.dtype)[None]


def decode(deltas: jax.Array, anchors: jax.Array, weights=RPN_WEIGHTS):
  """Boxes f32[n, ..., 4] from codes f32[n, ..., 4]; undoes `encode`.

  Factors are cut at 1000 / 16.
  """
  extra = (1,) * (deltas.ndim - 2)
  anchors = anchors.reshape(len(anchors), *extra, 4)
  deltas = deltas / jnp.asarray(weights, deltas.dtype).reshape(1, *extra, 4)
  ours = sides(anchors)
  centre = anchors[..., :2] + ours / 2 + deltas[..., :2] * ours
  half = jnp.exp(jnp.minimum(deltas[..., 2:], CLAMP)) * ours / 2
  return jnp.concatenate([centre - half, centre + half], -1)


def nonempty(boxes: jax.Array) -> jax.Array:
  """Which boxes have an area, bool[...]."""
  return (sides(boxes) > 0).all(-1)


def solid(boxes: jax.Array, there: jax.Array) -> jax.Array:
  """Boxes, but the unit square where `there` is False.

  Padding so has logarithms and quotients, and its gradient is no NaN.
  """
  unit = jnp.array([0, 0, 1, 1], boxes.dtype)
  return jnp.where(there[..., None], boxes, unit)
