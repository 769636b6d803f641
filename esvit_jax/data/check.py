"""Every image of a source looked at once: what there is, what is wrong."""

import collections
import concurrent.futures
import dataclasses
import functools
import hashlib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from esvit_jax.data import duplicates, formats
from esvit_jax.data.progress import Progress
from esvit_jax.data.source import Source, spread
from esvit_jax.data.statistics import Moments
from esvit_jax.data.unreadable import Unreadable
from esvit_jax.errors import UserError

THUMBNAIL = 96  # pixels
SHOWN = 48  # thumbnails
_AHEAD = 256  # images in flight


class Image(NamedTuple):
  """What is kept of one image; all but the first three None if unreadable."""

  split: str
  where: str
  problem: str = ''
  size: tuple[int, int] | None = None  # height, width
  bands: int | None = None
  dtype: str | None = None
  format: str | None = None
  label: int | None = None
  digest: bytes | None = None
  hash: int | None = None


class Split(NamedTuple):
  """Of one split: count, images of each class, -1 where not labelled."""

  name: str
  source: str
  count: int
  classes: dict[str, int]
  notes: tuple[str, ...]


@dataclasses.dataclass
class Check:
  """What there is.

  Attributes:
    splits: of each, its count and classes.
    images: all of them.
    mean_and_std: of each channel, of pixels in 0..1, f64[2, C].
    exact, near: rows of `images` that are equal, or nearly, in groups.
    thumbnails: (row, u8[h, w, C]) of some.
  """

  splits: list[Split]
  images: list[Image]
  mean_and_std: np.ndarray
  exact: list[np.ndarray]
  near: list[np.ndarray]
  thumbnails: list[tuple[int, np.ndarray]]

  @property
  def unreadable(self) -> list[Image]:
    """Images that cannot be read."""
    return [image for image in self.images if image.problem]

  def tally(self, field: str) -> collections.Counter:
    """How many images have each value of a field."""
    values = (getattr(x, field) for x in self.images if not x.problem)
    return collections.Counter(values)

  def leaks(self) -> list[np.ndarray]:
    """Groups, exact or near, with images of more than one split."""
    return [
      rows
      for rows in [*self.exact, *self.near]
      if len({self.images[i].split for i in rows}) > 1
    ]

  def contradictions(self) -> list[np.ndarray]:
    """Equal images with different labels."""
    return [
      rows
      for rows in self.exact
      if len({self.images[i].label for i in rows} - {-1, None}) > 1
    ]


def check(sources: Mapping[str, Source], workers: int) -> Check:
  """Reads all images of all splits.

  Args:
    sources: split -> source.
    workers: threads.

  Raises:
    UserError: no image can be read.
  """
  images, thumbnails, splits = [], [], []
  channels = {source.channels for source in sources.values()}
  moments = Moments(max(channels))
  total = sum(map(len, sources.values()))
  progress = Progress(f'checking {total:,} images', total)
  with concurrent.futures.ThreadPoolExecutor(workers) as pool:
    for name, source in sources.items():
      wanted = set(spread(len(source), SHOWN // len(sources)))
      for start in range(0, len(source), _AHEAD):
        rows = range(start, min(start + _AHEAD, len(source)))
        look = functools.partial(_look, source, name)
        for i, (image, pixels) in zip(rows, pool.map(look, rows)):
          if pixels is not None:
            moments.add(pixels)
            if i in wanted:
              thumbnails.append((len(images), _thumbnail(pixels)))
          images.append(image)
        progress.add(len(rows))
      splits.append(_split(name, source, images[-len(source) :]))
  if not moments.pixels:
    raise UserError(f'no image of {next(iter(sources.values())).name} is read')
  exact = _exact(images)
  return Check(
    splits,
    images,
    moments.mean_and_std(),
    exact,
    _near(images, exact),
    thumbnails,
  )


def _look(source: Source, split: str, i: int) -> tuple[Image, Any]:
  """What is kept of image `i`, and its pixels on the canvas."""
  where = source.where(i)
  try:
    record, label = source.read(i)
    pixels = source[i]['image']
    header = formats.header(record, source.channels)
  except (OSError, Unreadable) as error:
    return Image(split, where, str(error) or type(error).__name__), None
  content = (
    record if isinstance(record, bytes) else np.ascontiguousarray(record)
  )
  return Image(
    split,
    where,
    size=tuple(header.size),
    bands=header.bands,
    dtype=header.dtype or 'uint8',
    format=_format(record),
    label=label if np.ndim(label) == 0 else None,
    digest=hashlib.sha256(content).digest(),
    hash=duplicates.perceptual_hash(pixels),
  ), pixels


def _format(record: bytes | np.ndarray) -> str:
  """'JPEG RGB' and so on."""
  if isinstance(record, np.ndarray):
    return 'array'
  try:
    with formats.open_image(record) as image:
      return f'{image.format} {image.mode}'
  except Exception:  # what PIL does not know, other decoders may
    return 'other'


def _thumbnail(pixels: np.ndarray) -> np.ndarray:
  step = max(-(-max(pixels.shape[:2]) // THUMBNAIL), 1)
  return pixels[::step, ::step].copy()


def _split(name: str, source: Source, images: Sequence[Image]) -> Split:
  classes = list(source.classes or ())
  counts = collections.Counter(x.label for x in images if not x.problem)
  named = {names: counts.get(k, 0) for k, names in enumerate(classes)}
  return Split(name, source.name, len(source), named, source.notes)


def _exact(images: Sequence[Image]) -> list[np.ndarray]:
  """Rows of the same bytes."""
  rows = collections.defaultdict(list)
  for i, image in enumerate(images):
    if image.digest:
      rows[image.digest].append(i)
  return [np.array(each) for each in rows.values() if len(each) > 1]


def _near(images: Sequence[Image], exact: Sequence) -> list[np.ndarray]:
  """Rows that look the same, with one of each exact group only."""
  copies = {int(i) for rows in exact for i in rows[1:]}
  rows = np.array(
    [
      i
      for i, image in enumerate(images)
      if image.hash is not None and i not in copies
    ],
    np.int64,
  )
  if not len(rows):
    return []
  hashes = np.array([images[i].hash for i in rows], np.uint64)
  pairs = duplicates.near_pairs(hashes)
  return [rows[each] for each in duplicates.groups(pairs, len(rows))]
