"""What a run needs on devices that need not be here, before it starts.

  python -m main --mode=plan --target=h200-8 --config=configs/esvit.py

From arithmetic on the traced step; with the plug-in of an H200 or H100
installed (`pip install -e ".[gpu]"`), from the step compiled for it.
"""

import math
import sys
from typing import NamedTuple

import jax
import numpy as np
from jax.sharding import AbstractMesh, AxisType, Mesh

from esvit_jax import data, sharding
from esvit_jax import state as state_lib
from esvit_jax.errors import UserError
from esvit_jax.run import costs, hlo, jobs, limits, synthetic, targets
from esvit_jax.workdir import terminal

IMAGENET = 1_281_167  # images, where the set is not here
# What is assumed of a device, as the estimate says.
MEMORY_USED = 0.92  # share of its memory that a program can have
BANDWIDTH_USED = 0.8
FLOPS_USED = 0.5
# Swin-T's stages as compiled for an H200 move 3.4 GB an image, products 1.3.
TRAFFIC_OF_PRODUCTS = 2.6
DECODED = 620  # images per CPU-second at canvas 512, measured on x86


class Step(NamedTuple):
  """One step of one device.

  Attributes:
    fixed: bytes of memory for any batch.
    per_image: bytes of memory for each of its images at a time.
    traffic: bytes read and written.
    flops: of products.
    source: 'arithmetic' or 'compiled'.
  """

  fixed: float
  per_image: float
  traffic: float
  flops: float
  source: str


