"""What some images of a source tell of all: canvas, depth and bands."""

import dataclasses
from typing import Any

from esvit_jax.data import formats
from esvit_jax.data.formats import Header
from esvit_jax.data.source import Source, spread
from esvit_jax.errors import UserError

LONGEST_SIDE = 512
SAMPLED = 64  # images


def headers(source: Source) -> dict[int, Header]:
  """Row -> header of SAMPLED images at most, spread over a source."""
  seen = {}
  for i in spread(len(source), SAMPLED):
    try:
      seen[i] = formats.header(source.read(i)[0], source.channels)
    except (OSError, formats.Unreadable):
      continue  # the pipeline counts and names it when its turn comes
  return seen


def sizes(source: Source) -> list[tuple[int, int]]:
  """(height, width) in pixels of some images, as in their files."""
  return [seen.size for seen in headers(source).values()]


def fit(
  source: Source,
  canvas: tuple[int, int] | None = None,
  limits: tuple[float, float] | None = None,
) -> Source:
  """The source with what its images say where the config does not.

  Args:
    source: as opened; its channels are those asked for.
    canvas: (height, width), or None to fit the images.
    limits: values of images deeper than 8 bits that become 0 and 255, or None
      for `formats.assumed_range` of all that are sampled.

  Raises:
    UserError: the images have other bands than asked for.
  """
  seen = headers(source)
  _check_bands(source, seen)
  canvas = canvas or source.canvas or _fitting_canvas(seen)
  notes = source.notes
  ranges = [x.range for x in seen.values() if x.range]
  if ranges:
    low, high = min(r[0] for r in ranges), max(r[1] for r in ranges)
    given = limits is not None
    limits = limits or formats.assumed_range(low, high)
    notes += (
      f'{len(ranges)} of {len(seen)} sampled images are deeper than 8 bits '
      f'(values {low:g} to {high:g}): {limits[0]:g} becomes black and '
      f'{limits[1]:g} white'
      + ('' if given else '; data.value_range sets other limits'),
    )
  return dataclasses.replace(source, canvas=canvas, limits=limits, notes=notes)


def _fitting_canvas(seen: dict[int, Header]) -> tuple[int, int]:
  """The square canvas for a set whose config names none.

  The longest side of 64 images, up to the next multiple of 32 and never more
  than 512: a photograph of 500x375 stays as it is, a larger one of 4:3 keeps
  384 pixels on its shorter side, and a set of thumbnails costs no more memory
  than thumbnails do.
  """
  longest = max((max(x.size) for x in seen.values()), default=0)
  side = min(-(-longest // 32) * 32 or LONGEST_SIDE, LONGEST_SIDE)
  return side, side


def _check_bands(source: Source, seen: dict[int, Header]) -> None:
  channels = source.channels
  usual = (1, 2, 3, 4) if channels in (1, 3) else (channels,)
  odd = {i: x.bands for i, x in seen.items() if x.bands not in usual}
  if odd:
    i, bands = next(iter(odd.items()))
    raise UserError(
      f'{source.name}: data.channels is {channels}, but {len(odd)} of '
      f'{len(seen)} sampled images have other bands, such as the {bands} of '
      f'{source.where(i)}: set data.channels={bands}, and data.mean and '
      'data.std to as many numbers'
    )


def parse_limits(value: Any) -> tuple[float, float] | None:
  """data.value_range as (black, white); None where it is empty.

  Raises:
    UserError: it is no two increasing numbers.
  """
  if not value:
    return None
  numbers = tuple(value)
  if len(numbers) != 2 or not numbers[0] < numbers[1]:
    raise UserError(
      f'data.value_range is {value}: use the values that become black and '
      'white, such as (0, 4095)'
    )
  return numbers
