"""Evaluators: one file and one line here for each.

An evaluator is (train_x, train_y, test_x, test_y) -> figures in percent, of
which 'top1' is the headline, on fixed features f32[N, D] of labelled images.
"""

from collections.abc import Iterable

from esvit_jax.evals import knn, linear, probe
from esvit_jax.evals.features import Extracted, batches, extract, raw_pixels

EVALS = {
  'knn': knn.figures,
  'linear': linear.figures,
  'probe': probe.figures,
}

__all__ = [
  'EVALS',
  'Extracted',
  'batches',
  'extract',
  'figures',
  'raw_pixels',
]


def figures(
  names: Iterable[str], train: Extracted, test: Extracted
) -> dict[str, dict[str, float]]:
  """All figures of several evaluators: 'knn/NETWORK' -> figure -> percent.

  Args:
    names: of EVALS.
    train: features to learn from.
    test: of the same networks.
  """
  return {
    f'{name}/{network}': EVALS[name](
      train.features[network], train.labels, test.features[network], test.labels
    )
    for name in names
    for network in train.features
  }
