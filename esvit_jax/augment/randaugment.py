"""RandAugment (arXiv 1909.13719) on the device, in timm's "increasing" form.

Every drawn operation is one of three kinds: a table of 256 grey levels for
each channel, a blend with another image, or a warp. All three are done and
one is kept, which under vmap costs less than a branch for each of fifteen.

Images are float32 [C, h, w] holding whole grey levels 0..255, as in
`photometric`, and the arithmetic is PIL's. Levels are magnitudes over 10.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp

from esvit_jax.augment import crops, photometric

OPERATIONS = (
  'auto_contrast',
  'equalize',
  'invert',
  'rotate',
  'posterize',
  'solarize',
  'solarize_add',
  'color',
  'contrast',
  'brightness',
  'sharpness',
  'shear_x',
  'shear_y',
  'translate_x',
  'translate_y',
)
PROBABILITY = 0.5  # of an operation, once it is drawn
LARGEST = 10.0  # magnitude
DEGREES = 30.0  # of rotation at the largest magnitude, and so on
SHEAR = 0.3
SHIFT = 0.45  # share of the side
ENHANCE = 0.9  # factors are 1 +- this
ADD = 110  # grey levels


class Draw(NamedTuple):
  """What chance decided for one image; L operations one after the other.

  Attributes:
    operation: place in OPERATIONS, i32[L].
    happens: bool[L].
    level: magnitude over 10, f32[L].
    sign: 1 or -1 of moves and enhancements, f32[L].
  """

  operation: jax.Array
  happens: jax.Array
  level: jax.Array
  sign: jax.Array


def draw(
  key: jax.Array,
  count: int,
  magnitude: jax.Array | float,
  noise: jax.Array | float,
) -> Draw:
  """Draws `count` operations with replacement, each with its own magnitude.

  Args:
    key: typed PRNG key.
    count: operations, static.
    magnitude: 0 to 10.
    noise: standard deviation of the magnitude, which is cut to 0..10.
  """
  keys = jax.random.split(key, 4)
  level = magnitude + noise * jax.random.normal(keys[2], (count,))
  return Draw(
    operation=jax.random.randint(keys[0], (count,), 0, len(OPERATIONS)),
    happens=jax.random.bernoulli(keys[1], PROBABILITY, (count,)),
    level=jnp.clip(level, 0.0, LARGEST) / LARGEST,
    sign=jax.random.rademacher(keys[3], (count,), jnp.float32),
  )


def apply(image: jax.Array, drawn: Draw, mean: Sequence[float]) -> jax.Array:
  """Carries out a draw.

  Args:
    image: f32[C, h, w].
    drawn: from `draw`.
    mean: per channel, of pixels in 0..1: what warps show beyond the edges.

  Returns:
    f32[C, h, w].
  """
  fill = jnp.asarray([float(round(255 * m)) for m in mean])

  def step(image, drawn):
    new = operate(image, drawn.operation, drawn.level, drawn.sign, fill)
    return jnp.where(drawn.happens, new, image), None

  # A loop, not unrolled: XLA would fuse the steps and repeat their work.
  return jax.lax.scan(step, image, drawn)[0]


def operate(
  image: jax.Array,
  operation: jax.Array,
  level: jax.Array,
  sign: jax.Array,
  fill: jax.Array,
) -> jax.Array:
  """One operation.

  Args:
    image: f32[C, h, w].
    operation: place in OPERATIONS, i32[].
    level: 0 to 1, f32[].
    sign: 1 or -1, f32[].
    fill: grey levels f32[C] of what a warp brings in.

  Returns:
    f32[C, h, w].
  """

  def among(*names):
    return sum(operation == OPERATIONS.index(name) for name in names) > 0

  factor = 1.0 + sign * ENHANCE * level
  table = jnp.select(
    [
      among('auto_contrast'),
      among('equalize'),
      among('contrast', 'brightness'),
    ],
    [
      auto_contrast(image),
      equalize(image),
      enhance(image, factor, among('contrast')),
    ],
    jnp.broadcast_to(_fixed_table(among, level)[None], (len(image), 256)),
  )
  other = jnp.where(
    among('color'), photometric.luma(image), photometric.smooth(image)
  )
  matrix = _matrix(among, sign * level, *image.shape[1:])
  return jnp.select(
    [
      among('color', 'sharpness'),
      among('rotate', 'shear_x', 'shear_y', 'translate_x', 'translate_y'),
    ],
    [photometric.blend(image, other, factor), warp(image, matrix, fill)],
    look_up(image, table),
  )


def look_up(image: jax.Array, table: jax.Array) -> jax.Array:
  """Replaces grey levels of f32[C, h, w] by those in a table f32[C, 256]."""
  levels = image.reshape(len(image), -1).astype(jnp.int32)  # C n
  new = jnp.take_along_axis(table, levels, 1, mode='promise_in_bounds')
  return new.reshape(image.shape)


def auto_contrast(image: jax.Array) -> jax.Array:
  """Table f32[C, 256] that spreads each channel's levels over 0..255.

  PIL's own floating point falls one level short of some whole quotients.
  """
  low = image.min((1, 2))[:, None].astype(jnp.int32)
  high = image.max((1, 2))[:, None].astype(jnp.int32)
  i = jnp.arange(256)[None]
  spread = jnp.clip(255 * (i - low) // jnp.maximum(high - low, 1), 0, 255)
  return jnp.where(high > low, spread, i).astype(jnp.float32)


def equalize(image: jax.Array) -> jax.Array:
  """Table f32[C, 256] that makes each channel's histogram flat, as PIL does."""
  levels = image.reshape(len(image), -1).astype(jnp.int32)  # C n
  count = jax.vmap(lambda x: jnp.zeros(256, jnp.int32).at[x].add(1))(levels)
  below = jnp.cumsum(count, 1) - count
  # PIL leaves the brightest level in use out of the step.
  brightest = jnp.take_along_axis(count, levels.max(1, keepdims=True), 1)
  step = (levels.shape[1] - brightest) // 255
  flat = (step // 2 + below) // jnp.maximum(step, 1)
  flat = jnp.where(step > 0, jnp.minimum(flat, 255), jnp.arange(256)[None])
  return flat.astype(jnp.float32)


def enhance(
  image: jax.Array, factor: jax.Array, contrast: jax.Array
) -> jax.Array:
  """Table f32[C, 256] of a blend with the mean grey (contrast) or black."""
  mean = crops.cut(jnp.mean(photometric.luma(image)) + 0.5)
  grey = jnp.where(contrast, mean, 0.0)
  table = photometric.blend(jnp.arange(256.0), grey, factor)
  return jnp.broadcast_to(table[None], (len(image), 256))


def _fixed_table(among, level: jax.Array) -> jax.Array:
  """Table f32[256] of the operations that do not look at the image."""
  i = jnp.arange(256.0)
  # Whole numbers are cut from level, as timm does: at most 4 bits are kept.
  dropped = jnp.exp2(4.0 + jnp.floor(4.0 * level))
  threshold = 256.0 - jnp.floor(256.0 * level)
  added = jnp.floor(ADD * level)
  return jnp.select(
    [among('invert'), among('posterize'), among('solarize')],
    [
      255.0 - i,
      jnp.floor(i / dropped) * dropped,
      jnp.where(i < threshold, i, 255.0 - i),
    ],
    jnp.where(i < 128.0, jnp.minimum(i + added, 255.0), i),
  )


def _matrix(among, level: jax.Array, height: int, width: int) -> jax.Array:
  """Where a warp takes its pixels from: f32[2, 3] on (column, row, 1)."""

  def only(name, size):
    return jnp.where(among(name), size * level, 0.0)

  angle = -only('rotate', math.radians(DEGREES))
  cos, sin = jnp.cos(angle), jnp.sin(angle)
  x, y = width / 2, height / 2  # the centre of rotation
  right = x - cos * x - sin * y + only('translate_x', SHIFT * width)
  down = y + sin * x - cos * y + only('translate_y', SHIFT * height)
  return jnp.stack(
    [
      jnp.stack([cos, sin + only('shear_x', SHEAR), right]),
      jnp.stack([-sin + only('shear_y', SHEAR), cos, down]),
    ]
  )


def warp(image: jax.Array, matrix: jax.Array, fill: jax.Array) -> jax.Array:
  """PIL's `transform(AFFINE, BICUBIC)`.

  Not the cubic of PIL's resize: its derivative is twice as steep (a = -1),
  nothing is widened, and the fraction of the result is cut.

  Args:
    image: f32[C, h, w].
    matrix: f32[2, 3] from an output's (column, row, 1) to the input's column
      and row, at the centres of pixels.
    fill: grey levels f32[C] where that lies outside.

  Returns:
    f32[C, h, w].
  """
  C, h, w = image.shape
  x = (jnp.arange(w) + 0.5)[None]
  y = (jnp.arange(h) + 0.5)[:, None]
  (a, b, right), (c, d, down) = matrix
  x, y = a * x + b * y + right, c * x + d * y + down  # h w
  inside = (x >= 0) & (x < w) & (y >= 0) & (y < h)
  columns, across = _taps(x - 0.5, w)
  rows, along = _taps(y - 0.5, h)
  flat = image.reshape(C, -1)
  new = jnp.zeros_like(image)
  # Sixteen gathers that XLA fuses; one of 4x4 windows is ten times slower.
  for row, weight in zip(rows, along):
    line = jnp.zeros_like(image)
    for column, share in zip(columns, across):
      pixel = flat.at[:, row * w + column].get(mode='promise_in_bounds')
      line += share[None] * pixel
    new += weight[None] * line
  new = crops.cut(jnp.clip(new, 0.0, 255.0))
  return jnp.where(inside[None], new, fill[:, None, None])


def _taps(position: jax.Array, length: int) -> tuple[list, list]:
  """Four neighbours of each position, edges repeated, and their weights."""
  first = jnp.floor(position)
  t = position - first
  weights = [
    ((-t + 2.0) * t - 1.0) * t,
    (t - 2.0) * t * t + 1.0,
    ((-t + 1.0) * t + 1.0) * t,
    (t - 1.0) * t * t,
  ]
  first = first.astype(jnp.int32)
  places = [jnp.clip(first + k, 0, length - 1) for k in (-1, 0, 1, 2)]
  return places, weights
