"""What is saved comes back, on any devices; the rest is refused in a line."""

import os
import pathlib
import shutil
from types import MappingProxyType

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from configs import quickstart
from esvit_jax import sharding
from esvit_jax.errors import UserError
from esvit_jax.run import initial, jobs
from esvit_jax.state import TrainState
from esvit_jax.workdir.checkpoint import Checkpoints, restore_parts
from esvit_jax.workdir.checksum import checksums

TX = optax.adam(1e-3)


def state(step: int, fill: float = 1.0) -> TrainState:
  params = {
    'w': fill * jnp.arange(64.0).reshape(16, 4),
    'head': {'b': jnp.full(3, fill)},
  }
  teacher = jax.tree.map(lambda x: 2 * x, params)
  extra = {'center': jnp.ones(4), 'student': {}}
  return TrainState(jnp.int32(step), params, teacher, extra, TX.init(params))


def placed(x, mesh):
  """`x` in pieces on a mesh, and the shapes to restore it there."""
  where = sharding.fsdp(mesh, x, min_bytes=0)
  like = jax.tree.map(
    lambda leaf, s: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=s),
    x,
    where,
  )
  return jax.device_put(x, where), like


def like(x):
  return placed(x, sharding.mesh(jax.devices()[:1]))[1]


def save(directory, steps, scores=MappingProxyType({}), **options):
  """Saves each step in turn, as one run."""
  checkpoints = Checkpoints(str(directory), **options)
  checkpoints.scores |= {k: v for k, v in scores.items() if k < steps[0]}
  for step in steps:
    checkpoints.save(state(step))
    if step in scores:  # a step is saved before it is evaluated
      checkpoints.scores[step] = scores[step]
  checkpoints.close()


def latest(directory, step):
  """What a run that is resumed starts from."""
  checkpoints = Checkpoints(str(directory))
  restored = checkpoints.restore(like(state(step)))
  checkpoints.close()
  return restored


def steps_in(directory):
  return sorted(int(x) for x in os.listdir(directory) if x.isdigit())


def assert_same(a, b):
  assert jax.tree.structure(a) == jax.tree.structure(b)
  for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b)):
    np.testing.assert_array_equal(x, y)


def test_devices_8_to_1_to_8(tmp_path):
  eight, one = sharding.mesh(), sharding.mesh(jax.devices()[:1])
  assert eight.size == 8
  original = state(3)
  current, here = original, original
  for i, mesh in enumerate((eight, one, eight)):
    current, here = placed(current, mesh)
    checkpoints = Checkpoints(f'{tmp_path}/{i}')
    checkpoints.save(current)
    checkpoints.close()
    checkpoints = Checkpoints(f'{tmp_path}/{i}')
    assert checkpoints.latest() == 3
    current = checkpoints.restore(here)
    checkpoints.close()
    assert_same(current, original)
    assert current.params['w'].sharding == here.params['w'].sharding
  assert not current.params['w'].sharding.is_fully_replicated


def test_onto_fewer_devices_than_it_was_saved_from(tmp_path):
  x, _ = placed(state(1), sharding.mesh())
  checkpoints = Checkpoints(str(tmp_path))
  checkpoints.save(x)
  checkpoints.close()
  checkpoints = Checkpoints(str(tmp_path))
  assert_same(checkpoints.restore(like(state(1))), state(1))
  checkpoints.close()
  parts = restore_parts(str(tmp_path), ('params',))
  assert isinstance(parts['params']['w'], np.ndarray)
  assert_same(parts['params'], state(1).params)


def test_the_newest_stay(tmp_path):
  save(tmp_path, range(1, 7), keep=2)
  # No scores: the best is the newest.
  assert steps_in(tmp_path) == [5, 6]


def test_the_best_stays(tmp_path):
  scores = {2: 50.0, 3: 60.0, 5: 55.0}
  save(tmp_path, range(1, 8), scores, keep=2)
  assert steps_in(tmp_path) == [3, 6, 7]


