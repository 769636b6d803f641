"""EsViT against the published one, and its laws."""

import functools
import unittest.mock

import golden_weights
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from runs import keep_gradients

from configs import common
from configs import esvit as esvit_recipe
from esvit_jax import augment, optim
from esvit_jax import state as state_lib
from esvit_jax.errors import UserError
from esvit_jax.losses import prototypes, tiles
from esvit_jax.methods import esvit
from esvit_jax.weights import tables

KEY = jax.random.key(0)
# Part of our network -> prefix of its published keys, its conversion table.
PARTS = {
  'backbone': ('', 'swin'),
  'head': ('head.', 'dino_head'),
  'head_dense': ('head_dense.', 'dino_head'),
}


# The published network


def published_config():
  c = esvit_recipe.recipe()
  c.views.locals.count = 4
  c.model.name = 'swin'
  c.model.dims, c.model.depths = (24, 48, 96, 192), (2, 2, 2, 2)
  c.model.heads = (1, 2, 4, 8)
  c.model.drop_path, c.model.dtype = 0.0, 'float32'
  c.head.out_dim = 512
  return c


def to_published(params) -> dict[str, np.ndarray]:
  """Parameters, or anything like them, by their published names."""
  return {
    prefix + key: value
    for part, (prefix, arch) in PARTS.items()
    for key, value in tables.to_published(
      {'params': params[part]}, arch
    ).items()
  }


def published_params(method, prefix: str = '') -> dict:
  """Parameters by the goldens' fill rule."""
  shapes, _, _ = jax.eval_shape(method.init, KEY)
  zeros = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), shapes)
  filled = golden_weights.weights(
    {k: (v.shape, v.dtype.name) for k, v in to_published(zeros).items()},
    prefix,
  )
  params = {}
  for part, (start, arch) in PARTS.items():
    like = {'params': zeros[part]}
    own = {start + k: k for k in tables.to_published(like, arch)}
    state_dict = {k: filled[name] for name, k in own.items()}
    params |= {part: tables.from_published(state_dict, arch, like)['params']}
  return params


def published_views(name: str) -> dict:
  crops = [
    golden_weights.images(f'{name}_crop{i}', (2, 3, side, side))
    for i, side in enumerate([224] * 2 + [96] * 4)
  ]
  return {
    'globals': np.concatenate(crops[:2], 1),
    'locals': np.concatenate(crops[2:], 1),
  }


def norms(params, names) -> np.ndarray:
  by_name = to_published(params)
  return np.array(
    [np.linalg.norm(by_name[n].astype(np.float64)) for n in names]
  )


def fresh(method, tx, params, teacher):
  """The state before the first step, with these parameters."""
  _, _, extra = jax.eval_shape(method.init, KEY)
  extra = jax.tree.map(lambda x: jnp.zeros(x.shape), extra)
  return state_lib.TrainState(
    jnp.int32(0), params, teacher, extra, jax.jit(tx.init)(params)
  )


def rows(x, regions_per_view) -> np.ndarray:
  """[B, T, ...] as published: crop by crop, then image, then region."""
  views = np.split(np.asarray(x), np.cumsum(regions_per_view)[:-1], 1)
  return np.concatenate([v.reshape(-1, v.shape[-1]) for v in views])


def with_outputs(function):
  """`function`, whose losses also tell what both networks said for them.

  Their metrics get 'outputs', those of the student and of the teacher.
  """
  objective = esvit.objective

  def tell(s, t, *args):
    loss = objective(s, t, *args)
    return loss._replace(metrics=loss.metrics | {'outputs': (s, t)})

  return unittest.mock.patch.object(esvit, 'objective', tell)(function)


def make_step(method, tx, momentum):
  """The shared step, jitted, for batches of ready-made views."""
  method = method._replace(
    views=lambda batch, keys: batch['views'], momentum=momentum
  )
  step = jax.jit(with_outputs(state_lib.make_train_step(method, tx)))

  def call(state, views):
    batch = {'image': views['globals'], 'views': views}
    state, metrics = step(state, batch, KEY)
    return state, metrics, metrics.pop('outputs')

  return call


# Of the step golden; the loss golden is taken from the same compiled step.
EPOCH = 7  # steps


