"""Random blocks of an image that cover a share of it, for group masking.

Published code drops one block after the other until there are enough. Here a
fixed number falls at once and those that were not needed are taken back, so
that shapes are static; the numbers follow the same law.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np


class Blocks(NamedTuple):
  """K rectangles, pixels, i32[K] each; they may reach over the border."""

  top: jax.Array
  left: jax.Array
  height: jax.Array
  width: jax.Array


def draw(
  key, count: int, shape: tuple[int, int], align: int, max_block: float
) -> Blocks:
  """Draws rectangles independently of each other.

  Published: upper ends are excluded, so with align 1 no block starts in the
  last row or column, and sides stop one pixel short of `max_block`. Sides are
  cut at the border first and then rounded to multiples of `align`, halves to
  the even one.

  Args:
    key: typed PRNG key.
    count: K.
    shape: height and width of the image, pixels.
    align, max_block: see group_masking.Settings.
  """

  def interval(key, length):
    start_key, side_key = jax.random.split(key)
    start = jax.random.randint(start_key, (count,), 0, length - align)
    start = start // align * align
    longest = int(length * max_block)
    side = jax.random.randint(side_key, (count,), align, longest)
    side = jnp.minimum(side, length - start)
    return start, jnp.round(side / align).astype(jnp.int32) * align

  rows, columns = jax.random.split(key)
  (top, height), (left, width) = map(interval, (rows, columns), shape)
  return Blocks(top, left, height, width)


def cover(
  blocks: Blocks, pixels, shape: tuple[int, int]
) -> tuple[jax.Array, jax.Array]:
  """Lays blocks down in order until they cover enough.

  Each pixel finds the first block that holds it; the blocks needed are the
  least n for which enough pixels have a first block below n. Going through the
  blocks one after the other takes 2.2 ms for an image of 224 px and 96 blocks
  on a CPU, this takes 0.2 to 0.5 ms.

  Args:
    blocks: K.
    pixels: to cover, f32[]. Where all blocks do not, all are taken.
    shape: height and width of the image.

  Returns:
    What is covered, bool[H, W], and by how many blocks, i32[].
  """
  rows = _words(blocks.top, blocks.height, shape[0])  # n H
  columns = _words(blocks.left, blocks.width, shape[1])  # n W
  hit = rows[:, :, None] & columns[:, None]  # n H W: the blocks on a pixel
  # The lowest bit of a word, 32 if it has none.
  bit = jax.lax.population_count((hit & -hit) - 1).astype(jnp.int32)
  K = len(blocks.top)
  word = 32 * jnp.arange(len(hit))[:, None, None]
  first = jnp.where(bit < 32, word + bit, K).min(0)  # H W
  # By bisection.
  low, high = jnp.int32(0), jnp.int32(K)
  for _ in range(K.bit_length()):
    middle = (low + high) // 2
    enough = (first < middle).sum() >= pixels
    high = jnp.where(enough, middle, high)
    low = jnp.where(enough, low, jnp.minimum(middle + 1, high))
  return first < high, high


def _words(start, side, length: int) -> jax.Array:
  """For each pixel of a line the intervals that hold it, u32[n, length].

  Interval k is bit k % 32 of word k // 32, so that K / 32 planes of pixels are
  read and not K.
  """
  pixel = jnp.arange(length)[None]
  inside = (pixel >= start[:, None]) & (pixel < (start + side)[:, None])
  inside = jnp.pad(inside, ((0, -len(inside) % 32), (0, 0)))
  inside = inside.reshape(-1, 32, length).astype(jnp.uint32)
  return (inside << jnp.arange(32, dtype=jnp.uint32)[None, :, None]).sum(
    1, dtype=jnp.uint32
  )


@functools.cache
def enough(
  shape: tuple[int, int], share: float, align: int, max_block: float
) -> int:
  """A number of blocks that practically always covers a share of an image.

  Twice and a bit what is needed on average, seven deviations above it. Of
  760,000 images of 28 and 224 px, with shares of 0.3 to 0.7, none got beyond
  four fifths of it; with 0.9, one of 6,000 wanted more.
  """
  if not share:
    return 1
  missed = [
    1 - _chances(length, align, int(length * max_block)) for length in shape
  ]
  hit = (1 - missed[0])[:, None] * (1 - missed[1])[None]  # H W
  needed = 1
  while 1 - ((1 - hit) ** needed).mean() < share:
    needed += 1
  return 2 * needed + 16


def _chances(length: int, align: int, longest: int) -> np.ndarray:
  """How likely a block's interval is to hold each pixel, f64[length]."""
  start = np.arange(length - align)[:, None] // align * align
  side = np.minimum(np.arange(align, longest)[None], length - start)
  side = np.round(side / align) * align
  pixel = np.arange(length)[:, None, None]
  return ((pixel >= start) & (pixel < start + side)).mean((1, 2))
