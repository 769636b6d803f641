"""Subsets of labelled data by seed: few-shot, and parts held out.

Each class has an order of its own that depends on the seed and the class
alone. A subset takes the first of each class, so with one seed the smaller
subset lies within the larger.
"""

import math

import numpy as np

from esvit_jax.errors import UserError


def require_labels(task: str, *labels: np.ndarray) -> None:
  """Raises UserError unless every image has a class.

  Args:
    task: what asks, such as 'k-NN'.
    *labels: classes from 0 i[N], or for each class 1 (yes), 0 (no) or -1 (not
      to be counted) i[N, C].
  """
  for y in map(np.asarray, labels):
    if not len(y):
      raise UserError(f'{task} needs labelled images and there are none')
    if y.ndim == 1 and y.min() < 0:
      raise UserError(
        f'{task} needs a label for every image and {(y < 0).sum()} of '
        f'{len(y)} have none: use a labelled set and split'
      )


def share(
  labels: np.ndarray, share: float, seed: int = 0, classes: int = 0
) -> np.ndarray:
  """Rows of a share of each class, to the nearest image and at least one.

  A draw of our own: the lists of 1 % and 10 % of ImageNet that others have
  published hold other images.

  Args:
    labels: classes from 0, i[N].
    share: in 0..1, such as 0.01.
    seed: of the draw.
    classes: if given, that many classes must be there; 0 takes those that
      are, and class ids that never occur change nothing.

  Returns:
    Sorted rows.

  Raises:
    UserError: the share is no share, or labels are missing.
  """
  if not 0 < share <= 1:
    raise UserError(f'a few-shot share lies above 0 and up to 1, not {share}')
  rows = _by_class(labels, seed, classes)
  return _first(rows, lambda n: max(1, math.floor(share * n + 0.5)))


def per_class(
  labels: np.ndarray, k: int, seed: int = 0, classes: int = 0
) -> np.ndarray:
  """Rows of k images of each class; arguments and errors as for `share`.

  Raises:
    UserError: also where a class has fewer than k images.
  """
  if k < 1:
    raise UserError(f'few-shot takes at least one image of a class, not {k}')
  rows = _by_class(labels, seed, classes)
  smallest = min(rows, key=lambda c: len(rows[c]))
  if len(rows[smallest]) < k:
    raise UserError(
      f'few-shot wants {k} images of each class and class {smallest} has '
      f'{len(rows[smallest])}: take fewer, or a share of each class'
    )
  return _first(rows, lambda n: k)


def balanced(labels: np.ndarray, count: int, seed: int = 0) -> np.ndarray:
  """Rows of at most `count` images with as many of each class as there are.

  Of more classes than `count`, some are drawn; -1 (no label) is one of them.

  Args:
    labels: i[N]; of several labels each, i[N, C], rows are drawn without
      regard to class.
    count: how many.
    seed: of the draw; with one seed a smaller one lies within a larger.

  Returns:
    Sorted rows.
  """
  rng = np.random.default_rng(seed)
  labels = np.asarray(labels)
  shuffled = rng.permutation(len(labels))
  if labels.ndim > 1:
    return np.sort(shuffled[:count])
  _, own, counts = np.unique(
    labels[shuffled], return_inverse=True, return_counts=True
  )
  by_class = np.argsort(own, kind='stable')
  starts = np.repeat(np.cumsum(counts) - counts, counts)
  turn = np.empty(len(labels), int)  # of each image within its class
  turn[by_class] = np.arange(len(labels)) - starts
  order = np.lexsort((rng.permutation(len(counts))[own], turn))
  return np.sort(shuffled[order[:count]])


def held_out(
  labels: np.ndarray, share: float, seed: int = 0, keep_singles: bool = False
) -> tuple[np.ndarray, np.ndarray]:
  """Splits rows in those to train on and those to choose or judge by.

  Taken class by class and rounded up (as ELEVATER does), but each class keeps
  an image to train on.

  Args:
    labels: classes from 0, i[N]; of several labels each, i[N, C], rows are
      drawn without regard to class.
    share: of each class to hold out, in 0..1.
    seed: of the draw.
    keep_singles: where a class has one image, train on it and leave the class
      out of the other part, instead of refusing.

  Returns:
    Sorted rows kept, sorted rows held out.

  Raises:
    UserError: no share, missing labels, or a class with one image.
  """
  if not 0 < share < 1:
    raise UserError(f'the share to hold out lies between 0 and 1, not {share}')
  if np.ndim(labels) == 2:
    require_labels('a held-out part', labels)
    rows = {0: np.random.default_rng(seed).permutation(len(labels))}
  else:
    rows = _by_class(labels, seed)
  single = next((c for c in rows if len(rows[c]) == 1), None)
  if single is not None and not keep_singles:
    raise UserError(
      f'class {single} has one image and a held-out part needs two of each '
      'class: drop the class, or judge on a test split'
    )
  # Less a hair: 0.1 x 30 is more than 3 in floating point.
  held = _first(rows, lambda n: min(n - 1, math.ceil(share * n - 1e-9)))
  return np.setdiff1d(np.arange(len(labels)), held), held


def proportional(labels: np.ndarray, share: float, seed: int = 0) -> np.ndarray:
  """Rows of a share of the images, each class in proportion.

  Every class of two images or more gives one at least and keeps one at least;
  a class of one image gives none.

  Args:
    labels: classes from 0, i[N].
    share: of the images, in 0..1.
    seed: of the draw.

  Returns:
    Sorted rows.
  """
  rows = _by_class(labels, seed).values()
  # Where each image stands in its class, in 0..1; the first stand at 0.
  places = [(np.arange(len(r) - 1) + 0.5) / len(r) for r in rows]
  for place in places:
    place[:1] = 0
  rows = np.concatenate([r[:-1] for r in rows])
  places = np.concatenate(places)
  count = max(round(share * len(labels)), int((places == 0).sum()))
  ties = np.random.default_rng(seed).permutation(len(rows))
  return np.sort(rows[np.lexsort((ties, places))[:count]])


def _by_class(labels, seed: int, classes: int = 0) -> dict[int, np.ndarray]:
  """Class -> its rows, in the order in which they are taken."""
  require_labels('a subset by classes', labels)
  labels = np.asarray(labels)
  classes_seen, counts = np.unique(labels, return_counts=True)
  if (
    classes and (missing := np.setdiff1d(np.arange(classes), classes_seen)).size
  ):
    raise UserError(
      f'{missing.size} of {classes} classes have no image, class {missing[0]} '
      'first: give the number of classes as 0 to do without them'
    )
  rows = np.split(np.argsort(labels, kind='stable'), np.cumsum(counts)[:-1])
  return {
    int(c): np.random.default_rng([seed, int(c)]).permutation(r)
    for c, r in zip(classes_seen, rows)
  }


def _first(rows: dict[int, np.ndarray], count) -> np.ndarray:
  return np.sort(np.concatenate([r[: count(len(r))] for r in rows.values()]))
