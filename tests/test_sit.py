"""SiT against the published one, and its laws."""

import functools
import zlib

import contrast_runs
import golden_mae_sit
import golden_weights
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from esvit_jax import models, optim, schedules, sharding, state
from esvit_jax.augment import group_masking as gmml
from esvit_jax.errors import UserError
from esvit_jax.losses import contrastive
from esvit_jax.methods import method as shared
from esvit_jax.methods import sit
from esvit_jax.models import projector
from esvit_jax.weights import tables

KEY = contrast_runs.KEY
CLOSE = {'rtol': 1e-4, 'atol': 1e-5}
LR, DECAY, CLIP, MOMENTUM = 5e-4, 0.04, 3.0, 0.996
# Batch norm takes away what these add.
CANCELLED = {f'head.mlp.{k}.bias' for k in (0, 3, 6)}


def golden_views() -> tuple[np.ndarray, ...]:
  """Clean and corrupted views of the golden, and its masks."""
  masks = np.zeros((4, 2, 224, 224), bool)
  for v in range(2):
    seed = zlib.crc32(f'input:sit_boxes{v}'.encode())
    rng = np.random.Generator(np.random.PCG64(seed))
    for mask in masks[:, v]:
      while mask.sum() < 0.5 * mask.size:
        r, c = rng.integers(0, 223), rng.integers(0, 223)
        h = min(rng.integers(1, 67), 224 - r)
        w = min(rng.integers(1, 67), 224 - c)
        mask[r : r + h, c : c + w] = True
  clean, alien = (
    np.stack([contrast_runs.image(f'sit_{what}{v}') for v in range(2)], 1)
    for what in ('clean', 'alien')
  )
  return clean, np.where(masks[..., None], alien, clean), masks


@functools.cache
def published():
  """Golden, entry, masks, student and teacher, and their objective."""
  golden, entry = golden_mae_sit.load('sit')
  c = contrast_runs.published_sit()
  method = contrast_runs.build(c)
  network = sit._network(c, c.model, (224, 224))
  student, teacher = (
    contrast_runs.load(
      method, 'sit', contrast_runs.filled(entry, tables=f'{name}.')
    )
    for name in ('student', 'teacher')
  )
  clean, corrupted, masks = golden_views()

  def objective(params, teacher, stats):
    t, _ = shared.forward(
      network, teacher, stats, clean, KEY, reconstruct=False
    )
    s, stats = shared.forward(network, params, stats, corrupted, KEY)
    value, metrics = sit.objective(s, t, clean, masks, c)
    return value, (s, t, stats, metrics)

  return golden, entry, masks, (student, teacher), objective


@functools.cache
def published_losses():
  """Loss, outputs of student and teacher, statistics and metrics."""
  *_, (student, teacher), objective = published()
  value, outputs = jax.jit(objective)(
    student['params'], teacher['params'], student['batch_stats']
  )
  return value, *outputs


@functools.cache
def published_step():
  """Gradients, as they are and clipped; a step, and the average after it."""
  *_, (student, teacher), objective = published()
  decay = optim.build(
    {'clip': CLIP},
    student['params'],
    lambda step: LR,
    lambda step: DECAY,
  )

  @jax.jit
  def run(params, teacher, stats):
    grads, _ = jax.grad(objective, has_aux=True)(params, teacher, stats)
    clipped, _ = optim._clip(CLIP, 'tensor').update(grads, optax.EmptyState())
    change, _ = decay.update(grads, decay.init(params), params)
    moved = optax.apply_updates(params, change)
    return grads, clipped, change, state.ema(teacher, moved, MOMENTUM)

  return run(student['params'], teacher['params'], student['batch_stats'])


def theirs(tree) -> dict:
  return tables.to_published({'params': tree}, 'sit')


def by_view(x) -> np.ndarray:
  """[B, V, ...] -> [V B, ...], as published."""
  return np.asarray(x).swapaxes(0, 1).reshape(-1, *x.shape[2:])