@functools.cache
def published():
  """A method of 300 epochs, its optimiser and its step."""
  _, entry = golden_weights.load('step_swin_small24_w7_nll_true')
  horizon = state_lib.Horizon(300 * EPOCH, EPOCH)
  method = esvit.build(published_config(), state_lib.Run(horizon))
  momentum = np.zeros(2 * EPOCH, np.float32)
  momentum[[i for _, i in entry['plan_epoch_globaliter']]] = entry['ema_m']
  shapes, _, _ = jax.eval_shape(method.init, KEY)
  tx = optax.chain(
    keep_gradients(),
    optim.build(
      {
        'clip': entry['clip'],
        # Lengths have gradients, for the loss golden, and never move.
        'frozen': {'last_layer/g$': None, 'last_layer': 1},
      },
      shapes,
      lambda count: jnp.asarray(entry['lr'])[count],
      lambda count: jnp.asarray(entry['wd'])[count],
    ),
  )
  step = make_step(method, tx, lambda step: jnp.asarray(momentum)[step])
  return method, tx, step


@functools.cache
def published_epochs():
  """State after a step, loss and outputs in the epochs 0 and 40."""
  method, tx, step = published()
  state = fresh(
    method, tx, published_params(method), published_params(method, 'teacher:')
  )
  views, found = published_views('mc5'), []
  for epoch in (0, 40):
    state = state._replace(step=jnp.int32(EPOCH * epoch))
    after, metrics, outputs = step(state, views)
    state = state._replace(extra=after.extra)
    found.append((after, metrics['loss'], outputs))
  return found


def test_published_outputs():
  golden, _ = golden_weights.load('loss_swin_small24_w7')
  _, _, (s, t) = published_epochs()[0]
  assert s.regions_per_view == (49, 49, 9, 9, 9, 9)
  found = {}
  for network, x in (('student', s), ('teacher', t)):
    cls, region = (y.tokens @ y.prototypes.T for y in (x.view, x.region))
    found |= {
      f'{network}_cls': rows(cls, [1] * cls.shape[1]),
      f'{network}_region': rows(region, x.regions_per_view),
      f'{network}_fea': rows(x.grid, x.regions_per_view),
    }
  weights = prototypes.pair_weights(s.regions_per_view)
  _, best = prototypes.matching(s.grid, t.grid, weights, t.regions_per_view)
  best = np.split(best, np.cumsum(s.regions_per_view)[:-1], 1)
  pairs = [(q, v) for q in range(2) for v in range(6) if q != v]
  found |= {f'match_t{q}_s{v}': best[v][..., q] for q, v in pairs}
  assert len(found) == 16
  for key, value in found.items():
    assert golden_weights.error(value, golden[key]) < 2e-5, key


def test_published_view_loss():
  golden, _ = golden_weights.load('loss_swin_small24_w7')
  config = published_config()
  config.loss.region_weight = 0.0
  _, _, (s, t) = published_epochs()[0]
  extra = {'center': jnp.zeros(512)}
  for name, temp in (('epoch0_center0', 0.04), ('epoch40_center1', 0.07)):
    value, extra, _ = esvit.objective(s, t, extra, temp, config)
    assert abs(value - golden[f'dino_loss_{name}']) < 5e-6
  center = extra['center'][None]
  assert golden_weights.error(center, golden['dino_center_after2']) < 1e-6


def test_published_loss_and_gradients():
  golden, entry = golden_weights.load('loss_swin_small24_w7')
  names = ('epoch0_center0', 'epoch40_center1')
  for n, (after, loss, _) in enumerate(published_epochs()):
    assert abs(loss - golden[f'ddino_loss_{names[n]}']) < 5e-6
    for name in ('center', 'center_grid'):
      expected = golden[f'{name}_after{n + 1}']
      assert golden_weights.error(after.extra[name][None], expected) < 1e-6
    kind, epoch = (('_all', 0), ('', 40))[n]
    np.testing.assert_allclose(
      norms(after.opt_state[0], entry[f'gradnorm{kind}_names']),
      golden[f'gradnorm{kind}_epoch{epoch}'],
      rtol=1e-5,
    )


