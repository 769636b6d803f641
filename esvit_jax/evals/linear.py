"""A linear classifier in one solve: ridge regression on one-hot labels."""

import numpy as np

from esvit_jax.data import fewshot
from esvit_jax.evals.finite import counted, only_finite
from esvit_jax.evals.scores import top1

# Of the mean square of a feature, which is 1.
PENALTIES = (1e-4, 1e-3, 1e-2, 1e-1, 1.0)
HELD_OUT = 0.1  # share of the training images that chooses the penalty


def figures(train_x, train_y, test_x, test_y) -> dict[str, float]:
  """`linear` as an evaluator."""
  *data, left_out = only_finite(train_x, train_y, test_x, test_y)
  return counted({'top1': linear(*data)}, left_out)


def linear(
  train_x: np.ndarray,
  train_y: np.ndarray,
  test_x: np.ndarray,
  test_y: np.ndarray,
) -> float:
  """Top-1 of the best linear read-out in the sense of least squares.

    W = argmin |x W - (onehot(y) - mean)|^2 / N + penalty |W|^2

  Features are standardised on train; the penalty is chosen on a tenth of
  train, never on test. This is a quick probe without a learning rate, meant
  for following a run. It is not the published linear evaluation (100 epochs
  of SGD on augmented images), whose numbers are usually higher.

  Runs on the host, since a solve wants float64: N D^2 operations.

  Args:
    train_x: f32[N, D].
    train_y: classes from 0, i32[N].
    test_x: f32[M, D].
    test_y: i32[M].

  Returns:
    Top-1 in percent.

  Raises:
    UserError: there are images without a label, or many features are not
      finite.
  """
  fewshot.require_labels('a linear read-out', train_y, test_y)
  train_x, train_y, test_x, test_y, _ = only_finite(
    train_x, train_y, test_x, test_y
  )
  classes = int(max(train_y.max(), test_y.max())) + 1
  train_x, test_x = _standardise(train_x, test_x)
  targets = np.eye(classes, dtype=np.float32)[train_y]
  mean = targets.mean(0)
  targets -= mean

  # Shuffled: file order may follow the classes with any period.
  order = np.random.default_rng(0).permutation(len(train_y))
  held, kept = np.split(order, [int(HELD_OUT * len(order))])
  kept_sums = _sums(train_x[kept], targets[kept])
  held_sums = _sums(train_x[held], targets[held])

  def held_out_accuracy(penalty):
    weights = _solve(kept_sums, len(kept), penalty)
    return top1(train_x[held] @ weights + mean, train_y[held])

  best = PENALTIES[len(PENALTIES) // 2]
  if len(held):
    best = max(PENALTIES, key=held_out_accuracy)
  sums = [a + b for a, b in zip(kept_sums, held_sums)]
  return top1(test_x @ _solve(sums, len(order), best) + mean, test_y)


def _standardise(train_x, test_x) -> tuple[np.ndarray, np.ndarray]:
  """Mean 0 and deviation 1 on train; a constant feature stays 0."""
  _, exponent = np.frexp(np.abs(train_x).max())
  if abs(exponent) > 40:  # squares of these leave float32
    train_x, test_x = (np.ldexp(x, -exponent) for x in (train_x, test_x))
  mean, std = train_x.mean(0), train_x.std(0)
  constant = std <= 1e-5 * np.abs(mean) + 1e-12
  scale = np.where(constant, 0, 1 / np.where(constant, 1, std))
  scale = scale.astype(np.float32)
  return (train_x - mean) * scale, (test_x - mean) * scale


def _sums(x, targets) -> tuple[np.ndarray, np.ndarray]:
  """x^T x f32[D, D] and x^T targets f32[D, classes]."""
  return x.T @ x, x.T @ targets


def _solve(sums, count: int, penalty: float) -> np.ndarray:
  """Weights f32[D, classes]."""
  gram, right = (s.astype(np.float64) / count for s in sums)
  gram[np.diag_indices_from(gram)] += penalty
  return np.linalg.solve(gram, right).astype(np.float32)
