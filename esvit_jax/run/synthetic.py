"""A run on noise, to be measured or planned where its images are not."""

import jax
import numpy as np

from esvit_jax import augment, data, sharding
from esvit_jax import state as state_lib
from esvit_jax.run import jobs

CLASSES = 1000  # of methods that learn labels
# Steps of one epoch each: all schedules fit, and the freeze of the last layer
# is over before the clock starts.
HORIZON = state_lib.Horizon(10_000, 1)


def job(config, mesh) -> jobs.Job:
  """A job whose images are noise that fills the config's canvas."""
  canvas = augment.view_size(config.data.canvas or config.views.globals.size)
  shape = (*canvas, config.data.channels)

  def noise(i: int) -> np.ndarray:
    return np.random.default_rng(i).integers(0, 256, shape, np.uint8)

  source = data.Source(
    name='noise',
    split='train',
    count=HORIZON.steps * config.batch_size,
    classes=range(CLASSES),
    read=lambda i: (noise(i), -1),
    where=str,
    canvas=canvas,
    channels=config.data.channels,
  )
  return jobs.plan(config, mesh, {'train': source, 'test': None}, HORIZON)


def batch(job: jobs.Job) -> dict:
  """One global batch of noise, without labels."""
  rng = np.random.default_rng(0)
  source = job.sources['train']
  rows = len(job.batch['index']) // jax.process_count()
  local = {
    name: np.full((rows, *shape), padding, dtype)
    for name, (shape, dtype, padding) in source.arrays().items()
  }
  image = local['image']
  local['image'] = rng.integers(0, 256, image.shape, np.uint8)
  local['size'][:] = source.canvas
  local['index'][:] = np.arange(rows)
  return sharding.global_batch(job.mesh, local)
