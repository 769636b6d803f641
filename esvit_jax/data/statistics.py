"""Mean and standard deviation of the channels of a source."""

import numpy as np

from esvit_jax.data.source import Source, spread
from esvit_jax.data.unreadable import Unreadable
from esvit_jax.errors import UserError


class Moments:
  """Sums over pixels, as images come.

  Attributes:
    pixels: how many there were.
  """

  def __init__(self, channels: int):
    """Starts from nothing."""
    self._sums, self.pixels = np.zeros((2, channels)), 0

  def add(self, image: np.ndarray) -> None:
    """Takes an image u8[h, w, C] in."""
    x = image.reshape(-1, image.shape[-1]) / 255
    self._sums += [x.sum(0), np.square(x).sum(0)]
    self.pixels += len(x)

  def mean_and_std(self) -> np.ndarray:
    """Of each channel, of pixels in 0..1, f64[2, C]."""
    mean, square = self._sums / max(self.pixels, 1)
    return np.stack([mean, np.sqrt(np.maximum(square - mean**2, 0))])


def statistics(source: Source, images: int = 1000) -> np.ndarray:
  """Mean and standard deviation of each channel, of pixels in 0..1.

  Args:
    source: the images.
    images: at most so many, spread over the source.

  Returns:
    f64[2, C]

  Raises:
    UserError: no image can be read.
  """
  moments = Moments(source.channels)
  for i in spread(len(source), images):
    try:
      moments.add(source[i]['image'])
    except Unreadable:
      continue
  if not moments.pixels:
    raise UserError(f'{source.name}: no image of it can be read')
  return moments.mean_and_std()


def as_fields(mean_and_std: np.ndarray) -> str:
  """Two lines to paste behind a command."""
  return '\n'.join(
    f'--config.data.{name}={",".join(f"{x:.4f}" for x in row)}'
    for name, row in zip(('mean', 'std'), mean_and_std)
  )