def run(config, target: str, out=sys.stdout) -> dict:
  """Tells whether a run fits on a target, and what it takes.

  Args:
    config: any training config.
    target: as in `targets.target`.
    out: where to print.

  Returns:
    The figures, as printed.

  Raises:
    UserError: what a start on the target would refuse, with the nearest
      settings that do.
  """
  goal = targets.target(target)
  limits.check(config)
  sharding.check_batch(config.batch_size, goal, config.accumulate)
  share = config.batch_size // goal.size // config.accumulate
  state = _job(config, 1, jax.devices()[0]).state
  step = _counted(config, goal, share, state)
  if (device := targets.compiler_device(goal)) is not None:
    step = _compiled(config, share, device, step)
  memory = step.fixed + share * step.per_image
  room = MEMORY_USED * goal.device.memory
  largest = int((room - step.fixed) // step.per_image)
  largest_batch = max(largest, 0) * goal.size * config.accumulate
  _refuse_if_over(memory, room, largest, config, goal)
  seconds = _seconds(goal, step, costs.tree_bytes(state.params))
  speed = config.batch_size / seconds
  images, known = _images(config)
  steps = config.steps or round(config.epochs * images / config.batch_size)
  disk = costs.tree_bytes(state)
  kept = config.save.keep + 1  # the best stays too
  if config.save.keep_every_epochs:
    epochs = steps * config.batch_size / images
    kept += int(epochs / config.save.keep_every_epochs)
  figures = {
    'target': f'{goal.name}: {goal.size} devices',
    'figures_from': step.source,
    'memory_per_device_gib': memory / 2**30,
    'of_gib': goal.device.memory / 2**30,
    'largest_batch_size': largest_batch,
    'gflop_per_image': step.flops / share / config.accumulate / 1e9,
    'gb_per_image': step.traffic / share / config.accumulate / 1e9,
    'images_per_s': speed,
    'hours': steps * seconds / 3600,
    'images': f'{images:,}' + ('' if known else ' (assumed: not here)'),
    'steps': steps,
    'checkpoint_gib': disk / 2**30,
    'checkpoints_on_disk_gib': kept * disk / 2**30,
    'host_cores': math.ceil(speed / DECODED),
  }
  rows = [
    (name, f'{x:,.4g}' if isinstance(x, float) else str(x))
    for name, x in figures.items()
  ]
  print(terminal.table('plan', ('figure', 'value'), rows), file=out)
  print(
    f'fits. Assumed: {BANDWIDTH_USED:.0%} of memory bandwidth, '
    f'{FLOPS_USED:.0%} of peak FLOP/s, gradients sent after the step, '
    f'{DECODED} images decoded per core and second, evaluations left out',
    file=out,
  )
  return figures


def _refuse_if_over(memory, room, largest, config, goal) -> None:
  if memory <= room:
    return
  parts = config.batch_size // goal.size
  if largest < 1:
    advice = (
      'not even one image fits: take --config.placement=fsdp, '
      '--config.model.remat=1 or a smaller network'
    )
  else:
    fits = [n for n in range(1, parts + 1) if parts % n == 0]
    accumulate = next(n for n in fits if parts // n <= largest)
    advice = (
      f'--config.batch_size={largest * goal.size * config.accumulate} does, or '
      f'--config.accumulate={accumulate}'
    )
  raise UserError(
    f'batch_size {config.batch_size} needs {memory / 2**30:.1f} GiB per device '
    f'of {goal.name}, there are {room / 2**30:.1f} GiB: {advice}'
  )


def _job(config, images: int, device):
  """The run of one device."""
  alone = config.copy_and_resolve_references()
  alone.batch_size, alone.accumulate, alone.placement = images, 1, 'replicated'
  mesh = Mesh(np.array([device]), ('data',), axis_types=(AxisType.Auto,))
  return synthetic.job(alone, mesh)


def _counted(config, goal, share: int, state) -> Step:
  """From the trace of the step."""
  job = _job(config, 1, jax.devices()[0])
  key = jax.eval_shape(lambda: jax.random.key(0))

  def kept(images: int) -> int:
    batch = _with_images(job.batch, images)
    keys = jax.eval_shape(lambda: jax.random.split(jax.random.key(0), images))
    views = jax.eval_shape(job.method.views, batch, keys)
    bytes_ = costs.kept_bytes(
      lambda params, state, views, key: (
        job.method.loss(params, state, views, key).value
      ),
      job.state.params,
      job.state,
      views,
      key,
    )
    return bytes_ + costs.tree_bytes((views, batch))

  per_image = kept(2) - kept(1)
  # Gradients and updates, beside what is kept of any batch.
  fixed = _state_of_device(config, goal, state) + kept(1) - per_image
  fixed += 2 * costs.tree_bytes(job.state.params)

  plain = config.copy_and_resolve_references()
  plain.model.remat = False
  if 'form' in plain.get('loss', {}):
    plain.loss.form = 'plain'  # nothing twice
  job = _job(plain, share, jax.devices()[0])
  train = state_lib.make_train_step(job.method, job.tx)
  traced = jax.make_jaxpr(train)(job.state, job.batch, key)
  counted = costs.products(traced.jaxpr)
  return Step(
    fixed,
    per_image,
    config.accumulate * TRAFFIC_OF_PRODUCTS * counted.bytes,
    config.accumulate * counted.flops,
    'arithmetic',
  )


def _compiled(config, share: int, device, counted: Step) -> Step:
  """From the step compiled for one of the devices."""
  compiled = (
    jobs.trace_step(_job(config, share, device))
    .lower()
    .compile({'xla_gpu_autotune_level': 0, 'xla_gpu_enable_triton_gemm': False})
  )
  memory = compiled.memory_analysis()
  needed = memory.temp_size_in_bytes + memory.argument_size_in_bytes
  return counted._replace(
    per_image=max(needed - counted.fixed, 1) / share,
    traffic=config.accumulate * hlo.traffic(compiled.as_text()).bytes,
    source='compiled',
  )


def _with_images(batch, images: int):
  return {
    name: jax.ShapeDtypeStruct((images, *x.shape[1:]), x.dtype)
    for name, x in batch.items()
  }


def _state_of_device(config, goal, state) -> int:
  """Bytes of the state on one device."""
  mesh = AbstractMesh((goal.size,), ('data',), axis_types=(AxisType.Auto,))
  places = sharding.place(mesh, state, config.placement)
  return sum(
    math.prod(place.shard_shape(x.shape)) * x.dtype.itemsize
    for x, place in zip(jax.tree.leaves(state), jax.tree.leaves(places))
  )


def _seconds(goal, step: Step, gradients: int) -> float:
  """Of one step: the slower of memory and products, then the gradients."""
  device = goal.device
  seconds = max(
    step.traffic / device.bandwidth / BANDWIDTH_USED,
    step.flops / device.flops / FLOPS_USED,
  )
  sent = 2 * (goal.size - 1) / goal.size * gradients
  return seconds + sent / device.link


def _images(config) -> tuple[int, bool]:
  """Number of images, and whether the set is here to be counted."""
  try:
    train, _ = data.open_pair(config.data)
    return len(train), True
  except (UserError, ImportError):
    return IMAGENET, False
