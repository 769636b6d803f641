"""Colours, neighbours and maps show what features hold."""

import builtins

import numpy as np
import pytest
from PIL import Image

from esvit_jax.analysis import embedding
from esvit_jax.analysis.plots.embedding import (
  MARKERS,
  PALETTE,
  neighbours_png,
  plane_png,
  regions_png,
)
from esvit_jax.analysis.plots.images import BLUE, ORANGE
from esvit_jax.errors import UserError
from esvit_jax.evals.neighbours import Neighbours


def read(path) -> np.ndarray:
  with Image.open(path) as image:
    return np.asarray(image.convert('RGB')).astype(int)


def near(picture, color, tolerance=12) -> np.ndarray:
  if isinstance(color, str):
    color = [int(color[i : i + 2], 16) for i in (1, 3, 5)]
  return np.abs(picture - color).max(2) < tolerance


# regions


def test_things_have_one_colour_in_all_images():
  rng = np.random.default_rng(0)
  things = 5 * rng.standard_normal((4, 16))
  kind = rng.integers(4, size=(3, 6, 5))
  grids = things[kind] + 0.01 * rng.standard_normal((3, 6, 5, 16))
  found = embedding.region_colors(grids)
  assert found.rgb.shape == (3, 6, 5, 3)
  assert found.rgb.min() >= 0 and found.rgb.max() <= 1
  means = [found.rgb[kind == i].mean(0) for i in range(4)]
  for i in range(4):
    assert np.abs(found.rgb[kind == i] - means[i]).max() < 0.05
    assert all(np.abs(means[i] - means[j]).max() > 0.3 for j in range(i))
  # Four things span three dimensions.
  assert found.explained.sum() == pytest.approx(1, abs=1e-3)
  assert found.explained.sum() > found.explained[0] > 0.3


def test_components_are_those_of_the_singular_values():
  x = np.random.default_rng(0).standard_normal((30, 7)) * np.arange(1, 8)
  parts, explained = embedding.components(x, 3)
  left, values, _ = np.linalg.svd(x - x.mean(0), full_matrices=False)
  expected = left[:, :3] * values[:3]
  signs = np.sign((parts * expected).sum(0))
  np.testing.assert_allclose(parts, expected * signs, atol=1e-8)
  np.testing.assert_allclose(
    explained, values[:3] ** 2 / (values**2).sum(), rtol=1e-8
  )
  # A mirrored axis is the same axis.
  again, _ = embedding.components(x[:, ::-1], 3)
  np.testing.assert_allclose(again, parts, atol=1e-8)


def test_dead_regions_and_thin_features_are_grey_not_broken():
  found = embedding.region_colors(np.ones((1, 2, 2, 2)))
  np.testing.assert_array_equal(found.rgb, 0.5)
  assert np.isfinite(found.explained).all()


