"""Steps without finite numbers: what is kept of them, and how a run goes on.

  python -m main --mode=replay --workdir=runs/a

replay_STEP.npz   the batch of the last such step, the rows of all processes
replay/           the state before that step, as a checkpoint
"""

import glob
import os
import re
import shutil
import sys
import zipfile

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from ml_collections import ConfigDict

from esvit_jax import workdir
from esvit_jax.errors import UserError, in_one_line
from esvit_jax.run import jobs, nonfinite
from esvit_jax.run.initial import initial_state
from esvit_jax.run.jobs import Job
from esvit_jax.workdir.checkpoint import Checkpoints, NoneSoundError


def save(state, batch, directory: str) -> str:
  """Keeps a batch whose step was bad, and the state; returns the file's path.

  Args:
    state: after the step, which changed nothing but the count.
    batch: global arrays.
    directory: of the run.

  Raises:
    UserError: it cannot be written.
  """
  step = int(state.step) - 1
  path = os.path.join(directory, f'replay_{step}.npz')
  folder = os.path.join(directory, 'replay')
  batch = {k: _whole(v) for k, v in batch.items()}
  if jax.process_index() == 0:
    with workdir.writing(path):
      np.savez(path, step=step, **batch)
      shutil.rmtree(folder, ignore_errors=True)
  multihost_utils.sync_global_devices('replay')
  with Checkpoints(folder, keep=1) as checkpoints:
    checkpoints.save(state)
  return path


def give_up(job: Job, state, batch, directory: str, checkpoints, log) -> None:
  """Keeps the last good state and the batch at hand, then raises.

  Raises:
    UserError: what was bad, and where all is kept.
  """
  log.metrics.flush()
  good = _last_good(job, state, checkpoints)
  step = int(state.step) - 1
  try:
    kept = f'as {save(state, batch, directory)}'
  except UserError as e:
    kept = f'nowhere ({e})'
  samples = ', '.join(map(str, _whole(batch['index'])[:8]))
  raise UserError(
    f'{log.bad_in_row} steps in a row had no finite loss or gradient; {good}; '
    f'the batch of step {step} (images number {samples}, ...) is kept {kept}. '
    f'python -m main --mode=replay --workdir={directory} says what first went '
    'wrong in it. Lower optim.lr, use model.dtype=float32 or a longer warm-up, '
    'in another --workdir; or let the run go back with max_rollbacks'
  )


def roll_back(job: Job, state, checkpoints, say):
  """The last good state, to go on from with the next batch.

  Args:
    job: the run.
    state: after the bad steps; only its count of steps is kept.
    checkpoints: of the run.
    say: prints a line.
  """
  try:
    good, aside = checkpoints.resume(job.state, nonfinite.unsound)
  except NoneSoundError as e:
    good, aside = initial_state(job), str(e)
  if aside:
    say(aside)
  say(
    f'went back to the state of step {int(good.step)}; the batches up to step '
    f'{int(state.step)} are left out'
  )
  return good._replace(step=state.step)


def recompute(directory: str, out=sys.stdout) -> None:
  """Computes the step of the newest replay file again; says what went wrong.

  Raises:
    UserError: there is none, or it cannot be read.
  """
  step, batch = _read(directory)
  config = _config(directory)
  job = jobs.prepare(config)
  with Checkpoints(os.path.join(directory, 'replay'), keep=1) as checkpoints:
    if checkpoints.latest() != step + 1:
      raise UserError(
        f'{directory}/replay does not hold the state of step {step + 1}: the '
        'step cannot be computed again'
      )
    state = checkpoints.restore(job.state)
  state = state._replace(step=jnp.full_like(state.step, step))
  like = {k: (x.shape, x.dtype) for k, x in job.batch.items()}
  if like != {k: (x.shape, x.dtype) for k, x in batch.items()}:
    raise UserError(f'the batch of {directory} is not one of its config')
  batch = jax.device_put(batch, {k: x.sharding for k, x in job.batch.items()})
  print(f'step {step}, images {batch["index"][:8]} ...', file=out)
  for line in nonfinite.explain(job, state, batch):
    print(line, file=out)


def _last_good(job: Job, state, checkpoints) -> str:
  """Saves the state if it is sound, else looks for an earlier one."""
  fault = nonfinite.unsound(state)
  if not fault:
    checkpoints.save(state)
    return f'the last good state is saved as step {int(state.step)}'
  try:
    good, aside = checkpoints.resume(job.state, nonfinite.unsound)
  except NoneSoundError:
    return f'no state of the run is sound ({fault})'
  aside = f' ({" ".join(aside.splitlines())})' if aside else ''
  return (
    f'the state in hand is not sound ({fault}), the last good one is that of '
    f'step {int(good.step)}{aside}'
  )


def _read(directory: str) -> tuple[int, dict]:
  """Step and batch of the newest replay file."""
  pattern = os.path.join(glob.escape(directory), 'replay_*.npz')
  files = {
    int(match[1]): path
    for path in glob.glob(pattern)
    if (match := re.search(r'replay_(\d{1,12})\.npz$', path))
  }
  if not files:
    raise UserError(
      f'no replay_STEP.npz in {directory}: a run leaves one when it stops '
      'because its numbers are not finite'
    )
  step = max(files)
  try:
    with np.load(files[step], allow_pickle=False) as arrays:
      return step, {k: arrays[k] for k in arrays.files if k != 'step'}
  except (OSError, ValueError, zipfile.BadZipFile) as e:
    raise UserError(f'cannot read {files[step]} ({in_one_line(e)})') from e


def _config(directory: str) -> ConfigDict:
  path = os.path.join(directory, 'config.json')
  try:
    return ConfigDict(_with_tuples(workdir.read_json(path)))
  except (OSError, ValueError) as e:
    raise UserError(f'cannot read {path} ({in_one_line(e)})') from e


def _with_tuples(value):
  """As configs have it: JSON knows lists only."""
  if isinstance(value, dict):
    return {k: _with_tuples(x) for k, x in value.items()}
  return tuple(map(_with_tuples, value)) if isinstance(value, list) else value


def _whole(x: jax.Array) -> np.ndarray:
  """The rows of all processes."""
  if jax.process_count() > 1:
    return multihost_utils.process_allgather(x, tiled=True)
  return np.asarray(x)
