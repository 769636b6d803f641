"""What a step of training will keep in memory, found without compiling it."""

import math

import jax

from esvit_jax import sharding
from esvit_jax import state as state_lib
from esvit_jax.run import jobs

LARGE = (640, 1024)  # pixels at which detection and segmentation are published


def line(config, source) -> str:
  """'memory   0.12 GiB of state; an image keeps 1.3 GiB at 640 px, ...'.

  Args:
    config: of the run.
    source: the images to train on.

  Raises:
    UserError: state and views alone are more than a device has.
  """
  own = config.views.globals.size
  # Beside small images the published sizes would tell nothing.
  sizes = sorted({own, *LARGE}) if own >= min(LARGE) // 2 else (own,)
  parts, state = [], 0
  for size in sizes:
    job = _at(config, source, size)
    state = _bytes(job.state)
    kept = kept_by_image(job) / 2**30
    parts.append(f'{kept:.2g} GiB at {size:,} px')
  return (
    f'memory   {state / 2**30:.2g} GiB of state; between forward and backward '
    f'an image keeps {", ".join(parts)}'
  )


def kept_by_image(job) -> int:
  """Bytes of an image's activations that its gradient needs, from shapes."""
  B = job.config.batch_size

  def kept(state, batch, key):
    views = job.method.views(batch, jax.random.split(key, B))

    def value(params):
      return job.method.loss(params, state, views, key).value

    return jax.vjp(value, state.params)[1]

  every = _bytes(jax.eval_shape(kept, job.state, job.batch, job.key))
  # The parameters are among them.
  return max(every - _bytes(job.state.params), 0) // B


def _at(config, source, size: int) -> jobs.Job:
  config = config.copy_and_resolve_references()
  config.views.globals.size = size
  config.batch_size = sharding.mesh().size
  horizon = state_lib.Horizon(max(config.steps, 1), 1.0)
  mesh = sharding.mesh()
  return jobs.plan(config, mesh, {'train': source, 'test': None}, horizon)


def _bytes(tree) -> int:
  return sum(
    math.prod(x.shape) * x.dtype.itemsize for x in jax.tree.leaves(tree)
  )
