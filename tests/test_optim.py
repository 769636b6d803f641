"""Schedules against the published numbers, optimisers against NumPy."""

import re
from pathlib import Path
from types import SimpleNamespace

import golden_mae_sit
import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest

from configs import esvit as esvit_recipe
from configs.eval import finetune
from esvit_jax import models, optim, schedules
from esvit_jax.errors import UserError
from esvit_jax.models.classifier import Classifier
from esvit_jax.weights import layouts

GOLDEN = Path(__file__).parent / 'goldens/esvit/schedules.npz'
STEPS, WAIT = 6, 2


def lr(step):
  return 0.02 + 0.01 * step


def decay(step):
  return 0.1 + 0.05 * step


def params():
  rng = np.random.default_rng(0)
  shapes = {
    'fc': {'kernel': (3, 4), 'bias': (4,)},
    'attn': {'bias': (2, 3), 'table': (5, 2)},
    'norm': {'scale': (4,)},
    'last_layer': {'v': (6, 2), 'g': (6, 1)},
  }
  return jax.tree.map(
    lambda shape: rng.standard_normal(shape).astype(np.float32),
    shapes,
    is_leaf=lambda x: isinstance(x, tuple),
  )


DECAYED = {'fc/kernel', 'attn/table', 'last_layer/v', 'last_layer/g'}


def gradients():
  """Some longer, some shorter than the clip."""
  rng = np.random.default_rng(1)
  return [
    jax.tree.map(lambda x: rng.standard_normal(x.shape, np.float32), params())
    for _ in range(STEPS)
  ]


def train(config):
  """All parameters after each step."""
  p = params()
  tx = optim.build(config, p, lr, decay)
  state, path = tx.init(p), []
  update = jax.jit(tx.update)
  for g in gradients():
    updates, state = update(g, state, p)
    p = optax.apply_updates(p, updates)
    path.append(p)
  return path


def by_path(tree):
  return {
    jax.tree_util.keystr(path, simple=True, separator='/'): np.array(x)
    for path, x in jax.tree_util.tree_leaves_with_path(tree)
  }


def assert_follows(path, move, waiting=()):
  """`path` is what `move(name, p, g, state, t, lr, decay)` makes of it."""
  p, states = by_path(params()), {}
  for step, (grads, result) in enumerate(zip(gradients(), path)):
    for name, g in by_path(grads).items():
      if name in waiting and step < WAIT:
        continue
      # Counted by each tensor: the first step it takes is t = 1.
      t, state = states.get(name, (0, np.zeros((2, *g.shape))))
      wd = decay(step) if name in DECAYED else 0
      p[name], state = move(p[name], g, state, t + 1, lr(step), wd)
      states[name] = t + 1, state
    for name, x in by_path(result).items():
      np.testing.assert_allclose(x, p[name], rtol=2e-5, atol=2e-6)


def clipped(g, limit=1.5):
  return g * min(1, limit / (np.linalg.norm(g) + 1e-6))


def adamw(p, g, state, t, lr, wd):
  p = p * (1 - lr * wd)
  m = 0.9 * state[0] + 0.1 * g
  v = 0.99 * state[1] + 0.01 * g**2
  step = (m / (1 - 0.9**t)) / (np.sqrt(v / (1 - 0.99**t)) + 1e-8)
  return p - lr * step, np.stack([m, v])


def nesterov(p, g, state, t, lr, wd):
  g = g + wd * p
  state = 0.9 * state + g[None]
  return p - lr * (g + 0.9 * state[0]), state


def sgd(p, g, state, t, lr, wd):
  state = 0.9 * state + (g + wd * p)[None]
  return p - lr * state[0], state


def lars(p, g, state, t, lr, wd):
  if p.ndim != 1:
    g = g + wd * p
    g = g * 0.001 * np.linalg.norm(p) / np.linalg.norm(g)
  state = 0.9 * state + g[None]
  return p - lr * state[0], state


# --- schedules


@pytest.mark.parametrize(
  'name, schedule',
  [
    ('lr_warm2', schedules.cosine(0.001, 1e-6, 70, 14)),
    ('lr_warm10', schedules.cosine(0.001, 1e-6, 140, 70)),
    ('wd', schedules.cosine(0.04, 0.4, 70)),
    ('momentum', schedules.cosine(0.996, 1, 70)),
    ('teacher_temp_10_3', schedules.teacher_temperature(0.04, 0.07, 3, 1, 10)),
    (
      'teacher_temp_300_30',
      schedules.teacher_temperature(0.04, 0.07, 30, 1, 300),
    ),
    (
      'teacher_temp_default',
      schedules.teacher_temperature(0.04, 0.04, 0, 1, 10),
    ),
  ],
)
def test_published_schedules(name, schedule):
  golden = np.load(GOLDEN)[name]
  values = jax.jit(jax.vmap(schedule))(jnp.arange(len(golden)))
  np.testing.assert_allclose(values, golden, rtol=2e-6, atol=1e-9)
  # The run is over: the last value holds.
  np.testing.assert_allclose(
    schedule(len(golden) + 5), golden[-1], rtol=2e-6, atol=1e-9
  )


