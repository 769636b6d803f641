"""Metrics against scikit-learn and examples done by hand."""

import numpy as np
import pytest
from sklearn import metrics

from esvit_jax.errors import UserError
from esvit_jax.evals import scores


def random(count=300, classes=7, seed=0):
  rng = np.random.default_rng(seed)
  return rng.standard_normal((count, classes)), rng.integers(0, classes, count)


@pytest.mark.parametrize('k', [1, 3, 5])
def test_top_k_is_scikit_learns(k):
  x, y = random()
  theirs = metrics.top_k_accuracy_score(y, x, k=k)
  assert scores.top_k(x, y, k) == pytest.approx(100 * theirs)


def test_more_ranks_than_classes_are_all_right():
  assert scores.top5(*random(classes=3)) == 100


def test_of_equal_scores_each_class_is_the_best_alike():
  x = np.array([[1, 1, 0], [0, 1, 1]])
  for y in ([0, 1], [1, 2]):  # whatever the number of the class
    assert scores.top1(x, np.array(y)) == 50
  assert scores.top1(x, np.array([2, 0])) == 0
  x, y = np.round(random(2000, 20)[0]), random(2000, 20)[1]
  best = x == x.max(1, keepdims=True)
  right = best[np.arange(2000), y] / best.sum(1)
  assert scores.top1(x, y) == pytest.approx(100 * right.mean())


def test_mean_per_class_is_scikit_learns_and_knows_gaps():
  x, y = random()
  y[y == 3] = 2  # class 3 never occurs
  theirs = metrics.recall_score(
    y, x.argmax(1), labels=np.unique(y), average='macro'
  )
  assert scores.mean_per_class(x, y) == pytest.approx(100 * theirs)
  right = x.argmax(1) == y
  expected = np.mean([right[y == c].mean() for c in np.unique(y)])
  assert scores.mean_per_class(x, y) == pytest.approx(100 * expected)


def test_eleven_points_by_hand():
  # In order of score: yes no yes no no yes. Precision at each yes: 1, 2/3,
  # 1/2; recall 1/3, 2/3, 1. Recalls 0..0.3 see 1, 0.4..0.6 2/3, the rest 1/2.
  x = np.array([[0.9], [0.8], [0.7], [0.6], [0.5], [0.4]])
  y = np.array([[1], [0], [1], [0], [0], [1]])
  by_hand = (4 * 1 + 3 * 2 / 3 + 4 * 1 / 2) / 11
  assert scores.map_11(x, y) == pytest.approx(100 * by_hand)


def test_eleven_points_leave_difficult_images_out():
  x = np.array([[0.9], [0.8], [0.7], [0.6], [0.5], [0.4]])
  y = np.array([[-1], [0], [1], [-1], [0], [1]])
  kept = y[:, 0] >= 0
  assert scores.map_11(x, y) == scores.map_11(x[kept], y[kept])
  # no yes no yes: 1/2 up to recall 1/2, 1/2 beyond.
  assert scores.map_11(x, y) == pytest.approx(50)


def test_equal_scores_come_in_together():
  y = np.array([[1], [0], [0], [1]])
  assert scores.map_11(np.ones((4, 1)), y) == pytest.approx(50)
  assert scores.map_11(np.ones((4, 1)), y[::-1]) == pytest.approx(50)


def test_eleven_points_follow_scikit_learns_curve():
  rng = np.random.default_rng(0)
  x = np.round(rng.standard_normal((200, 5)), 1)  # with ties
  y = rng.random((200, 5)) < 0.2

  def by_curve(score, label, origin):
    precision, recall, _ = metrics.precision_recall_curve(label, score)
    if not origin:
      precision, recall = precision[:-1], recall[:-1]
    return np.mean(
      [precision[recall >= r / 10 - 1e-9].max() for r in range(11)]
    )

  for origin in (False, True):
    expected = np.mean([by_curve(x[:, c], y[:, c], origin) for c in range(5)])
    ours = scores.map_11(x, y.astype(int), origin)
    assert ours == pytest.approx(100 * expected)
  # A class without a positive is left out, whatever its scores.
  more = np.concatenate([y, np.zeros((200, 1), bool)], 1).astype(int)
  wider = np.concatenate([x, x[:, :1]], 1)
  assert scores.map_11(wider, more) == scores.map_11(x, y.astype(int))


@pytest.mark.parametrize('decimals', [8, 0])
def test_roc_auc_is_scikit_learns(decimals):
  rng = np.random.default_rng(0)
  y = rng.integers(0, 2, 300)
  x = np.round(rng.standard_normal((300, 2)) + y[:, None] * [0, 1], decimals)
  theirs = metrics.roc_auc_score(y, x[:, 1] - x[:, 0])
  assert scores.roc_auc(x, y) == pytest.approx(100 * theirs)
  theirs = metrics.roc_auc_score(y, x[:, 1])
  assert scores.roc_auc(x[:, 1], y) == pytest.approx(100 * theirs)


X = np.zeros((3, 2))


@pytest.mark.parametrize(
  'metric, x, y',
  [
    ('top1', X, [0, 1, -1]),
    ('top5', X, [0, 1, 2]),
    ('mean_per_class', X, [0, -1, 1]),
    ('map_11', X, [0, 1, 1]),
    ('map_11', X, [[0, -1]] * 3),
    ('roc_auc', X, [0, 0, 0]),
    ('roc_auc', X, [0, 1, -1]),
    ('roc_auc', np.zeros((3, 4)), [0, 1, 1]),
  ],
)
def test_labels_that_do_not_fit_are_refused_in_a_line(metric, x, y):
  with pytest.raises(UserError) as e:
    scores.METRICS[metric](x, np.array(y))
  assert '\n' not in str(e.value)


def test_equal_scores_share_and_nan_is_no_answer():
  y = np.zeros(8, int)  # all of the class that comes first
  constant = np.zeros((8, 10))
  assert scores.top1(constant, y) == pytest.approx(10)
  assert scores.top5(constant, y) == pytest.approx(50)
  assert scores.mean_per_class(constant, y) == pytest.approx(10)
  for metric in (scores.top1, scores.top5, scores.mean_per_class):
    assert metric(np.full((8, 10), np.nan), y) == 0
  half = np.where(np.arange(8)[:, None] < 4, np.nan, [[1.0, 0.0]])
  assert scores.top1(half, y) == 50
  labels = np.arange(8) % 2
  nan = np.full(8, np.nan)
  assert scores.roc_auc(nan, labels) == 50
  unsure = np.where(labels == 1, np.nan, 1.0)  # the positives come last
  assert scores.roc_auc(unsure, labels) == 0
  assert scores.map_11(nan[:, None], labels[:, None]) == pytest.approx(50)


@pytest.mark.parametrize(
  'metric, classes, multi_label, says',
  [
    ('top2', 10, False, 'top1, top5'),
    ('map_11', 10, False, 'one label'),
    ('top1', 10, True, 'map_11'),
    ('roc_auc', 10, False, '2 classes'),
  ],
)
def test_metrics_that_do_not_fit_are_known_before_training(
  metric, classes, multi_label, says
):
  with pytest.raises(UserError, match=says):
    scores.check(metric, classes, multi_label)
  scores.check('roc_auc', 2, False)
  scores.check('map_11', 20, True)