def test_published_outputs():
  golden, _, masks, *_ = published()
  _, s, t, *_ = published_losses()
  rows = masks.sum(-1).swapaxes(0, 1)
  np.testing.assert_array_equal(rows, golden['mask_rowsum'])
  # Batch norm over 8 rows: in float64 one finds that the golden's own float32
  # is 1.5e-5 off, and ours too.
  close = {'rtol': 1e-4, 'atol': 2e-5}
  np.testing.assert_allclose(by_view(s.projected), golden['s_cls'], **close)
  np.testing.assert_allclose(by_view(t.projected), golden['t_cls'], **close)
  painted = by_view(s.reconstruction).transpose(0, 3, 1, 2)
  told = golden['recon_every8']
  np.testing.assert_allclose(painted[:, :, ::8, ::8], told, **CLOSE)


def test_published_losses():
  golden, *_ = published()
  value, *_, metrics = published_losses()
  for ours, name in (
    (metrics['contrast_loss'], 'c_loss'),
    (metrics['reconstruction_loss'], 'r_loss'),
    (value, 'loss'),
  ):
    np.testing.assert_allclose(ours, golden[name], rtol=1e-5)


@pytest.mark.slow
def test_published_gradients_and_clipping():
  golden, entry, *_ = published()
  grads, clipped, *_ = published_step()
  names, found = entry['grad_names'], theirs(clipped)
  contrast_runs.check_gradients(golden, names, theirs(grads), CANCELLED)
  assert set(theirs(grads)) == set(names)
  for name, norm in zip(names, golden['grad_norm_clipped'], strict=True):
    if name not in CANCELLED:
      length = contrast_runs.length(found[name])
      # PyTorch's norm of 16 M numbers in float32 is 0.12 % short.
      np.testing.assert_allclose(length, norm, rtol=1.5e-3, err_msg=name)


@pytest.mark.slow
def test_published_step_and_average():
  golden, entry, *_ = published()
  *_, change, average = published_step()
  moved, average = theirs(change), theirs(average)
  for name, delta, length in zip(
    entry['grad_names'],
    golden['delta_norm'],
    golden['teacher_ema_norm'],
    strict=True,
  ):
    found = contrast_runs.length(average[name])
    np.testing.assert_allclose(found, length, rtol=1e-5, err_msg=name)
    # Where there is no gradient but rounding, Adam's first step is its sign.
    if name not in CANCELLED and not name.endswith('qkv.bias'):
      found = contrast_runs.length(moved[name])
      np.testing.assert_allclose(found, delta, rtol=1e-3, err_msg=name)


def test_published_statistics():
  """Both views together: 8 rows, of which the unbiased variance is kept."""
  golden, *_ = published()
  _, _, _, stats, _ = published_losses()
  norm = stats['head']['norm0']
  told = golden['head_bn1_running_mean8']
  np.testing.assert_allclose(norm['mean'][:8], told, **CLOSE)
  told = golden['head_bn1_running_var8']
  np.testing.assert_allclose(norm['var'][:8], told, **CLOSE)


def test_published_schedules():
  golden, _ = golden_mae_sit.load('sit_schedules')
  steps = golden['its']
  for name, schedule in (
    ('lr', schedules.cosine(5e-4, 1e-6, 80_000, 1000)),
    ('wd', schedules.cosine(0.04, 0.1, 80_000)),
    ('momentum', schedules.cosine(0.996, 1.0, 80_000)),
  ):
    found = [schedule(step) for step in steps]
    np.testing.assert_allclose(found, golden[name], rtol=1e-5, atol=1e-11)


SWIN = {
  'name': 'swin',
  'dims': (8, 16),
  'depths': (1, 1),
  'heads': (1, 2),
  'window': 2,
  'patch': 2,
  'image_size': 16,
  'drop_path': 0.2,
  'init_scale': 'fan_in',
  'dtype': 'float32',
}


FIRST_SIT = {'contrast': 'simclr', 'rotation': True, 'learned_weights': True}


@pytest.mark.slow
@pytest.mark.parametrize(
  ('model', 'tasks'), [({}, FIRST_SIT), (SWIN, {})], ids=['vit_first', 'swin']
)
def test_eight_devices_are_one(model, tasks):
  """Three steps: corruption, negatives and the masked mean are global."""
  c = contrast_runs.tiny('sit', **model)
  c.sit.update(tasks)
  # Batch norm cancels biases before it, so that only rounding would move them.
  (one, a), (eight, b) = contrast_runs.on_devices(c, ('head/fc./bias',))
  contrast_runs.assert_same_metrics(one, eight)
  assert all(0.2 < x['corrupted'] < 0.7 for x in one)
  contrast_runs.assert_near(a, b)
  assert one[0]['corrupted'] != one[1]['corrupted']