def test_published_steps():
  golden, entry = golden_weights.load('step_swin_small24_w7_nll_true')
  noise = entry['noise_f32_vs_f64']
  names = golden_weights.load('loss_swin_small24_w7')[1]['gradnorm_all_names']
  trained = [n for n in names if not n.endswith('weight_g')]
  method, tx, step = published()
  params = published_params(method)
  for head in ('head', 'head_dense'):
    params[head]['last_layer']['g'] = np.ones((512, 1), np.float32)
  state = fresh(method, tx, params, params)

  for n, (epoch, iteration) in enumerate(entry['plan_epoch_globaliter']):
    assert iteration // EPOCH == epoch
    state = state._replace(step=jnp.int32(iteration))
    views = published_views(('step0c', 'step1b', 'step2a')[n])
    state, metrics, _ = step(state, views)
    assert abs(metrics['loss'] - entry['loss'][n]) < 5e-6
    found = {
      'gradnorm_preclip': norms(state.opt_state[0], trained),
      'student_norm': norms(state.params, names),
      'teacher_norm': norms(state.teacher, names),
      'center': state.extra['center'][None],
      'center_grid': state.extra['center_grid'][None],
    }
    found |= {f'student:{k}': v for k, v in to_published(state.params).items()}
    found |= {f'teacher:{k}': v for k, v in to_published(state.teacher).items()}
    stored = [k for k in golden if k.startswith(f'step{n}_')]
    assert len(stored) == 13
    for key in stored:
      # Tensors are near 1 or smaller. The teacher has moved by 1e-6 after one
      # step and by 1e-5 after three.
      np.testing.assert_allclose(
        found[key.removeprefix(f'step{n}_')],
        golden[key],
        rtol=3e-6 if key.endswith(('_norm', '_preclip')) else 0,
        atol=max(3 * noise[key], 3e-7),
        err_msg=key,
      )


# Laws, on a tiny network


def tiny(locals_=(('locals', 16, 2),), **changes):
  """Two global views of 28 px, and (name, size, count) of others."""
  c = esvit_recipe.debug(esvit_recipe.recipe())
  del c.views.locals
  for name, size, count in locals_:
    c.views[name] = common.view(size, count, (0.1, 0.4))
  c.model.dims, c.model.depths, c.model.heads = (16,), (1,), (2,)
  c.model.drop_path = 0.0
  c.loss.form = 'plain'
  c.update(changes)
  return c


def start(config, images=4):
  """A method, a state that is nowhere zero, and views."""
  method = esvit.build(config, state_lib.Run(state_lib.Horizon(10, 5)))
  shapes, _, extra = jax.eval_shape(method.init, KEY)
  student, teacher = (
    golden_weights.random_variables(shapes, seed) for seed in (0, 1)
  )
  for params in (student, teacher):
    for name in params.keys() - {'backbone'}:
      g = params[name]['last_layer']['g']
      params[name]['last_layer']['g'] = 1 + abs(g)
  # Views that differ little, or matching has nothing to find.
  views = {
    name: 1
    + golden_weights.normal(name, (images, 1, *size, 1))
    + 0.3
    * golden_weights.normal(f'{name} each', (images, group.count, *size, 1))
    for name, group in config.views.items()
    for size in [augment.view_size(group.size)]
  }
  state = state_lib.TrainState(
    jnp.int32(0),
    student,
    teacher,
    golden_weights.random_variables(extra, 2),
    (),
  )
  return method, state, views


def softmax(x):
  x = np.exp(x - x.max(-1, keepdims=True))
  return x / x.sum(-1, keepdims=True)


def formula(s, t, extra, temp_s, temp_t):
  """Both losses, pair by pair and image by image (arXiv 2106.09785, 3.2).

  Returns:
    view loss, region loss, share of distinct regions that a global view's
    regions pick in the other.
  """
  s, t, extra = jax.tree.map(np.float64, (s, t, extra))
  edges = [np.cumsum(x.regions_per_view)[:-1] for x in (s, t)]
  (grid_s, region_s), (grid_t, region_t) = (
    [np.split(y, at, 1) for y in (x.grid, x.region.tokens)]
    for x, at in zip((s, t), edges)
  )
  B, V = s.view.tokens.shape[:2]
  view = region = distinct = pairs = 0
  for q in range(2):
    for v in range(V):
      if v == q:
        continue
      pairs += 1
      for b in range(B):
        target = t.view.prototypes @ t.view.tokens[b, q] - extra['center']
        answer = s.view.prototypes @ s.view.tokens[b, v] / temp_s
        view -= softmax(target / temp_t) @ np.log(softmax(answer)) / B
        chosen = []
        for i, feature in enumerate(grid_s[v][b]):
          lengths = np.linalg.norm(grid_t[q][b], axis=-1)
          j = np.argmax(grid_t[q][b] @ feature / lengths)
          chosen.append(j)
          target = t.region.prototypes @ region_t[q][b, j]
          target = softmax((target - extra['center_grid']) / temp_t)
          answer = s.region.prototypes @ region_s[v][b, i] / temp_s
          region -= target @ np.log(softmax(answer)) / B / len(grid_s[v][b])
        if v < 2:
          distinct += len(set(chosen)) / len(chosen) / B / 2
  return view / pairs, region / pairs, distinct


