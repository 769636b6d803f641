"""What some images of a source tell of all: canvas, depth and bands."""

import dataclasses
from collections.abc import Iterator, Sized

from esvit_jax.data import depth, formats
from esvit_jax.data.depth import OPEN, Scale
from esvit_jax.data.formats import Header
from esvit_jax.data.source import Source, spread
from esvit_jax.data.unreadable import Unreadable
from esvit_jax.errors import UserError

LONGEST_SIDE = 512
SAMPLED = 64  # images


def headers(source: Source) -> dict[int, Header]:
  """Row -> header of SAMPLED images at most, spread over a source."""
  seen = {}
  for i in spread(len(source), SAMPLED):
    try:
      seen[i] = formats.header(source.read(i)[0], source.channels)
    except (OSError, Unreadable):
      continue  # the pipeline counts and names it when its turn comes
  return seen


def sizes(source: Source) -> list[tuple[int, int]]:
  """(height, width) in pixels of some images, as in their files."""
  return [seen.size for seen in headers(source).values()]


def fit(
  source: Source,
  canvas: tuple[int, int] | None = None,
  scale: Scale = OPEN,
) -> Source:
  """The source with what its images say where the config does not.

  Args:
    source: as opened; its channels are those asked for.
    canvas: (height, width), or None to fit the images.
    scale: of images deeper than 8 bits; what it leaves open is assumed of
      those that are sampled.

  Raises:
    UserError: the images have other bands than asked for.
  """
  seen = headers(source)
  _check_bands(source, seen)
  ranges = _ranges(seen)
  assumed = {
    dtype: depth.assumed_range(low, high, dtype)
    for dtype, (low, high) in ranges.items()
  }
  scale = scale._replace(assumed=assumed | dict(scale.assumed))
  notes = [*_depth_notes(seen, ranges, scale), *_layer_notes(source, seen)]
  return dataclasses.replace(
    source,
    canvas=canvas or source.canvas or _fitting_canvas(seen),
    scale=scale,
    notes=(*source.notes, *notes),
  )


def _ranges(seen: dict[int, Header]) -> dict[str, depth.Range]:
  """Type of number -> least and largest value of the images of that type."""
  ranges = {}
  for header in seen.values():
    if header.range:
      low, high = ranges.get(header.dtype, header.range)
      least, largest = header.range
      ranges[header.dtype] = min(low, least), max(high, largest)
  return ranges


def _depth_notes(seen, ranges, scale: Scale) -> Iterator[str]:
  if not ranges:
    return
  kinds = []
  for dtype, (low, high) in ranges.items():
    black, white = scale.given or scale.assumed[dtype]
    kinds.append(
      f'{dtype} from {low:g} to {high:g}, of which {black:g} becomes black and '
      f'{white:g} white'
    )
  beyond = (
    'values beyond are clipped (data.value_range)'
    if scale.given
    else 'images that reach beyond, or fill less than a sixteenth of it, are '
    'scaled by their own values; data.value_range sets other limits'
  )
  deep = [header for header in seen.values() if header.range]
  yield (
    f'deeper than 8 bits: {_sampled(deep, seen)}, {"; ".join(kinds)}; {beyond}'
  )


def _sampled(some: Sized, seen: Sized) -> str:
  return f'{len(some):,} of {len(seen):,} sampled images'


def _layer_notes(source: Source, seen: dict[int, Header]) -> Iterator[str]:
  """Pages and bands that are not read."""
  paged = {i: x.pages for i, x in seen.items() if x.pages > 1}
  if paged:
    i, pages = next(iter(paged.items()))
    yield (
      f'several pages or frames: {_sampled(paged, seen)}, such as the '
      f'{pages} of {source.where(i)}; the first is read'
    )
  layered = {i: x.bands for i, x in seen.items() if x.bands in (2, 4)}
  if source.channels in (1, 3) and layered:
    i, bands = next(iter(layered.items()))
    yield (
      f'alpha or a band beside the colours: {_sampled(layered, seen)}, such '
      f'as {source.where(i)}; it is left out, data.channels={bands} reads it'
    )


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
