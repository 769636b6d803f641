"""A run on noise, to be measured or planned where its images are not."""

from types import SimpleNamespace

import jax
import numpy as np

from esvit_jax import augment, sharding
from esvit_jax import state as state_lib
from esvit_jax.run import jobs

CLASSES = 1000  # of methods that learn labels
# Steps of one epoch each: all schedules fit, and the freeze of the last layer
# is over before the clock starts.
HORIZON = state_lib.Horizon(10_000, 1)


def job(config, mesh) -> jobs.Job:
  """A job whose images are noise of the config's canvas."""
  canvas = config.data.canvas or config.views.globals.size
  source = SimpleNamespace(
    canvas=augment.view_size(canvas),
    classes=range(CLASSES),
    label_shape=(),
    multi_label=False,
    segmentation=None,
  )
  return jobs.plan(config, mesh, {'train': source, 'test': None}, HORIZON)


def batch(job: jobs.Job) -> dict:
  """One global batch of noise, each image filling its canvas."""
  rng = np.random.default_rng(0)
  shape = job.batch['image'].shape
  rows = shape[0] // jax.process_count()
  return sharding.global_batch(
    job.mesh,
    {
      'image': rng.integers(0, 256, (rows, *shape[1:]), np.uint8),
      'size': np.full((rows, 2), shape[1:3], np.int32),
      'label': np.full((rows,), -1, np.int32),
      'index': np.arange(rows, dtype=np.int32),
    },
  )
