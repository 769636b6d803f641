"""Features of a box at a fixed size (RoIAlign, 1703.06870 section 3).

Bilinear sampling is separable, so pooling is a product from either side:

  pooled = W_y F W_x^T

and its gradient needs no scatter. Legend: R boxes, h w a map, s bins a side.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from esvit_jax.detection import boxes as boxes_lib

CANONICAL = (224, 4)  # pixels of a box, and the level it is pooled from
# Samples a bin where a box says how many: one a pixel of the map. A square box
# on its own level needs 4; of thin ones beyond this samples are spread.
MOST_SAMPLES = 8


def axis_weights(
  start: jax.Array,
  stop: jax.Array,
  n: int,
  bins: int,
  sampling: int = 0,
  aligned: bool = True,
) -> jax.Array:
  """Weights of the n places of an axis for each bin: f32[R, bins, n].

  A bin is the mean of its samples, each of which is linear between places.
  Samples beyond [-1, n] are 0, others outside take the nearest place.

  Args:
    start, stop: of boxes along the axis, in places, f32[R].
    n: places.
    bins: of the output.
    sampling: samples a bin; 0: ceil(length / bins), at most MOST_SAMPLES.
    aligned: whether the middle of the first place is at 1/2 and not at 0.
  """
  start = start - (0.5 if aligned else 0)
  stop = stop - (0.5 if aligned else 0)
  length = stop - start
  if not aligned:
    length = jnp.maximum(length, 1)
  bin_length = (length / bins)[:, None, None]
  most = sampling or MOST_SAMPLES
  if sampling:
    count = jnp.full(length.shape, sampling)
  else:
    count = jnp.clip(jnp.ceil(length / bins), 0, most)
  count = count[:, None, None]
  k = jnp.arange(most)[None, None]
  b = jnp.arange(bins)[None, :, None]
  at = start[:, None, None] + bin_length * (
    b + (k + 0.5) / jnp.maximum(count, 1)
  )  # R bins most
  used = (k < count) & (at >= -1) & (at <= n)
  at = jnp.clip(at, 0, n - 1)
  places = jnp.arange(n)[None, None, None]
  weights = jnp.maximum(0, 1 - jnp.abs(at[..., None] - places))
  weights = jnp.where(used[..., None], weights, 0).sum(2)
  return weights / jnp.maximum(count, 1)


def roi_align(
  features: jax.Array,
  boxes: jax.Array,
  size: int,
  scale: float,
  sampling: int = 0,
  aligned: bool = True,
) -> jax.Array:
  """Features of boxes, f[R, size, size, C].

  Args:
    features: of one image f[h, w, C].
    boxes: in pixels f32[R, 4].
    size: bins a side.
    scale: places of the map per pixel.
    sampling, aligned: see `axis_weights`.
  """
  h, w, _ = features.shape
  x1, y1, x2, y2 = jnp.moveaxis(boxes * scale, -1, 0)
  rows = axis_weights(y1, y2, h, size, sampling, aligned)
  columns = axis_weights(x1, x2, w, size, sampling, aligned)
  rows, columns = (x.astype(features.dtype) for x in (rows, columns))
  return jnp.einsum(
    'ryh,hwc,rxw->ryxc', rows, features, columns, optimize=[(0, 1), (0, 1)]
  )


def level_of(boxes: jax.Array, first: int, last: int) -> jax.Array:
  """The level that a box is pooled from, i32[R]; level l has stride 2^l.

  floor(4 + log2(sqrt(area) / 224)), within `first` and `last`: FPN
  (1612.03144), equation 1.
  """
  pixels, level = CANONICAL
  side = jnp.sqrt(boxes_lib.area(boxes))
  level = jnp.floor(level + jnp.log2(side / pixels + 1e-8))
  return jnp.clip(level, first, last).astype(jnp.int32)


def pool(
  maps: Sequence[jax.Array],
  strides: Sequence[int],
  boxes: jax.Array,
  size: int,
  sampling: int = 0,
  chunk: int = 32,
) -> jax.Array:
  """Features of boxes, each from the map of its level: f[R, size, size, C].

  Args:
    maps: of one image f[h_i, w_i, C], the finest first.
    strides: of the maps, powers of two in a row.
    boxes: in pixels f32[R, 4].
    size: bins a side.
    sampling: see `axis_weights`.
    chunk: boxes at a time, since a box takes `size` rows of every map.
  """
  first, last = (int(np.log2(s)) for s in (strides[0], strides[-1]))

  def of_chunk(boxes):
    level = level_of(boxes, first, last)
    pooled = 0
    for i, (x, stride) in enumerate(zip(maps, strides)):
      # Elsewhere an empty box, whose weights are 0.
      mine = jnp.where((level == first + i)[:, None], boxes, -1e4)
      pooled += roi_align(x, mine, size, 1 / stride, sampling)
    return pooled

  R = len(boxes)
  chunk = min(chunk, R)
  padded = jnp.pad(boxes, ((0, -R % chunk), (0, 0)))
  pooled = jax.lax.map(jax.checkpoint(of_chunk), padded.reshape(-1, chunk, 4))
  return pooled.reshape(-1, *pooled.shape[2:])[:R]
