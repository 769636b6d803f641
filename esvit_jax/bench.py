"""Speed and memory of a config, on synthetic images and this machine.

  python -m main --mode=bench --config=configs/esvit.py:swin_tiny
  python -m main --mode=bench --config=configs/eval/knn.py --config.checkpoint=A

The first needs no data set, tfds, grain or clu. Times are medians of whole
calls, the device drained before and after; pieces are compiled apart, so they
need not add up to the step.
"""

import json
import os
import resource
import statistics
import time

import jax
import jax.numpy as jnp
import numpy as np
import optax

from esvit_jax import evals, protocols, sharding, workdir
from esvit_jax import state as state_lib
from esvit_jax.errors import UserError, require_local
from esvit_jax.run import hlo, jobs, limits, synthetic, targets
from esvit_jax.workdir import terminal

REPEATS = 20
WARM_UP = 2
KNN, KNN_WIDTH = 50_000, 768


def run(config, directory: str = '', against: str = '') -> dict:
  """Measures one train step and its pieces.

  Args:
    config: any training config; its images are replaced by noise.
    directory: where to write bench.json ('' writes none).
    against: an earlier bench.json, to print the ratios of milliseconds.

  Returns:
    The figures, as printed: milliseconds and their spread (half of what lies
    between the quartiles, as a share of the median), images/s, GFLOP, GB, MiB;
    shares of the device's peak, where it is known.

  Raises:
    UserError: the config cannot be run, the directory not be written, or
      `against` not be read.
  """
  earlier = _earlier(against)
  _claim(directory)
  limits.check(config)
  mesh = sharding.mesh()
  sharding.check_batch(config.batch_size, mesh, config.accumulate)
  job = synthetic.job(config, mesh)
  began = time.perf_counter()
  step = jobs.compile_step(job)
  compile_s = time.perf_counter() - began
  batch = synthetic.batch(job)
  state = jobs.create_state(job)

  figures = {'device': f'{mesh.size} {jax.devices()[0].device_kind}'}
  figures['batch_size'] = config.batch_size
  figures['compile_s'] = compile_s
  # The step first: it is donated its state, as in training.
  state, timed = _time_step(step, state, batch, job.key)
  figures['images_per_s'] = 1e3 * config.batch_size / timed['step_ms']
  figures |= timed
  figures['gflop_per_image'] = _flops_per_image(job) / 1e9
  traffic = hlo.traffic(step.as_text()).bytes  # of one device
  figures['gb_per_image'] = traffic * mesh.size / config.batch_size / 1e9
  figures |= _shares_of_peak(figures, mesh.size)
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
  if earlier:
    _compare(figures, earlier, against)
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
  ms = _time(features, batch)[1]['ms']
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
  labels = rng.integers(0, synthetic.CLASSES, (2, KNN))
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
    workdir.write_json(os.path.join(directory, 'bench.json'), figures)


def _earlier(against: str) -> dict:
  """The figures of an earlier bench, or none."""
  if not against:
    return {}
  try:
    figures = workdir.read_json(against)
    return {k: v for k, v in figures.items() if isinstance(v, float)}
  except (OSError, ValueError) as e:
    raise UserError(
      f'cannot read --against={against} as the bench.json of an earlier '
      f'--mode=bench ({e})'
    ) from e


def _compare(figures: dict, earlier: dict, against: str) -> None:
  rows = [
    (
      name,
      f'{earlier[name]:,.4g}',
      f'{value:,.4g}',
      f'{earlier[name] / value:.2f}x',
    )
    for name, value in figures.items()
    if name.endswith(('_ms', '_cpu_s')) and earlier.get(name) and value
  ]
  columns = ('figure', 'then', 'now', 'faster')
  print(terminal.table(f'against {against}', columns, rows))


def _shares_of_peak(figures: dict, devices: int) -> dict[str, float]:
  """Of products and of memory, where the device is known."""
  kind = targets.KINDS.get(jax.devices()[0].device_kind)
  if kind is None:
    return {}
  device, speed = targets.DEVICES[kind], figures['images_per_s'] / devices
  return {
    'share_of_peak_flops': speed
    * figures['gflop_per_image']
    * 1e9
    / device.flops,
    'share_of_bandwidth': speed
    * figures['gb_per_image']
    * 1e9
    / device.bandwidth,
  }


def _pieces(job, state, batch) -> dict[str, float]:
  """Milliseconds of augmentation, the method's stages and the optimiser."""
  keys = jax.random.split(job.key, job.config.batch_size)
  figures, done = {}, {}

  def add(name, fn, *args):
    result, timed = _time(jax.jit(fn), *args)
    figures.update({f'{name}_{k}': v for k, v in timed.items()})
    return result

  def update(state, grads):
    updates, opt_state = job.tx.update(grads, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    teacher = state_lib.follow(job.method, state, params)
    return params, teacher, opt_state

  views = add('augmentation', job.method.views, batch, keys)
  for name, stage in job.method.stages.items():
    done[name] = add(name, stage, state, views, job.key, done)
  add('optimiser', update, state, state.params)
  return figures


def _time(fn, *args):
  """The result of fn(*args), its milliseconds and their spread."""
  spans = []
  for _ in range(WARM_UP + REPEATS):
    began = time.perf_counter()
    result = jax.block_until_ready(fn(*args))
    spans.append(time.perf_counter() - began)
  return result, _median_and_spread(spans[WARM_UP:])


def _median_and_spread(spans: list[float]) -> dict[str, float]:
  low, middle, high = np.percentile(spans, (25, 50, 75))
  return {'ms': 1e3 * middle, 'spread': (high - low) / 2 / middle}


def _time_step(step, state, batch, key):
  """The state after some steps, and what one took."""
  spans = []
  for i in range(WARM_UP + REPEATS):
    if i == WARM_UP:
      cpu, faults = time.process_time(), _page_faults()
    began = time.perf_counter()
    state, _ = jax.block_until_ready(step(state, batch, key))
    spans.append(time.perf_counter() - began)
  timed = _median_and_spread(spans[WARM_UP:])
  return state, {
    **{f'step_{k}': v for k, v in timed.items()},
    # Of this process, all its threads.
    'step_cpu_s': (time.process_time() - cpu) / REPEATS,
    'step_page_faults': (_page_faults() - faults) / REPEATS,
  }


def _page_faults() -> int:
  return resource.getrusage(resource.RUSAGE_SELF).ru_minflt


def _flops_per_image(job) -> float:
  """Of one train step as traced, nothing computed twice.

  XLA counts the body of a loop once, so loops are written out for this.
  """
  config = job.config.copy_and_resolve_references()
  config.batch_size //= config.accumulate
  config.accumulate, config.model.remat = 1, False
  if 'form' in config.get('loss', {}):
    config.loss.form = 'plain'
  job = synthetic.job(config, job.mesh)
  step = state_lib.make_train_step(job.method, job.tx)
  lowered = jax.jit(step).lower(job.state, job.batch, job.key)
  flops = (lowered.cost_analysis() or {}).get('flops', jnp.nan)
  return flops / config.batch_size