def test_the_best_stays_after_a_resume(tmp_path):
  scores = {2: 60.0, 3: 50.0, 5: 55.0, 7: 70.0}
  save(tmp_path, (1, 2, 3), scores, keep=1)
  assert steps_in(tmp_path) == [2, 3]
  save(tmp_path, (4, 5, 6), scores, keep=1)
  assert steps_in(tmp_path) == [2, 6]
  save(tmp_path, (7, 8), scores, keep=1)
  assert steps_in(tmp_path) == [7, 8]


def test_some_stay_for_ever(tmp_path):
  save(tmp_path, range(1, 8), keep=1, keep_every=3)
  assert steps_in(tmp_path) == [3, 6, 7]


def test_a_step_is_saved_once(tmp_path):
  save(tmp_path, (1, 1))
  assert steps_in(tmp_path) == [1]


def test_a_killed_save_is_ignored_and_removed(tmp_path):
  save(tmp_path, (1, 2))
  torn = tmp_path / '3.orbax-checkpoint-tmp'
  (tmp_path / '2').rename(torn)
  checkpoints = Checkpoints(str(tmp_path))
  assert checkpoints.latest() == 1
  assert not torn.exists()
  # The same step can be written again.
  checkpoints.save(state(3))
  checkpoints.close()
  assert steps_in(tmp_path) == [1, 3]


def test_a_fresh_directory_has_no_latest(tmp_path):
  checkpoints = Checkpoints(f'{tmp_path}/new')
  assert checkpoints.latest() is None
  checkpoints.close()


