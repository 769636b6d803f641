"""MoCo-v3 against the published one, and its laws."""

import functools

import contrast_runs
import golden_mae_sit
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from esvit_jax import state
from esvit_jax.errors import UserError
from esvit_jax.losses import contrastive
from esvit_jax.methods import method as shared
from esvit_jax.methods import moco
from esvit_jax.models.positions import moco_table
from esvit_jax.weights import tables

KEY = contrast_runs.KEY


@functools.cache
def published():
  """Golden, entry, method, its state and views of the golden."""
  golden, entry = golden_mae_sit.load('moco')
  method = contrast_runs.build(contrast_runs.published_moco())
  predictor = {
    f'predictor.{k}': v
    for k, v in contrast_runs.filled(entry, 'predictor.').items()
  }
  base = contrast_runs.filled(entry, 'base_encoder.') | predictor
  student = contrast_runs.load(method, 'moco', base)
  # The average lacks a predictor, which is then taken off again.
  key_net = contrast_runs.filled(entry, 'momentum_encoder.') | predictor
  before = contrast_runs.load(method, 'moco', key_net)['params']
  del before['predictor']
  follows = {k: student['params'][k] for k in before}
  # As after step 99, which is before the keys of step 100.
  teacher = jax.jit(state.ema)(before, follows, method.momentum(99))
  stats = student['batch_stats']
  extra = {'student': stats, 'teacher': moco._without_predictor(stats)}
  whole = state.TrainState(100, student['params'], teacher, extra, ())
  x = [contrast_runs.image(f'moco_x{i}') for i in (1, 2)]
  return golden, entry, method, whole, {'globals': np.stack(x, 1)}


@functools.cache
def published_loss():
  *_, method, whole, views = published()
  return jax.jit(method.loss)(whole.params, whole, views, KEY)


def test_published_momentum():
  golden, _, method, whole, _ = published()
  momentum = method.momentum(jnp.int32(99))
  np.testing.assert_allclose(momentum, golden['momentum'], rtol=1e-6)
  qkv = whole.teacher['backbone']['block0']['attn']['qkv']['kernel']
  row = golden['momentum_qkv0_after_row0']
  np.testing.assert_allclose(qkv[:, 0], row, atol=1e-7)


def test_published_loss():
  golden, *_ = published()
  np.testing.assert_allclose(published_loss().value, golden['loss'], rtol=1e-5)


@pytest.mark.slow
def test_published_gradients():
  golden, entry, method, whole, views = published()

  @jax.jit
  @jax.grad
  def gradients(params, whole):
    return method.loss(params, whole, views, KEY).value

  grads = gradients(whole.params, whole)
  theirs = tables.to_published({'params': grads}, 'moco')
  names = [name.removeprefix('base_encoder.') for name in entry['grad_names']]
  contrast_runs.check_gradients(golden, names, theirs, {'norm.bias'})
  # The position table learns nothing: see configs, `optim.frozen`.
  assert set(theirs) - set(names) == {'pos_embed'}


def test_published_statistics():
  golden, *_ = published()
  mean = published_loss().extra['student']['head']['norm0']['mean'][:8]
  told = golden['proj_bn_running_mean_first8']
  np.testing.assert_allclose(mean, told, rtol=1e-4, atol=1e-6)


def test_published_positions():
  golden, *_ = published()
  np.testing.assert_allclose(
    moco_table(192, 14), golden['pos_embed'], atol=2e-6
  )


def test_average_moves_between_queries_and_keys():
  """Three steps of ours against the published order, written out."""
  c = contrast_runs.tiny('moco', drop_path=0.0)
  method = contrast_runs.build(c)
  whole, tx = contrast_runs.start(method)
  followed = {k: whole.params[k] for k in whole.teacher}
  # A run starts with a copy, so that the first move is none.
  whole = whole._replace(teacher=followed)
  step = jax.jit(state.make_train_step(method, tx))
  keys_seen = followed
  for i in range(3):
    m = 1 - 0.5 * (1 + np.cos(np.pi * i / contrast_runs.HORIZON.steps)) * 0.01
    followed = {k: whole.params[k] for k in keys_seen}
    keys_seen = state.ema(keys_seen, followed, m)
    jax.tree.map(
      lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6),
      whole.teacher,
      keys_seen,
    )
    whole, _ = step(whole, contrast_runs.batch(), KEY)


def test_eight_devices_are_one():
  """Three steps: negatives, batch norm and drop path are global."""
  c = contrast_runs.tiny('moco')
  # Batch norm cancels the last norm's bias, so that only rounding would move
  # it, and features with it.
  (one, a), (eight, b) = contrast_runs.on_devices(c, ('backbone/norm/bias',))
  contrast_runs.assert_same_metrics(one, eight)
  contrast_runs.assert_near(a, b)
  assert one[0]['loss'] != one[1]['loss']


