"""Evaluators: one file and one line here for each.

An evaluator is (train_x, train_y, test_x, test_y) -> top-1 in percent, on
fixed features of labelled images.
"""

from collections.abc import Iterable, Mapping

from esvit_jax.evals.features import center_view, extract
from esvit_jax.evals.knn import knn
from esvit_jax.evals.linear import ridge

EVALS = {
  'knn': lambda *data: knn(*data, ks=(20,))[20][0],
  'linear': ridge,
}

__all__ = ['EVALS', 'center_view', 'evaluate', 'extract']


def evaluate(
  names: Iterable[str],
  feature_fns: Mapping,
  train: Iterable[dict],
  test: Iterable[dict],
  limit: int = 0,
) -> dict[str, float]:
  """Judges several networks by several evaluators.

  Args:
    names: of EVALS.
    feature_fns: who -> (batch -> [B, D]).
    train, test: global batches of labelled images.
    limit: at most this many training images.

  Returns:
    'knn/who' -> top-1 in percent, and so on.
  """
  train_x, train_y = extract(feature_fns, train, limit)
  test_x, test_y = extract(feature_fns, test)
  return {
    f'{name}/{who}': EVALS[name](train_x[who], train_y, test_x[who], test_y)
    for name in names
    for who in feature_fns
  }
