"""Steps without finite numbers: what is kept of them."""

import os

import jax
import numpy as np
from jax.experimental import multihost_utils

from esvit_jax.errors import UserError
from esvit_jax.run.log import Log


def give_up(state, batch, directory: str, checkpoints, log: Log) -> None:
  """Saves the last good state and the batch at hand, then raises."""
  log.catch_up()
  log.metrics.flush()
  checkpoints.save(state)
  step = int(state.step) - 1
  replay = os.path.join(directory, f'replay_{step}.npz')
  batch = {k: _whole(v) for k, v in batch.items()}
  if jax.process_index() == 0:
    np.savez(replay, step=step, **batch)
  samples = ', '.join(map(str, batch['index'][:8]))
  raise UserError(
    f'{log.bad_in_row} steps in a row had no finite loss or gradient; the '
    f'last good state is saved as step {step + 1}, the batch of step {step} '
    f'(images number {samples}, ...) as {replay}. Lower optim.lr, '
    'use model.dtype=float32 or a longer warm-up, in another --workdir'
  )


def _whole(x: jax.Array) -> np.ndarray:
  """The rows of all processes."""
  if jax.process_count() > 1:
    return multihost_utils.process_allgather(x, tiled=True)
  return np.asarray(x)
