"""Colour jitter, greyscale, blur, smoothing, solarise: PIL's arithmetic.

Images are float32 [C, h, w] holding whole grey levels 0..255, before and
after each operation, since PIL keeps bytes. Nothing here gathers or branches:
what was not drawn is done with a neutral number, so vmap costs nothing extra.
"""

import math

import jax
import jax.numpy as jnp

from esvit_jax.augment import crops


def luma(image: jax.Array) -> jax.Array:
  """Grey image f32[1, h, w]: ITU-R 601, PIL's 'L'; the mean if not RGB."""
  if image.shape[0] == 3:
    r, g, b = image
    weighted = 19595.0 * r + 38470.0 * g + 7471.0 * b  # exact below 2**24
    return jnp.floor((weighted + 32768.0) / 65536.0)[None]
  return crops.cut(jnp.mean(image, axis=0, keepdims=True) + 0.5)


def grayscale(image: jax.Array, apply: jax.Array) -> jax.Array:
  """Replaces all channels by the grey image where `apply` (bool[]) holds."""
  grey = jnp.broadcast_to(luma(image), image.shape)
  return jnp.where(apply, grey, image)


def solarize(
  image: jax.Array, apply: jax.Array, threshold: jax.Array | float = 128.0
) -> jax.Array:
  """Inverts pixels at or above the threshold where `apply` (bool[]) holds."""
  return jnp.where(apply & (image >= threshold), 255.0 - image, image)


def blend(image: jax.Array, other: jax.Array, factor: jax.Array) -> jax.Array:
  """PIL's blend: factor 0 gives `other`, 1 the image; the fraction is cut."""
  return crops.cut(jnp.clip(other + factor * (image - other), 0.0, 255.0))


def smooth(image: jax.Array) -> jax.Array:
  """PIL's SMOOTH: the centre counts 5 of 13, its neighbours 1; edges stay."""
  *_, h, w = image.shape
  inner = image[:, 1:-1, 1:-1]
  around = sum(
    image[:, y : h - 2 + y, x : w - 2 + x] for y in range(3) for x in range(3)
  )
  # Sums are exact and never end on a half: no `cut` needed.
  inner = jnp.floor((around + 4.0 * inner) / 13.0 + 0.5)
  return image.at[:, 1:-1, 1:-1].set(inner)


def shift_hue(image: jax.Array, shift: jax.Array) -> jax.Array:
  """Turns the hue of an RGB image through PIL's byte-valued HSV.

  Args:
    image: f32[3, h, w].
    shift: turn in bytes, 255 to the circle, a whole number, f32[].

  Returns:
    f32[3, h, w].
  """
  r, g, b = image
  value = jnp.maximum(jnp.maximum(r, g), b)
  chroma = value - jnp.minimum(jnp.minimum(r, g), b)
  red, green = r == value, g == value
  lead = jnp.where(red, g - b, jnp.where(green, b - r, r - g))
  start = jnp.where(red, 0.0, jnp.where(green, 85.0, 170.0))
  # Levels are whole, so the least divisor of 1 only ever replaces 0.
  hue = start + 42.5 * lead / jnp.maximum(chroma, 1.0)
  hue = crops.cut(jnp.where(hue < 0.0, hue + 255.0, hue)) + shift
  # Bytes wrap at 256 although the circle has 255 steps: PIL's way.
  hue = jnp.where(hue < 0.0, hue + 256.0, hue)
  hue = jnp.where(hue >= 256.0, hue - 256.0, hue)
  saturation = crops.cut(255.0 * chroma / jnp.maximum(value, 1.0)) / 255.0
  # One formula for the six sectors: each channel dips below the value in
  # turn. Channels stay one array, as stacking planes spoils XLA's CPU loops.
  turn = jnp.asarray([5.0, 3.0, 1.0])[:, None, None]
  k = hue[None] * (6.0 / 255.0) + turn  # C h w
  k = jnp.where(k >= 6.0, k - 6.0, k)
  dip = jnp.clip(jnp.minimum(k, 4.0 - k), 0.0, 1.0)
  return crops.cut(value[None] * (1.0 - saturation[None] * dip) + 0.5)


def color_jitter(
  image: jax.Array,
  factors: jax.Array,
  shift: jax.Array,
  shifts: jax.Array,
  order: jax.Array,
  *,
  hue: bool = True,
) -> jax.Array:
  """Brightness, contrast, saturation and hue in a drawn order.

  The first three are one blend towards black, the mean grey level or the grey
  image. So a step of the loop is a blend or a turn of hue, chosen by select:
  four of each in all, not the 24 orders.

  Args:
    image: f32[C, h, w]. Saturation and hue are skipped unless C is 3.
    factors: brightness, contrast, saturation, f32[3]; 1 changes nothing.
    shift: hue shift in bytes, whole, f32[].
    shifts: whether hue is touched at all (HSV bytes lose a little), bool[].
    order: permutation i32[4] of 0 brightness, 1 contrast, 2 saturation, 3 hue.
    hue: static, False leaves the hue code out.

  Returns:
    f32[C, h, w].
  """
  rgb = image.shape[0] == 3
  factors = jnp.concatenate([factors, jnp.ones(1)])
  if not rgb:
    factors = factors.at[2].set(1.0)

  def step(image, operation):
    grey = luma(image)
    mean = crops.cut(jnp.mean(grey) + 0.5)
    other = jnp.where(operation == 1, mean, 0.0)
    other = jnp.where(operation == 2, grey, other)
    blended = blend(image, other, factors[operation])
    if not (hue and rgb):
      return blended, None
    now = shifts & (operation == 3)
    return jnp.where(now, shift_hue(image, shift), blended), None

  # A loop, not unrolled: XLA would fuse the steps and repeat their work.
  return jax.lax.scan(step, image, order)[0]


def box_radius(sigma, sqrt=math.sqrt, floor=math.floor):
  """Radius of the extended box whose third power PIL calls Gaussian.

  Gwosdek et al., "Theoretical foundations of Gaussian convolution by extended
  box filtering", equations 7, 11 and 14.
  """
  variance = sigma * sigma / 3.0
  whole = floor((sqrt(12.0 * variance + 1.0) - 1.0) / 2.0)
  part = (2 * whole + 1) * (whole * (whole + 1) - 3.0 * variance)
  return whole + part / (6.0 * (variance - (whole + 1) * (whole + 1)))


def blur_matrix(sigma: jax.Array, n: int, max_sigma: float) -> jax.Array:
  """PIL's GaussianBlur of one axis: three extended boxes, edges repeated.

  Args:
    sigma: PIL's radius, f32[]; 0 gives the identity.
    n: number of pixels.
    max_sigma: static upper bound of sigma.

  Returns:
    Weights f32[n, n].
  """
  radius = box_radius(sigma, jnp.sqrt, jnp.floor)
  reach = math.floor(box_radius(max_sigma)) + 1
  matrix = jnp.eye(n)
  for _ in range(3):
    padded = jnp.pad(matrix, ((reach, reach), (0, 0)), mode='edge')
    matrix = sum(
      jnp.clip(radius + 1.0 - abs(d), 0.0, 1.0) * padded[reach + d :][:n]
      for d in range(-reach, reach + 1)
    ) / (2.0 * radius + 1.0)
  return matrix


def blur(image: jax.Array, sigma: jax.Array, max_sigma: float) -> jax.Array:
  """Blurs an image f32[C, h, w] as PIL's GaussianBlur(sigma) does."""
  rows, columns = (blur_matrix(sigma, n, max_sigma) for n in image.shape[1:])
  return crops.separable(image, rows, columns)
