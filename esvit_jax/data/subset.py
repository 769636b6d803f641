"""Part of a source: images held out, a fraction of the labels."""

import concurrent.futures
import dataclasses
from collections.abc import Sequence

import numpy as np

from esvit_jax.data import fewshot
from esvit_jax.data.source import Source
from esvit_jax.data.unreadable import Unreadable
from esvit_jax.errors import UserError

HELD_OUT = 0.1  # share of the images
# Labels of a prepared set lie beside its images. So many bytes of both are read
# for a draw that minds the classes: seconds from a disk.
AFFORDABLE = 2**30


def subset(source: Source, indices: Sequence[int], what: str) -> Source:
  """The images of `source` at `indices`, in that order.

  Args:
    source: the whole.
    indices: positions in it.
    what: said in its name.

  Raises:
    UserError: there are none.
  """
  if not len(indices):
    raise UserError(f'{source.name}: {what} leaves no images')
  indices = np.asarray(indices)
  segmentation = source.segmentation
  if segmentation:
    read = segmentation.read
    segmentation = segmentation._replace(read=lambda i: read(int(indices[i])))
  objects = source.objects
  if objects:
    objects = objects._replace(
      read=lambda i: source.objects.read(int(indices[i])),
      image_id=lambda i: source.objects.image_id(int(indices[i])),
    )
  return dataclasses.replace(
    source,
    name=f'{source.name}, {what}',
    count=len(indices),
    read=lambda i: source.read(int(indices[i])),
    where=lambda i: source.where(int(indices[i])),
    labels=None if source.labels is None else source.labels[indices],
    label_bytes=source.label_bytes * len(indices) // len(source),
    segmentation=segmentation,
    part=None if source.part is None else source.part[indices],
    objects=objects,
  )


def sample(source: Source, count: int, seed: int = 0) -> Source:
  """At most `count` images, drawn by seed and from all classes alike.

  Where the labels are unknown and too many bytes would have to be read for
  them (see `with_labels`), images are drawn without regard to class, and
  a note says so.

  Args:
    source: the whole.
    count: 0 takes all.
    seed: of the draw; with one seed a smaller sample lies within a larger.
  """
  if not count or count >= len(source):
    return source
  source = with_labels(source)
  known = source.labels
  rows = fewshot.balanced(
    np.zeros(len(source)) if known is None else known, count, seed
  )
  return _drawn(source, rows, f'{count:,} sampled')


def with_labels(source: Source) -> Source:
  """The source with labels filled in, if few enough bytes must be read."""
  if source.labels is not None or not source.classes:
    return source
  if source.label_bytes > AFFORDABLE:
    return source
  return dataclasses.replace(source, labels=labels(source))


def _drawn(source: Source, rows: np.ndarray, what: str) -> Source:
  """Rows of a source, with a note if they were drawn without its classes."""
  drawn = subset(source, rows, what)
  if source.labels is not None or not source.classes:
    return drawn
  note = (
    f'{drawn.name}: drawn without regard to class, since its labels are known '
    f'only by reading {source.label_bytes / 2**30:.0f} GiB'
  )
  return dataclasses.replace(drawn, notes=(*drawn.notes, note))


def labelled(source: Source) -> Source:
  """The images with a label; all images if none has one, or none is known.

  Only folders are known to hold both, images beside those in class folders.
  """
  if source.labels is None or source.labels.ndim > 1:
    return source
  rows = np.flatnonzero(source.labels >= 0)
  if len(rows) in (0, len(source)):
    return source
  return subset(source, rows, 'those with a label')


def hold_out(
  source: Source, share: float = HELD_OUT, seed: int = 0
) -> tuple[Source, Source]:
  """(the others, `share` of each class): a test split for sets without one.

  Of each class one image at least is held out, and one is left to train on;
  images without a label are trained on. Where there are no labels, or reading
  them takes long (see `with_labels`), the draw is without regard to
  class, and a note says so.

  Raises:
    UserError: there are too few images.
  """
  source = with_labels(source)
  known = source.labels
  if known is None or known.ndim > 1 or known.max() < 0:
    count = round(share * len(source))
    held = np.random.default_rng(seed).permutation(len(source))[:count]
  else:
    rows = np.flatnonzero(known >= 0)
    held = rows[fewshot.proportional(known[rows], share, seed)]
  if not 0 < len(held) < len(source):
    raise UserError(
      f'{source.name} has {len(source)} images: too few to hold some out; set '
      "data.test_split=''"
    )
  kept = np.setdiff1d(np.arange(len(source)), held)
  return (
    subset(source, kept, f'all but {len(held):,} held out'),
    _drawn(source, np.sort(held), f'{len(held):,} held out'),
  )


def labels(source: Source, workers: int = 8) -> np.ndarray:
  """Every label of a source, i32[N] (i32[N, C] where an image has several).

  Where they must be read, -1 stands for an image that is unreadable.
  """
  if source.labels is not None:
    return source.labels

  def label(i):
    try:
      return source.read(i)[1]
    except (OSError, Unreadable):
      return np.full(source.label_shape, -1, np.int32)

  with concurrent.futures.ThreadPoolExecutor(max(workers, 1)) as pool:
    labels = pool.map(label, range(len(source)), chunksize=256)
    return np.array(list(labels), np.int32)


def subsample(
  source: Source,
  label_fraction: float = 1.0,
  labels_per_class: int = 0,
  seed: int = 0,
) -> Source:
  """A labelled part of a source, class by class.

  Args:
    source: labelled; any if all of it is taken.
    label_fraction: share of each class, at least one image; 1 takes all.
    labels_per_class: images of each class instead; 0 takes `label_fraction`.
    seed: of the draw.

  Raises:
    UserError: both are given, one is out of range, images have no label, or a
      class has too few.
  """
  if labels_per_class:
    if label_fraction != 1:
      raise UserError(
        f'data.label_fraction={label_fraction:g} and data.labels_per_class='
        f'{labels_per_class} are both set: use one of them'
      )
    rows = fewshot.per_class(labels(source), labels_per_class, seed)
    what = f'{labels_per_class} labels per class'
  elif label_fraction != 1:
    if not 0 < label_fraction <= 1:
      raise UserError(
        f'data.label_fraction is {label_fraction:g}: use more than 0 and at '
        'most 1, such as 0.01 for 1 %'
      )
    rows = fewshot.share(labels(source), label_fraction, seed)
    what = f'{100 * label_fraction:g} % of the labels'
  else:
    return source
  return subset(source, rows, f'{what}, seed {seed}')
