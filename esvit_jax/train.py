"""Pre-training, from a config to a finished run directory.

  from esvit_jax import train
  state = train.run(config, 'runs/quickstart')

The story: check everything, claim the directory, restore or start, loop
(data -> step -> report), judge, save. Randomness comes from (seed, step)
alone, so the same call resumes bit for bit, on any number of devices.
"""

import contextlib
import math
import os
import signal
import sys
import threading
import time
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.experimental import multihost_utils

from esvit_jax import (
  data,
  evals,
  health,
  limits,
  methods,
  optim,
  sharding,
  summary,
  workdir,
)
from esvit_jax import state as state_lib
from esvit_jax.analysis import pictures
from esvit_jax.checkpoint import Checkpoints, restore_parts
from esvit_jax.errors import UserError
from esvit_jax.metrics import (
  Metrics,
  Progress,
  duration,
  tensorboard_writers,
)

FIRST_STEPS = 10  # after these, the time of the run can be told
RANK_IMAGES = 512  # the effective rank is read off this many


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

  @property
  def key(self):
    return jax.random.key(self.config.seed)


def run(config, directory: str, out=sys.stdout) -> state_lib.TrainState:
  """Trains until the end of the config, or until asked to stop.

  Args:
    config: a ConfigDict as in configs/.
    directory: of the run; an unfinished run found there goes on.
    out: where to report.

  Returns:
    The last state.

  Raises:
    UserError: the config or the data cannot be run; nothing is written.
  """
  workdir.check(directory, config.to_dict())
  job = prepare(config)
  first = jax.process_index() == 0
  with contextlib.ExitStack() as stack:
    if first:
      stack.enter_context(workdir.claim(directory, config.to_dict()))
    return _train(job, directory, out if first else None)


