"""The embedded garments, each at a random place and size before a background.

Position, size and background tell nothing of the class, so raw pixels are a
poor feature: what a network is to learn here is to disregard them. Image `i`
shows garment `i` of the embedded set and is a pure function of (seed, split,
index).
"""

import functools

import numpy as np

from esvit_jax.data import embedded, scenes, splits
from esvit_jax.data.source import Request, Source

SIDE = 28  # pixels, unless data.canvas asks for another
FACTOR = (0.4, 0.8)  # of the shorter side, log-uniform


def split_names(place: str, data_dir: str | None) -> tuple[str, ...]:
  """The splits there are."""
  return embedded.split_names(place, data_dir)


def open_split(request: Request) -> Source:
  """Opens 'train' (10,000 images) or 'test' (2,000, of other garments).

  Args:
    request: its place is a seed, by default 0, its split 'train' or 'test', its
      canvas the size of the images, by default 28 x 28.

  Raises:
    UserError: no such split, or the seed is no number.
  """
  place = request.place
  names = split_names(place, request.data_dir)
  split = splits.require('the placed set', request.split, names)
  seed = scenes.checked_seed(place, 'placed')
  garments = embedded.open_split(Request(split=split, channels=1))
  size = request.canvas or (SIDE, SIDE)
  number = names.index(split)

  @functools.cache  # 0.2 ms to compose, 0.8 kB to keep
  def image(i):
    rng = np.random.default_rng([seed, number, i])
    return compose(rng, *garments.read(i), size)

  return Source(
    name=f'placed Fashion-MNIST (embedded){f":{place}" if place else ""}, '
    f'{split}',
    split=split,
    count=len(garments),
    classes=garments.classes,
    read=lambda i: (image(i), int(garments.labels[i])),
    where=lambda i: f'{split}[{i}]',
    canvas=size,
    channels=request.channels or 1,
    labels=garments.labels,
  )


def compose(
  rng: np.random.Generator,
  image: np.ndarray,
  label: int,
  size: tuple[int, int],
) -> np.ndarray:
  """A garment u8[28, 28, 1], wholly inside an image u8[H, W, 1].

  Args:
    rng: of all that is drawn.
    image, label: of the garment.
    size: (height, width).
  """
  factor = np.exp(rng.uniform(*np.log(FACTOR))) * min(size) / len(image)
  garment = scenes.cut_out(image[..., 0], label).at(factor)
  corner = rng.integers(0, np.subtract(size, garment.mask.shape) + 1)
  background = scenes.ground(rng, size) + scenes.grain(rng, size)
  image, _ = scenes.overlaid(background, [garment], [corner])
  return image[..., None]
