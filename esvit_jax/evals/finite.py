"""Features that are not finite: counted, left out, refused where many."""

from collections.abc import Iterable, Iterator, Mapping

import numpy as np

from esvit_jax.data.source import tolerable
from esvit_jax.errors import UserError

SHARE = 0.01  # of the images, whose features may be non-finite
ROWS = 2**14  # looked at together


def finite_rows(x, what: str = 'the') -> np.ndarray:
  """Marks images whose features are all finite, bool[N].

  Args:
    x: f[N, D], or several by name.
    what: of which images, for the message.

  Raises:
    UserError: more than a hundredth, and more than five, have not.
  """
  arrays = list(x.values()) if isinstance(x, Mapping) else [x]
  rows = np.ones(len(arrays[0]), bool)
  for array in arrays:
    for start in range(0, len(rows), ROWS):
      part = np.asarray(array[start : start + ROWS])
      rows[start : start + ROWS] &= np.isfinite(part).all(1)
  refuse_many(int((~rows).sum()), len(rows), what)
  return rows


def refuse_many(bad: int, count: int, what: str = 'the') -> None:
  """Raises UserError where `bad` of `count` images are too many to leave out.

  Args:
    bad: images whose features are not finite.
    count: all images.
    what: which images they are, for the message.
  """
  allowed = tolerable(count, SHARE)
  if bad > allowed:
    raise UserError(
      f'the features of {bad:,} of {count:,} {what} images are not finite, '
      f'more than the {allowed:,} that may be left out: the network has '
      'diverged, or overflows in its dtype (try float32)'
    )


def take(x, rows: np.ndarray):
  """Rows of x; where all are taken x itself, which may be memory-mapped."""
  return x if rows.all() else np.asarray(x)[rows]


class Stream:
  """Batches of features in which finite rows stand for those that are not.

  Attributes:
    bad: images of which features were not finite.
  """

  def __init__(self, batches: Iterable, count: int):
    """
    Args:
      batches: of (features by name f[B, D], labels of B images, their index).
      count: images in all.
    """
    self.bad, self._batches, self._count = set(), batches, count

  def __iter__(self) -> Iterator:
    """(features, labels) of each batch.

    Raises:
      UserError: as `finite_rows`.
    """
    for x, y, index in self._batches:
      finite = [np.isfinite(array).all(1) for array in x.values()]
      rows = np.all(finite, 0)
      if not rows.all():
        self.bad.update(np.asarray(index)[~rows].tolist())
        refuse_many(len(self.bad), self._count, 'training')
        if not rows.any():
          continue
        kept = np.resize(np.flatnonzero(rows), len(rows))
        at = np.where(rows, np.arange(len(rows)), kept)
        x, y = {name: array[at] for name, array in x.items()}, y[at]
      yield x, y


def only_finite(train_x, train_y, test_x, test_y):
  """Labelled features without the rows that are not finite.

  Args:
    train_x: f[N, D].
    train_y: labels of N images.
    test_x: f[M, D].
    test_y: labels of M images.

  Returns:
    The four, and how many images were left out of both.

  Raises:
    UserError: as `finite_rows`.
  """
  train, test = finite_rows(train_x, 'training'), finite_rows(test_x, 'test')
  return (
    take(train_x, train),
    take(np.asarray(train_y), train),
    take(test_x, test),
    take(np.asarray(test_y), test),
    int((~train).sum() + (~test).sum()),
  )


def counted(figures: dict, left_out: int) -> dict:
  """`figures` with 'non_finite', where features were left out."""
  return figures | ({'non_finite': left_out} if left_out else {})
