"""Subsets by labels: sizes, seeds, nesting, refusals."""

import numpy as np
import pytest

from esvit_jax.data import fewshot
from esvit_jax.errors import UserError

RNG = np.random.default_rng(0)
# Classes of 1000, 300, 40 and 3 images, in random order; class 3 is a gap.
Y = RNG.permutation(np.repeat([0, 1, 2, 4], [1000, 300, 40, 3])).astype(
  np.int32
)


def counts(rows, y=Y):
  return np.bincount(y[rows], minlength=5).tolist()


def test_a_share_is_of_each_class_and_never_none():
  assert counts(fewshot.share(Y, 0.01)) == [10, 3, 1, 0, 1]
  assert counts(fewshot.share(Y, 0.1)) == [100, 30, 4, 0, 1]
  np.testing.assert_array_equal(fewshot.share(Y, 1.0), np.arange(len(Y)))


def test_k_per_class():
  assert counts(fewshot.per_class(Y, 3)) == [3, 3, 3, 0, 3]


@pytest.mark.parametrize('take', [fewshot.share, fewshot.per_class])
def test_rows_are_sorted_distinct_and_follow_the_seed(take):
  amount = 0.5 if take is fewshot.share else 2
  rows = take(Y, amount, 7)
  assert (np.diff(rows) > 0).all()
  np.testing.assert_array_equal(rows, take(Y, amount, 7))
  assert set(rows) != set(take(Y, amount, 8))


def test_smaller_subsets_lie_within_larger_ones():
  assert set(fewshot.share(Y, 0.01)) < set(fewshot.share(Y, 0.1))
  assert set(fewshot.per_class(Y, 1)) < set(fewshot.per_class(Y, 3))


def test_a_class_does_not_hang_on_the_others():
  alone = np.where(Y == 1, 1, 0)
  picked = fewshot.per_class(Y, 3)
  again = fewshot.per_class(alone, 3)
  assert set(picked[Y[picked] == 1]) == set(again[alone[again] == 1])


def test_a_held_out_part_is_rounded_up_and_leaves_some():
  kept, held = fewshot.held_out(Y, 0.2)
  assert counts(held) == [200, 60, 8, 0, 1]
  np.testing.assert_array_equal(np.sort(np.append(kept, held)), np.arange(1343))
  assert counts(fewshot.held_out(Y, 0.1)[1]) == [100, 30, 4, 0, 1]
  # Every class keeps an image however large the share.
  assert min(counts(fewshot.held_out(Y, 0.99)[0], Y)[i] for i in (0, 1, 2, 4))


def test_rows_of_several_labels_are_held_out_regardless_of_class():
  y = RNG.integers(-1, 2, (50, 3))
  kept, held = fewshot.held_out(y, 0.2, 1)
  assert len(held) == 10
  assert set(kept) | set(held) == set(range(50))


def test_a_class_with_one_image_is_refused_or_kept():
  y = np.array([0, 0, 1, 2, 2])
  with pytest.raises(UserError, match='class 1 has one image'):
    fewshot.held_out(y, 0.5)
  kept, held = fewshot.held_out(y, 0.5, keep_singles=True)
  assert sorted(y[held]) == [0, 2]
  assert sorted(y[kept]) == [0, 1, 2]


@pytest.mark.parametrize(
  'call, says',
  [
    (lambda: fewshot.per_class(Y, 4), 'class 4 has 3'),
    (lambda: fewshot.per_class(Y, 0), 'at least one'),
    (lambda: fewshot.per_class(Y, 1, classes=6), '2 of 6 classes'),
    (lambda: fewshot.share(Y, 0.1, classes=5), 'class 3 first'),
    (lambda: fewshot.share(Y, 1.5), 'share'),
    (lambda: fewshot.share(Y, 0.0), 'share'),
    (lambda: fewshot.held_out(Y, 1.0), 'share'),
    (lambda: fewshot.share(np.where(Y == 4, -1, Y), 0.1), '3 of 1343'),
    (lambda: fewshot.held_out(np.array([], int), 0.1), 'there are none'),
  ],
)
def test_what_cannot_be_taken_is_said_in_a_line(call, says):
  with pytest.raises(UserError, match=says) as e:
    call()
  assert '\n' not in str(e.value)


def test_a_balanced_sample_has_all_classes_alike():
  y = np.repeat([4, 7, 9, -1], [50, 3, 30, 17])  # class by class, as folders
  rows = fewshot.balanced(y, 40, seed=1)
  values, counts = np.unique(y[rows], return_counts=True)
  assert set(values) == {-1, 4, 7, 9}
  assert sorted(counts) == [3, 12, 12, 13]
  assert (np.diff(rows) > 0).all()
  assert set(fewshot.balanced(y, 10, seed=1)) < set(rows)
  assert set(fewshot.balanced(y, 40, seed=2)) != set(rows)
  assert len(set(y[fewshot.balanced(y, 2)])) == 2
  np.testing.assert_array_equal(fewshot.balanced(y, 999), np.arange(100))
  # The first images of a class are not the ones that are taken.
  assert fewshot.balanced(np.zeros(1000), 10).max() > 500
  assert len(fewshot.balanced(np.zeros((30, 3)), 4)) == 4
