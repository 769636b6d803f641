"""How well objects are followed through a video (DAVIS 2017): J and F."""

import itertools
import math
from typing import NamedTuple

import numpy as np
from scipy import ndimage

TOLERANCE = 0.008  # of the diagonal, between contours that agree
_BINS = 4


class Statistics(NamedTuple):
  """Of one object over its frames.

  Attributes:
    mean: of the frames.
    recall: share of the frames above 0.5.
    decay: mean of the first quarter minus that of the last.
  """

  mean: float
  recall: float
  decay: float


def region_similarity(truth: np.ndarray, found: np.ndarray) -> np.ndarray:
  """J: intersection over union of each frame, f64[T]; 1 where both are empty.

  Args:
    truth: bool[T, H, W].
    found: likewise.
  """
  both = (truth & found).sum((1, 2))
  either = (truth | found).sum((1, 2))
  return np.where(either > 0, both / np.maximum(either, 1), 1.0)


def contour_accuracy(truth: np.ndarray, found: np.ndarray) -> np.ndarray:
  """F: how well the contours agree within a tolerance, of each frame f64[T].

  The harmonic mean of the shares of either contour that lie near the other;
  1 where both frames are empty, 0 where one is.
  """
  return np.array([_contour_accuracy(*pair) for pair in zip(truth, found)])


def statistics(values: np.ndarray) -> Statistics:
  """Of the values of the frames, f[T]; the DAVIS figures leave out the first
  and the last frame before."""
  edges = np.round(np.linspace(1, len(values), _BINS + 1) + 1e-10) - 1
  edges = edges.astype(int)
  quarters = [
    values[first : last + 1].mean() for first, last in itertools.pairwise(edges)
  ]
  return Statistics(
    float(values.mean()),
    float((values > 0.5).mean()),
    float(quarters[0] - quarters[-1]),
  )


def _contour_accuracy(truth, found) -> float:
  radius = math.ceil(TOLERANCE * math.hypot(*truth.shape))
  y, x = np.mgrid[-radius : radius + 1, -radius : radius + 1]
  disk = y**2 + x**2 <= radius**2
  contours = _contour(truth), _contour(found)
  lengths = [c.sum() for c in contours]
  if not all(lengths):
    return float(not any(lengths))
  near = [ndimage.binary_dilation(c, disk) for c in contours]
  recall = (contours[0] & near[1]).sum() / lengths[0]
  precision = (contours[1] & near[0]).sum() / lengths[1]
  total = precision + recall
  return float(2 * precision * recall / total) if total else 0.0


def _contour(mask: np.ndarray) -> np.ndarray:
  """Pixels that differ from their right, lower or lower right neighbour."""
  edge = np.pad(mask, ((0, 1), (0, 1)), 'edge')
  right, below, across = edge[:-1, 1:], edge[1:, :-1], edge[1:, 1:]
  return (mask ^ right) | (mask ^ below) | (mask ^ across)
