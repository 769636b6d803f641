"""Parts of a source: held-out images, a part of each class."""

import dataclasses

import numpy as np
import pytest

from esvit_jax import data
from esvit_jax.errors import UserError


@pytest.fixture(scope='module')
def train():
  return data.open_source({'source': 'embedded'}, 'train')


def test_held_out_and_the_rest_are_the_whole(train):
  rest, held = data.hold_out(train)
  assert (len(rest), len(held)) == (9000, 1000)
  names = {rest.where(i) for i in range(9000)} | {
    held.where(i) for i in range(1000)
  }
  assert len(names) == 10_000
  again = data.hold_out(train)[1]
  assert [again.where(i) for i in range(9)] == [held.where(i) for i in range(9)]
  assert held.where(0) != data.hold_out(train, seed=1)[1].where(0)


def test_each_class_is_held_out_alike(train):
  """One at least, and one to train on; none of those without a label."""
  y = np.repeat([0, 1, 2, -1], [20, 5, 1, 30])
  source = dataclasses.replace(
    train, count=len(y), labels=y, classes=('a', 'b', 'c')
  )
  rest, held = data.hold_out(source)
  assert np.bincount(held.labels).tolist() == [2, 1]
  assert np.bincount(rest.labels + 1).tolist() == [30, 18, 4, 1]


def test_unknown_labels_are_read_where_that_is_quick(train):
  unknown = dataclasses.replace(train, labels=None, label_bytes=10**6)
  assert np.bincount(data.sample(unknown, 50).labels).tolist() == [5] * 10
  _, held = data.hold_out(unknown)
  share = np.bincount(train.labels) / 10
  np.testing.assert_allclose(np.bincount(held.labels), share, atol=1)
  large = dataclasses.replace(unknown, label_bytes=2**40)
  for drawn in (data.sample(large, 50), data.hold_out(large)[1]):
    assert drawn.labels is None
    assert 'without regard to class' in drawn.notes[-1]
  assert '1024 GiB' in data.sample(large, 5000).notes[-1]
  assert not data.sample(train, 50).notes


def test_a_config_can_ask_for_it(train):
  config = {'source': 'embedded', 'test_split': 'held_out'}
  rest, held = data.open_pair(config)
  assert (len(rest), len(held)) == (9000, 1000)
  assert data.open_pair({**config, 'test_split': ''})[1] is None
  assert len(data.open_pair({**config, 'test_split': 'auto'})[1]) == 2000


def test_a_part_has_images_of_every_class(train):
  y = data.labels(train)
  assert len(y) == 10_000
  assert set(y) == set(range(10))
  one_percent = data.labels(data.subsample(train, 0.01))
  share = np.round(0.01 * np.bincount(y))
  np.testing.assert_allclose(np.bincount(one_percent), share, atol=1)
  seven = data.subsample(train, labels_per_class=7)
  assert (np.bincount(data.labels(seven)) == 7).all()
  assert data.subsample(train) is train


@pytest.mark.parametrize(
  ('fraction', 'per_class', 'words'),
  [
    (0, 0, 'label_fraction'),
    (2.0, 0, 'at most 1'),
    (1.0, -1, 'at least one'),
    (0.1, 10, 'both set'),
  ],
)
def test_bad_amounts_are_told(train, fraction, per_class, words):
  with pytest.raises(UserError, match=words):
    data.subsample(train, fraction, per_class)


def test_unlabelled_images_have_no_labelled_part(train):
  bare = dataclasses.replace(
    train, classes=None, labels=None, read=lambda i: (train.read(i)[0], -1)
  )
  with pytest.raises(UserError, match='label'):
    data.subsample(bare, 0.01)


def test_too_few_to_hold_out(train):
  with pytest.raises(UserError, match='too few'):
    data.hold_out(data.subset(train, [0, 1], 'two'))
