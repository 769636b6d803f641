"""Speed and memory of a config, on synthetic images and this machine.

  python -m main --mode=bench --config=configs/esvit.py:swin_tiny
  python -m main --mode=bench --config=configs/eval/knn.py --config.checkpoint=A

The first needs no data set, tfds, grain or clu. Times are medians of whole
calls, the device drained before and after; pieces are compiled apart, so they
need not add up to the step.
"""

import json
import os
import statistics
import time
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import optax

from esvit_jax import augment, evals, protocols, sharding
from esvit_jax import state as state_lib
from esvit_jax.errors import UserError, require_local
from esvit_jax.run import jobs, limits
from esvit_jax.workdir import terminal

REPEATS = 20
WARM_UP = 2
CLASSES = 1000  # of methods that learn labels
KNN, KNN_WIDTH = 50_000, 768
# Steps of one epoch each: all schedules fit, and the freeze of the last layer
# is over before the clock starts.
HORIZON = state_lib.Horizon(10_000, 1)


def run(config, directory: str = '') -> dict:
  """Measures one train step and its pieces.

  Args:
    config: any training config; its images are replaced by noise.
    directory: where to write bench.json ('' writes none).

  Returns:
    The figures, as printed: milliseconds, images/s, GFLOP, MiB.

  Raises:
    UserError: the config cannot be run, or the directory not be written.
  """
  _claim(directory)
  limits.check(config)
  mesh = sharding.mesh()
  sharding.check_batch(config.batch_size, mesh, config.accumulate)
  job = synthetic_job(config, mesh)
  began = time.perf_counter()
  step = jobs.compile_step(job)
  compile_s = time.perf_counter() - began
  batch = synthetic_batch(job)
  state = jobs.create_state(job)

  figures = {'device': f'{mesh.size} {jax.devices()[0].device_kind}'}
  figures['batch_size'] = config.batch_size
  figures['compile_s'] = compile_s
  # The step first: it is donated its state, as in training.
  state, step_ms, cpu_s = _time_step(step, state, batch, job.key)
  figures['images_per_s'] = 1e3 * config.batch_size / step_ms
  figures['step_ms'] = step_ms
  figures['step_cpu_s'] = cpu_s  # of this process, all its threads
  figures['gflop_per_image'] = _flops_per_image(job) / 1e9
  memory = step.memory_analysis()
  if memory is not None:
    figures['step_memory_mib'] = (
      memory.temp_size_in_bytes + memory.argument_size_in_bytes
    ) / 2**20
  # Before the pieces run, which keep what a step gives back.
  stats = jax.local_devices()[0].memory_stats() or {}
  if 'peak_bytes_in_use' in stats:
    figures['peak_memory_mib'] = stats['peak_bytes_in_use'] / 2**20
  figures |= _pieces(job, state, batch)
  _tell(figures, directory)
  return figures


