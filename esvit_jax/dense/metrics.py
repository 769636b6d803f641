"""How well pixels are told: one confusion matrix over a whole set."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from esvit_jax.dense import VOID


class Scores(NamedTuple):
  """In percent; a class that does not occur is NaN and in no mean.

  Attributes:
    miou: mean over classes of `iou`.
    pixel_accuracy: share of the counted pixels that are right.
    mean_accuracy: mean over labelled classes of the share that is right.
    iou: intersection over union of each class f64[C].
  """

  miou: float
  pixel_accuracy: float
  mean_accuracy: float
  iou: np.ndarray


def confusion(
  labels: jax.Array, predictions: jax.Array, classes: int
) -> jax.Array:
  """How often class `row` was taken for class `column`, i32[C, C].

  Args:
    labels: i[...], VOID where nothing counts.
    predictions: i[...].
    classes: C.
  """
  labels = labels.astype(jnp.int32)
  place = jnp.where(
    labels == VOID, classes**2, labels * classes + predictions.astype(jnp.int32)
  )
  counts = jnp.zeros(classes**2, jnp.int32)
  counts = counts.at[place.ravel()].add(1, mode='drop')
  return counts.reshape(classes, classes)


def scores(confusion: np.ndarray) -> Scores:
  """Scores of a confusion matrix i64[C, C], rows are labels."""
  right = np.diag(confusion).astype(np.float64)
  labelled, predicted = confusion.sum(1), confusion.sum(0)
  union = labelled + predicted - right
  iou = _ratio(right, union)
  return Scores(
    float(np.nanmean(iou)),
    float(100 * right.sum() / confusion.sum()),
    float(np.nanmean(_ratio(right, labelled))),
    iou,
  )


def _ratio(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
  """Percent; NaN of nothing."""
  return np.where(whole > 0, 100 * part / np.maximum(whole, 1), np.nan)
