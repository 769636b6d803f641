"""Images and their targets resized, moved and mirrored by one draw.

Large-scale jitter (2012.07177) and the crops of segmentation: an image is
mirrored, resized by a random factor, and as much of it as the output holds is
cut out. What is missing at the right and below is padding.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from esvit_jax.augment import crops, photometric

# Crops of one image that are tried until no class fills too much of them.
TRIES = 10
FULL = 0.75
_THIN = 4  # pixels between those that are counted


class Reach(NamedTuple):
  """What an image is fitted into at a factor of 1, whichever is smaller.

  Attributes:
    longest: of the longer side, pixels.
    shortest: of the shorter side, pixels.
  """

  longest: float
  shortest: float


class Placing(NamedTuple):
  """Where an image goes.

  Attributes:
    flip: whether it is mirrored first, bool[].
    made: height and width it is resized to, i32[2].
    offset: first row and column of it that is shown, i32[2].
  """

  flip: jax.Array
  made: jax.Array
  offset: jax.Array

  def shown(self, out: tuple[int, int]) -> jax.Array:
    """Height and width of what is no padding, i32[2]."""
    return jnp.minimum(self.made - self.offset, jnp.array(out))


def draw(
  key: jax.Array,
  size: jax.Array,
  out: tuple[int, int],
  reach: Reach,
  scale: tuple[float, float],
  flip: float,
) -> Placing:
  """A random placing.

  Args:
    key: of the draw.
    size: valid height and width of the image, i32[2].
    out: height and width of the output.
    reach: of the image at a factor of 1.
    scale: least and largest factor, drawn uniformly.
    flip: probability.
  """
  turn, grow, move = jax.random.split(key, 3)
  factor = jax.random.uniform(grow, (), minval=scale[0], maxval=scale[1])
  made = resized(size, reach, factor)
  return Placing(
    jax.random.bernoulli(turn, flip), made, offset(move, made, out)
  )


def resized(size: jax.Array, reach: Reach, factor) -> jax.Array:
  """Height and width of an image that fits `factor` times its reach."""
  size = jnp.maximum(size, 1).astype(jnp.float32)
  fit = jnp.minimum(reach.longest / size.max(), reach.shortest / size.min())
  return jnp.maximum(jnp.round(size * fit * factor), 1).astype(jnp.int32)


def offset(key: jax.Array, made: jax.Array, out: tuple[int, int]) -> jax.Array:
  """A random first row and column, i32[2]; 0 where all fits."""
  room = jnp.maximum(made - jnp.array(out), 0)
  return jnp.round(jax.random.uniform(key, (2,)) * room).astype(jnp.int32)


def image(
  pixels: jax.Array, size: jax.Array, placing: Placing, out: tuple[int, int]
) -> jax.Array:
  """Grey levels f32[C, *out], bilinear with antialias; padding repeats.

  Args:
    pixels: f32[C, H, W].
    size: valid height and width, i32[2].
    placing: of the image.
    out: height and width.
  """
  rows, columns = (
    crops.sampling_matrix(
      jnp.int32(0),
      size[axis],
      out[axis],
      pixels.shape[1 + axis],
      flip=placing.flip & (axis == 1),
      bilinear=True,
      made=placing.made[axis],
      skip=placing.offset[axis],
    )
    for axis in range(2)
  )
  return crops.separable(pixels, rows, columns)


def inside(placing: Placing, out: tuple[int, int]) -> jax.Array:
  """Which pixels are no padding, bool[*out]."""
  h, w = placing.shown(out)
  return (jnp.arange(out[0]) < h)[:, None] & (jnp.arange(out[1]) < w)[None]


def labels(
  classes: jax.Array,
  size: jax.Array,
  placing: Placing,
  out: tuple[int, int],
  void: int,
) -> jax.Array:
  """Classes of pixels u8[*out], nearest; `void` in the padding.

  Args:
    classes: u8[H, W].
    size, placing, out: see `image`.
    void: class of what is not there.
  """
  places = []
  for axis in range(2):
    made = placing.made[axis]
    i = jnp.minimum(jnp.arange(out[axis]) + placing.offset[axis], made - 1)
    i = jnp.where(placing.flip & (axis == 1), made - 1 - i, i)
    at = (i + 0.5) * (size[axis] / made) - 0.5
    # Halfway between two pixels the first is taken.
    place = jnp.ceil(at - 0.5).astype(jnp.int32)
    places.append(jnp.clip(place, 0, size[axis] - 1))
  rows, columns = places
  moved = classes[rows[:, None], columns[None]]
  return jnp.where(inside(placing, out), moved, void)


def boxes(boxes: jax.Array, size: jax.Array, placing: Placing) -> jax.Array:
  """Boxes f32[M, 4] (x1 y1 x2 y2) moved, not cut."""
  x1, y1, x2, y2 = jnp.moveaxis(boxes, -1, 0)
  width = size[1].astype(boxes.dtype)
  x1, x2 = (
    jnp.where(placing.flip, width - b, a) for a, b in ((x1, x2), (x2, x1))
  )
  factor = placing.made / jnp.maximum(size, 1)
  y1, y2 = (y * factor[0] - placing.offset[0] for y in (y1, y2))
  x1, x2 = (x * factor[1] - placing.offset[1] for x in (x1, x2))
  return jnp.stack([x1, y1, x2, y2], -1)


class Objects(NamedTuple):
  """Objects of an image, M of them padded.

  Attributes:
    boxes: inside the image f32[M, 4].
    classes: -1 padding, i32[M].
    shapes: masks in their frames f32[M, S, S] in 0..1.
    frames: boxes that the shapes fill f32[M, 4].
  """

  boxes: jax.Array
  classes: jax.Array
  shapes: jax.Array
  frames: jax.Array


def objects(
  frames: jax.Array,
  classes: jax.Array,
  shapes: jax.Array,
  size: jax.Array,
  placing: Placing,
  out: tuple[int, int],
) -> Objects:
  """Objects moved; those of which no pixel is left become padding.

  A box that is cut is drawn anew around what is left of the mask.

  Args:
    frames: boxes f32[M, 4].
    classes: i32[M], -1 padding.
    shapes: u8[M, S, S], 0 to 255.
    size, placing, out: see `image`.
  """
  frames = boxes(frames, size, placing)
  shapes = jnp.where(placing.flip, shapes[:, :, ::-1], shapes) / 255
  h, w = placing.shown(out)
  limit = jnp.stack([w, h, w, h]).astype(frames.dtype)[None]
  cut = jnp.clip(frames, 0, limit)
  S = shapes.shape[-1]
  # Edges and middles of the cells of the shapes, along x and y.
  step = (frames[:, None, 2:] - frames[:, None, :2]) / S  # M 1 2
  low = frames[:, None, :2] + step * jnp.arange(S)[None, :, None]  # M S 2
  middle = low + step / 2
  seen = (middle >= 0) & (middle <= limit[:, None, 2:])
  left = (shapes >= 0.5) & seen[:, None, :, 0] & seen[:, :, None, 1]
  sides = []
  for axis, any_axis in ((0, 1), (1, 2)):
    there = left.any(any_axis)
    a, b = low[..., axis], low[..., axis] + step[..., axis]
    sides.append(
      (
        jnp.where(there, a, jnp.inf).min(1),
        jnp.where(there, b, -jnp.inf).max(1),
      )
    )
  (x1, x2), (y1, y2) = sides
  tight = jnp.clip(jnp.stack([x1, y1, x2, y2], -1), 0, limit)
  whole = (cut == frames).all(1, keepdims=True)
  there = (classes >= 0) & left.any((1, 2))
  moved = jnp.where(whole, frames, tight)
  return Objects(
    jnp.where(there[:, None], moved, 0),
    jnp.where(there, classes, -1),
    shapes,
    frames,
  )


def varied(
  key: jax.Array,
  classes: jax.Array,
  size: jax.Array,
  placing: Placing,
  out: tuple[int, int],
  void: int,
) -> Placing:
  """`placing` with another offset where one class would fill the crop.

  Args:
    key: of the offsets.
    classes: u8[H, W].
    size, placing, out: see `image`.
    void: class that is not counted.
  """
  keys = jax.random.split(key, TRIES - 1)
  offsets = jax.vmap(lambda k: offset(k, placing.made, out))(keys)
  offsets = jnp.concatenate([placing.offset[None], offsets])

  def good(offset):
    crop = labels(classes, size, placing._replace(offset=offset), out, void)
    thin = crop[::_THIN, ::_THIN].ravel()
    counts = jnp.zeros(256, jnp.int32).at[thin].add(thin != void)
    # More than one class, none of which fills too much.
    return counts.max() < FULL * counts.sum()

  fits = jax.lax.map(good, offsets)
  return placing._replace(offset=offsets[jnp.argmax(fits)])


def distort(planes: jax.Array, key: jax.Array, strength: float) -> jax.Array:
  """Photometric distortion (1512.02325), each step in half of the images.

  Brightness +-32 levels, contrast 0.5 to 1.5 before or after the colours,
  saturation 0.5 to 1.5, hue +-18 of 180 degrees halved; colours of RGB only.

  Args:
    planes: f32[C, h, w], 0 to 255.
    key: of the draws.
    strength: of 1; 0 leaves the image as it is.
  """
  if not strength:
    return planes
  on = jax.random.bernoulli(jax.random.fold_in(key, 0), 0.5, (5,))
  u = jax.random.uniform(
    jax.random.fold_in(key, 1), (4,), minval=-1.0, maxval=1.0
  )
  u = u * strength
  early = on[4]
  contrast = jnp.where(on[1], 1 + 0.5 * u[1], 1)
  x = planes + jnp.where(on[0], 32 * u[0], 0)
  x = jnp.clip(jnp.where(early, x * contrast, x), 0, 255)
  if len(planes) == 3:
    grey = x.mean(0, keepdims=True)
    x = jnp.where(on[2], grey + (1 + 0.5 * u[2]) * (x - grey), x)
    x = jnp.clip(x, 0, 255)
    turn = jnp.round(u[3] * 18 / 180 * 255)
    x = jnp.where(on[3], photometric.shift_hue(jnp.round(x), turn), x)
  return jnp.clip(jnp.where(early, x, x * contrast), 0, 255)
