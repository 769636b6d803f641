"""Fine-tuning learns, and does not see how many devices there are."""

import functools
import math
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs.eval import finetune as configs
from esvit_jax import models, optim, sharding
from esvit_jax import state as state_lib
from esvit_jax.errors import UserError
from esvit_jax.methods import finetune
from esvit_jax.protocols.finetune import resolved
from esvit_jax.run import initial
from esvit_jax.weights import architecture, loading, writing
from esvit_jax.weights.networks import Weights

B, CLASSES = 16, 5
HORIZON = state_lib.Horizon(40, 4)
EVERYTHING = {
  'finetune.mixup': 0.8,
  'finetune.cutmix': 1.0,
  'finetune.smoothing': 0.1,
  'finetune.erase': 0.5,
  'model.drop_path': 0.3,
}


def config(recipe='embedded,debug', **changes):
  c = configs.get_config(recipe)
  c.update_from_flattened_dict(changes)
  return c


def build(c, classes=CLASSES):
  return finetune.build(c, state_lib.Run(HORIZON, 8, classes))


@functools.cache
def batch(size=B):
  """Noise of five brightnesses: any crop shows what the label is."""
  label = np.arange(size) % CLASSES
  noise = np.random.default_rng(0).integers(0, 96, (size, 28, 28, 1))
  return {
    'image': (40 * label[:, None, None, None] + noise).astype(np.uint8),
    'size': np.full((size, 2), 28, np.int32),
    'label': label.astype(np.int32),
    'index': np.arange(size, dtype=np.int32),
  }


def training(c, mesh):
  """Metrics and state after each step on the one batch, without end."""
  method = build(c)
  params, *_ = jax.eval_shape(method.init, jax.random.key(0))
  tx, _ = optim.from_config(c, HORIZON, params)
  state = jax.jit(lambda key: state_lib.create(method, tx, key))(
    jax.random.key(0)
  )
  state = jax.device_put(state, sharding.replicated(mesh))
  step = jax.jit(state_lib.make_train_step(method, tx))
  given = jax.device_put(batch(), sharding.data(mesh))
  while True:
    state, metrics = step(state, given, jax.random.key(1))
    yield {k: float(v) for k, v in metrics.items()}, state


def one_device():
  return sharding.mesh(jax.devices()[:1])


@pytest.mark.slow
def test_eight_devices_are_one():
  """Everything at once, the average of the weights included."""
  c = config('impr,debug', **EVERYTHING, **{'ema.decay': 0.75})
  c.views.globals.count = 2
  c.optim.lr = 0.01
  assert sharding.mesh().size == 8
  runs = zip(range(4), training(c, one_device()), training(c, sharding.mesh()))
  params, average = None, None
  for _, (alone, state), (together, other) in runs:
    assert alone['skipped'] == 0
    np.testing.assert_allclose(alone['loss'], together['loss'], atol=1e-5)
    for a, b in zip(*map(jax.tree.leaves, (state.params, other.params))):
      np.testing.assert_allclose(a, b, atol=1e-4)
    if params is not None:
      expected = state_lib.ema(average, state.params, 0.75)
      for a, b in zip(*map(jax.tree.leaves, (state.teacher, expected))):
        np.testing.assert_allclose(a, b, atol=1e-6)
    params, average = state.params, state.teacher
  assert build(c).network == 'teacher'


@pytest.mark.parametrize(
  'recipe, lr', [('embedded,debug', 0.005), ('transfer,debug', 1.0)]
)
def test_it_learns(recipe, lr):
  c = config(recipe, **{'optim.lr': lr * 256 / 16, 'finetune.pool': 'mean'})
  c.optim.layer_decay = 1.0
  steps = training(c, one_device())
  *_, (metrics, state) = (next(steps) for _ in range(40))
  assert metrics['loss'] < 0.7 * math.log(CLASSES)
  method = build(c)
  images = (jnp.asarray(batch()['image']) / 255 - 0.286) / 0.353
  predict = jax.jit(method.predict)
  logits = predict(state.params, state.extra['student'], images)
  assert logits.shape == (B, CLASSES) and logits.dtype == jnp.float32
  assert (logits.argmax(1) == batch()['label']).mean() > 0.7
  assert method.chance == math.log(CLASSES)
  assert method.network == 'student' and state.teacher is None


def views_of(c, keys=None):
  keys = jax.random.split(jax.random.key(3), B) if keys is None else keys
  return jax.jit(build(c).views)(batch(), keys)


def test_labels_go_through():
  views = views_of(config())
  assert views['globals'].shape == (B, 1, 28, 28, 1)
  np.testing.assert_array_equal(
    views['targets'], np.eye(CLASSES)[batch()['label']]
  )


def test_without_mixing_a_view_depends_on_its_key_alone():
  c = config(**{'finetune.erase': 0.5})
  c.views.globals.rand_ops = 2
  keys = jax.random.split(jax.random.key(3), B)
  others = keys.at[4].set(jax.random.key(9))
  a, b = views_of(c, keys)['globals'], views_of(c, others)['globals']
  same = np.array([np.array_equal(x, y) for x, y in zip(a, b)])
  np.testing.assert_array_equal(same, np.arange(B) != 4)


def test_mixed_views_have_mixed_targets():
  """Without other distortions a view can be taken apart into its two images."""
  c = config(**{'finetune.mixup': 0.8})
  c.views.globals.update({'scale': (1.0, 1.0), 'ratio': (1.0, 1.0), 'flip': 0})
  views = views_of(c)
  x = (batch()['image'] / 255.0 - 0.286) / 0.353
  share = float(views['targets'][1, 1])
  assert 0 < share < 1
  np.testing.assert_allclose(
    views['globals'][:, 0], share * x + (1 - share) * x[::-1], atol=1e-5
  )


