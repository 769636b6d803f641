"""CKA as published, and its laws."""

import functools

import golden_mae_sit
import jax
import jax.numpy as jnp
import mae_runs
import numpy as np
import pytest
from PIL import Image

from esvit_jax import models
from esvit_jax.analysis import representation
from esvit_jax.analysis.plots.layers import heat_map_png
from esvit_jax.errors import UserError
from esvit_jax.models.layers import layer_norm
from esvit_jax.weights import tables

ALL = np.ones(8, bool)


# The golden was taken in float32 off Gram matrices that were not centred: two
# such computations differ by this much, and by as much from float64.
NOISE = 3e-3


@functools.cache
def published():
  """model -> Gram matrices of both of the golden's batches; layers' names."""
  _, entry = golden_mae_sit.load('analysis')
  keys = [x for x in entry['keys'] if not x[0].startswith('head.')]
  backbone = models.build({'name': 'mae_tiny', 'final_norm': False})
  names = []

  @jax.jit
  def grams(variables, norm, images):
    (features,), sown = backbone.apply(
      variables, (images[:, None],), mutable=['intermediates']
    )
    grid = layer_norm(None).apply({'params': norm}, features.grid)
    features = features._replace(grid=grid)
    layers = representation.layers(features, sown['intermediates'])
    names.extend(layers)
    return representation.grams(layers)

  found = {}
  for model, prefix in ((1, ''), (2, 'm2:')):
    state = golden_mae_sit.weights(keys, prefix)
    norm = {
      'scale': state.pop('fc_norm.weight'),
      'bias': state.pop('fc_norm.bias'),
    }
    variables = tables.from_published(
      state, 'vit', models.abstract_variables(backbone)
    )
    found[model] = [
      grams(variables, norm, mae_runs.image(f'ana_img{i}', 8)) for i in range(2)
    ]
  return names, found


@pytest.mark.parametrize('other', [1, 2])
def test_cka_is_the_published_one(other):
  golden, _ = golden_mae_sit.load('analysis')
  names, models = published()
  found = representation.compare(
    ((K, L, ALL) for K, L in zip(models[1], models[other])), names, names
  )
  assert found.rows == (*(f'block{i}' for i in range(12)), 'output')
  np.testing.assert_allclose(found.cka, golden[f'cka_1{other}'], atol=NOISE)
  if other == 2:
    own, both = golden['hsic_12'][..., ::2], golden['hsic_12'][..., 1]
    np.testing.assert_allclose(found.hsic[..., ::2], own, rtol=NOISE)
    scale = np.sqrt(own.prod(-1))
    np.testing.assert_allclose(
      found.hsic[..., 1] / scale, both / scale, atol=NOISE
    )


def test_float32_loses_nothing_to_what_images_have_in_common():
  """Regions of all images are alike at first: published float32 is 1e-3 off."""
  rng = np.random.default_rng(0)
  common = 30 * rng.standard_normal((1, 4000))
  x = {k: rng.standard_normal((8, 4000)) + common for k in ('a', 'b')}
  exact = np.stack([v @ v.T for v in x.values()])
  quick = representation.grams({k: jnp.asarray(v) for k, v in x.items()})
  expected = representation.hsic(exact, exact)
  np.testing.assert_allclose(
    representation.hsic(quick, quick),
    expected,
    atol=1e-5 * np.diag(expected).max(),
  )


def test_hsic_is_the_published_one():
  golden, _ = golden_mae_sit.load('analysis')
  X = golden_mae_sit.normal('probe_X', (10, 40))
  Y = golden_mae_sit.normal('probe_Y', (10, 40)) + np.float32(0.5) * X
  K, L = (x.astype(np.float64) @ x.T for x in (X, Y))
  found = representation.hsic(np.stack([K, L]), np.stack([K, L]))
  np.testing.assert_allclose(
    [found[0, 0], found[0, 1], found[1, 1]], golden['probe_hsic'], rtol=1e-5
  )


def random(n, *dims, seed=0):
  rng = np.random.default_rng(seed)
  return {f'block{i}': rng.standard_normal((n, d)) for i, d in enumerate(dims)}


def similarity(x, y, rows=None):
  rows = rows or [slice(None)]
  stream = [
    (
      representation.grams({k: jnp.asarray(v[r]) for k, v in x.items()}),
      representation.grams({k: jnp.asarray(v[r]) for k, v in y.items()}),
      np.ones(len(next(iter(x.values()))[r]), bool),
    )
    for r in rows
  ]
  return representation.compare(stream, list(x), list(y))


