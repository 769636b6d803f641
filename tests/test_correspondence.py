"""The published measure over many images, and the copies it is taken on."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from esvit_jax import augment
from esvit_jax.analysis import correspondence
from esvit_jax.errors import UserError

KEY = jax.random.key(0)
PLAIN = {'mean': (0.0,) * 3, 'std': (1.0,) * 3}


def batches(grids, size):
  """Batches of as many images, the last one padded."""
  for first in range(0, len(grids), size):
    rows = np.arange(first, first + size)
    mask = rows < len(grids)
    yield {
      'grid': jnp.asarray(grids[np.minimum(rows, len(grids) - 1)]),
      'index': jnp.asarray(np.where(mask, rows, -1), jnp.int32),
      'mask': mask,
    }


@jax.jit
def noisy_copies(batch, keys):
  """Mirrored grids, noise for each image."""
  x = batch['grid']
  noise = jax.vmap(lambda key: jax.random.normal(key, x.shape[1:]))(keys)
  return x, x[:, :, ::-1] + 1.5 * noise


def score(grids, size, **settings):
  return correspondence.mean_flip_score(
    noisy_copies, batches(grids, size), KEY, 16, **settings
  )


def test_the_mean_is_over_images_whatever_their_batches():
  grids = np.random.default_rng(0).standard_normal((5, 4, 6, 8))
  whole = score(grids, 5)
  assert whole['images'] == 5 and 0 < whole['accuracy'] < 100
  assert score(grids, 2) == pytest.approx(whole, rel=1e-5)
  keys = jax.vmap(lambda i: jax.random.fold_in(KEY, i))(jnp.arange(5))
  alone = [
    correspondence.flip_score(*map(np.asarray, pair), 16)
    for pair in zip(*noisy_copies({'grid': jnp.asarray(grids)}, keys))
  ]
  for name in ('accuracy', 'distance_error', 'sim_11th'):
    mean = np.mean([x[name] for x in alone])
    assert whole[name] == pytest.approx(mean, rel=1e-5)


def test_features_that_are_not_finite_are_left_out_and_counted():
  grids = np.random.default_rng(0).standard_normal((8, 4, 6, 8))
  grids[5, 1, 1, 1] = np.nan
  figures = score(grids, 4)
  assert figures['images'] == 7 and figures['non_finite'] == 1
  assert np.isfinite(list(figures.values())).all()
  grids[:3] = np.inf
  with pytest.raises(UserError, match='4 of 8'):
    score(grids, 4)


def test_perfect_matches_and_no_images():
  grids = np.random.default_rng(0).standard_normal((3, 4, 4, 8))
  found = correspondence.mean_flip_score(
    lambda batch, keys: (batch['grid'], batch['grid'][:, :, ::-1]),
    batches(grids, 2),
    KEY,
    16,
  )
  assert found['accuracy'] == 100 and found['distance_error'] == 0
  with pytest.raises(UserError, match='no images'):
    score(grids[:0], 2)


def copies(images, count=1, **changed):
  settings = {**correspondence.COPY, 'size': 12, **changed}
  groups = augment.view_groups({'copy': settings})
  keys = jax.random.split(KEY, len(images))
  sizes = jnp.full((len(images), 2), 12)
  return augment.multi_crop(images, sizes, keys, groups, **PLAIN)['copy'][:, 0]


def test_a_copy_is_the_image_mirrored_and_grey():
  rng = np.random.default_rng(0)
  images = rng.integers(256, size=(40, 12, 12, 3), dtype=np.uint8)
  mirrored = images[:, :, ::-1] / np.float32(255)
  whole = copies(images, jitter=0.0, gray=0.0)
  np.testing.assert_allclose(whole, mirrored, atol=1e-6)
  grey = copies(images)
  np.testing.assert_array_equal(grey, grey[..., :1].repeat(3, -1))
  luma = (mirrored @ [0.299, 0.587, 0.114])[..., None]
  kept = np.abs(grey - luma).max((1, 2, 3)) < 0.01
  assert 0.05 < kept.mean() < 0.4  # a fifth is not jittered
