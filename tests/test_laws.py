"""Laws of training: how many devices, and how often interrupted, is the same.

One tiny run is trained in many ways; all must agree with the plain one.
"""

import io
import os
import signal
import subprocess
import sys

import jax
import numpy as np
import pytest

from configs import quickstart
from esvit_jax import data, metrics, sharding, train

STEPS = 5


def tiny(**changes):
  config = quickstart.get_config('debug')
  config.steps = STEPS
  config.log_every = 1
  config.model.drop_path = 0.5
  config.update(changes)
  return config


def losses(config, mesh, steps=STEPS):
  """The losses of the first steps, and the last state."""
  job = train.prepare(config, mesh)
  step, state = train.compile_step(job), train.create_state(job)
  pipeline = data.Pipeline(job.sources['train'], config.seed, config.batch_size)
  found = []
  for i in range(steps):
    batch = sharding.global_batch(mesh, pipeline[i])
    state, values = step(state, batch, job.key)
    found.append(float(values['loss']))
  return np.array(found), state


@pytest.fixture(scope='module')
def plain():
  return losses(tiny(), sharding.mesh(jax.devices()[:1]))


@pytest.mark.parametrize('placement', ['replicated', 'fsdp'])
def test_eight_devices_are_one(plain, placement, monkeypatch):
  place = sharding.fsdp
  monkeypatch.setattr(
    sharding, 'fsdp', lambda mesh, tree: place(mesh, tree, min_bytes=0)
  )
  mesh = sharding.mesh()
  assert mesh.size == 8
  found, state = losses(tiny(placement=placement), mesh)
  np.testing.assert_allclose(found, plain[0], atol=1e-5)
  split = [
    x for x in jax.tree.leaves(state) if not x.sharding.is_fully_replicated
  ]
  assert bool(split) == (placement == 'fsdp')


def test_gradients_meet_once():
  """Devices talk once a step: one all-reduce, of everything together."""
  job = train.prepare(tiny(), sharding.mesh())
  text = train.compile_step(job).as_text()
  lines = [x for x in text.splitlines() if ' all-reduce(' in x]
  assert len(lines) == 1, '\n'.join(x[:200] for x in lines)
  for other in ('all-gather(', 'all-to-all(', 'collective-permute('):
    assert other not in text


def test_accumulation_is_one_large_batch(plain):
  """Losses are means over images, so parts add up; drop path draws anew."""
  mesh = sharding.mesh(jax.devices()[:1])
  still = {'drop_path': 0.0}
  whole, _ = losses(tiny(model=still), mesh, 3)
  parts, _ = losses(tiny(model=still, accumulate=4), mesh, 3)
  np.testing.assert_allclose(parts, whole, atol=1e-5)
  assert not np.allclose(whole[:3], plain[0][:3])


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
  np.testing.assert_allclose(found, plain[0], atol=1e-5)


class Interrupt(io.StringIO):
  """Asks the process to stop once a line starts with the given words."""

  def __init__(self, words):
    super().__init__()
    self.words = words

  def write(self, text):
    if text.startswith(self.words):
      os.kill(os.getpid(), signal.SIGTERM)
    return super().write(text)


def test_resumed_is_uninterrupted(tmp_path):
  config, log = tiny(), io.StringIO()
  whole = train.run(config, f'{tmp_path}/whole', log)
  assert 'resum' not in log.getvalue()
  log = Interrupt('step 2/')
  stopped = train.run(config, f'{tmp_path}/parts', log)
  assert 2 < int(stopped.step) < STEPS
  assert 'the same command goes on' in log.getvalue()
  resumed = train.run(config, f'{tmp_path}/parts', io.StringIO())
  for a, b in zip(jax.tree.leaves(whole), jax.tree.leaves(resumed)):
    np.testing.assert_array_equal(a, b)

  lines = [
    metrics.read(f'{tmp_path}/{x}/metrics.jsonl') for x in ('whole', 'parts')
  ]
  for line in lines:
    steps = [x['step'] for x in line]
    assert steps == sorted(set(steps)) == list(range(STEPS + 1))
  for a, b in zip(*lines):
    a, b = (
      {k: v for k, v in x.items() if 'per_s' not in k and 'wait' not in k}
      for x in (a, b)
    )
    assert a == b
  # A finished run tells its scores again and changes nothing.
  log = io.StringIO()
  again = train.run(config, f'{tmp_path}/parts', log)
  assert int(again.step) == STEPS
  assert 'teacher' in log.getvalue()


def test_teacher_has_no_gradient():
  job = train.prepare(tiny(), sharding.mesh(jax.devices()[:1]))
  state = train.create_state(job)
  pipeline = data.Pipeline(job.sources['train'], 0, 16)
  batch = sharding.global_batch(job.mesh, pipeline[0])
  keys = jax.random.split(jax.random.key(1), 16)
  views = job.method.views(batch, keys)

  def loss(teacher):
    return job.method.loss(
      state.params, state._replace(teacher=teacher), views, jax.random.key(2)
    ).value

  for g in jax.tree.leaves(jax.jit(jax.grad(loss))(state.teacher)):
    assert not np.any(g)


def test_bad_step_moves_nothing():
  job = train.prepare(tiny(), sharding.mesh(jax.devices()[:1]))
  nan = job.method._replace(
    loss=lambda *args: (lambda loss: loss._replace(value=loss.value * np.nan))(
      job.method.loss(*args)
    )
  )
  step = train.compile_step(job._replace(method=nan))
  before = train.create_state(job)
  kept = jax.tree.map(np.array, before)
  pipeline = data.Pipeline(job.sources['train'], 0, 16)
  batch = sharding.global_batch(job.mesh, pipeline[0])
  after, values = step(before, batch, job.key)
  assert float(values['skipped']) == 1
  assert int(after.step) == 1
  for a, b in zip(jax.tree.leaves(kept[1:]), jax.tree.leaves(after[1:])):
    np.testing.assert_array_equal(a, b)
