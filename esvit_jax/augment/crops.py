"""Random resized crops as two small matrix products (PIL's arithmetic).

Legend: H W canvas, h w output, C channels. Boxes are (top, left, height,
width) in pixels. Images are float32 [C, h, w] holding whole grey levels
0..255: planes keep the long axis last, which is what vector units like.
"""

import jax
import jax.numpy as jnp

TRIES = 10  # candidates of torchvision's RandomResizedCrop


def draw_box(
  candidates: jax.Array,
  place: jax.Array,
  size: jax.Array,
  scale: tuple[float, float],
  ratio: tuple[float, float],
) -> jax.Array:
  """Chooses a crop box by torchvision's rule: first of ten that fits.

  If none fits, it is the largest centred box with its aspect ratio in bounds.

  Args:
    candidates: uniform numbers f32[TRIES, 2] for area and aspect ratio.
    place: uniform numbers f32[2] for top and left.
    size: valid height and width of the image, i32[2].
    scale: least and largest share of the image's area.
    ratio: least and largest width / height (drawn log-uniformly).

  Returns:
    Box i32[4].
  """
  height, width = size[0], size[1]
  full = size.astype(jnp.float32)  # [height, width]
  area = full[0] * full[1]
  target = area * (scale[0] + candidates[:, 0] * (scale[1] - scale[0]))
  low, high = jnp.log(ratio[0]), jnp.log(ratio[1])
  aspect = jnp.exp(low + candidates[:, 1] * (high - low))
  w = jnp.round(jnp.sqrt(target * aspect)).astype(jnp.int32)
  h = jnp.round(jnp.sqrt(target / aspect)).astype(jnp.int32)
  fits = (w > 0) & (w <= width) & (h > 0) & (h <= height)
  first = jnp.argmax(fits)
  any_fits = fits[first]

  clamped_w = jnp.round(full[0] * ratio[1]).astype(jnp.int32)
  clamped_h = jnp.round(full[1] / ratio[0]).astype(jnp.int32)
  h = jnp.where(any_fits, h[first], jnp.minimum(height, clamped_h))
  w = jnp.where(any_fits, w[first], jnp.minimum(width, clamped_w))
  room = size - jnp.stack([h, w])
  anywhere = jnp.floor(place * (room + 1).astype(jnp.float32))
  corner = jnp.where(
    any_fits, jnp.minimum(anywhere.astype(jnp.int32), room), room // 2
  )
  return jnp.stack([corner[0], corner[1], h, w])


def sampling_matrix(
  start: jax.Array,
  length: jax.Array,
  out: int,
  canvas: int,
  *,
  flip: jax.Array | bool = False,
  bilinear: jax.Array | bool = False,
  made: jax.Array | None = None,
  skip: jax.Array | int = 0,
) -> jax.Array:
  """Antialiased resampling of one axis, as PIL's `crop` then `resize`.

  The filter (cubic with a = -1/2, or triangle) is widened when it shrinks the
  image, and its taps stop at the box: nothing outside the box leaks in.

  Args:
    start: first pixel of the box on this axis, i32[].
    length: number of pixels of the box on this axis, i32[].
    out: number of output pixels.
    canvas: number of pixels of the canvas on this axis.
    flip: whether the output is mirrored.
    bilinear: whether the filter is the triangle instead of the cubic.
    made: number of pixels that the box becomes, i32[]; by default all of
      `out`. What lies past it repeats the border.
    skip: pixels of these before the first of the output, i32[].

  Returns:
    Weights f32[out, canvas]; each row sums to one.
  """
  made = out if made is None else made
  i = jnp.minimum(jnp.arange(out) + skip, made - 1)
  i = jnp.where(flip, made - 1 - i, i).astype(jnp.float32)
  j = jnp.arange(canvas) - start
  step = length.astype(jnp.float32) / made
  centre = (i + 0.5) * step
  t = (j.astype(jnp.float32) + 0.5)[None, :] - centre[:, None]  # out canvas
  t = jnp.abs(t) / jnp.maximum(step, 1.0)
  inner = (1.5 * t - 2.5) * t * t + 1.0
  outer = ((-0.5 * t + 2.5) * t - 4.0) * t + 2.0
  cubic = jnp.where(t < 1, inner, jnp.where(t < 2, outer, 0.0))
  weights = jnp.where(bilinear, jnp.maximum(1.0 - t, 0.0), cubic)
  weights = jnp.where(((j >= 0) & (j < length))[None, :], weights, 0.0)
  return weights / jnp.sum(weights, axis=1, keepdims=True)


def separable(
  image: jax.Array, rows: jax.Array, columns: jax.Array
) -> jax.Array:
  """Filters width, then height; whole grey levels after each, as PIL keeps.

  Args:
    image: f32[C, H, W].
    rows: weights f32[h, H].
    columns: weights f32[w, W].

  Returns:
    f32[C, h, w] of whole numbers 0..255.
  """
  # TF32 on GPU, three bfloat16 passes on TPU: pixels are exact in both and
  # weights keep enough digits for a whole grey level.
  precision = jax.lax.Precision.HIGH
  image = to_grey_levels(
    jnp.einsum('chw,bw->chb', image, columns, precision=precision)
  )
  return to_grey_levels(
    jnp.einsum('ah,chb->cab', rows, image, precision=precision)
  )


def to_grey_levels(image: jax.Array) -> jax.Array:
  """Rounds to whole numbers and clips to 0..255."""
  return jnp.clip(cut(image + 0.5), 0.0, 255.0)


def cut(x: jax.Array) -> jax.Array:
  """Drops the fraction, alike however the compiler ordered the sums.

  Averages of bytes often end on a whole number or a half exactly. There the
  last bit, which differs with the number of devices, would decide.
  """
  return jnp.floor(x + 2.0**-12)


def crop_resize(
  image: jax.Array,
  box: jax.Array,
  out: tuple[int, int],
  *,
  flip: jax.Array | bool = False,
  bilinear: jax.Array | bool = False,
) -> jax.Array:
  """Crops, resizes and mirrors, within 2 grey levels of PIL.

  Args:
    image: canvas f32[C, H, W].
    box: i32[4] inside the valid part of the canvas.
    out: height and width of the output, pixels.
    flip: whether to mirror left to right.
    bilinear: whether to interpolate linearly instead of cubically.

  Returns:
    f32[C, *out].
  """
  _, H, W = image.shape
  top, left, height, width = box
  rows = sampling_matrix(top, height, out[0], H, bilinear=bilinear)
  columns = sampling_matrix(
    left, width, out[1], W, flip=flip, bilinear=bilinear
  )
  return separable(image, rows, columns)