def test_a_rotated_stretched_moved_layer_is_the_same():
  x = random(40, 12, 6)
  turn, _ = np.linalg.qr(np.random.default_rng(1).standard_normal((12, 12)))
  y = {'a': 3 * x['block0'] @ turn + 5, 'b': x['block1']}
  found = similarity(x, y).cka
  assert found[0, 0] == pytest.approx(1, abs=1e-5)
  assert found[1, 1] == pytest.approx(1, abs=1e-5)
  # Nothing in common; the biased estimate would give 0.3.
  assert abs(found[0, 1]) < 0.1


def test_the_batch_size_does_not_matter_in_the_mean():
  x = random(2048, 5)
  noise = random(2048, 5, seed=1)['block0']
  y = {'a': x['block0'] + noise}
  whole = similarity(x, y).cka[0, 0]
  parts = [slice(i, i + 8) for i in range(0, 2048, 8)]
  assert similarity(x, y, parts).cka[0, 0] == pytest.approx(whole, abs=0.03)


def test_padding_rows_and_small_last_batches_do_not_count():
  x = random(16, 5, 7)
  K = np.array(representation.grams(x))
  mask = np.arange(16) < 10
  K[:, 10:] = K[:, :, 10:] = np.nan
  few = np.arange(16) < 3
  found = representation.compare([(K, K, mask), (K, K, few)], 'ab', 'ab')
  alone = representation.compare(
    [(K[:, :10, :10],) * 2 + (mask[:10],)], 'ab', 'ab'
  )
  np.testing.assert_array_equal(found.cka, alone.cka)
  with pytest.raises(UserError, match='at least 4 images'):
    representation.compare([(K, K, few)], 'ab', 'ab')


def test_layers_are_flat_and_without_class_tokens():
  grid = jnp.zeros((2, 1, 2, 2, 3))
  normed = jnp.arange(2 * 5 * 3.0).reshape(2, 1, 5, 3)
  sown = {f'block{i}': {'normed': (normed + i,)} for i in (10, 2)}
  features = models.backbone.Features(None, grid, (grid, grid[..., :1]), ())
  found = representation.layers(features, sown)
  assert list(found) == ['block2', 'block10', 'output']
  # Their names are in this order too where only shapes are known.
  shapes = jax.eval_shape(lambda: (features, sown))
  assert representation.layer_names(*shapes) == list(found)
  np.testing.assert_array_equal(
    found['block2'], normed[:, 0, 1:].reshape(2, 12) + 2
  )
  maps = representation.layers(features, {})
  assert {k: v.shape for k, v in maps.items()} == {
    'stage0': (2, 12),
    'stage1': (2, 4),
    'output': (2, 12),
  }


def test_a_dead_layer_is_undefined_not_wrong():
  x = random(12, 5)
  y = {**x, 'dead': np.ones((12, 5))}
  found = similarity(y, y)
  assert np.isnan(found.cka[1]).all() and found.cka[0, 0] == pytest.approx(1)
  told = representation.figures(found)
  assert told['first_to_last'] is None
  assert told['least'] == pytest.approx(1)
  assert representation.table(found)[1] == {
    'layer': 'dead',
    'block0': None,
    'dead': None,
  }


def test_figures_say_what_the_map_shows():
  cka = np.array([[1, 0.5, 0.1], [0.5, 1, 0.7], [0.1, 0.7, 1]])
  names = ('block0', 'block1', 'output')
  found = representation.Similarity(names, names, cka, None)
  assert representation.figures(found) == pytest.approx(
    {'first_to_last': 0.1, 'least': 0.1, 'same_layer': 1, 'next_layer': 0.6}
  )
  wide = representation.Similarity(names[:1], names, cka[:1], None)
  assert set(representation.figures(wide)) == {'first_to_last', 'least'}


def test_the_heat_map_is_dark_where_layers_differ(tmp_path):
  cka = np.eye(13) * 0.9 + 0.05
  names = (*(f'block{i}' for i in range(12)), 'output')
  found = representation.Similarity(names, names, cka, None)
  path = tmp_path / 'cka.png'
  heat_map_png(path, found, 'a', 'b')
  with Image.open(path) as image:
    gray = np.asarray(image.convert('L')).astype(int)
  bright = gray[:, : gray.shape[1] * 3 // 4] > 200
  dark = gray[:, : gray.shape[1] * 3 // 4] < 60
  assert dark.sum() > 0.3 * dark.size
  # The diagonal rises to the right.
  assert bright.any()
