"""Masks of objects: as targets of a box, and back onto the canvas."""

import jax
import jax.numpy as jnp

from esvit_jax.detection.roi_align import axis_weights, roi_align


def from_bitmaps(masks: jax.Array, boxes: jax.Array, size: int) -> jax.Array:
  """What each mask is in its box: bool[R, size, size].

  Args:
    masks: of the whole image, one a box, bool[R, H, W].
    boxes: in pixels f32[R, 4].
    size: of a side.
  """
  pooled = jax.vmap(
    lambda m, b: roi_align(m[..., None], b[None], size, 1.0)[0, ..., 0]
  )(masks.astype(jnp.float32), boxes)
  return pooled >= 0.5


def from_shapes(
  shapes: jax.Array, frames: jax.Array, boxes: jax.Array, size: int
) -> jax.Array:
  """What each shape is in a box other than its own: bool[R, size, size].

  Args:
    shapes: of objects f32[R, S, T] in 0..1.
    frames: the boxes they fill f32[R, 4], with an area.
    boxes: to look at f32[R, 4].
    size: of a side.
  """
  low, sides = frames[:, :2], frames[:, 2:] - frames[:, :2]
  places = jnp.array([shapes.shape[2], shapes.shape[1]])[None]
  start, stop = (
    (x - low) / sides * places for x in (boxes[:, :2], boxes[:, 2:])
  )
  columns, rows = (
    axis_weights(start[:, i], stop[:, i], shapes.shape[2 - i], size)
    for i in range(2)
  )
  return (
    jnp.einsum('ryh,rhw,rxw->ryx', rows, shapes, columns, precision='highest')
    >= 0.5
  )


def paste(
  masks: jax.Array, boxes: jax.Array, canvas: tuple[int, int]
) -> jax.Array:
  """Masks of boxes at every pixel of a canvas, f32[R, H, W]; 0 outside.

  Bilinear at the middles of pixels; the mask itself is where this is 0.5 or
  more.

  Args:
    masks: f32[R, S, S] in 0..1.
    boxes: f32[R, 4], with an area.
    canvas: (height, width).
  """
  x1, y1, x2, y2 = jnp.moveaxis(boxes, -1, 0)
  S = masks.shape[-1]
  rows = _places(y1, y2, S, canvas[0])
  columns = _places(x1, x2, S, canvas[1])
  return jnp.einsum(
    'rys,rst,rxt->ryx', rows, masks, columns, precision='highest'
  )


def _places(start, stop, n: int, pixels: int) -> jax.Array:
  """Weights of n samples between start and stop at each pixel [R, pixels, n].

  Beyond the first and the last sample they fade to 0.
  """
  at = jnp.arange(pixels)[None] + 0.5 - start[:, None]
  at = at / (stop - start)[:, None] * n - 0.5
  distance = jnp.abs(at[..., None] - jnp.arange(n)[None, None])
  return jnp.maximum(0, 1 - distance)