def evaluation(config, directory: str = '') -> dict:
  """Measures how fast features are extracted, and k-NN of many.

  Args:
    config: as in configs/eval/, with a checkpoint.
    directory: where to write bench.json ('' writes none).

  Returns:
    The figures, as printed: images/s of the bare forward pass on a batch that
    is there, and of extraction from the source on, and their ratio; seconds of
    k-NN between KNN random features and as many others.

  Raises:
    UserError: the network or the images cannot be used.
  """
  _claim(directory)
  setup = protocols.prepare(config, directory or config.checkpoint)
  features = setup.features(lambda f: f.view)
  batch = next(iter(setup.batches(setup.test_or_train)))
  _, ms = _time(features, batch)
  # The same batches as extraction has, the last one padded.
  size = len(batch['mask'])
  count = len(setup.test_or_train)
  bare = 1e3 * size / ms * (count / (-(-count // size) * size))
  spans = []
  for _ in range(3):
    began = time.perf_counter()
    evals.extract({'x': features}, setup.batches(setup.test_or_train))
    spans.append(time.perf_counter() - began)
  extracted = count / statistics.median(spans)
  figures = {
    'device': f'{setup.mesh.size} {jax.devices()[0].device_kind}',
    'batch_size': size,
    'forward_images_per_s': bare,
    'extraction_images_per_s': extracted,
    'extraction_share_of_forward': extracted / bare,
  }
  rng = np.random.default_rng(0)
  train, test = (
    rng.standard_normal((KNN, KNN_WIDTH), np.float32) for _ in range(2)
  )
  labels = rng.integers(0, CLASSES, (2, KNN))
  began = time.perf_counter()
  evals.EVALS['knn'](train, labels[0], test, labels[1])
  figures[f'knn_{KNN}_{KNN}_{KNN_WIDTH}_s'] = time.perf_counter() - began
  _tell(figures, directory)
  return figures


def _claim(directory: str) -> None:
  """Makes the directory, before anything is measured."""
  if directory:
    require_local(directory, '--workdir')
    try:
      os.makedirs(directory, exist_ok=True)
    except OSError as e:
      raise UserError(
        f'cannot write to --workdir={directory}: {e.strerror}'
      ) from e


def _tell(figures: dict, directory: str) -> None:
  rows = [
    (name, f'{value:,.4g}' if isinstance(value, float) else str(value))
    for name, value in figures.items()
  ]
  print(terminal.table('bench', ('figure', 'value'), rows))
  print(json.dumps(figures))
  if directory:
    with open(os.path.join(directory, 'bench.json'), 'w') as f:
      json.dump(figures, f, indent=2)


def synthetic_job(config, mesh) -> jobs.Job:
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


def synthetic_batch(job: jobs.Job) -> dict:
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


def _pieces(job, state, batch) -> dict[str, float]:
  """Milliseconds of augmentation, the method's stages and the optimiser."""
  keys = jax.random.split(job.key, job.config.batch_size)
  views, ms = _time(jax.jit(job.method.views), batch, keys)
  figures, done = {'augmentation_ms': ms}, {}
  for name, stage in job.method.stages.items():
    done[name], figures[f'{name}_ms'] = _time(
      jax.jit(stage), state, views, job.key, done
    )

  @jax.jit
  def update(state, grads):
    updates, opt_state = job.tx.update(grads, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    teacher = state_lib.follow(job.method, state, params)
    return params, teacher, opt_state

  _, figures['optimiser_ms'] = _time(update, state, state.params)
  return figures


def _time(fn, *args):
  """The result of fn(*args) and its median milliseconds."""
  spans = []
  for _ in range(WARM_UP + REPEATS):
    began = time.perf_counter()
    result = jax.block_until_ready(fn(*args))
    spans.append(time.perf_counter() - began)
  return result, 1e3 * statistics.median(spans[WARM_UP:])


def _time_step(step, state, batch, key):
  """The state after some steps, median milliseconds and mean CPU seconds."""
  spans = []
  for i in range(WARM_UP + REPEATS):
    if i == WARM_UP:
      cpu = time.process_time()
    began = time.perf_counter()
    state, _ = jax.block_until_ready(step(state, batch, key))
    spans.append(time.perf_counter() - began)
  cpu = (time.process_time() - cpu) / REPEATS
  return state, 1e3 * statistics.median(spans[WARM_UP:]), cpu


def _flops_per_image(job) -> float:
  """Of one train step as traced, nothing computed twice.

  XLA counts the body of a loop once, so loops are written out for this.
  """
  config = job.config.copy_and_resolve_references()
  config.batch_size //= config.accumulate
  config.accumulate, config.model.remat = 1, False
  if 'form' in config.get('loss', {}):
    config.loss.form = 'plain'
  job = synthetic_job(config, job.mesh)
  step = state_lib.make_train_step(job.method, job.tx)
  lowered = jax.jit(step).lower(job.state, job.batch, job.key)
  flops = (lowered.cost_analysis() or {}).get('flops', jnp.nan)
  return flops / config.batch_size
