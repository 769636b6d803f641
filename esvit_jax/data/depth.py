"""Pixels deeper than 8 bits -> u8, by a stated rule.

What becomes black and white is given by a field (`data.value_range`), and what
lies beyond is then clipped. Without it the images of a set decide together,
those of each type of number apart (`assumed_range`). An image that does not
fit what they say is scaled by its own values, and never clipped.
"""

import functools
import sys
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from esvit_jax.data.unreadable import Unreadable
from esvit_jax.errors import UserError

Range = tuple[float, float]  # the values that become black and white

BITS = (1, 2, 4, 8, 10, 12, 14, 16)
# Floats up to this are white at their largest: at 255 they would be black.
_SMALL = 16.0
# An image that fills less of a range than this would lose 4 bits of it.
_LEAST_SHARE = 1 / 16


class Scale(NamedTuple):
  """How values become bytes.

  Attributes:
    given: the range that the user has set, for all images.
    assumed: type of number, such as 'uint16' -> the range of the images of
      the set that were looked at.
  """

  given: Range | None = None
  assumed: Mapping[str, Range] = {}


OPEN = Scale()  # nothing given, nothing assumed yet


def parse(value: Any) -> Scale:
  """The scale that `data.value_range` sets; it may be empty.

  Raises:
    UserError: it is no two increasing numbers.
  """
  if not value:
    return OPEN
  numbers = tuple(value)
  if len(numbers) != 2 or not numbers[0] < numbers[1]:
    raise UserError(
      f'data.value_range is {value}: use the values that become black and '
      'white, such as (0, 4095)'
    )
  return Scale(given=numbers)


def value_range(image: np.ndarray) -> Range:
  """Least and largest finite value.

  Raises:
    Unreadable: there is none.
  """
  finite = image[np.isfinite(image)]
  if not finite.size:
    raise Unreadable('no value of it is finite')
  return float(finite.min()), float(finite.max())


def assumed_range(low: float, high: float, dtype: Any = np.uint16) -> Range:
  """What becomes black and white in images with values from low to high.

  Whole numbers: 0 and the most that the fewest of 1, 2, 4, 8, 10, 12, 14 or 16
  bits hold. Floats: 0 and 1 up to 1; 0 and the largest up to 16; then as whole
  numbers. With negative or larger values: low and high.
  """
  if low < 0:
    return low, high
  if np.dtype(dtype).kind == 'f' and 1 < high <= _SMALL:
    return 0.0, high
  most = (float(2**bits - 1) for bits in BITS)
  return next(((0.0, white) for white in most if high <= white), (low, high))


def range_of(image: np.ndarray, scale: Scale) -> Range:
  """The values of an image that become black and white.

  Those of its set; or of its own, where they reach beyond these or fill less
  than a sixteenth of them (a 12-bit image among those of 16 bits).
  """
  if scale.given:
    return scale.given
  low, high = value_range(image)
  own = assumed_range(low, high, image.dtype)
  shared = scale.assumed.get(image.dtype.name, own)
  if low < shared[0] or high > shared[1]:
    return min(own[0], shared[0]), max(own[1], shared[1])
  if own[0] == shared[0] == 0:
    white = own[1] if image.dtype.kind == 'f' else max(own[1], 255.0)
    if white <= _LEAST_SHARE * (shared[1] + 1):
      return 0.0, white
  return shared


def to_bytes(image: np.ndarray, scale: Scale = OPEN) -> np.ndarray:
  """Values of any type -> u8: black is 0 and white 255, rounded.

  Args:
    image: u8, which stays as it is, or of any other type. NaN is black.
    scale: of the set.
  """
  if image.dtype == np.uint8:
    return image
  if image.dtype == bool:
    return image.astype(np.uint8) * 255
  if not scale.given and image.dtype.name not in scale.assumed:
    _say_own_values(image.dtype.name)
  low, high = range_of(image, scale)
  scaled = (np.nan_to_num(image, nan=low) - low) / max(high - low, 1e-30)
  return np.floor(np.clip(scaled, 0, 1) * 255 + 0.5).astype(np.uint8)


@functools.cache
def _say_own_values(dtype: str) -> None:
  """Says, once, that images are deep although none of the sampled ones was."""
  print(
    f'note: images of {dtype} were not among those sampled: each is scaled by '
    'its own values; data.value_range sets one range for all',
    file=sys.stderr,
  )