@pytest.mark.parametrize('channels', [1, 3])
def test_colours_stand_below_their_image(tmp_path, channels):
  images = np.full((2, 16, 16, channels), 0.5, np.float32)
  rgb = np.zeros((2, 4, 4, 3), np.float32)
  rgb[0, ..., 0] = 1
  rgb[1, ..., 2] = 1
  path = tmp_path / 'pca.png'
  colors = embedding.Colors(rgb, np.array([0.5, 0.2, 0.1]))
  regions_png(path, images, colors)
  picture = read(path)
  height, width = picture.shape[:2]
  for color, columns in (
    ((255, 0, 0), slice(0, width // 2)),
    ((0, 0, 255), slice(width // 2, width)),
  ):
    found = near(picture, color)
    assert found[height // 2 :, columns].sum() > 5000
    assert found.sum() == found[height // 2 :, columns].sum()


# neighbours


def test_figures_of_neighbours():
  found = Neighbours(np.full((3, 2), 0.5), np.array([[1, 2], [0, 2], [0, 1]]))
  labels = np.array([4, 4, 5])
  told = embedding.neighbour_figures(found, labels, np.array([4, 4, -1]))
  assert told == {
    'similarity': 0.5,
    'same_label': 50.0,
    'same_label_first': 100.0,
    'chance': pytest.approx(50),
  }
  unlabelled = np.full(3, -1)
  assert embedding.neighbour_figures(found, unlabelled, unlabelled) == {
    'similarity': 0.5
  }
  assert embedding.neighbour_figures(found) == {'similarity': 0.5}


def test_frames_tell_the_class(tmp_path):
  rng = np.random.default_rng(0)
  queries = np.full((2, 12, 12, 1), 0.5)
  images = np.full((2, 3, 12, 12, 1), 0.5)
  same = np.zeros((2, 3), bool)
  path = tmp_path / 'neighbours.png'
  counts = []
  for known in (None, same, ~same):
    neighbours_png(path, queries, images, rng.random((2, 3)), known)
    picture = read(path)
    counts.append([near(picture, x).sum() > 2000 for x in (BLUE, ORANGE)])
  assert counts == [[False, False], [False, True], [True, False]]


# map


def groups(count=3, each=25, D=8):
  rng = np.random.default_rng(0)
  labels = np.repeat(np.arange(count), each)
  middle = 4 * rng.standard_normal((count, D))
  return middle[labels] + rng.standard_normal((count * each, D)), labels


@pytest.mark.parametrize('method', ['tsne', 'pca'])
def test_groups_stay_together_on_the_map(method):
  x, labels = groups()
  points = embedding.plane(x, method)
  assert points.shape == (75, 2) and points.dtype == np.float32
  np.testing.assert_array_equal(embedding.plane(x, method), points)
  told = embedding.plane_figures(x, points, labels)
  assert told['same_label_on_map'] > 95
  assert 2 < told['effective_rank'] < 9
  unlabelled = embedding.plane_figures(x, points, labels * 0 - 1)
  assert 'same_label_on_map' not in unlabelled


@pytest.mark.parametrize('N', [3, 4, 70])
def test_maps_of_few_wide_or_equal_images_are_finite(N):
  x = np.random.default_rng(0).standard_normal((N, 60))
  for features in (x, np.ones((N, 60))):
    points = embedding.plane(features)
    assert points.shape == (N, 2) and np.isfinite(points).all()


def test_bad_maps_in_one_line(monkeypatch):
  x, _ = groups()
  with pytest.raises(UserError, match='tsne or pca'):
    embedding.plane(x, 'umap')
  with pytest.raises(UserError, match='needs 3 images'):
    embedding.plane(x[:2])
  real = builtins.__import__

  def without(name, *args, **kwargs):
    if name.startswith('sklearn'):
      raise ImportError(name)
    return real(name, *args, **kwargs)

  monkeypatch.setattr(builtins, '__import__', without)
  with pytest.raises(UserError, match='pip install scikit-learn'):
    embedding.plane(x)
  assert embedding.plane(x, 'pca').shape == (75, 2)


def test_up_to_ten_classes_have_a_colour_each(tmp_path):
  x, labels = groups(10, 20, 2)
  path = tmp_path / 'map.png'
  plane_png(path, x, labels, [f'class {i}' for i in range(10)])
  picture = read(path)
  legend = picture[:, int(picture.shape[1] * 0.83) :]
  for color in PALETTE:
    assert near(legend, color, 20).sum() > 10, color
  assert len(set(PALETTE)) == len(set(MARKERS)) == 10


@pytest.mark.parametrize('count', [0, 1, 11, 130])
def test_maps_of_any_number_of_classes(tmp_path, count):
  x, labels = groups(max(count, 1), 4, 2)
  path = tmp_path / 'map.png'
  plane_png(path, x, labels if count else None, title='a network')
  picture = read(path)
  assert (picture.max(2) < 250).sum() > 500
