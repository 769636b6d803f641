"""Swin against the published one, and its laws."""

import functools

import golden_weights
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from esvit_jax import models
from esvit_jax.errors import UserError
from esvit_jax.models import windows as windows_lib
from esvit_jax.weights import tables

KEY = jax.random.key(0)
SWIN_24 = {
  'name': 'swin',
  'dims': (24, 48, 96, 192),
  'depths': (2, 2, 2, 2),
  'heads': (1, 2, 4, 8),
}
# Shifted windows in the first stage at its reference size of 20 tokens.
SMALL = {
  'name': 'swin',
  'dims': (8, 16),
  'depths': (2, 1),
  'heads': (1, 2),
  'window': 4,
  'patch': 2,
  'image_size': 20,
  'init_scale': 'fan_in',
}


def outputs(features, suffix: str) -> dict:
  """Features of one view under the goldens' names."""
  grid = features.grid[:, 0]
  return {
    f'pooled_{suffix}': features.view[:, 0],
    f'regions_{suffix}': grid.reshape(len(grid), -1, grid.shape[-1]),
    f'nlast1_{suffix}': features.blocks[-1][:, 0],
    f'nlast4_{suffix}': jnp.concatenate(features.blocks[-4:], -1)[:, 0],
  }


@functools.cache
def published(golden_name: str, **config):
  """All the sizes of a golden in one packed forward."""
  golden, entry = golden_weights.load(golden_name)
  backbone = models.build(config)
  variables = tables.from_published(
    golden_weights.weights(entry['state_dict']),
    'swin',
    models.abstract_variables(backbone),
  )
  groups = tuple(golden_weights.images(*x) for x in entry['inputs'].items())
  forward = jax.jit(
    lambda v, g: backbone.apply(v, g, mutable=['intermediates'])
  )
  features, sown = forward(variables, groups)
  result = {}
  for f, image in zip(features, entry['inputs']):
    result |= outputs(f, image.removeprefix('img'))
  return golden, entry, result, sown['intermediates']


@pytest.mark.parametrize(
  ('name', 'config'),
  [
    ('backbone_swin_small24_w7', SWIN_24),
    ('backbone_swin_tiny_w7', {'name': 'swin_tiny'}),
  ],
)
def test_published_features(name, config):
  golden, entry, result, _ = published(name, **config)
  compared = {k for k in golden if not k.startswith('attn')}
  assert compared == result.keys()
  for key in compared:
    error = golden_weights.error(result[key], golden[key])
    assert error < golden_weights.tolerance(entry, key), key


def test_published_attention():
  golden, _, _, sown = published('backbone_swin_small24_w7', **SWIN_24)
  (windows,) = sown['stage3_block1']['attn']['attention']
  probs = windows.probs  # B W a n n
  # One window a view in the last stage, in the order of the groups.
  for window, key in enumerate(('attn_last_224', 'attn_last_96')):
    assert golden_weights.error(probs[:, window], golden[key]) < 2e-5


@pytest.mark.parametrize(
  ('name', 'window', 'millions'),
  [
    ('swin_tiny', 7, 27_519_354),
    ('swin_tiny', 14, 27_569_754),
    ('swin_small', 7, 48_837_258),
    ('swin_base', 7, 86_743_224),
    ('swin_large', 7, 194_995_476),
  ],
)
def test_published_sizes(name, window, millions):
  backbone = models.build({'name': name, 'window': window})
  variables = models.abstract_variables(backbone)
  assert sum(x.size for x in jax.tree.leaves(variables)) == millions
  assert backbone.num_features == backbone.dims[-1]


def test_windows_are_fixed_by_the_reference_size():
  of = functools.partial(windows_lib.stage_window, 224, 4)
  assert [of(7, i) for i in range(4)] == [(7, 3)] * 3 + [(7, 0)]
  assert [of(14, i) for i in range(4)] == [(14, 7), (14, 7), (14, 0), (7, 0)]
  assert windows_lib.stage_window(28, 4, 4, 1) == (4, 0)  # 7 tokens halve to 4