@pytest.mark.parametrize(
  ('locals_', 'regions'),
  [
    ((), (49, 49)),
    # Globals come first, whatever the names of the others.
    ((('locals', 16, 2), ('extra', (20, 28), 1)), (49, 49, 35, 16, 16)),
  ],
  ids=['no locals', 'two sizes of locals'],
)
def test_loss_is_the_formula(locals_, regions):
  config = tiny(locals_, loss={'region_weight': 0.25})
  method, state, views = start(config)

  @jax.jit
  @with_outputs
  def run(state, views):
    return (
      method.loss(state.params, state, views, KEY),
      method.features(state.params, {}, views['globals'][:, 1]),
    )

  loss, features = run(state, views)
  s, t = loss.metrics['outputs']
  assert s.regions_per_view == regions
  temps = config.loss.student_temp, config.loss.teacher_temp
  view, region, distinct = formula(s, t, state.extra, *temps)
  found = loss.metrics
  assert found['view_loss'] == pytest.approx(view, abs=1e-5)
  assert found['region_loss'] == pytest.approx(region, abs=1e-5)
  assert loss.value == pytest.approx(0.75 * view + 0.25 * region, abs=1e-5)
  assert found['distinct_matches'] == pytest.approx(distinct, abs=1e-6)
  assert 0.1 < distinct < 1
  for name, x in (('center', t.view), ('center_grid', t.region)):
    mean = (x.tokens @ x.prototypes.T).mean((0, 1))
    expected = 0.9 * state.extra[name] + 0.1 * mean
    np.testing.assert_allclose(loss.extra[name], expected, atol=1e-6)
  # What evaluations see of an image is what the loss sees of a view.
  np.testing.assert_allclose(features.view, s.pooled[:, 1], atol=1e-5)


@functools.cache
def gradients(dtype: str = 'float32'):
  """A run's config and state; its loss, and gradients by all there is."""
  config = tiny(model={'dtype': dtype})
  method, state, views = start(config)

  def value(params, teacher, extra, views):
    weights = state._replace(teacher=teacher, extra=extra)
    loss = method.loss(params, weights, views, KEY)
    return loss.value, loss

  grad = jax.jit(with_outputs(jax.grad(value, (0, 1, 2), has_aux=True)))
  grads, loss = grad(state.params, state.teacher, state.extra, views)
  return config, state, loss, grads


def test_teacher_and_centers_have_no_gradient():
  _, _, _, (student, *others) = gradients()
  assert all(np.any(g) for g in jax.tree.leaves(student))
  teacher, extra = others
  assert extra.keys() == {'student', 'teacher', 'center', 'center_grid'}
  assert teacher.keys() == student.keys()
  assert not any(np.any(g) for g in jax.tree.leaves(others))


@pytest.mark.parametrize(('form', 'chunk'), [('images', 3), ('prototypes', 24)])
def test_forms_are_equal(form, chunk, monkeypatch):
  monkeypatch.setattr(tiles, 'default_chunk', lambda *_: chunk)
  config, state, loss, _ = gradients()
  s, t = loss.metrics['outputs']

  def objective(s, form):
    c = config.copy_and_resolve_references()
    c.loss.form = form
    return esvit.objective(s, t, state.extra, 0.05, c)[0]

  value_and_grad = jax.jit(jax.value_and_grad(objective), static_argnums=1)
  value, grads = value_and_grad(s, form)
  expected, expected_grads = value_and_grad(s, 'plain')
  assert value == pytest.approx(float(expected), abs=1e-5)
  for a, b in zip(*map(jax.tree.leaves, (grads, expected_grads))):
    np.testing.assert_allclose(a, b, atol=1e-6)


def test_signs_of_collapse_are_what_they_say():
  config, state, loss, _ = gradients()
  _, t = loss.metrics['outputs']
  logits = (
    t.view.tokens @ t.view.prototypes.T - state.extra['center'][None, None]
  )
  p = softmax(np.float64(logits) / config.loss.teacher_temp)
  mean = p.mean((0, 1))
  x = t.pooled / jnp.linalg.norm(t.pooled, axis=-1, keepdims=True)
  expected = {
    'teacher_entropy': -(p * np.log(p)).sum(-1).mean(),
    'teacher_kl_uniform': (mean * np.log(mean * len(mean))).sum(),
    'feature_spread': np.sqrt(x.reshape(-1, x.shape[-1]).var(0).sum()),
    'teacher_temp': config.loss.teacher_temp,
  }
  for name, value in expected.items():
    assert loss.metrics[name] == pytest.approx(value, abs=1e-5), name