def prepare(config, mesh=None) -> Job:
  """Checks all that can be checked before the first image."""
  mesh = mesh or sharding.mesh()
  limits.check(config)
  sharding.check_batch(config.batch_size, mesh, config.accumulate)
  if config.tensorboard:
    tensorboard_writers()
  train = data.open_source(config.data, config.data.split)
  test = data.open_test(config.data, train)
  per_epoch = max(len(train) // config.batch_size, 1)
  steps = config.steps or config.epochs * per_epoch
  horizon = state_lib.Horizon(steps, per_epoch)
  job = plan(config, mesh, {'train': train, 'test': test}, horizon)
  # Whatever cannot be computed shows in a trace, with nothing written yet.
  step = state_lib.make_train_step(job.method, job.tx, config.accumulate)
  jax.eval_shape(step, job.state, job.batch, job.key)
  return job


def plan(config, mesh, sources, horizon) -> Job:
  """The functions and shapes of a run."""
  if config.method not in methods.METHODS:
    raise UserError(
      f"no method '{config.method}': choose one of {', '.join(methods.METHODS)}"
    )
  method = methods.METHODS[config.method](config, horizon, mesh.size)
  params, _, _ = jax.eval_shape(method.init, jax.random.key(0))
  tx, schedules = optim.from_config(config, horizon, params)
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
  height, width = sources['train'].canvas
  B = config.batch_size
  batch = {
    'image': ((B, height, width, config.data.channels), jnp.uint8),
    'size': ((B, 2), jnp.int32),
    'label': ((B,), jnp.int32),
    'index': ((B,), jnp.int32),
  }
  batch = {
    k: jax.ShapeDtypeStruct(*v, sharding=sharding.data(mesh))
    for k, v in batch.items()
  }
  job = Job(config, mesh, sources, horizon, method, tx, schedules, state, batch)
  refuse_if_over(_least_memory(job), 'a train step needs at least')
  return job


def compile_step(job: Job):
  """The compiled train step: (state, batch, key) -> (state, metrics).

  Raises:
    UserError: it needs more memory than a device has.
  """
  step = jax.jit(
    state_lib.make_train_step(
      job.method, job.tx, job.config.accumulate, sharding.replicated(job.mesh)
    ),
    donate_argnums=0,
    out_shardings=(jax.tree.map(lambda x: x.sharding, job.state), None),
  )
  compiled = step.lower(job.state, job.batch, job.key).compile()
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


def start(job: Job) -> state_lib.TrainState:
  """The state of step 0, or of another run's weights (config.init)."""
  init = job.config.init
  step = init.epoch * job.horizon.steps_per_epoch
  if init.checkpoint:
    parts = restore_parts(
      init.checkpoint, ('params', 'teacher', 'extra'), step or None
    )
    state = continue_from(create_state(job), parts)
    step = jax.device_put(jnp.int32(step), state.step.sharding)
    return state._replace(step=step)
  if init.epoch:
    raise UserError(
      f'this recipe adds the region task to a view-only run at epoch '
      f'{init.epoch}: train that first (the config variant ..._view), then '
      'pass --config.init.checkpoint=ITS_WORKDIR; or set '
      '--config.init.epoch=0 to train both from the start'
    )
  return create_state(job)


def continue_from(state, parts: dict) -> state_lib.TrainState:
  """`state` with another run's params, teacher and extra.

  As published, a part that run lacks (the region head and its centre) stays
  fresh, the optimiser starts from zero and the schedules go on.

  Raises:
    UserError: anything but the region task is missing or of another shape.
  """

  def merge(path, ours):
    node = parts
    try:
      for key in path:
        node = node[getattr(key, 'key', getattr(key, 'name', None))]
    except (KeyError, TypeError):
      name = jax.tree_util.keystr(path, simple=True, separator='.')
      if 'head_dense' in name or 'center_grid' in name:
        return ours
      raise UserError(
        f'{name} is not in that checkpoint: it is of another model'
      ) from None
    if np.shape(node) != ours.shape:
      name = jax.tree_util.keystr(path, simple=True, separator='.')
      raise UserError(
        f'{name} is {list(np.shape(node))} in that checkpoint, '
        f'{list(ours.shape)} here: it is of another model'
      )
    return jax.device_put(np.asarray(node, ours.dtype), ours.sharding)

  merged = jax.tree_util.tree_map_with_path(
    merge, {k: getattr(state, k) for k in parts}
  )
  return state._replace(**merged)


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
  pixels = sum(g['count'] * g['size'] ** 2 for g in config.views.values())
  views = 4 * pixels * config.data.channels * config.batch_size
  canvas = math.prod(job.batch['image'].shape)
  return state + (views // config.accumulate + canvas) // share


def _train(job: Job, directory: str, out) -> state_lib.TrainState:
  """Restores or starts, loops, judges and saves."""
  config, steps = job.config, job.horizon.steps
  with contextlib.ExitStack() as stack:
    checkpoints = Checkpoints(
      os.path.join(directory, 'checkpoints'),
      config.checkpoint.keep,
      config.checkpoint.keep_every_epochs * job.horizon.steps_per_epoch,
    )
    stack.callback(checkpoints.close)
    resumed = checkpoints.latest()
    state = start(job) if resumed is None else checkpoints.restore(job.state)
    first = int(state.step)
    metrics = Metrics(directory, resumed, config.tensorboard, out is not None)
    stack.callback(metrics.close)
    progress = Progress(
      steps, first, job.horizon.steps_per_epoch, config.batch_size, out
    )
    stack.callback(progress.close)
    judge = Judge(job, directory)
    summary.introduce(job, directory, resumed, progress.say)
    if resumed is None:
      metrics.write(first, judge(state, at_start=True))
      metrics.flush()
    if first < steps:
      state = _loop(job, state, judge, checkpoints, metrics, progress)
    paths = []
    if out is not None and int(state.step) == steps:
      paths = pictures.draw(job, state, metrics.history, directory)
  if int(state.step) < steps:
    progress.say(
      f'stopped at step {int(state.step)}: saved; the same command goes on '
      'from there'
    )
  else:
    summary.conclude(job, directory, metrics, paths, progress.say)
  return state


def _loop(job, state, judge, checkpoints, metrics, progress):
  """data -> step -> report, until the last step or a signal to stop."""
  config, horizon = job.config, job.horizon
  began = time.perf_counter()
  step_fn = compile_step(job)
  progress.say(f'compiled in {duration(time.perf_counter() - began)}')
  log = Log(job, metrics, progress)
  eval_every = round(config.eval.every_epochs * horizon.steps_per_epoch)
  save_every = round(config.checkpoint.every_epochs * horizon.steps_per_epoch)
  key, first = job.key, int(state.step)
  pipeline = data.Pipeline(
    job.sources['train'],
    config.seed,
    config.batch_size,
    jax.process_index(),
    jax.process_count(),
    config.data.workers,
    config.data.max_corrupt,
    os.path.join(judge.directory, 'corrupt.txt'),
  )
  with stop_signals() as stopping, pipeline.iterate(first) as feed:
    progress.restart(first)
    for step in range(first, horizon.steps):
      batch = sharding.global_batch(job.mesh, next(feed))
      state, values = step_fn(state, batch, key)
      log.receive(step + 1, values, feed.waited)
      if log.bad_in_row >= config.max_bad_steps:
        give_up(state, batch, judge.directory, checkpoints, log)
      done, last = step + 1, step + 1 == horizon.steps
      if done == first + FIRST_STEPS:
        left = duration(progress.eta(done))
        progress.say(f'       about {left} to go, evaluations left out')
      stop = stopping(done)
      judged = {}
      if last or (eval_every and done % eval_every == 0):
        log.catch_up(report=True)
        paused = time.perf_counter()
        judged = judge(state, at_end=last)
        metrics.write(done, judged)
        progress.pause(time.perf_counter() - paused)
      if last or stop or (save_every and done % save_every == 0):
        log.catch_up(report=stop)
        metrics.flush()
        checkpoints.save(state, judged)
      if stop:
        break
  return state


class Log:
  """Takes each step's metrics one step late, so that no device waits.

  Attributes:
    bad_in_row: steps without finite numbers, up to the last one looked at.
  """

  def __init__(self, job: Job, metrics: Metrics, progress: Progress):
    self.job, self.metrics, self.progress = job, metrics, progress
    self.bad_in_row = 0
    self._pending = None
    self._waited = 0.0
    self._said = {'too early to say'}

  def receive(self, step: int, values: dict, waited: float) -> None:
    """Keeps the values of `step`, looks at those of the step before."""
    self.catch_up()
    self._pending = (step, values)
    self.progress.waited(waited - self._waited)
    self._waited = waited

  def catch_up(self, report: bool = False) -> None:
    """Looks at the values in hand; `report` tells them whatever the step."""
    if self._pending is None:
      return
    (step, values), self._pending = self._pending, None
    values = {f'train/{k}': float(v) for k, v in values.items()}
    bad = values['train/skipped'] > 0
    self.bad_in_row = self.bad_in_row + 1 if bad else 0
    config = self.job.config
    if not (bad or report or step % config.log_every == 0):
      return
    for name, schedule in self.job.schedules.items():
      values[f'train/{name}'] = float(schedule(step - 1))
    values['train/epoch'] = step / self.job.horizon.steps_per_epoch
    values |= self.progress.report(step, values)
    self.metrics.write(step, values)
    history = [*self.metrics.history, self.metrics.pending]
    for line in health.verdict(history, config.head.out_dim):
      finding = line.partition(':')[0]
      if finding not in self._said:
        self._said.add(finding)
        self.progress.say(f'health {line}')


@contextlib.contextmanager
def stop_signals():
  """Gives `stopping(step)`: whether SIGTERM or Ctrl-C has asked to stop.

  With several processes all agree on one step, through jax's own service.
  """
  asked = []

  def ask(signum, frame):
    asked.append(signum)
    # A second signal ends the process at once.
    signal.signal(signum, signal.SIG_DFL)

  def stopping(step: int) -> bool:
    if jax.process_count() > 1:
      return multihost_utils.reached_preemption_sync_point(step)
    return bool(asked)

  in_main = threading.current_thread() is threading.main_thread()
  signals = (signal.SIGTERM, signal.SIGINT) if in_main else ()
  before = {s: signal.signal(s, ask) for s in signals}
  try:
    yield stopping
  finally:
    for s, handler in before.items():
      signal.signal(s, handler)


def give_up(state, batch, directory: str, checkpoints, log: Log) -> None:
  """Saves the last good state and the batch at hand, then raises."""
  log.catch_up()
  log.metrics.flush()
  checkpoints.save(state)
  step = int(state.step) - 1
  replay = os.path.join(directory, f'replay_{step}.npz')
  np.savez(replay, step=step, **{k: _local(v) for k, v in batch.items()})
  raise UserError(
    f'{log.bad_in_row} steps in a row had no finite loss or gradient; the '
    f'last good state is saved as step {step + 1}, the batch of step {step} '
    f'as {replay}. Lower optim.lr, use model.dtype=float32 or a longer '
    'warm-up, in another --workdir'
  )


def _local(x: jax.Array) -> np.ndarray:
  """The rows that this process holds."""
  return np.concatenate([s.data for s in x.addressable_shards])


class Judge:
  """Scores the network in training, by its features of labelled images.

  Where the data has no labels or no test split, it says nothing.
  """

  def __init__(self, job: Job, directory: str):
    self.job, self.directory = job, directory
    train, test = job.sources['train'], job.sources['test']
    self.able = bool(test and train.classes and test.classes)

    c = job.config
    view = (c.eval.size, c.data.mean, c.data.std)

    def features(params, stats, batch):
      images = evals.center_view(batch['image'], batch['size'], *view)
      return job.method.features(params, stats, images).view

    def pixels(batch):
      return evals.raw_pixels(batch['image'], batch['size'], *view)

    # Replicated, so that every process can read all of them.
    everywhere = sharding.replicated(job.mesh)
    self._features = jax.jit(features, out_shardings=everywhere)
    self._pixels = jax.jit(pixels, out_shardings=everywhere)

  def __call__(self, state, at_start=False, at_end=False) -> dict[str, float]:
    """Figures such as 'knn/teacher'; 'linear/...' at both ends only.

    The untrained network and the raw pixels are judged at the start.
    """
    if not self.able:
      return {}

    def network(params, stats):
      return lambda batch: self._features(params, stats, batch)

    teacher = network(state.teacher, state.extra['teacher'])
    if at_start:
      who = {'raw_pixels': self._pixels, 'random_init': teacher}
    else:
      student = network(state.params, state.extra['student'])
      who = {'teacher': teacher, 'student': student}
    limit = self.job.config.eval.train_images
    train = evals.extract(who, self._batches('train'), limit)
    test = evals.extract(who, self._batches('test'))
    names = evals.EVALS if at_start or at_end else ('knn',)
    scores = evals.judge(names, train, test)
    scores = {name: figures['top1'] for name, figures in scores.items()}
    if not at_start:
      sample = test[0]['teacher'][:RANK_IMAGES]
      scores['train/feature_rank'] = health.rankme(sample)
    return scores

  def _batches(self, split: str):
    config = self.job.config
    size = config.eval.batch_size
    size += -size % self.job.mesh.size
    feed = data.epoch(
      self.job.sources[split],
      size,
      jax.process_index(),
      jax.process_count(),
      config.data.workers,
      config.data.max_corrupt,
      os.path.join(self.directory, 'corrupt.txt'),
    )
    with feed:
      for local in feed:
        batch = sharding.global_batch(self.job.mesh, local)
        if jax.process_count() > 1:
          for name in ('mask', 'label'):
            batch[name] = multihost_utils.process_allgather(
              local[name], tiled=True
            )
        yield batch