def test_masked_mean_is_one_of_all_pixels():
  """Images with little and with much corrupted, on eight devices."""
  c = contrast_runs.tiny('sit')
  rng = np.random.default_rng(0)
  clean, painted = rng.normal(size=(2, 8, 2, 16, 16, 3)).astype(np.float32)
  mask = (
    rng.random((8, 2, 16, 16)) < np.linspace(0, 0.9, 8)[:, None, None, None]
  )
  k = rng.normal(size=(8, 2, 4)).astype(np.float32)
  out = sit.Outputs(k, k, painted)

  @jax.jit
  def run(out, clean, mask):
    return sit.objective(out, out, clean, mask, c)[1]['reconstruction_loss']

  expected = np.abs(painted - clean)[mask].mean()
  np.testing.assert_allclose(run(out, clean, mask), expected, rtol=1e-5)
  split = jax.device_put((out, clean, mask), sharding.data(sharding.mesh()))
  np.testing.assert_allclose(run(*split), expected, rtol=1e-5)
  nothing = run(out, clean, np.zeros_like(mask))
  assert nothing == 0


def test_student_sees_corrupted_and_teacher_clean_views(monkeypatch):
  c = contrast_runs.tiny('sit', drop_path=0.0)
  method = contrast_runs.build(c)
  whole, _ = contrast_runs.start(method)
  views = contrast_runs.views(contrast_runs.batch())
  c.gmml.update({'share': 0.0, 'replace_prob': 0.0})
  untouched = contrast_runs.build(c)
  one = jax.jit(method.loss)(whole.params, whole, views, KEY)
  two = jax.jit(untouched.loss)(whole.params, whole, views, KEY)
  assert two.metrics['corrupted'] == two.metrics['reconstruction_loss'] == 0
  stats = [x.extra for x in (one, two)]
  jax.tree.map(
    np.testing.assert_array_equal, stats[0]['teacher'], stats[1]['teacher']
  )
  means = [x['student']['head']['norm0']['mean'] for x in stats]
  assert not np.allclose(*means, atol=1e-4)


def test_loss_is_the_sum_with_reconstruction_weight():
  c = contrast_runs.tiny('sit')
  c.sit.reconstruction_weight = 5.0
  method = contrast_runs.build(c)
  whole, _ = contrast_runs.start(method)
  views = contrast_runs.views(contrast_runs.batch())
  found = jax.jit(method.loss)(whole.params, whole, views, KEY)
  m = found.metrics
  np.testing.assert_allclose(
    found.value, m['contrast_loss'] + 5 * m['reconstruction_loss'], rtol=1e-6
  )
  assert m['contrast_loss'] < 3 * contrastive.chance(8, 0.2)


def test_batch_norm_spans_both_views():
  c = contrast_runs.tiny('sit', drop_path=0.0)
  method = contrast_runs.build(c)
  whole, _ = contrast_runs.start(method)
  network = sit._network(c, c.model, (16, 16))
  images = jax.random.normal(KEY, (8, 2, 16, 16, 1))

  @jax.jit
  def project(images):
    stats = whole.extra['student']
    return shared.forward(network, whole.params, stats, images, KEY)[
      0
    ].projected

  x = project(images)
  np.testing.assert_allclose(x.mean((0, 1)), 0, atol=1e-5)
  assert np.abs(x[:, 0].mean(0)).max() > 1e-2
  y = project(images.at[:, 1].multiply(3.0))
  assert not np.allclose(x[:, 0], y[:, 0], atol=1e-2)


def test_teacher_is_an_average_without_drop_path():
  c = contrast_runs.tiny('sit', drop_path=0.9)
  method = contrast_runs.build(c)
  whole, _ = contrast_runs.start(method)
  views = contrast_runs.views(contrast_runs.batch())
  teach = jax.jit(method.stages['teacher'])
  one, two = (teach(whole, views, jax.random.key(i), {}) for i in range(2))
  np.testing.assert_array_equal(one.projected, two.projected)
  loss = jax.jit(lambda key: method.loss(whole.params, whole, views, key).value)
  assert loss(jax.random.key(0)) != loss(jax.random.key(1))


