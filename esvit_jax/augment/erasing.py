"""Random erasing (arXiv 1708.04896): a box of a view becomes noise."""

import jax
import jax.numpy as jnp

TRIES = 10
AREA = (0.02, 1 / 3)  # share of the view
RATIO = (0.3, 1 / 0.3)  # height / width, drawn log-uniformly


def draw_box(key: jax.Array, height: int, width: int) -> jax.Array:
  """The first of ten drawn boxes that is smaller than the view.

  Args:
    key: typed PRNG key.
    height: of the view, pixels.
    width: of the view, pixels.

  Returns:
    Top, bottom, left, right, i32[4]; all zero if no box fits.
  """
  uniform = jax.random.uniform(key, (2 * TRIES + 2,))
  area, ratio, place = jnp.split(uniform, [TRIES, 2 * TRIES])
  area = height * width * (AREA[0] + area * (AREA[1] - AREA[0]))
  low, high = jnp.log(RATIO[0]), jnp.log(RATIO[1])
  ratio = jnp.exp(low + ratio * (high - low))
  h = jnp.round(jnp.sqrt(area * ratio)).astype(jnp.int32)
  w = jnp.round(jnp.sqrt(area / ratio)).astype(jnp.int32)
  fits = (h < height) & (w < width)
  first = jnp.argmax(fits)
  size = jnp.where(fits[first], jnp.stack([h[first], w[first]]), 0)
  room = jnp.asarray([height, width]) - size
  corner = jnp.minimum((place * (room + 1)).astype(jnp.int32), room)
  (top, left), (bottom, right) = corner, corner + size
  return jnp.stack([top, bottom, left, right])


def inside(box: jax.Array, height: int, width: int) -> jax.Array:
  """Pixels bool[height, width] of a box (top, bottom, left, right)."""
  top, bottom, left, right = box
  y, x = jnp.arange(height)[:, None], jnp.arange(width)[None]
  return (y >= top) & (y < bottom) & (x >= left) & (x < right)


def erase(view: jax.Array, key: jax.Array, probability: float) -> jax.Array:
  """Fills a box with N(0, 1) for each pixel and channel ("pixel" mode).

  Args:
    view: normalised f32[h, w, C].
    key: typed PRNG key.
    probability: of erasing at all.
  """
  chance, where, what = jax.random.split(key, 3)
  h, w, _ = view.shape
  gone = inside(draw_box(where, h, w), h, w)
  gone &= jax.random.bernoulli(chance, probability)
  noise = jax.random.normal(what, view.shape, view.dtype)
  return jnp.where(gone[:, :, None], noise, view)
