"""ViT against the published one, and its laws."""

import functools

import golden_weights
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from esvit_jax import models
from esvit_jax.errors import UserError
from esvit_jax.weights import tables

KEY = jax.random.key(0)
SMALL = {
  'name': 'vit',
  'dim': 16,
  'depth': 2,
  'heads': 2,
  'patch': 4,
  'image_size': 16,
  'init_scale': 'fan_in',
}


def test_published_features():
  golden, entry = golden_weights.load('backbone_deit_tiny_p16')
  backbone = models.build({'name': 'deit_tiny'})
  variables = tables.from_published(
    golden_weights.weights(entry['state_dict']),
    'vit',
    models.abstract_variables(backbone),
  )
  groups = tuple(golden_weights.images(*x) for x in entry['inputs'].items())
  result = {}
  for f, image in zip(
    jax.jit(backbone.apply)(variables, groups), entry['inputs']
  ):
    size, grid = image.removeprefix('img'), f.grid[:, 0]
    last = f.blocks[-1][:, 0]
    result |= {
      f'pooled_{size}': f.view[:, 0],
      f'regions_{size}': grid.reshape(len(grid), -1, grid.shape[-1]),
      f'nlast4_{size}': jnp.concatenate(f.blocks[-4:], -1)[:, 0],
      f'nlast1_avgpool_{size}': jnp.concatenate([last, grid.mean((1, 2))], -1),
    }
  assert golden.keys() == result.keys()
  for key, value in golden.items():
    error = golden_weights.error(result[key], value)
    assert error < golden_weights.tolerance(entry, key), key


@pytest.mark.parametrize(
  ('name', 'parameters'),
  [
    ('vit_tiny', 5_524_416),
    ('vit_small', 21_665_664),
    ('vit_base', 85_798_656),
  ],
)
def test_published_sizes(name, parameters):
  variables = models.abstract_variables(models.build({'name': name}))
  assert sum(x.size for x in jax.tree.leaves(variables)) == parameters


def small(channels: int = 3, **overrides):
  """A backbone and random weights for it."""
  backbone = models.build({**SMALL, **overrides})
  shapes = models.abstract_variables(backbone, channels)
  return backbone, golden_weights.random_variables(shapes)


def random_groups(channels=3):
  a, b = jax.random.split(KEY)
  return (
    jax.random.normal(a, (2, 2, 16, 16, channels)),
    jax.random.normal(b, (2, 3, 12, 20, channels)),
  )


@functools.cache
def exact() -> tuple:
  """Features and attention of the small network, float32."""
  backbone, variables = small()
  apply = jax.jit(functools.partial(backbone.apply, mutable=['intermediates']))
  features, sown = apply(variables, random_groups())
  return features, sown['intermediates']


def test_packed_groups_and_views_are_as_alone():
  backbone, variables = small()
  apply = jax.jit(backbone.apply)
  for group, together in zip(random_groups(), exact()[0]):
    B, V = group.shape[:2]
    views = group.reshape(B * V, 1, *group.shape[2:])
    (alone,) = apply(variables, (views,))
    jax.tree.map(
      lambda x, y, B=B, V=V: np.testing.assert_allclose(
        x, y.reshape(B, V, *y.shape[2:]), atol=2e-5
      ),
      together,
      alone,
    )


@pytest.mark.parametrize('channels', [1, 5])
def test_any_number_of_channels(channels):
  backbone, variables = small(channels)
  (_, wide) = jax.eval_shape(backbone.apply, variables, random_groups(channels))
  assert wide.grid.shape == (2, 3, 3, 5, 16)
  assert wide.stages[0].shape == (2, 3, 3, 5, 16)


def test_attention_is_sown_per_group():
  square, wide = exact()[1]['block1']['attn']['attention']
  assert square.shape == (2, 2, 2, 17, 17) and wide.shape == (2, 3, 2, 16, 16)
  np.testing.assert_allclose(wide.sum(-1), 1, rtol=1e-5)


def test_remat_changes_nothing_and_gradients_reach_everything():
  _, variables = small()

  def objective(backbone):
    def value(variables):
      features = backbone.apply(
        variables, random_groups(), train=True, rngs={'drop_path': KEY}
      )
      return sum(
        (f.grid**3).mean() + (f.view[..., ::2] ** 3).mean() for f in features
      )

    return jax.jit(jax.value_and_grad(value))(variables)

  plain = objective(small(drop_path=0.3)[0])
  again = objective(small(drop_path=0.3, remat=True)[0])
  jax.tree.map(
    lambda x, y: np.testing.assert_allclose(x, y, atol=1e-5, rtol=1e-4),
    plain,
    again,
  )
  for path, g in jax.tree.leaves_with_path(plain[1]):
    assert jnp.isfinite(g).all() and jnp.abs(g).max() > 0, path


def test_bfloat16_is_close_and_keeps_float32_parameters():
  backbone, variables = small(dtype='bfloat16')
  made = models.abstract_variables(backbone)
  assert {x.dtype for x in jax.tree.leaves(made)} == {jnp.dtype('float32')}
  rough = jax.jit(backbone.apply)(variables, random_groups())
  for x, y in zip(exact()[0], rough):
    assert y.view.dtype == jnp.float32
    assert jnp.abs(x.view - y.view).max() < 0.1


@pytest.mark.parametrize(
  ('overrides', 'words'),
  [
    ({'heads': 3}, '16 channels do not split into 3 heads'),
    ({'image_size': 18}, 'no multiple of its patch 4'),
    ({'dims': (8,)}, "did you mean 'dim'"),
  ],
)
def test_configs_that_do_not_fit(overrides, words):
  with pytest.raises(UserError, match=words):
    models.build({**SMALL, **overrides})
