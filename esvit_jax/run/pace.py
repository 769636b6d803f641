"""How fast a train step is and how much memory it takes, before a run."""

import os
import time
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils

from esvit_jax import data, sharding
from esvit_jax import state as state_lib
from esvit_jax.errors import UserError
from esvit_jax.run import jobs

FIRST_BATCH = 32  # images a device, of the step that is measured
REPEATS = 3
_USED = 0.9  # of the memory: the rest is left for what XLA does not count
_EFFICIENCY = 0.25  # of a product of matrices, that training reaches
_SIDE = 2048  # of the matrices multiplied


class Pace(NamedTuple):
  """Of one step on every device.

  Attributes:
    images_per_s: of all devices, by the median of some steps.
    state_bytes: that a device holds whatever the batch.
    image_bytes: that each image of a device adds.
    memory: of a device, bytes.
  """

  images_per_s: float
  state_bytes: float
  image_bytes: float
  memory: float

  @property
  def fitting(self) -> int:
    """The power of two of images that a device holds, at least 1."""
    free = max(_USED * self.memory - self.state_bytes, self.image_bytes)
    return 2 ** (int(free / self.image_bytes).bit_length() - 1)


def _memory() -> float:
  """Bytes of one device; the devices of a CPU share the machine's."""
  device = jax.local_devices()[0]
  limit = (device.memory_stats() or {}).get('bytes_limit')
  if limit is None:
    limit = os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES')
    limit /= jax.local_device_count()
  return limit


def rate() -> float:
  """FLOP/s that training may reach on all devices, by a product of matrices."""
  kind = 'float32' if jax.default_backend() == 'cpu' else 'bfloat16'
  x = jnp.ones((_SIDE, _SIDE), kind)
  product = jax.jit(jnp.matmul)
  product(x, x).block_until_ready()
  began = time.perf_counter()
  for _ in range(REPEATS):
    product(x, x).block_until_ready()
  spent = (time.perf_counter() - began) / REPEATS
  devices = 1 if jax.default_backend() == 'cpu' else jax.device_count()
  return _agreed(_EFFICIENCY * devices * 2 * _SIDE**3 / spent)[0]


def flops(config, mesh) -> float:
  """Of training on one image, counted in the traced step."""
  job = _job(config, mesh, mesh.size)
  step = state_lib.make_train_step(job.method, job.tx, 1)
  lowered = jax.jit(step).lower(job.state, job.batch, job.key)
  return (lowered.cost_analysis() or {}).get('flops', 0.0) / mesh.size


def measure(config, mesh) -> Pace:
  """Compiles and runs some steps, of fewer images where memory is short.

  Raises:
    UserError: not even one image a device fits, or the config is wrong.
  """
  per_device = FIRST_BATCH
  while True:
    job = _job(config, mesh, per_device * mesh.size)
    try:
      step = jobs.compile_step(job)
      break
    except UserError:
      if per_device == 1:
        raise
      per_device //= 2
  state = jobs.create_state(job)
  batch = data.Pipeline(
    job.sources['train'],
    0,
    job.config.batch_size,
    jax.process_index(),
    jax.process_count(),
  )[0]
  batch = sharding.global_batch(mesh, batch)
  state, _ = jax.block_until_ready(step(state, batch, job.key))
  spans = []
  for _ in range(REPEATS):
    began = time.perf_counter()
    state, _ = jax.block_until_ready(step(state, batch, job.key))
    spans.append(time.perf_counter() - began)
  analysis = step.memory_analysis()
  needed = analysis.argument_size_in_bytes if analysis else 0
  temporary = analysis.temp_size_in_bytes if analysis else 0
  pace = _agreed(
    job.config.batch_size / sorted(spans)[REPEATS // 2],
    needed,
    max(temporary / per_device, 1.0),
    _memory(),
  )
  return Pace(*pace)


def _job(config, mesh, batch_size: int) -> jobs.Job:
  """A job of a batch, all at once, on the images to train on."""
  config = config.copy_and_resolve_references()
  with config.unlocked():
    config.batch_size, config.accumulate = batch_size, 1
    config.epochs, config.steps = 10, 0
    config.data.test_split = ''
    config.optim.warmup_epochs = 1.0
    config.loss.teacher_temp_warmup_epochs = 0
    config.loss.teacher_temp = config.loss.teacher_temp_warmup
    config.optim.freeze_last_layer_epochs = 0
  source, _ = data.open_pair(config.data)
  horizon = state_lib.Horizon(1000, 100)
  return jobs.plan(config, mesh, {'train': source, 'test': None}, horizon)


def _agreed(*values: float) -> list[float]:
  """The values of the first process, which all take."""
  if jax.process_count() == 1:
    return list(values)
  values = multihost_utils.broadcast_one_to_all(np.float32(values))
  return [float(x) for x in values]