def test_repeated_views_differ_and_share_their_target():
  c = config(**EVERYTHING)
  c.views.globals.count = 3
  views = views_of(c)
  assert views['globals'].shape == (B, 3, 28, 28, 1)
  assert views['targets'].shape == (B, CLASSES)
  assert not np.allclose(views['globals'][:, 0], views['globals'][:, 1])


def test_cross_entropy_is_the_formula():
  random = np.random.default_rng(0)
  logits = random.standard_normal((4, 2, 3)).astype(np.float32)
  targets = random.dirichlet(np.ones(3), 4).astype(np.float32)
  value, metrics = finetune.cross_entropy(logits, targets)
  p = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
  expected = [-targets[b] @ np.log(p[b, v]) for b in range(4) for v in (0, 1)]
  np.testing.assert_allclose(value, np.mean(expected), rtol=1e-5)
  right = logits.argmax(-1) == targets.argmax(-1)[:, None]
  np.testing.assert_allclose(metrics['accuracy'], 100 * right.mean(), rtol=1e-6)


def test_features_are_the_backbones():
  method = build(config())
  params, _, extra = jax.eval_shape(method.init, jax.random.key(0))
  images = jnp.zeros((3, 28, 28, 1))
  features = jax.eval_shape(method.features, params, extra['student'], images)
  assert features.view.shape == (3, 32)
  assert features.grid.shape[:1] == (3,)


@pytest.mark.parametrize(
  'changes, classes, message',
  [
    ({}, 0, 'needs labels'),
    ({'finetune.classes': 3}, 5, 'set it to 0'),
    ({'finetune.erase': 1.5}, 5, 'finetune.erase is 1.5'),
    ({'finetune.mixup': -1.0}, 5, 'finetune.mixup is -1'),
    ({'finetune.pool': 'max'}, 5, "pool is 'max'"),
    ({'ema.decay': 1.0}, 5, 'ema.decay is 1.0'),
  ],
)
def test_mistakes_are_named(changes, classes, message):
  with pytest.raises(UserError, match=message):
    build(config(**changes), classes)


def test_other_groups_of_views_are_refused():
  c = config()
  c.views['locals'] = c.views.globals
  with pytest.raises(UserError, match='there are locals'):
    build(c)


def test_more_classes_than_the_data_has():
  method = build(config(**{'finetune.classes': 9}))
  params, *_ = jax.eval_shape(method.init, jax.random.key(0))
  assert params['head']['kernel'].shape[1] == 9


@pytest.mark.parametrize('name', configs.RECIPES)
def test_recipes_can_be_built(name):
  c = configs.get_config(f'{name},debug')
  method = build(c)
  params, *_ = jax.eval_shape(method.init, jax.random.key(0))
  optim.from_config(c, HORIZON, params)
  batch_ = jax.tree.map(jnp.asarray, batch())
  keys = jax.random.split(jax.random.key(0), B)
  views = jax.eval_shape(method.views, batch_, keys)
  assert views['targets'].shape == (B, CLASSES)


@pytest.mark.parametrize('recipe', ['rpe', 'rpe2023'])
def test_relative_positions_are_added_to_a_network_without(tmp_path, recipe):
  """What both have comes from the checkpoint, what one has is as at first."""
  c = config(f'{recipe},debug')
  added = ('rel_pos', 'layer_scale', 'qkv_bias')
  plain = {k: v for k, v in c.model.items() if k not in added}
  variables = jax.jit(models.build(plain).init)(
    jax.random.key(5), (jnp.zeros((1, 1, 28, 28, 1)),)
  )
  variables = jax.tree.map(lambda x: x + 0.5, variables)
  network = {'params': {'backbone': variables['params']}, 'batch_stats': {}}
  plain['drop_path'] = 0.2
  about = {
    'model': architecture.resolved(plain, models.build(plain)),
    'channels': 1,
  }
  path = str(tmp_path / 'net.safetensors')
  writing.save(path, Weights(about, {'teacher': network}, {}))
  c.checkpoint = path
  c = resolved(c)
  assert c.model.rel_pos and c.model.drop_path == 0.0
  assert c.model.depth == 2 and c.init.checkpoint == path

  method = build(c)
  params, _, extra = method.init(jax.random.key(0))
  state = types.SimpleNamespace(teacher=None, params=params, extra=extra)
  state._replace = lambda **parts: types.SimpleNamespace(**parts)
  found = initial.with_backbone(state, loading.load(path)).params['backbone']
  block, theirs = found['block1'], variables['params']['block1']
  np.testing.assert_array_equal(
    block['mlp']['fc1']['kernel'], theirs['mlp']['fc1']['kernel']
  )
  np.testing.assert_array_equal(block['attn']['bias_table'], 0)
  if recipe == 'rpe':
    np.testing.assert_array_equal(
      block['attn']['qkv']['bias'], theirs['attn']['qkv']['bias']
    )
    assert 'gamma_1' not in block
  else:
    np.testing.assert_array_equal(block['attn']['q_bias'], 0)
    np.testing.assert_allclose(block['gamma_1'], 0.1)


def test_windows_with_random_neighbours():
  """ViL's mode 1 draws in training."""
  c = config()
  c.model = {'name': 'vil', 'debug': True, 'mode': 1, 'dtype': 'float32'}
  metrics, _ = next(training(c, one_device()))
  assert metrics['skipped'] == 0
