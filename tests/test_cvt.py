"""CvT against the published one, and its laws."""

import conv_laws
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from esvit_jax import models
from esvit_jax.errors import UserError
from esvit_jax.models import cvt
from esvit_jax.weights import tables
from esvit_jax.weights.published import shapes

CASE = conv_laws.Case(
  {
    'name': 'cvt',
    'dims': (8, 16),
    'depths': (2, 1),
    'heads': (1, 2),
    'init_scale': 'fan_in',
  },
  'cvt',
  'module.',
  {'heads': (1, 2), 'init_scale': 'fan_in'},
)


def test_published_features():
  conv_laws.published_is_met('backbone_cvt_tiny', 'cvt_tiny', 'cvt')


def test_statistics_are_torchs():
  conv_laws.statistics_are_torchs(
    CASE,
    {
      f'{block}/attn/bn': f'{block}/attn/depthwise'
      for block in ('stage0_block0', 'stage0_block1', 'stage1_block0')
    },
  )


@pytest.mark.slow
def test_eight_devices_are_one():
  conv_laws.eight_devices_are_one(
    {
      'name': 'cvt',
      'dims': (8,),
      'depths': (1,),
      'heads': (2,),
      'init_scale': 'fan_in',
    }
  )


def test_files_give_equal_features(tmp_path):
  conv_laws.files_give_equal_features(CASE, tmp_path)


@pytest.mark.parametrize(
  'law',
  [
    conv_laws.groups_are_forwards_of_their_own,
    conv_laws.drop_path_is_for_training_only,
    conv_laws.gradients_reach_everything,
    conv_laws.bfloat16_is_close,
  ],
)
def test_law(law):
  law(CASE)


@pytest.mark.parametrize(
  ('side', 'maps'),
  [((3, 3), [(1, 1), (1, 1)]), ((33, 50), [(8, 12), (4, 6)])],
)
def test_any_size_goes(side, maps):
  backbone, variables = conv_laws.small(CASE)
  (f,) = jax.eval_shape(
    backbone.apply, variables, conv_laws.groups(sides=(side,))
  )
  assert f.view.shape == (4, 2, 16)
  assert f.grid.shape == (4, 2, *maps[1], 16)
  assert [x.shape for x in f.stages] == [
    (4, 2, *maps[0], 8),
    (4, 2, *maps[1], 16),
  ]
  assert [x.shape for x in f.blocks] == [(4, 2, c) for c in (8, 8, 16)]


def test_only_the_last_stage_goes_through_the_norm():
  backbone, variables = conv_laws.small(CASE)
  (f, _), _ = conv_laws.forward(backbone, False)(
    variables, conv_laws.groups(), conv_laws.KEY
  )
  near = np.testing.assert_allclose
  near(f.blocks[1], f.stages[0].mean((2, 3)), atol=1e-5)
  near(f.blocks[2], f.grid.mean((2, 3)), atol=1e-5)
  near(f.view, f.blocks[2], atol=0)
  norm, x = variables['params']['norm'], np.asarray(f.stages[1])
  x = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-5)
  near(f.grid, x * norm['scale'] + norm['bias'], atol=2e-5)


@pytest.mark.parametrize(
  ('map_side', 'windows', 'n'),
  [
    ((8, 8), 4, 49),  # 14 x 14 with pads
    ((7, 14), 2, 49),
    ((6, 6), 1, 36),  # a small map is one window, without pads
    ((5, 11), 3, 25),  # the shorter side rules: 5 x 15
  ],
)
def test_windows_shrink_on_small_maps(map_side, windows, n):
  attention = cvt.WindowAttention(2, 7, 'fan_in', jnp.float32)
  x = jax.random.normal(conv_laws.KEY, (2, 3, *map_side, 4))
  variables = jax.jit(attention.init, static_argnums=2)(conv_laws.KEY, x, False)
  y, sown = attention.apply(variables, x, False, mutable=['intermediates'])
  assert y.shape == x.shape
  probs = sown['intermediates']['attention'][0].probs
  assert probs.shape == (2, 3 * windows, 2, n, n)


