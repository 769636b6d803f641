"""ResNet against the published one, and its laws."""

import conv_laws
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from esvit_jax import models
from esvit_jax.errors import UserError
from esvit_jax.weights import tables
from esvit_jax.weights.published import shapes

CASE = conv_laws.Case(
  {'name': 'resnet', 'depths': (2, 1), 'width': 8},
  'resnet',
  'module.backbone.backbone.',
  {},
)


def test_published_features():
  conv_laws.published_is_met('backbone_resnet50', 'resnet50', 'resnet')


def test_statistics_are_torchs():
  conv_laws.statistics_are_torchs(
    CASE,
    {
      'stem_norm': 'stem',
      'stage0_block1/norm2': 'stage0_block1/conv2',
      'stage1_block0/norm3': 'stage1_block0/conv3',
      'stage1_block0/skip_norm': 'stage1_block0/skip',
    },
  )


def test_eight_devices_are_one():
  conv_laws.eight_devices_are_one(
    {'name': 'resnet', 'depths': (1,), 'width': 8}
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


@pytest.mark.parametrize('side', [(1, 1), (7, 32), (33, 50)])
def test_any_size_goes(side):
  backbone, variables = conv_laws.small(CASE)
  (f,) = jax.eval_shape(
    backbone.apply, variables, conv_laws.groups(sides=(side,))
  )
  half = [[(n + s - 1) // s for n in side] for s in (4, 8)]
  assert f.grid.shape == (4, 2, *half[1], 64)
  assert [x.shape for x in f.stages] == [
    (4, 2, *half[0], 32),
    (4, 2, *half[1], 64),
  ]
  assert [x.shape for x in f.blocks] == [(4, 2, c) for c in (32, 32, 64)]


def test_other_networks_are_refused_or_told():
  _, variables = conv_laws.small(CASE)
  state = tables.to_published(variables, 'resnet')
  assert shapes.infer(state, {}) == CASE.small
  basic = {k: v for k, v in state.items() if 'conv3' not in k}
  with pytest.raises(UserError, match='only those of bottlenecks'):
    shapes.infer(basic, {})


@pytest.mark.parametrize(
  ('config', 'words'),
  [
    ({'name': 'resnet'}, "needs the field 'depths'"),
    ({'name': 'resnet50', 'depths': (3, 0)}, '1 or more bottlenecks'),
    ({'name': 'resnet50', 'heads': 3}, "no field 'heads'"),
    ({'name': 'resnet_50'}, "did you mean 'resnet50'"),
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


def test_weights_at_the_start():
  backbone = models.build({'name': 'resnet', 'depths': (2,)})
  images = jnp.zeros((1, 1, 8, 8, 3))
  variables = jax.jit(backbone.init)(conv_laws.KEY, (images,))
  block = variables['params']['stage0_block1']
  for name, fan_out in (('conv1', 64), ('conv2', 9 * 64), ('conv3', 256)):
    std = block[name]['kernel'].std()
    np.testing.assert_allclose(std, (2 / fan_out) ** 0.5, rtol=0.03)
  np.testing.assert_array_equal(block['norm3']['scale'], 1)
  np.testing.assert_array_equal(
    variables['batch_stats']['stem_norm']['mean'], 0
  )
