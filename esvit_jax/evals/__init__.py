"""Evaluators: one file and one line here for each.

An evaluator is (train_x, train_y, test_x, test_y) -> figures in percent, of
which 'top1' is the headline, on fixed features f32[N, D] of labelled images.
"""

from collections.abc import Iterable, Mapping

import numpy as np

from esvit_jax.evals import knn, linear, probe
from esvit_jax.evals.features import (
  batches,
  center_view,
  extract,
  raw_pixels,
)

EVALS = {
  'knn': knn.figures,
  'linear': linear.figures,
  'probe': probe.figures,
}

# Features by name, f32[N, D], and labels i32[N].
Extracted = tuple[Mapping[str, np.ndarray], np.ndarray]

__all__ = [
  'EVALS',
  'batches',
  'center_view',
  'extract',
  'judge',
  'raw_pixels',
]


def judge(
  names: Iterable[str], train: Extracted, test: Extracted
) -> dict[str, dict[str, float]]:
  """All figures of several evaluators: 'knn/who' -> figure -> percent.

  Args:
    names: of EVALS.
    train: as `extract` returns them.
    test: likewise, of the same networks.
  """
  (train_x, train_y), (test_x, test_y) = train, test
  return {
    f'{name}/{who}': EVALS[name](train_x[who], train_y, test_x[who], test_y)
    for name in names
    for who in train_x
  }
