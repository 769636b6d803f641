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
    whole = segmentation.read
    segmentation = segmentation._replace(read=lambda i: whole(int(indices[i])))
  return dataclasses.replace(
    source,
    name=f'{source.name}, {what}',
    count=len(indices),
    read=lambda i: source.read(int(indices[i])),
    where=lambda i: source.where(int(indices[i])),
    labels=None if source.labels is None else source.labels[indices],
    segmentation=segmentation,
  )


def sample(source: Source, count: int, seed: int = 0) -> Source:
  """At most `count` images, drawn by seed and from all classes alike.

  Where labels are known only by reading all images (tfds), they are drawn
  without regard to class.

  Args:
    source: the whole.
    count: 0 takes all.
    seed: of the draw; with one seed a smaller sample lies within a larger.
  """
  if not count or count >= len(source):
    return source
  labels = np.zeros(len(source)) if source.labels is None else source.labels
  rows = fewshot.balanced(labels, count, seed)
  return subset(source, rows, f'{count:,} sampled')


def labelled(source: Source) -> Source:
  """The images that have a label; all where none has, or it is not known.

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
  """(the rest, a random `share`): a test split for sets that have none.

  Raises:
    UserError: there are too few images.
  """
  count = round(share * len(source))
  if not 0 < count < len(source):
    raise UserError(
      f'{source.name} has {len(source)} images: too few to hold some out; set '
      "data.test_split=''"
    )
  order = np.random.default_rng(seed).permutation(len(source))
  held, rest = np.sort(order[:count]), np.sort(order[count:])
  return (
    subset(source, rest, f'all but {count:,} held out'),
    subset(source, held, f'{count:,} held out'),
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
    every = pool.map(label, range(len(source)), chunksize=256)
    return np.array(list(every), np.int32)


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