def truncate(files):
  for file in files:
    os.truncate(file, file.stat().st_size // 2)


def delete(files):
  for file in files:
    file.unlink()


@pytest.mark.parametrize('harm', [truncate, delete])
@pytest.mark.parametrize(
  'pattern', ['state/**/d/*', 'state/_METADATA', 'state/manifest.ocdbt', '**/*']
)
def test_a_broken_checkpoint_is_named(tmp_path, capfd, harm, pattern):
  save(tmp_path, (1, 2))
  harm([x for x in (tmp_path / '2').glob(pattern) if x.is_file()])
  with pytest.raises(UserError) as e:
    latest(tmp_path, 2)
  text = str(e.value)
  assert text.startswith(f'cannot read checkpoint {tmp_path}')
  assert 'delete' in text and '\n' not in text
  with pytest.raises(UserError, match='cannot read checkpoint'):
    restore_parts(str(tmp_path), ('params',), 2)
  assert capfd.readouterr().err == ''
  assert_same(
    restore_parts(str(tmp_path), ('params',))['params'],
    jax.tree.map(np.asarray, state(1).params),
  )
  assert 'damaged: step 1 is taken' in capfd.readouterr().err
  # The advice holds.
  shutil.rmtree(tmp_path / '2')
  assert_same(latest(tmp_path, 1), state(1))


def test_a_lost_process_is_not_a_broken_checkpoint(tmp_path, monkeypatch):
  save(tmp_path, (1,))
  checkpoints = Checkpoints(str(tmp_path))

  def lost(*args, **kwargs):
    raise jax.errors.JaxRuntimeError('DEADLINE_EXCEEDED')

  monkeypatch.setattr(checkpoints._manager, 'restore', lost)
  with pytest.raises(jax.errors.JaxRuntimeError):
    checkpoints.restore(like(state(1)))
  checkpoints.close()


def test_another_model_is_refused(tmp_path):
  save(tmp_path, (1,))
  other = state(1)._replace(params={'w': jnp.zeros((16, 5))})
  checkpoints = Checkpoints(str(tmp_path))
  with pytest.raises(UserError, match='cannot read checkpoint'):
    checkpoints.restore(like(other))
  checkpoints.close()


def test_parts_of_a_run(tmp_path):
  save(tmp_path / 'checkpoints', (1, 2))
  for path in (tmp_path, tmp_path / 'checkpoints'):
    parts = restore_parts(str(path), ('teacher', 'extra'), 1)
    assert set(parts) == {'teacher', 'extra'}
    assert_same(parts['teacher'], state(1).teacher)


def test_parts_that_are_not_there(tmp_path):
  with pytest.raises(UserError, match='give a run directory'):
    restore_parts(f'{tmp_path}/nowhere', ('params',))
  save(tmp_path, (1, 2))
  with pytest.raises(UserError, match=r'no checkpoint of step 7 .* 1, 2'):
    restore_parts(str(tmp_path), ('params',), 7)


# Continuing: a view-only run, then the region task on top of it.


def recipe(**sections):
  config = quickstart.get_config('debug')
  config.steps = 0
  config.epochs = 4
  config.model.update({'dims': (16,), 'depths': (1,), 'heads': (1,)})
  config.optim.freeze_last_layer_epochs = 1
  config.update(sections)
  return jobs.prepare(config, sharding.mesh(jax.devices()[:1]))


def tree_of(job, fill):
  """A state of the job's shapes, every number `fill`."""
  return jax.tree.map(
    lambda x: jax.device_put(np.full(x.shape, fill, x.dtype), x.sharding),
    job.state,
  )


@pytest.fixture(scope='module')
def view_run(tmp_path_factory):
  """The directory of a view-only run with epochs 1 and 2 saved."""
  path = tmp_path_factory.mktemp('view')
  job = recipe(loss={'region_weight': 0.0})
  spe = job.horizon.steps_per_epoch
  checkpoints = Checkpoints(f'{path}/checkpoints')
  for epoch in (1, 2):
    saved = tree_of(job, 0.5 * epoch)
    teacher = jax.tree.map(lambda x: -x, saved.teacher)
    saved = saved._replace(step=jnp.int32(epoch * spe), teacher=teacher)
    checkpoints.save(saved)
  checkpoints.close()
  return str(path)


@pytest.fixture(scope='module')
def continued(view_run):
  """(job, its first state): epoch 1 of the view-only run and regions."""
  job = recipe(init={'checkpoint': view_run, 'epoch': 1})
  return job, initial.initial_state(job)


def test_continued_keeps_what_was_learned(continued):
  _, start = continued
  for part, value in (('params', 0.5), ('teacher', -0.5)):
    tree = getattr(start, part)
    for name in ('backbone', 'head'):
      for x in jax.tree.leaves(tree[name]):
        np.testing.assert_array_equal(x, value)
  np.testing.assert_array_equal(start.extra['center'], 0.5)


def test_continued_has_a_fresh_region_head(continued):
  job, start = continued
  fresh = jobs.create_state(job)
  # Identical in student and teacher, as published.
  assert_same(start.params['head_dense'], start.teacher['head_dense'])
  assert_same(start.params['head_dense'], fresh.params['head_dense'])
  assert any(np.any(x) for x in jax.tree.leaves(start.params['head_dense']))
  np.testing.assert_array_equal(start.extra['center_grid'], 0)


def test_continued_goes_on_in_the_schedules(continued):
  job, start = continued
  epoch = job.horizon.steps_per_epoch
  assert int(start.step) == epoch
  assert start.step.sharding == jax.tree.leaves(start.params)[0].sharding
  # Moments are zero again; the first step is Adam's, of the run's rate. The
  # freeze is over, so the new last layer moves at once.
  assert all(not np.any(x) for x in jax.tree.leaves(start.opt_state) if x.ndim)
  ones = jax.tree.map(jnp.ones_like, start.params)
  updates, _ = jax.jit(job.tx.update)(ones, start.opt_state, start.params)
  lr = float(job.schedules['lr'](epoch))
  assert lr > 1e-4
  bias = updates['head_dense']['fc0']['bias']
  np.testing.assert_allclose(bias, -lr, rtol=1e-4)
  assert np.all(updates['head_dense']['last_layer']['v'] < 0)


def test_continued_from_epoch_0_takes_the_newest(view_run):
  start = initial.initial_state(
    recipe(init={'checkpoint': view_run, 'epoch': 0})
  )
  assert int(start.step) == 0
  for x in jax.tree.leaves(start.params['backbone']):
    np.testing.assert_array_equal(x, 1.0)


def test_continued_from_an_epoch_that_is_not_there(view_run):
  with pytest.raises(UserError, match='no checkpoint of step 1875'):
    initial.initial_state(recipe(init={'checkpoint': view_run, 'epoch': 3}))


def test_continued_from_nothing_says_what_to_train_first():
  with pytest.raises(UserError, match=r'--config\.init\.checkpoint='):
    initial.initial_state(recipe(init={'epoch': 1}))


@pytest.mark.parametrize(
  ('model', 'words'),
  [
    ({'dims': (32,)}, r'is \[.*\] in that checkpoint'),
    ({'depths': (2,)}, 'not in that checkpoint'),
  ],
)
def test_continued_from_another_model(view_run, model, words):
  job = recipe(init={'checkpoint': view_run, 'epoch': 1}, model=model)
  parts = restore_parts(view_run, ('params', 'teacher', 'extra'))
  with pytest.raises(UserError, match=words):
    initial.continue_from(job.state, parts)


def test_pathlib_is_enough(tmp_path):
  """The directory of a run is a plain folder: it can be moved."""
  save(tmp_path / 'a', (1,))
  moved = pathlib.Path(tmp_path / 'a').rename(tmp_path / 'b')
  assert_same(restore_parts(str(moved), ('params',))['params'], state(1).params)


def largest_file(folder) -> pathlib.Path:
  files = [x for x in pathlib.Path(folder, 'state').rglob('*') if x.is_file()]
  return max(files, key=lambda x: x.stat().st_size)


def test_checksums_do_not_depend_on_devices_and_see_every_bit():
  x = state(3)._asdict()
  whole = checksums(x)
  for devices in (jax.devices()[:1], jax.devices()):
    assert checksums(placed(x, sharding.mesh(devices))[0]) == whole
  assert checksums(jax.tree.map(np.asarray, x)) == whole
  w = np.asarray(x['params']['w'])
  for bit in range(32):
    bits = w.copy().view(np.uint32)
    bits[5, 1] ^= np.uint32(1 << bit)
    assert checksums({'w': bits.view(np.float32)}) != checksums({'w': w})
  assert checksums({'w': w[::-1]}) != checksums({'w': w})


def flip_until_other_weights(folder, read) -> None:
  """Flips one bit of the data so that reading it is refused."""
  file = largest_file(folder)
  data = file.read_bytes()
  refused = 0
  for at in range(len(data) // 2, len(data), max(len(data) // 40, 1)):
    file.write_bytes(data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :])
    try:
      read()
    except UserError:
      refused += 1
      break
  assert refused


def test_a_damaged_newest_is_set_aside(tmp_path):
  run = tmp_path / 'run'
  save(run / 'checkpoints', (1, 2))
  kept = restore_parts(str(run), ('params',), 1)

  def read():
    restore_parts(str(run), ('params', 'teacher', 'extra', 'opt_state'), 2)

  flip_until_other_weights(run / 'checkpoints/2', read)
  checkpoints = Checkpoints(str(run / 'checkpoints'))
  resumed, said = checkpoints.resume(like(state(1)))
  assert int(resumed.step) == 1
  assert_same(jax.tree.map(np.asarray, resumed.params), kept['params'])
  assert said.endswith(f'it is now {run}/damaged_2') and '\n' not in said
  checkpoints.save(state(2))
  checkpoints.close()
  assert steps_in(run / 'checkpoints') == [1, 2]
