"""A run before it runs: a config checked, its functions, shapes and step."""

import math
import os
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from esvit_jax import augment, data, methods, models, optim, sharding
from esvit_jax import state as state_lib
from esvit_jax.errors import UserError
from esvit_jax.run import limits
from esvit_jax.weights import loading
from esvit_jax.workdir.metrics import tensorboard_writers


class Job(NamedTuple):
  """A checked config, ready to run: nothing has been written yet.

  Attributes:
    config: as given.
    mesh: of all devices.
    sources: 'train' and 'test' (None without one).
    horizon: length of the run.
    method, tx: what is learned, and how.
    schedules: name -> step -> value, for the metrics.
    state: ShapeDtypeStructs of the TrainState, with their shardings.
    batch: likewise of one global batch.
    step: the train step, traced, of a job that was prepared.
  """

  config: Any
  mesh: jax.sharding.Mesh
  sources: dict
  horizon: state_lib.Horizon
  method: state_lib.Method
  tx: optax.GradientTransformation
  schedules: dict
  state: state_lib.TrainState
  batch: dict
  step: jax.stages.Traced | None = None

  @property
  def key(self):
    return jax.random.key(self.config.seed)


def prepare(config, mesh=None) -> Job:
  """Checks all that can be checked before the first image."""
  mesh = mesh or sharding.mesh()
  limits.check(config)
  sharding.check_batch(config.batch_size, mesh, config.accumulate)
  if config.tensorboard:
    tensorboard_writers()
  train, test = data.open_pair(config.data)
  if 'finetune' in config:
    train = data.labelled(train)
  train = data.subsample(
    train,
    config.data.label_fraction,
    config.data.labels_per_class,
    config.seed,
  )
  per_epoch = len(train) / config.batch_size
  steps = config.steps or max(round(config.epochs * per_epoch), 1)
  if steps > limits.COUNT:
    raise UserError(
      f'config.epochs is {config.epochs}, which is {steps} steps: the steps of '
      f'a run are at most {limits.COUNT}; use fewer epochs'
    )
  horizon = state_lib.Horizon(steps, per_epoch)
  job = plan(config, mesh, {'train': train, 'test': test}, horizon)
  # Whatever cannot be computed shows in a trace, with nothing written yet.
  job = job._replace(step=trace_step(job))
  side, params, extra = config.eval.size, job.state.params, job.state.extra
  image = jax.ShapeDtypeStruct((1, side, side, config.data.channels), 'float32')
  jax.eval_shape(job.method.features, params, extra['student'], image)
  return job


def plan(config, mesh, sources, horizon) -> Job:
  """The functions and shapes of a run."""
  if config.method not in methods.METHODS:
    raise UserError(
      f"no method '{config.method}': choose one of {', '.join(methods.METHODS)}"
    )
  backbone = models.build(config.model)
  method = methods.METHODS[config.method](
    config,
    state_lib.Run(
      horizon,
      shards=mesh.size,
      classes=len(sources['train'].classes or ()),
      multi_label=sources['train'].multi_label,
      pixel_classes=_classes(sources['train'].segmentation),
      object_classes=_classes(sources['train'].objects),
      teacher=_frozen_teacher(config),
    ),
  )
  params, _, _ = jax.eval_shape(method.init, jax.random.key(0))
  tx, schedules = optim.from_config(config, horizon, params, backbone.layer_ids)
  if method.momentum is not None:
    schedules['momentum'] = method.momentum
  state = jax.eval_shape(
    lambda key: state_lib.create(method, tx, key), jax.random.key(0)
  )
  state = jax.tree.map(
    lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s),
    state,
    sharding.place(mesh, state, config.placement),
  )
  batch = {
    name: jax.ShapeDtypeStruct(
      (config.batch_size, *shape), dtype, sharding=sharding.data(mesh)
    )
    for name, (shape, dtype, _) in sources['train'].arrays().items()
  }
  job = Job(config, mesh, sources, horizon, method, tx, schedules, state, batch)
  refuse_if_over(_least_memory(job), 'a train step needs at least')
  return job


def _classes(targets) -> int:
  """How many classes a source's pixels or objects have; 0 without them."""
  return len(targets.classes) if targets else 0


def _frozen_teacher(config):
  """(backbone, its variables) of the network to distil from, or None."""
  path = config.distill.checkpoint if 'distill' in config else ''
  if not path:
    return None
  if path == 'REQUIRED':
    raise UserError(
      'this recipe distils from a teacher: give it with '
      '--config.distill.checkpoint, a run, .safetensors or .pth'
    )
  weights = loading.load_one(path)
  module = weights.backbone.clone(dtype=jnp.dtype(config.model.dtype))
  return module, weights.variables()


def trace_step(job: Job) -> jax.stages.Traced:
  """The train step: (state, batch, key) -> (state, metrics)."""
  step = jax.jit(
    state_lib.make_train_step(
      job.method, job.tx, job.config.accumulate, sharding.replicated(job.mesh)
    ),
    donate_argnums=0,
    out_shardings=(jax.tree.map(lambda x: x.sharding, job.state), None),
  )
  # Its shape alone: the devices may not be here.
  key = jax.eval_shape(lambda: jax.random.key(0))
  return step.trace(job.state, job.batch, key)


def compile_step(job: Job):
  """The compiled train step: (state, batch, key) -> (state, metrics).

  Raises:
    UserError: it needs more memory than a device has.
  """
  compiled = (job.step or trace_step(job)).lower().compile()
  memory = compiled.memory_analysis()
  if memory is not None:
    refuse_if_over(
      memory.temp_size_in_bytes + memory.argument_size_in_bytes,
      'a train step needs',
    )
  return compiled


def create_state(job: Job) -> state_lib.TrainState:
  """The state of step 0, placed."""
  create = jax.jit(
    lambda key: state_lib.create(job.method, job.tx, key),
    out_shardings=jax.tree.map(lambda x: x.sharding, job.state),
  )
  return create(job.key)


def refuse_if_over(needed: int, what: str) -> None:
  """Raises UserError where `needed` bytes are more than a device has."""
  device = jax.local_devices()[0]
  limit = (device.memory_stats() or {}).get('bytes_limit')
  if limit is None:
    # A CPU: its devices share the machine's memory.
    limit = os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES')
    needed *= jax.local_device_count()
  if needed > limit:
    raise UserError(
      f'{what} {needed / 2**30:.1f} GiB, there are {limit / 2**30:.1f} GiB: '
      'take a smaller batch_size, a larger accumulate, --config.model.remat=1 '
      'or --config.placement=fsdp'
    )


def _least_memory(job: Job) -> int:
  """Bytes that one device holds for certain: state, gradients, views."""
  config, share = job.config, job.mesh.size
  state = sum(
    math.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize
    for x in jax.tree.leaves((job.state, job.state.params))
  )
  pixels = sum(
    g['count'] * math.prod(augment.view_size(g['size']))
    for g in config.views.values()
  )
  views = 4 * pixels * config.data.channels * config.batch_size
  canvas = math.prod(job.batch['image'].shape)
  return state + (views // config.accumulate + canvas) // share