def test_windows_come_back_as_maps():
  maps = [
    jax.random.normal(KEY, (2, 3, 9, 5, 4)),
    jax.random.normal(KEY, (2, 1, 3, 8, 4)),
  ]
  shapes = [x.shape[1:4] for x in maps]
  for shift in (0, 2):
    windows = windows_lib.to_windows(maps, 4, shift)
    assert windows.shape == (2, 3 * 6 + 2, 16, 4)
    for x, y in zip(maps, windows_lib.from_windows(windows, shapes, 4, shift)):
      np.testing.assert_array_equal(x, y)


def test_shifted_windows_do_not_see_across_the_border():
  # Far rows meet in the last window once it is rolled: the top left token
  # and the bottom right one.
  parts = windows_lib.window_parts([(2, 8, 8)], 4, 2)
  assert parts.shape == (8, 16)
  assert (parts[0] == 0).all()  # an inner window is whole
  assert len(set(parts[3])) == 4  # the corner's falls into four
  np.testing.assert_array_equal(parts[:4], parts[4:])  # views alike


def small(channels: int = 3, **overrides):
  """A backbone and random weights for it."""
  backbone = models.build({**SMALL, **overrides})
  shapes = models.abstract_variables(backbone, channels)
  return backbone, golden_weights.random_variables(shapes)


def random_groups(B=2, channels=3):
  a, b = jax.random.split(KEY)
  return (
    jax.random.normal(a, (B, 2, 20, 20, channels)),
    jax.random.normal(b, (B, 3, 14, 26, channels)),  # 7 x 13, 4 x 7 tokens
  )


@functools.cache
def exact() -> tuple:
  """Features of the small network, float32, no drop path."""
  backbone, variables = small()
  return jax.jit(backbone.apply)(variables, random_groups())


def test_packed_groups_and_views_are_as_alone():
  backbone, variables = small()
  apply = jax.jit(backbone.apply)
  for group, together in zip(random_groups(), exact()):
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


def test_shapes_of_features():
  wide = exact()[1]
  assert wide.view.shape == (2, 3, 16)
  assert wide.grid.shape == (2, 3, 4, 7, 16)
  assert [x.shape for x in wide.stages] == [(2, 3, 7, 13, 8), (2, 3, 4, 7, 16)]
  assert [x.shape[-1] for x in wide.blocks] == [8, 8, 16]
  np.testing.assert_allclose(wide.view, wide.grid.mean((2, 3)), atol=1e-6)


@pytest.mark.parametrize('channels', [1, 5])
def test_any_number_of_channels(channels):
  backbone, variables = small(channels)
  (_, wide) = jax.eval_shape(
    backbone.apply, variables, random_groups(channels=channels)
  )
  assert wide.grid.shape == (2, 3, 4, 7, 16)
  with pytest.raises(UserError, match=f'made for {channels}'):
    backbone.apply(variables, random_groups(channels=3))


def objective(backbone):
  """Sum of a nonlinear function of all features, and its gradient."""

  def value(variables, groups, key):
    features = backbone.apply(
      variables, groups, train=True, rngs={'drop_path': key}
    )
    return sum((f.grid[..., ::2] ** 3).mean() for f in features)

  return jax.jit(jax.value_and_grad(value))


def test_remat_changes_nothing_and_gradients_reach_everything():
  _, variables = small()
  results = [
    objective(small(remat=remat, drop_path=0.3)[0])(
      variables, random_groups(), jax.random.key(7)
    )
    for remat in (False, True)
  ]
  jax.tree.map(
    lambda x, y: np.testing.assert_allclose(x, y, atol=1e-5, rtol=1e-4),
    *results,
  )
  for path, g in jax.tree.leaves_with_path(results[0][1]):
    assert jnp.isfinite(g).all() and jnp.abs(g).max() > 0, path


def test_drop_path_is_for_training_only():
  backbone, variables = small(drop_path=0.5)
  groups = random_groups()
  still = jax.make_jaxpr(backbone.apply)(variables, groups)
  assert str(still) == str(jax.make_jaxpr(small()[0].apply)(variables, groups))
  moved = jax.jit(functools.partial(backbone.apply, train=True))(
    variables, groups, rngs={'drop_path': KEY}
  )
  for x, y in zip(exact(), moved):
    assert (jnp.abs(x.view - y.view).max(-1) > 1e-3).any()


