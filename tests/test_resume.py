"""An interrupted run is the uninterrupted one, to the bit."""

import io
import shutil

import jax
import numpy as np
from runs import STEPS, Interrupt, tiny

from esvit_jax import train
from esvit_jax.workdir import metrics


def test_resumed_is_uninterrupted(tiny_run, tmp_path):
  config, log = tiny(), io.StringIO()
  shutil.copytree(tiny_run, tmp_path / 'whole')
  # A finished run tells its scores again and changes nothing.
  whole = train.run(config, f'{tmp_path}/whole', log)
  assert int(whole.step) == STEPS
  assert 'teacher' in log.getvalue()
  log = Interrupt('step 2/')
  stopped = train.run(config, f'{tmp_path}/parts', log)
  assert 'from step' not in log.getvalue()
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
