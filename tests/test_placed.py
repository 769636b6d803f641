"""The embedded garments at random places and sizes."""

import numpy as np
import pytest

from esvit_jax import data
from esvit_jax.data import embedded, placed, scenes
from esvit_jax.errors import UserError


def opened(source='placed', split='test', **fields):
  config = {'source': source, 'data_dir': '', 'channels': 1, 'canvas': 0}
  return data.open_source(config | fields, split)


def test_an_image_is_a_function_of_seed_split_and_index():
  first, again, other = opened(), opened(), opened('placed:1')
  train = opened(split='train')
  for i in (0, 7):
    image = first[i]['image']
    assert image.shape == (28, 28, 1) and image.dtype == np.uint8
    assert (image == again[i]['image']).all()
    assert (image != other[i]['image']).any()
    assert (image != train[i]['image']).any()


def test_labels_are_those_of_the_embedded_set_and_balanced():
  source = opened()
  garments = embedded.open_split(data.Request(split='test', channels=1))
  assert (source.labels == garments.labels).all()
  assert [source[i]['label'] for i in range(5)] == list(source.labels[:5])
  share = np.bincount(source.labels) / len(source)
  assert share.min() > 0.09 and share.max() < 0.11


@pytest.mark.parametrize('size', [(28, 28), (40, 60)])
def test_garments_are_whole_and_differ_in_place_and_size(size, monkeypatch):
  """On a black ground the garment is all that is not black."""
  for name in ('ground', 'grain'):
    monkeypatch.setattr(scenes, name, lambda rng, size: np.zeros(size))
  square = np.full((28, 28, 1), 255, np.uint8)
  tops, heights = [], []
  for seed in range(60):
    rng = np.random.default_rng(seed)
    image = placed.compose(rng, square, 0, size)
    assert image.shape == (*size, 1)
    rows, columns = (
      np.flatnonzero((image[..., 0] > 0).any(axis)) for axis in (1, 0)
    )
    assert len(rows) == len(columns)  # nothing is cut off
    tops.append(rows[0])
    heights.append(len(rows) / min(size))
  least, most = placed.FACTOR
  assert least - 0.03 < min(heights) < 0.5 and 0.7 < max(heights) < most + 0.03
  assert len(set(tops)) > 8


def test_the_background_differs_from_image_to_image():
  corners = [opened()[i]['image'][0, 0, 0] for i in range(20)]
  assert np.std(corners) > 10


def test_what_cannot_be_opened():
  with pytest.raises(UserError, match=r"placed:x: give a seed.*'placed:1'"):
    opened('placed:x')
  with pytest.raises(UserError, match="the placed set has no split 'val'"):
    opened(split='val')