def test_pads_count_and_are_seen():
  """Published: zeros before the projection, in statistics and softmax."""
  attention = cvt.WindowAttention(1, 7, 'fan_in', jnp.float32)
  x = 1 + jax.random.normal(conv_laws.KEY, (2, 1, 8, 8, 4))
  variables = jax.jit(attention.init, static_argnums=2)(conv_laws.KEY, x, False)
  kernel = variables['params']['depthwise']['kernel']
  # One weight in the middle: the convolution keeps what it gets.
  kernel = jnp.zeros_like(kernel).at[1, 1].set(1)
  params = {**variables['params'], 'depthwise': {'kernel': kernel}}
  _, changed = attention.apply(
    {**variables, 'params': params},
    x,
    True,
    mutable=['batch_stats', 'intermediates'],
  )
  mean = np.asarray(x.sum((0, 1, 2, 3))) / (2 * 14 * 14)
  found = changed['batch_stats']['bn']['mean']
  np.testing.assert_allclose(found, 0.1 * mean, rtol=1e-5)
  (windows,) = changed['intermediates']['attention']
  probs = windows.probs  # B W a n n
  # The last window holds 1 real token and 48 pads, all alike.
  corner = probs[:, 3, 0, 0]
  assert corner[:, 1:].min() > 0
  np.testing.assert_allclose(corner[:, 1:], corner[:, 1:2].repeat(48, 1))


def test_heads_are_asked_for():
  _, variables = conv_laws.small(CASE)
  state = tables.to_published(variables, 'cvt')
  with pytest.raises(UserError, match='how many heads') as error:
    shapes.infer(state, {})
  assert '--model.heads=1,1' in str(error.value)
  config = {'name': 'cvt', 'dims': (8, 16), 'depths': (2, 1), 'heads': (1, 2)}
  assert shapes.infer(state, {'heads': (1, 2)}) == config


@pytest.mark.parametrize(
  ('config', 'words'),
  [
    ({'name': 'cvt', 'dims': (8,), 'depths': (1,)}, "needs the field 'heads'"),
    ({**CASE.small, 'heads': (1,)}, 'one entry per stage'),
    ({**CASE.small, 'heads': (3, 3)}, '8 channels do not split into 3 heads'),
    ({'name': 'cvt_tiny', 'windows': 7}, "did you mean 'window'"),
    ({'name': 'cvt_tini'}, "did you mean 'cvt_tiny'"),
  ],
)
def test_configs_that_do_not_fit(config, words):
  with pytest.raises(UserError, match=words) as error:
    models.build(config)
  assert '\n' not in str(error.value)


def test_images_that_do_not_fit():
  backbone, variables = conv_laws.small(CASE, channels=1)
  with pytest.raises(UserError, match=r'have 3 channels.* made for 1'):
    backbone.apply(variables, conv_laws.groups())
  with pytest.raises(UserError, match=r'give \[batch, views'):
    backbone.apply(variables, (jnp.zeros((2, 32, 32, 1)),))
  with pytest.raises(UserError, match='2x40 px: this network takes 3 px or'):
    backbone.apply(variables, (jnp.zeros((2, 1, 2, 40, 1)),))


def test_weights_at_the_start():
  backbone = models.build(
    {'name': 'cvt', 'dims': (64,), 'depths': (1,), 'heads': (1,)}
  )
  images = jnp.zeros((1, 1, 8, 8, 3))
  variables = jax.jit(backbone.init)(conv_laws.KEY, (images,))
  params = variables['params']
  block = params['stage0_block0']
  for layer in (
    params['embed0']['conv'],
    block['attn']['depthwise'],
    block['attn']['qkv'],
    block['mlp']['fc1'],
  ):
    np.testing.assert_allclose(layer['kernel'].std(), 0.02, rtol=0.1)
    np.testing.assert_array_equal(layer.get('bias', 0), 0)
