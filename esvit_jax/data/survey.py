"""What the masks of a source hold, before anything is learned from them."""

import concurrent.futures
from typing import NamedTuple

import numpy as np

from esvit_jax.data import segmentation as segmentation_lib
from esvit_jax.data.source import Source
from esvit_jax.data.unreadable import Unreadable
from esvit_jax.errors import UserError


class Survey(NamedTuple):
  """What all masks of a source hold.

  Attributes:
    counts: pixels of each class, i64[C].
    void: share of pixels that count nowhere.
  """

  counts: np.ndarray
  void: float

  def line(self, source: Source) -> str:
    """'scenes, train: 600 images, 11 of 11 classes, 0.1 % void'."""
    return (
      f'{source.name}: {len(source):,} images with masks, '
      f'{(self.counts > 0).sum()} of {len(self.counts)} classes, '
      f'{100 * self.void:.1f} % void'
    )


def survey(source: Source, workers: int = 8) -> Survey:
  """Reads and checks every mask of a source.

  Raises:
    UserError: the source has no masks, none of their pixels counts, or one of
      them is not of the size of its image, has classes that no name stands
      for, or cannot be read.
  """
  segmentation = require(source)
  classes = len(segmentation.classes)

  def count(i):
    try:
      record, _ = source.read(i)
      labels = segmentation_lib.checked(
        segmentation, i, record, source.where(i)
      )
    except (OSError, Unreadable):
      return 0  # the pipeline counts and names it when its turn comes
    return np.bincount(labels.ravel(), minlength=256)

  counts = np.zeros(256, np.int64)
  with concurrent.futures.ThreadPoolExecutor(max(workers, 1)) as pool:
    for part in pool.map(count, range(len(source)), chunksize=16):
      counts += part
  if not counts[:classes].any():
    raise UserError(f'{source.name}: all pixels of all masks are void')
  void = counts[segmentation_lib.VOID] / max(counts.sum(), 1)
  return Survey(counts[:classes], float(void))


def require(source: Source) -> segmentation_lib.Segmentation:
  """The source's segmentation.

  Raises:
    UserError: it has none.
  """
  if source.segmentation is None:
    raise UserError(
      f'{source.name} has no masks{_because(source)}: use '
      '--config.data.source=scenes or masks:/path'
    )
  return source.segmentation


def _because(source: Source) -> str:
  """What is known of a source whose masks are missing, in brackets."""
  return f' ({"; ".join(source.notes)})' if source.notes else ''
