"""Laws of training: the number of devices and processes changes nothing.

One tiny run is trained in many ways; all must agree with the plain one.
"""

import subprocess
import sys

import jax
import numpy as np
import pytest
from ml_collections import ConfigDict
from runs import STEPS, tiny

from esvit_jax import data, sharding
from esvit_jax.run import jobs
from esvit_jax.workdir import metrics


def compiled(config, mesh):
  job = jobs.prepare(config, mesh)
  return job, jobs.compile_step(job)


def losses(job, step, steps=STEPS):
  """The losses of the first steps, and the last state."""
  state, found = jobs.create_state(job), []
  for i in range(steps):
    state, values = step(state, first_batch(job, i), job.key)
    found.append(float(values['loss']))
  return np.array(found), state


def first_batch(job, step=0):
  pipeline = data.Pipeline(
    job.sources['train'], job.config.seed, job.config.batch_size
  )
  return sharding.global_batch(job.mesh, pipeline[step])


@pytest.fixture(scope='module')
def one():
  """A run on one device, compiled."""
  return compiled(tiny(), sharding.mesh(jax.devices()[:1]))


@pytest.fixture(scope='module')
def plain(one):
  return losses(*one)[0]


@pytest.mark.parametrize('placement', ['replicated', 'fsdp'])
def test_eight_devices_are_one(plain, placement, monkeypatch):
  place = sharding.fsdp
  monkeypatch.setattr(
    sharding, 'fsdp', lambda mesh, tree: place(mesh, tree, min_bytes=0)
  )
  mesh = sharding.mesh()
  assert mesh.size == 8
  job, step = compiled(tiny(placement=placement), mesh)
  found, state = losses(job, step)
  np.testing.assert_allclose(found, plain, atol=1e-5)
  split = [
    x for x in jax.tree.leaves(state) if not x.sharding.is_fully_replicated
  ]
  assert bool(split) == (placement == 'fsdp')
  if placement == 'replicated':
    # Devices talk once a step: one all-reduce, of everything together.
    text = step.as_text()
    assert text.count(' all-reduce(') == 1
    for other in ('all-gather(', 'all-to-all(', 'collective-permute('):
      assert other not in text


@pytest.mark.slow
def test_plain_transformers_too():
  """DeiT with views and regions; other backbones have this law beside them."""
  config = tiny()
  config.model = ConfigDict(
    {
      'name': 'vit',
      'dim': 16,
      'depth': 2,
      'heads': 2,
      'patch': 4,
      'image_size': 28,
      'drop_path': 0.5,
      'init_scale': 'fan_in',
    }
    | {'dtype': 'float32', 'remat': False}
  )
  one, eight = (
    losses(*compiled(config, sharding.mesh(jax.devices()[:n])), 3)[0]
    for n in (1, 8)
  )
  np.testing.assert_allclose(eight, one, atol=1e-5)


def test_accumulation_is_one_large_batch(plain):
  """Losses are means over images, so parts add up; drop path draws anew."""
  mesh = sharding.mesh(jax.devices()[:1])
  still = {'drop_path': 0.0}
  whole, _ = losses(*compiled(tiny(model=still), mesh), 3)
  parts, _ = losses(*compiled(tiny(model=still, accumulate=4), mesh), 3)
  np.testing.assert_allclose(parts, whole, atol=1e-5)
  assert not np.allclose(whole, plain[:3])


def test_two_processes_are_one(plain, tmp_path):
  run = subprocess.run(
    [
      sys.executable,
      'launch/local_processes.py',
      '--processes=2',
      '--devices=4',
      '--',
      '--config=configs/quickstart.py:debug',
      f'--config.steps={STEPS}',
      '--config.log_every=1',
      '--config.eval.at_ends=knn',
      '--config.eval.pictures=False',
      '--config.model.depths=(1, 1)',
      '--config.model.drop_path=0.5',
      f'--workdir={tmp_path}/run',
    ],
    capture_output=True,
    text=True,
    check=False,
  )
  assert run.returncode == 0, run.stderr
  lines = metrics.read(f'{tmp_path}/run/metrics.jsonl')
  found = [x['train/loss'] for x in lines if 'train/loss' in x]
  np.testing.assert_allclose(found, plain, atol=1e-5)


def test_teacher_has_no_gradient(one):
  job, _ = one
  state = jobs.create_state(job)
  keys = jax.random.split(jax.random.key(1), 16)
  views = jax.jit(job.method.views)(first_batch(job), keys)

  def loss(teacher):
    return job.method.loss(
      state.params, state._replace(teacher=teacher), views, jax.random.key(2)
    ).value

  for g in jax.tree.leaves(jax.jit(jax.grad(loss))(state.teacher)):
    assert not np.any(g)


def test_norms_are_of_what_is_there_and_what_moves(one):
  job, step = one
  state = jobs.create_state(job)
  before = jax.tree.map(np.array, state.params)
  after, values = step(state, first_batch(job), job.key)

  def norm(tree):
    leaves = [np.square(x, dtype=np.float64).sum() for x in tree]
    return np.sqrt(sum(leaves))

  np.testing.assert_allclose(
    values['param_norm'], norm(jax.tree.leaves(before)), rtol=1e-5
  )
  change = jax.tree.map(lambda a, b: np.array(a) - b, after.params, before)
  np.testing.assert_allclose(
    values['update_norm'], norm(jax.tree.leaves(change)), rtol=1e-3
  )


def test_bad_step_moves_nothing(one):
  job, step = one
  state = jobs.create_state(job)
  broken = jax.tree.map(lambda x: x * np.nan, state.params)
  state = state._replace(params=broken)
  kept = jax.tree.map(np.array, state)
  after, values = step(state, first_batch(job), job.key)
  assert float(values['skipped']) == 1
  assert int(after.step) == 1
  for a, b in zip(jax.tree.leaves(kept[1:]), jax.tree.leaves(after[1:])):
    np.testing.assert_array_equal(a, b)