def test_without_regions_it_is_dino():
  _, _, whole, _ = gradients()
  method, state, views = start(tiny(loss={'region_weight': 0.0}))
  loss = jax.jit(method.loss)(state.params, state, views, KEY)
  assert state.params.keys() == state.teacher.keys() == {'backbone', 'head'}
  assert loss.extra.keys() == {'student', 'teacher', 'center'}
  assert 'region_loss' not in loss.metrics
  np.testing.assert_allclose(loss.value, whole.metrics['view_loss'], atol=1e-5)
  np.testing.assert_allclose(
    loss.extra['center'], whole.extra['center'], atol=1e-6
  )


def test_bfloat16_is_near():
  _, _, whole, (expected, _, _) = gradients()
  _, _, loss, (grads, _, _) = gradients('bfloat16')
  for name in ('view_loss', 'region_loss'):
    a, b = loss.metrics[name], whole.metrics[name]
    assert a != b and abs(a - b) < 0.02 * b, name
  a, b = (
    np.concatenate([np.ravel(x) for x in jax.tree.leaves(tree)])
    for tree in (grads, expected)
  )
  assert a.dtype == np.float32
  assert np.linalg.norm(a - b) < 0.05 * np.linalg.norm(b)


def test_batch_statistics_are_their_networks_own():
  """The teacher's come from its own forwards, not from the student's."""
  config = tiny(head={'use_bn': True})
  method, state, views = start(config)
  tx = optax.sgd(0.1)
  state = fresh(method, tx, state.params, state.teacher)
  step = make_step(method, tx, lambda step: jnp.where(step < 1, 0, 1.0))

  copied, _, _ = step(state, views)
  for a, b in zip(*map(jax.tree.leaves, (copied.teacher, copied.params))):
    np.testing.assert_array_equal(a, b)
  kept, _, _ = step(state._replace(step=jnp.int32(1)), views)
  for a, b in zip(*map(jax.tree.leaves, (kept.teacher, state.teacher))):
    np.testing.assert_array_equal(a, b)
  for a, b in zip(*map(jax.tree.leaves, (kept.extra, copied.extra))):
    np.testing.assert_array_equal(a, b)

  changed, _, _ = step(state, views | {'locals': 2 * views['locals']})
  for who, same in (('teacher', True), ('student', False)):
    for head in ('head', 'head_dense'):
      before, after = (
        x.extra[who][head]['norm0']['mean'] for x in (copied, changed)
      )
      assert np.any(before) and np.array_equal(before, after) == same

  # Each goes on from where its own were.
  for who in ('student', 'teacher'):
    extra = {**state.extra, who: jax.tree.map(jnp.ones_like, copied.extra[who])}
    moved, _, _ = step(state._replace(extra=extra), views)
    for other in ('student', 'teacher'):
      shift = 0.9 if other == who else 0.0
      for a, b in zip(
        *(jax.tree.leaves(x.extra[other]) for x in (moved, copied))
      ):
        np.testing.assert_allclose(a - b, shift, atol=1e-6)


def test_vit_learns_from_regions():
  config = tiny()
  config.model = {
    'name': 'vit',
    'dim': 32,
    'depth': 1,
    'heads': 2,
    'patch': 4,
    'image_size': 28,
    'drop_path': 0.0,
    'dtype': 'float32',
  }
  method, state, views = start(config)
  tx = optax.chain(keep_gradients(), optax.adam(1e-3))
  state = state._replace(opt_state=jax.jit(tx.init)(state.params))
  step = make_step(method, tx, lambda step: 0.996)
  found = []
  for _ in range(5):
    state, metrics, _ = step(state, views)
    found.append(float(metrics['region_loss']))
    assert all(np.any(g) for g in jax.tree.leaves(state.opt_state[0]))
  assert found[-1] < found[0] - 0.5


def test_teacher_wants_two_views():
  for name, count in (('others', 2), ('globals', 3)):
    config = tiny()
    config.views = {name: common.view(28, count, (0.4, 1.0))}
    with pytest.raises(UserError, match=r'views\.globals has [03] views'):
      esvit.build(config, state_lib.Run(state_lib.Horizon(10, 5)))