def test_bfloat16_is_close_and_keeps_float32_parameters():
  backbone, variables = small(dtype='bfloat16')
  made = models.abstract_variables(backbone)
  assert {x.dtype for x in jax.tree.leaves(made)} == {jnp.dtype('float32')}
  rough = jax.jit(backbone.apply)(variables, random_groups())
  for x, y in zip(exact(), rough):
    assert y.grid.dtype == jnp.float32
    cosine = (x.grid * y.grid).sum(-1) / (
      jnp.linalg.norm(x.grid, axis=-1) * jnp.linalg.norm(y.grid, axis=-1)
    )
    assert cosine.min() > 0.998
    assert jnp.abs(x.view - y.view).max() < 0.05


def test_a_sharded_batch_needs_no_communication():
  mesh = jax.make_mesh((8,), ('data',), axis_types=(AxisType.Auto,))
  split = NamedSharding(mesh, PartitionSpec('data'))
  whole = NamedSharding(mesh, PartitionSpec())
  backbone, variables = small(drop_path=0.3)
  forward = jax.jit(
    lambda v, g, k: backbone.apply(v, g, train=True, rngs={'drop_path': k}),
    in_shardings=(whole, split, whole),
    out_shardings=split,
  )
  compiled = forward.lower(variables, random_groups(B=8), KEY).compile()
  text = compiled.as_text()
  assert 'dot(' in text
  for collective in (
    'all-gather',
    'all-reduce',
    'all-to-all',
    'collective-permute',
  ):
    assert f'{collective}(' not in text


@pytest.mark.parametrize(
  ('config', 'words'),
  [
    ({'name': 'swin_tinny'}, "did you mean 'swin_tiny'"),
    ({'name': 'swin_tiny', 'windows': 7}, "did you mean 'window'"),
    ({'name': 'swin', 'dims': (8,), 'depths': (1,)}, "needs the field 'heads'"),
    ({**SMALL, 'heads': (1,)}, 'one entry per stage'),
    ({**SMALL, 'heads': (3, 3)}, '8 channels do not split into 3 heads'),
    ({'name': 'swin_tiny', 'dtype': 'float61'}, "'float32' or 'bfloat16'"),
    ({'name': 'swin_tiny', 'dtype': 'float16'}, "'float32' or 'bfloat16'"),
    ({}, "no backbone 'None'"),
    ({'name': 'swin_tiny', 'window': 0}, 'window of swin_tiny is 0'),
    ({'name': 'swin_tiny', 'drop_path': 1.0}, 'use 0 up to below 1'),
  ],
)
def test_configs_that_do_not_fit(config, words):
  with pytest.raises(UserError, match=words) as error:
    models.build(config)
  assert '\n' not in str(error.value)


@pytest.mark.parametrize('scale', ['published', 'fan_in'])
def test_weights_at_the_start(scale):
  backbone = models.build(
    {
      'name': 'swin',
      'dims': (64,),
      'depths': (1,),
      'heads': (1,),
      'patch': 2,
      'init_scale': scale,
    }
  )
  images = jnp.zeros((1, 1, 4, 4, 3))
  params = jax.jit(backbone.init)(KEY, (images,))['params']
  block = params['stage0_block0']
  expected = {'published': 0.02, 'fan_in': 64**-0.5}[scale]
  for layer in (block['attn']['qkv'], block['mlp']['fc1']):
    np.testing.assert_allclose(layer['kernel'].std(), expected, rtol=0.05)
  np.testing.assert_allclose(block['attn']['bias_table'].std(), 0.02, rtol=0.2)
  for zero in (block['attn']['qkv_bias'], block['mlp']['fc2']['bias']):
    np.testing.assert_array_equal(zero, 0)
  bound = (2 * 2 * 3) ** -0.5  # of a convolution, PyTorch's own
  for leaf in params['patch_embed'].values():
    assert 0.8 * bound < jnp.abs(leaf).max() <= bound