def test_heads_see_one_view_at_a_time():
  """Of two views, one with other contrast: neither changes the other."""
  c = contrast_runs.tiny('moco', drop_path=0.0)
  method = contrast_runs.build(c)
  whole, _ = contrast_runs.start(method)
  network = moco._network(c, True)
  images = jax.random.normal(KEY, (8, 2, 16, 16, 1))
  other = images.at[:, 1].multiply(3.0)

  @jax.jit
  def project(images):
    stats = whole.extra['student']
    out, _ = shared.forward(network, whole.params, stats, images, KEY)
    return out.projected

  x, y = project(images), project(other)
  np.testing.assert_allclose(x[:, 0], y[:, 0], atol=1e-6)
  assert not np.allclose(x[:, 1], y[:, 1], atol=1e-3)
  np.testing.assert_allclose(x.mean(0), 0, atol=1e-5)
  np.testing.assert_allclose(x.std(0), 1, rtol=1e-2)


def test_chance_is_the_loss_of_keys_alike():
  c = contrast_runs.tiny('moco')
  method = contrast_runs.build(c)
  assert method.chance == contrastive.chance(8, 0.2)
  assert method.network == 'student'


def test_features_are_the_class_token_of_the_base_encoder():
  method = contrast_runs.build(contrast_runs.tiny('moco'))
  whole, _ = contrast_runs.start(method)
  images = jax.random.normal(KEY, (3, 16, 16, 1))
  found = jax.jit(method.features)(whole.params, whole.extra['student'], images)
  assert found.view.shape == (3, 16) and found.grid.shape == (3, 4, 4, 16)


def test_frozen_parts_stand_still():
  """The patch embedding of MoCo-v3's own recipe, and position tables."""
  c = contrast_runs.tiny('moco', positions='moco')
  frozen = ('pos_embed', 'patch_embed')
  method = contrast_runs.build(c)
  whole, tx = contrast_runs.start(method, frozen)
  step = jax.jit(state.make_train_step(method, tx))
  moved, _ = step(whole, contrast_runs.batch(), KEY)
  for name, x in whole.params['backbone'].items():
    same = jax.tree.map(np.array_equal, x, moved.params['backbone'][name])
    assert all(jax.tree.leaves(same)) == (name in frozen), name


def test_there_and_back_is_byte_equal():
  method = contrast_runs.build(contrast_runs.tiny('moco'))
  whole, _ = contrast_runs.start(method)
  variables = {'params': whole.params, 'batch_stats': whole.extra['student']}
  theirs = tables.to_published(variables, 'moco')
  assert theirs['head.6.weight'].shape == (8, 24)
  assert theirs['predictor.4.running_var'].shape == (8,)
  again = tables.from_published(theirs, 'moco', variables)
  jax.tree.map(np.testing.assert_array_equal, variables, again)


def test_starts_as_published():
  c = contrast_runs.tiny('moco', positions='moco', init_scale='moco')
  params, teacher, extra = contrast_runs.build(c).init(KEY)
  assert set(teacher) == set(extra['teacher']) | {'backbone'}
  assert set(params) == {'backbone', 'head', 'predictor'}
  jax.tree.map(
    np.testing.assert_array_equal, teacher, {k: params[k] for k in teacher}
  )
  fc = params['head']['fc0']['kernel']
  assert 'bias' not in params['head']['fc0']
  assert np.abs(fc).max() <= 0.25 and np.abs(fc).max() > 0.24  # 1/sqrt(16)


def test_two_views_of_each_image():
  c = contrast_runs.tiny('moco')
  c.views.globals.update({'blur': (1.0, 0.0), 'solarize': (0.0, 1.0)})
  method = moco.build(c, state.Run(contrast_runs.HORIZON))
  images = np.full((3, 24, 24, 1), 200, np.uint8)
  batch = {'image': images, 'size': np.full((3, 2), 24, np.int32)}
  views = jax.jit(method.views)(batch, jax.random.split(KEY, 3))
  assert list(views) == ['globals']
  # Plain images: only one of the views is solarised.
  x = np.asarray(views['globals'])
  assert x.shape == (3, 2, 16, 16, 1)
  grey = np.array([200, 55])[None, :, None, None, None] / 255
  np.testing.assert_allclose(
    x, np.broadcast_to((grey - 0.5) / 0.25, x.shape), 1e-6
  )


@pytest.mark.parametrize('count', [1, 3])
def test_views_come_in_pairs(count):
  c = contrast_runs.tiny('moco')
  c.views.globals.count = count
  with pytest.raises(UserError, match=r'views.globals.count=2'):
    contrast_runs.build(c)
