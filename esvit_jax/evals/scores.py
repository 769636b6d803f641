"""What a classifier's scores are worth, in percent."""

import numpy as np

from esvit_jax.errors import UserError

RECALLS = np.linspace(0, 1, 11)


def top1(scores: np.ndarray, labels: np.ndarray) -> float:
  """Share of images whose own class scores best."""
  return top_k(scores, labels, 1)


def top5(scores: np.ndarray, labels: np.ndarray) -> float:
  """Share of images whose own class is among the best five."""
  return top_k(scores, labels, 5)


def top_k(scores: np.ndarray, labels: np.ndarray, k: int) -> float:
  """Share of images whose own class is among the best k.

  Of n classes with equal scores each is the best with probability 1 / n, so
  that constant scores are worth what chance is; NaN is no answer.

  Args:
    scores: f32[N, C].
    labels: classes below C, i[N].
    k: at least 1.

  Raises:
    UserError: an image has no label, or one that no score stands for.
  """
  return 100 * float(_right(scores, labels, k).mean())


def mean_per_class(scores: np.ndarray, labels: np.ndarray) -> float:
  """`top1` of each class, averaged over the classes that occur in `labels`.

  Raises:
    UserError: as `top_k`.
  """
  right = _right(scores, labels, 1)
  counts = np.bincount(labels)
  hits = np.bincount(labels, right)
  return 100 * float((hits[counts > 0] / counts[counts > 0]).mean())


def map_11(
  scores: np.ndarray, labels: np.ndarray, origin: bool = False
) -> float:
  """Mean average precision at 11 points, as VOC 2007 defines it.

    AP = 1/11 sum over r in 0, 0.1 .. 1 of  max precision where recall >= r

  Images of equal score come in together. Classes without a positive are left
  out of the mean.

  Args:
    scores: f32[N, C].
    labels: 1 (there), 0 (not there) or -1 (not counted for this class, as VOC
      treats objects marked `difficult`), i[N, C].
    origin: count the point of recall 0 and precision 1 as well. ELEVATER's
      figures do, and are up to a point in eleven higher for it.

  Raises:
    UserError: shapes differ, or no class has a positive.
  """
  return _mean_precision(
    scores, labels, lambda score, label: _precision_11(score, label, origin)
  )


def map_area(scores: np.ndarray, labels: np.ndarray) -> float:
  """Mean average precision as the area below the steps, as COCO's papers use.

    AP = sum over thresholds n of (recall_n - recall_n-1) precision_n

  Args:
    scores: f32[N, C].
    labels: as for `map_11`.

  Raises:
    UserError: shapes differ, or no class has a positive.
  """
  return _mean_precision(scores, labels, _precision_area)


def check(metric: str, classes: int, multi_label: bool) -> None:
  """Raises UserError unless a metric suits the labels.

  Args:
    metric: of METRICS.
    classes: how many there are.
    multi_label: whether an image may be of several.
  """
  if metric not in METRICS:
    raise UserError(
      f"there is no metric '{metric}': choose from {', '.join(METRICS)}"
    )
  if multi_label != (metric in MULTI_LABEL):
    labels = 'several labels' if multi_label else 'one label'
    fit = ' or '.join(MULTI_LABEL) if multi_label else 'top1'
    raise UserError(f"images have {labels}, so not '{metric}': use {fit}")
  if metric == 'roc_auc' and classes != 2:
    raise UserError(f"'roc_auc' is of 2 classes, and here are {classes}")


def roc_auc(scores: np.ndarray, labels: np.ndarray) -> float:
  """Area under the ROC curve of class 1.

  That is how often an image of class 1 scores above one of class 0, a tie
  counting half.

  Args:
    scores: f32[N, 2], of which the difference counts (it orders images as the
      probability does), or of class 1 alone f32[N].
    labels: 0 or 1, i[N].

  Raises:
    UserError: there are not two classes, or one of them has no image.
  """
  scores, labels = np.asarray(scores), np.asarray(labels)
  if scores.ndim == 2 and scores.shape[1] == 2:
    scores = scores[:, 1] - scores[:, 0]
  if scores.ndim != 1 or set(np.unique(labels)) != {0, 1}:
    raise UserError(
      'ROC AUC needs images of two classes, 0 and 1, and labels here are '
      f'{np.unique(labels)[:5].tolist()}: score more classes by top1'
    )
  scores = np.where(np.isnan(scores), -np.inf, scores)  # no answer comes last
  _, place, ties = np.unique(scores, return_inverse=True, return_counts=True)
  # Of equal scores each has the mean of their ranks, from 1.
  rank = (np.cumsum(ties) - (ties - 1) / 2)[place]
  ones = labels == 1
  n1, n0 = ones.sum(), (~ones).sum()
  return 100 * float((rank[ones].sum() - n1 * (n1 + 1) / 2) / (n1 * n0))


METRICS = {
  'top1': top1,
  'top5': top5,
  'mean_per_class': mean_per_class,
  'map_11': map_11,
  'map': map_area,
  'roc_auc': roc_auc,
}
MULTI_LABEL = ('map_11', 'map')  # those of images with several labels


def _right(scores, labels, k: int) -> np.ndarray:
  """How probably an image's own class is among the best k, f[N]."""
  scores, labels = np.asarray(scores), np.asarray(labels)
  classes = scores.shape[1]
  if labels.ndim != 1 or labels.min() < 0 or labels.max() >= classes:
    raise UserError(
      f'scores of {classes} classes need one label of 0..{classes - 1} for '
      'each image: images without a label cannot be scored'
    )
  own = np.take_along_axis(scores, labels[:, None], 1)
  above, tied = (scores > own).sum(1), (scores == own).sum(1)
  share = np.clip((k - above) / np.maximum(tied, 1), 0, 1)
  return np.where(np.isfinite(scores).all(1), share, 0.0)


def _mean_precision(scores, labels, of_class) -> float:
  """Percent, over the classes that have a positive."""
  scores, labels = np.asarray(scores), np.asarray(labels)
  if labels.shape != scores.shape:
    raise UserError(
      f'average precision needs labels for each class, {scores.shape}, and '
      f'these are {labels.shape}: score single labels by top1'
    )
  scores = np.where(np.isnan(scores), -np.inf, scores)  # no answer comes last
  precisions = []
  for score, label in zip(scores.T, labels.T):
    if (label == 1).any():
      counted = label >= 0
      precisions.append(of_class(score[counted], label[counted]))
  if not precisions:
    raise UserError('average precision needs a positive, and no class has one')
  return 100 * float(np.mean(precisions))


def _precision_11(score, label, origin: bool) -> float:
  recall, precision = _recall_and_precision(score, label)
  if origin:
    recall, precision = np.append(0, recall), np.append(1, precision)
  # Recall rises: the best precision from here on, then where r is reached.
  best = np.maximum.accumulate(precision[::-1])[::-1]
  return float(best[np.searchsorted(recall, RECALLS - 1e-9)].mean())


def _precision_area(score, label) -> float:
  recall, precision = _recall_and_precision(score, label)
  return float(np.sum(np.diff(recall, prepend=0) * precision))


def _recall_and_precision(score, label) -> tuple[np.ndarray, np.ndarray]:
  """At each threshold, from the highest; equal scores come in together."""
  order = np.argsort(-score, kind='stable')
  score, hits = score[order], np.cumsum(label[order])
  # A threshold lies below the last of equal scores.
  last = np.append(score[1:] != score[:-1], True)
  return hits[last] / hits[-1], hits[last] / (np.flatnonzero(last) + 1)
