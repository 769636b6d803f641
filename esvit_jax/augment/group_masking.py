"""Group-masked model learning: blocks of an image are corrupted.

Blocks of random size fall on an image until a share of it is covered
(2104.03602, 2205.14986). They are then filled with zeros, noise, other parts
of the image or the same parts of another image of the batch.
"""

import math
from collections.abc import Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp

from esvit_jax.augment import blocks as blocks_lib
from esvit_jax.augment.blocks import Blocks
from esvit_jax.errors import UserError

FILLS = ('zeros', 'noise', 'own')
# Corners are rarely hit: covering more takes ever more blocks.
MOST = 0.9


class Settings(NamedTuple):
  """What happens to images; the fields of the config.

  Attributes:
    share: of the pixels to cover: from min(0.5, share) to share, at random.
    fill: one of FILLS, or several with hyphens, of which each image draws one:
      0 (the mean colour), noise N(0, 1), or blocks of the image itself.
    align: corners and sides of blocks are multiples of this, pixels.
    replace: as `share`, of images that get blocks of another image.
    replace_prob: share of these images.
    max_block: longest side of a block, as a share of the image's.
  """

  share: float = 0.5
  fill: str = 'zeros'
  align: int = 1
  replace: float = 0.3
  replace_prob: float = 0.5
  max_block: float = 0.3

  @property
  def fills(self) -> tuple[str, ...]:
    return tuple(self.fill.split('-'))


def settings(config: Mapping, size: tuple[int, int]) -> Settings:
  """A checked config.

  Args:
    config: some of the fields of Settings.
    size: height and width of the images, pixels.

  Raises:
    UserError: an unknown field, or a value that makes no sense.
  """
  for field in config:
    if field not in Settings._fields:
      raise UserError(
        f"gmml has no field '{field}': use {', '.join(Settings._fields)}"
      )
  s = Settings(**config)
  for field, most in (('share', MOST), ('replace', MOST), ('replace_prob', 1)):
    if not 0 <= getattr(s, field) <= most:
      raise UserError(
        f'gmml.{field} is {getattr(s, field)}: use 0 up to {most}'
      )
  for fill in s.fills:
    if fill not in FILLS:
      raise UserError(
        f"gmml.fill is '{s.fill}': use {', '.join(FILLS)}, or several with "
        'hyphens between them'
      )
  if s.align < 1 or not 0 < s.max_block <= 1:
    raise UserError(
      f'gmml.align is {s.align}, gmml.max_block {s.max_block}: use 1 pixel or '
      'more, and a share of up to 1'
    )
  side = min(size)
  if int(side * s.max_block) <= s.align:
    raise UserError(
      f'gmml.max_block {s.max_block} leaves sides of up to '
      f'{int(side * s.max_block)} px in images of {side} px, gmml.align asks '
      f'for more than {s.align}: lower it, or raise max_block'
    )
  return s


def corrupt(images, key, s: Settings) -> tuple[jax.Array, jax.Array]:
  """Corrupts blocks of each view of each image.

  Published: half of the images lose 50 % to zeros, the others 30 % to another
  image, never both. That one is of the same view, may be the image itself
  and may lie on any device.

  Args:
    images: normalised views f[B, V, H, W, C].
    key: typed PRNG key.
    s: settings.

  Returns:
    The corrupted views, and where they are, bool[B, V, H, W].
  """
  B, V = images.shape[:2]
  other_key, key = jax.random.split(key)
  keys = jax.random.split(key, (B, V))
  others = images
  if s.replace_prob:
    other = jax.random.randint(other_key, (B, V), 0, B)
    others = images[other, jnp.arange(V)[None]]  # B V H W C
  each = jax.vmap(jax.vmap(lambda *args: corrupt_image(*args, s)))
  return each(images, others, keys)


def corrupt_image(
  image, other, key, s: Settings
) -> tuple[jax.Array, jax.Array]:
  """Corrupts blocks of one image.

  Args:
    image, other: f[H, W, C].
    key: typed PRNG key.
    s: settings.

  Returns:
    The corrupted image, and where it is, bool[H, W].
  """
  shape = image.shape[:2]
  kind_key, share_key, blocks_key, fill_key = jax.random.split(key, 4)
  replaced = jax.random.bernoulli(kind_key, s.replace_prob)
  most = jnp.where(replaced, s.replace, s.share)
  least = jnp.minimum(0.5, most)
  share = jax.random.uniform(share_key, minval=least, maxval=most)
  count = max(
    blocks_lib.enough(shape, part, s.align, s.max_block)
    for part in (s.share, s.replace if s.replace_prob else 0.0)
  )
  blocks = blocks_lib.draw(blocks_key, count, shape, s.align, s.max_block)
  mask, used = blocks_lib.cover(blocks, share * math.prod(shape), shape)
  fill = _fill(fill_key, image, blocks, used, s)
  if s.replace_prob:
    fill = jnp.where(replaced, other, fill)
  return jnp.where(mask[:, :, None], fill, image), mask


def _fill(key, image, blocks: Blocks, used, s: Settings) -> jax.Array:
  """What the first `used` blocks put on an image f[H, W, C]."""
  choice_key, key = jax.random.split(key)
  fills = {
    'zeros': jnp.zeros_like,
    # Blocks that overlap would draw anew, which is the same.
    'noise': lambda x: jax.random.normal(key, x.shape, x.dtype),
    'own': lambda x: _own(key, x, blocks, used, s.align),
  }
  if len(s.fills) == 1:
    return fills[s.fill](image)
  choice = jax.random.randint(choice_key, (), 0, len(s.fills))
  return jnp.stack([fills[name](image) for name in s.fills])[choice]


def _own(key, image, blocks: Blocks, used, align: int) -> jax.Array:
  """The image after each block was copied from elsewhere in it, in order.

  A block may copy what a block before it has put there: going backwards from
  the last block, each pixel follows its trace to where it comes from.
  """
  H, W, _ = image.shape
  rows, columns = jax.random.split(key)
  top = jax.random.randint(rows, blocks.top.shape, 0, H - blocks.height)
  left = jax.random.randint(columns, blocks.left.shape, 0, W - blocks.width)
  down = top // align * align - blocks.top
  right = left // align * align - blocks.left

  def step(i, place):
    y, x = place
    k = used - 1 - i
    b = jax.tree.map(lambda v: v[k], blocks)
    inside = (y >= b.top) & (y < b.top + b.height)
    inside &= (x >= b.left) & (x < b.left + b.width)
    return jnp.where(inside, y + down[k], y), jnp.where(inside, x + right[k], x)

  place = jnp.broadcast_to(jnp.arange(H)[:, None], (H, W))
  place = place, jnp.broadcast_to(jnp.arange(W)[None], (H, W))
  y, x = jax.lax.fori_loop(0, used, step, place)
  return image[y, x]