@pytest.mark.parametrize(
  'name, schedule',
  [
    ('pre', schedules.cosine(2.4e-3, 0, 400 * 312, 40 * 312, top_twice=False)),
    ('ft', schedules.cosine(4e-3, 1e-6, 300 * 1251, 5 * 1251, top_twice=False)),
    (
      'moco',
      schedules.cosine(6e-4, 0, 400 * 1251, 40 * 1251, 1e-6, top_twice=False),
    ),
  ],
)
def test_schedules_of_mae_lite(name, schedule):
  golden, _ = golden_mae_sit.load('misc')
  values = jax.vmap(schedule)(jnp.asarray(golden[f'its_{name}']))
  np.testing.assert_allclose(values, golden[f'lr_{name}'], rtol=2e-6, atol=1e-9)


def test_temperature_moves_once_an_epoch():
  values = jax.vmap(schedules.teacher_temperature(0.04, 0.07, 3, 5, 10))(
    jnp.arange(20)
  )
  expected = np.repeat([0.04, 0.055, 0.07, 0.07], 5)
  np.testing.assert_allclose(values, expected, rtol=1e-6)


@pytest.mark.parametrize('warmup', [0, 1, 2, 8])
def test_short_warm_ups(warmup):
  values = jax.vmap(schedules.cosine(1.0, 0.0, 8, warmup))(jnp.arange(8))
  rising = np.linspace(0, 1, warmup)
  np.testing.assert_allclose(values[:warmup], rising, atol=1e-7)
  if warmup < 8:
    assert values[warmup] == 1


def test_warm_up_longer_than_the_run_is_refused():
  with pytest.raises(UserError, match='warm-up of 9 steps in a run of 8'):
    schedules.cosine(1.0, 0.0, 8, 9)
  with pytest.raises(UserError, match='30 epochs in a run of 10'):
    schedules.teacher_temperature(0.04, 0.07, 30, 5, 10)


# --- optimisers

ADAMW = {'name': 'adamw', 'b2': 0.99}


def test_adamw_is_torchs():
  assert_follows(train(ADAMW), adamw)


def test_clip_shortens_each_tensor():
  assert_follows(
    train(ADAMW | {'clip': 1.5}),
    lambda p, g, *rest: adamw(p, clipped(g), *rest),
  )


@pytest.mark.parametrize(
  'name, move', [('adamw', adamw), ('sgd', sgd), ('lars', lars)]
)
def test_frozen_tensors_start_late_and_count_from_one(name, move):
  config = {'name': name, 'b2': 0.99, 'frozen': {'last_layer': WAIT}}
  assert_follows(train(config), move, ('last_layer/v', 'last_layer/g'))


@pytest.mark.parametrize('name, move', [('sgd', sgd), ('lars', lars)])
def test_sgd_and_lars(name, move):
  assert_follows(train({'name': name}), move)


def test_nesterov_is_torchs():
  assert_follows(train({'name': 'sgd', 'nesterov': True}), nesterov)


def test_vectors_decay_if_asked_and_named_paths_never():
  config = {'name': 'sgd', 'momentum': 0.0, 'decay_vectors': True}
  path = train(config | {'no_decay': 'table,^norm'})
  for name, x in by_path(path[0]).items():
    g, start = (by_path(tree)[name] for tree in (gradients()[0], params()))
    wd = 0 if name in ('attn/table', 'norm/scale') else decay(0)
    np.testing.assert_allclose(
      x, start - lr(0) * (g + wd * start), rtol=1e-5, atol=1e-6
    )


def test_lars_moves_a_tensor_of_zeros():
  p = {'w': np.zeros((2, 2), np.float32)}
  tx = optim.build({'name': 'lars'}, p, lr, decay)
  g = {'w': np.ones((2, 2), np.float32)}
  updates, _ = tx.update(g, tx.init(p), p)
  np.testing.assert_allclose(updates['w'], -lr(0) * g['w'])


def test_first_pattern_counts_and_none_freezes_for_ever():
  freeze = {'last_layer/g': None, 'last_layer': WAIT}
  path = [by_path(p) for p in train(ADAMW | {'frozen': freeze})]
  start = by_path(params())
  for step, p in enumerate(path):
    np.testing.assert_array_equal(p['last_layer/g'], start['last_layer/g'])
    still = np.array_equal(p['last_layer/v'], start['last_layer/v'])
    assert still == (step < WAIT)