def test_pixels_go_where_a_transposed_convolution_puts_them():
  head = projector.ReconstructionHead(channels=2, patch=3)
  grid = jax.random.normal(KEY, (2, 1, 4, 5, 6))
  params = golden_weights.random_variables(
    jax.eval_shape(head.init, KEY, grid)['params']
  )
  found = jax.jit(head.apply)({'params': params}, grid)
  assert found.shape == (2, 1, 12, 15, 2)
  x = grid
  for i in range(3):
    layer = params[f'fc{i}']
    x = jax.nn.gelu(
      x @ layer['kernel'] + layer['bias'][None, None, None, None],
      approximate=False,
    )
  for i, j, a, b in ((0, 0, 0, 0), (3, 4, 2, 1), (1, 2, 0, 2)):
    expected = x[:, :, i, j] @ params['kernel'][:, a, b]
    expected += params['bias'][None, None]
    np.testing.assert_allclose(
      found[:, :, 3 * i + a, 3 * j + b], expected, atol=1e-5
    )


@pytest.mark.parametrize(
  ('model', 'side', 'stride'),
  [({'name': 'vit_tiny'}, 224, 16), ({'name': 'swin_tiny'}, 224, 32)],
)
def test_stride_of_regions(model, side, stride):
  assert projector.stride(models.build(model), (side, side), 3) == stride


def test_regions_that_do_not_tile():
  backbone = models.build({'name': 'resnet50'})
  with pytest.raises(UserError, match='take 100x100 px'):
    projector.stride(backbone, (98, 98), 3)


def test_views_need_not_be_square():
  """But for rotations by 90 degrees."""
  c = contrast_runs.tiny('sit')
  c.views.globals.size = (16, 24)
  method = contrast_runs.build(c)
  whole, _ = contrast_runs.start(method)
  views = {'globals': jax.random.normal(KEY, (8, 2, 16, 24, 1))}
  loss = jax.jit(method.loss)(whole.params, whole, views, KEY)
  assert np.isfinite(loss.value)
  _, columns = method.show(whole, views, KEY)['reconstruction']
  assert columns.shape == (8, 3, 16, 24, 1)
  c.sit.rotation = True
  with pytest.raises(UserError, match='16x24 px do not allow'):
    contrast_runs.build(c)


def test_pictures_of_a_state():
  c = contrast_runs.tiny('sit')
  method = contrast_runs.build(c)
  whole, _ = contrast_runs.start(method)
  views = contrast_runs.views(contrast_runs.batch())
  titles, columns = method.show(whole, views, KEY)['reconstruction']
  assert titles == ('clean', 'corrupted', 'reconstructed')
  assert columns.shape == (8, 3, 16, 16, 1)
  np.testing.assert_array_equal(columns[:, 0], views['globals'][:, 0])
  changed = (columns[:, 0] != columns[:, 1]).mean((1, 2, 3))
  assert (changed < 0.8).all() and changed.mean() > 0.2


def test_features_are_those_of_the_backbone():
  method = contrast_runs.build(contrast_runs.tiny('sit'))
  whole, _ = contrast_runs.start(method)
  images = jax.random.normal(KEY, (3, 16, 16, 1))
  found = jax.jit(method.features)(whole.params, whole.extra['student'], images)
  assert found.view.shape == (3, 16) and found.grid.shape == (3, 4, 4, 16)
  assert method.network == 'teacher'


def test_starts_as_published():
  c = contrast_runs.tiny('sit', init_scale='published')
  method = contrast_runs.build(c)
  params, teacher, extra = jax.jit(method.init)(KEY)
  jax.tree.map(np.testing.assert_array_equal, params, teacher)
  assert set(params) == {'backbone', 'head', 'head_recons'}
  assert 0.015 < params['head']['fc1']['kernel'].std() < 0.025
  assert not params['head']['fc1']['bias'].any()
  bound = 1 / np.sqrt(16 * 1)  # patch 4, one channel
  kernel = np.abs(params['head_recons']['kernel'])
  assert 0.95 * bound < kernel.max() <= bound
  assert set(extra) == {'student', 'teacher'}


def test_bfloat16_is_near():
  values = []
  for dtype in ('float32', 'bfloat16'):
    c = contrast_runs.tiny('sit', dtype=dtype, drop_path=0.0)
    method = contrast_runs.build(c)
    whole, _ = contrast_runs.start(method)
    views = contrast_runs.views(contrast_runs.batch())
    out = jax.jit(method.loss)(whole.params, whole, views, KEY)
    assert out.value.dtype == jnp.float32
    values.append(float(out.value))
  assert values[0] != values[1]
  np.testing.assert_allclose(*values, rtol=0.05)


@pytest.mark.parametrize('side', [16])
def test_there_and_back_is_byte_equal(side):
  method = contrast_runs.build(contrast_runs.tiny('sit'))
  whole, _ = contrast_runs.start(method)
  variables = {'params': whole.params, 'batch_stats': whole.extra['student']}
  arrays = tables.to_published(variables, 'sit')
  assert arrays['head_recons.convTrans.weight'].shape == (16, 1, 4, 4)
  assert arrays['head.mlp.6.weight'].shape == (8, 24)
  again = tables.from_published(arrays, 'sit', variables)
  jax.tree.map(np.testing.assert_array_equal, variables, again)


def test_settings_that_do_not_fit():
  c = contrast_runs.tiny('sit')
  c.gmml.align = 8
  with pytest.raises(UserError, match=r'gmml\.align'):
    contrast_runs.build(c)


def test_corruption_is_a_stage_to_measure():
  c = contrast_runs.tiny('sit')
  method = contrast_runs.build(c)
  views = contrast_runs.views(contrast_runs.batch())
  corrupted, mask = method.stages['corruption'](None, views, KEY, {})
  s = gmml.settings({}, (16, 16))
  again = gmml.corrupt(views['globals'], jax.random.fold_in(KEY, 3), s)
  np.testing.assert_array_equal(corrupted, again[0])
  assert mask.shape == (8, 2, 16, 16)


def test_learned_weights_of_the_first_sit():
  """The published losses of all three tasks, and their sum."""
  golden, _ = golden_mae_sit.load('misc')
  normal = golden_mae_sit.normal
  z = np.stack([normal(f'l21_z{i}', (8, 512)) for i in (1, 2)], 1)
  rec, im = (
    normal(f'l21_{x}', (16, 3, 8, 8)).transpose(0, 2, 3, 1)
    for x in ('rec', 'im')
  )
  pairs = [x.reshape(8, 2, *x.shape[1:]) for x in (rec, im)]
  rot = normal('l21_rot', (16, 4)).reshape(8, 2, 4)
  c = contrast_runs.tiny('sit')
  c.sit.update(FIRST_SIT)
  c.contrast.temp = 0.5
  s = sit.Outputs(z, z, pairs[0], rot, np.float32([1, 0.7, 0.4]))
  turns = np.arange(16).reshape(8, 2) % 4
  mask = np.ones((8, 2, 8, 8), bool)  # published: of the whole image
  value, m = sit.objective(s, s, pairs[1], mask, c, turns)
  found = [m['rotation_loss'], m['contrast_loss'], m['reconstruction_loss']]
  np.testing.assert_allclose(found, golden['mtl21_parts'], rtol=1e-5)
  np.testing.assert_allclose(value, golden['mtl21_total'][0], rtol=1e-5)


def test_views_are_rotated():
  x = np.random.default_rng(0).normal(size=(2, 2, 4, 4, 1))
  turns = np.array([[0, 1], [2, 3]])
  found = sit.rotate(jnp.asarray(x), jnp.asarray(turns))
  for b, v in np.ndindex(2, 2):
    np.testing.assert_allclose(
      found[b, v], np.rot90(x[b, v], -turns[b, v]), rtol=1e-6
    )


def test_rotated_views_are_what_is_reconstructed():
  """Weights of tasks get gradients; a wrong contrast is named."""
  c = contrast_runs.tiny('sit', drop_path=0.0)
  c.sit.update(FIRST_SIT)
  method = contrast_runs.build(c)
  whole, _ = contrast_runs.start(method)
  views = contrast_runs.views(contrast_runs.batch())
  grads = jax.jit(jax.grad(lambda p: method.loss(p, whole, views, KEY).value))(
    whole.params
  )
  assert (np.asarray(grads['balance']) != 0).all()
  assert np.abs(grads['rotation']['kernel']).max() > 0
  c.sit.contrast = 'moco'
  with pytest.raises(UserError, match=r"sit\.contrast is 'moco'"):
    contrast_runs.build(c)