def test_scale_multiplies_moves_and_decay():
  plain, scaled = (
    by_path(train(ADAMW | {'scale': scale})[0])
    for scale in ({}, {'^fc': 0.25, 'norm': 0.0})
  )
  for name, start in by_path(params()).items():
    factor = 0.25 if name.startswith('fc') else 0.0 if 'norm' in name else 1.0
    np.testing.assert_allclose(
      scaled[name] - start, factor * (plain[name] - start), atol=1e-6
    )


@pytest.mark.parametrize('mode', ['tensor', 'global'])
def test_clip_laws(mode):
  g = {'a': np.full((4,), 3.0, np.float32), 'b': np.full((1,), 0.5, np.float32)}
  tx = optim.build(
    {'name': 'sgd', 'momentum': 0.0, 'clip': 3.0, 'clip_mode': mode},
    g,
    lambda step: 1.0,
    lambda step: 0.0,
  )
  updates, _ = tx.update(g, tx.init(g), g)
  if mode == 'tensor':  # each at most 3 long, short ones untouched
    np.testing.assert_allclose(-updates['a'], 1.5, rtol=1e-6)
    np.testing.assert_allclose(-updates['b'], 0.5)
  else:  # 3 long together, in the same direction
    np.testing.assert_allclose(optax.tree.norm(updates), 3.0, rtol=1e-6)
    np.testing.assert_allclose(updates['a'][0] / updates['b'][0], 6.0)


def test_state_survives_a_checkpoint(tmp_path):
  p = params()
  freeze = {'last_layer/g': None, 'last_layer': WAIT}
  tx = optim.build(ADAMW | {'frozen': freeze, 'clip': 1.0}, p, lr, decay)
  state = tx.init(p)
  for g in gradients()[:3]:
    _, state = tx.update(g, state, p)
  with ocp.StandardCheckpointer() as checkpointer:
    checkpointer.save(tmp_path / 'state', state)
    checkpointer.wait_until_finished()
    like = jax.tree.map(ocp.utils.to_shape_dtype_struct, state)
    restored = checkpointer.restore(tmp_path / 'state', like)
  for x, y in zip(*map(jax.tree.leaves, (state, restored)), strict=True):
    np.testing.assert_array_equal(x, y)
  expected, _ = tx.update(gradients()[3], state, p)
  updates, _ = tx.update(gradients()[3], restored, p)
  jax.tree.map(np.testing.assert_array_equal, updates, expected)


@pytest.mark.parametrize(
  'config, message',
  [
    ({'nmae': 'sgd'}, "no field 'nmae'.*did you mean 'name'"),
    ({'name': 'adam'}, "no name 'adam'.*did you mean 'adamw'"),
    ({'clip_mode': 'tensors'}, "did you mean 'tensor'"),
    ({'frozen': {'lastlayer': 3}}, "optim.frozen: .*'lastlayer'"),
    ({'scale': {'head': 0.1}}, "optim.scale: .*'head'"),
  ],
)
def test_mistakes_are_named(config, message):
  with pytest.raises(UserError, match=message):
    optim.build(config, params(), lr, decay)


def test_summary_counts_every_scalar():
  freeze = {'last_layer/g': None, 'last_layer': WAIT}
  assert optim.summary({'frozen': freeze}, params()) == {
    'decayed': 12 + 10 + 12,
    'undecayed': 4 + 6 + 4,
    'waiting': 12,
    'frozen': 6,
  }


# --- a run's config


def run_config(**init):
  config = esvit_recipe.recipe()
  config.batch_size, config.head.norm_last_layer = 512, True
  config.optim.clip = None
  config.init.update(init)
  return config


def test_a_run_follows_its_config():
  p, horizon = params(), SimpleNamespace(steps=100, steps_per_epoch=5)
  tx, schedules = optim.from_config(run_config(), horizon, p)
  lr = schedules['lr']
  assert lr(0) == 0
  np.testing.assert_allclose(lr(49), 5e-4 * 512 / 256, rtol=1e-6)
  state, start = tx.init(p), p
  for step in range(7):
    updates, state = tx.update(jax.tree.map(np.ones_like, p), state, p)
    p = optax.apply_updates(p, updates)
    moved = {
      name for name, x in by_path(updates).items() if np.abs(x).max() > 0
    }
    # The learning rate starts from 0, the last layer after an epoch.
    assert ('fc/kernel' in moved) == (step > 0)
    assert ('last_layer/v' in moved) == (step >= 5)
  np.testing.assert_array_equal(p['last_layer']['g'], start['last_layer']['g'])


def test_a_continued_run_goes_on_in_the_schedules():
  p, horizon = params(), SimpleNamespace(steps=100, steps_per_epoch=5)
  tx, schedules = optim.from_config(run_config(epoch=12), horizon, p)
  g = jax.tree.map(np.ones_like, p)
  updates, _ = tx.update(g, tx.init(p), p)
  # Adam's first step is the sign of the gradient; nothing waits any more.
  np.testing.assert_allclose(
    updates['norm']['scale'], -schedules['lr'](60), rtol=1e-5
  )
  assert np.all(updates['last_layer']['v'] < 0)


# --- layer-wise decay


def shapes(c, classes=1000):
  """Parameters of a classifier, as shapes."""
  network = Classifier(models.build(c), classes, 'gap')
  image = jnp.zeros((1, 224, 224, 3))
  return jax.eval_shape(network.init, jax.random.key(0), image)['params']


def ours(key):
  """Our path of a published key of a ViT classifier."""
  for row in layouts.LAYOUTS['vit_classifier']:
    pattern = re.escape(row.published).replace(r'\{i\}', r'(\d+)')
    if found := re.fullmatch(pattern, key):
      path = row.ours.removeprefix('params/')
      return path.replace('{i}', *found.groups()) if found.groups() else path
  raise KeyError(key)


@pytest.mark.parametrize(
  'golden, fields',
  [
    ('vit_tiny_patch16', {}),
    (
      'vit_tiny_patch16_rpe2023',
      {'rel_pos': True, 'layer_scale': 0.1, 'qkv_bias': 'qv'},
    ),
  ],
)
def test_layer_groups_of_mae_lite(golden, fields):
  """Without a gradient the step is -lr scale decay p."""
  model = {'name': 'vit_tiny', 'heads': 12, 'final_norm': False}
  p = jax.tree.map(lambda x: np.ones(x.shape), shapes(model | fields))
  c = finetune.get_config('impr')
  horizon = SimpleNamespace(steps=10, steps_per_epoch=1)
  layer_ids = models.build(model).layer_ids
  tx, of_step = optim.from_config(c, horizon, p, layer_ids)
  step = 7
  state = optax.tree.set(tx.init(p), count=jnp.int32(step))
  updates, _ = tx.update(jax.tree.map(np.zeros_like, p), state, p)
  found = by_path(updates)
  groups = golden_mae_sit.manifest()['misc']['layer_groups'][golden]
  assert {ours(key) for key, *_ in groups} == found.keys()
  for key, _, scale, weight_decay in groups:
    expected = -of_step['lr'](step) * scale * weight_decay
    np.testing.assert_allclose(found[ours(key)], expected, rtol=1e-5)


def layers(c):
  """Module of the backbone -> its distance from the top."""
  found = {}
  scales = optim.layer_scales(shapes(c), models.build(c).layer_ids, 0.5)
  for name, scale in by_path(scales).items():
    module = name.removeprefix('backbone/').split('/')[0]
    depth = round(np.log(scale) / np.log(0.5))
    assert found.setdefault(module, depth) == depth
  assert [found.pop(name) for name in ('norm', 'fc_norm', 'head')] == [0, 0, 0]
  return found


def test_layers_of_a_multi_stage_backbone():
  """One id for each block; what merges goes with the block after it."""
  swin = {'name': 'swin', 'dims': (8, 16), 'depths': (2, 1), 'heads': (1, 1)}
  assert layers(swin) == {
    'patch_embed': 4,
    'patch_norm': 4,
    'stage0_block0': 3,
    'stage0_block1': 2,
    'merge0': 1,
    'stage1_block0': 1,
  }


def test_layers_of_vil():
  """An attention and an MLP are a block."""
  blocks = [(i + 1, j) for i, n in enumerate((2, 2, 6, 2)) for j in range(n)]
  expected = {'layer1_0': len(blocks) + 1}
  for depth, (stage, j) in zip(range(len(blocks), 0, -1), blocks):
    parts = (2 * j + 1, 2 * j + 2) if j or stage == 1 else (0, 1, 2)
    expected |= {f'layer{stage}_{part}': depth for part in parts}
  assert layers({'name': 'vil_2262'}) == expected


def test_layer_decay_joins_other_factors():
  w = {'w': np.ones(2)}
  p = {'backbone': {'block0': w}, 'head': w}
  tx = optim.build(
    {
      'name': 'sgd',
      'momentum': 0.0,
      'layer_decay': 0.5,
      'scale': {'head': 3.0},
    },
    p,
    lambda step: 1.0,
    lambda step: 0.0,
    {'block0': 1},
  )
  updates, _ = tx.update(p, tx.init(p), p)
  np.testing.assert_allclose(updates['backbone']['block0']['w'], -0.5)
  np.testing.assert_allclose(updates['head']['w'], -3.0)
