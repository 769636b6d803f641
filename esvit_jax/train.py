"""Pre-training, from a config to a finished run directory.

  from esvit_jax import train
  state = train.run(config, 'runs/quickstart')

The story: check everything, claim the directory, restore or start, loop
(data -> step -> report), save, evaluate. Randomness comes from (seed, step)
alone, so the same call resumes bit for bit, on any number of devices.
"""

import contextlib
import os
import signal
import sys
import threading
import time

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils

from esvit_jax import data, models, report, sharding, workdir
from esvit_jax import state as state_lib
from esvit_jax.analysis.pictures import Album, Gallery
from esvit_jax.errors import Stopped, UserError, in_one_line
from esvit_jax.run import jobs, summary
from esvit_jax.run.evaluation import Evaluation, headline
from esvit_jax.run.jobs import Job
from esvit_jax.weights import loading, networks
from esvit_jax.weights.networks import Weights
from esvit_jax.workdir import health, provenance
from esvit_jax.workdir.checkpoint import Checkpoints, restore_parts
from esvit_jax.workdir.metrics import Metrics
from esvit_jax.workdir.terminal import Progress, duration

FRESH = ('head_dense', 'center')  # what a continued run may start anew
# What a recipe adds to a pre-trained backbone. With relative positions
# biases of queries and values start from zero, as published.
ADDED = (
  'head',
  'fc_norm',
  'hidden',
  'bias_table',
  'gamma_',
  'q_bias',
  'v_bias',
)
FIRST_STEPS = 10  # after these, the time of the run can be told


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
  state, _ = _run(config, directory, out)
  return state


def finish(config, directory: str, out=sys.stdout) -> None:
  """As `run`, where something is to follow that wants all of it.

  Raises:
    UserError: as `run`.
    Stopped: it was asked to stop before the end.
  """
  _, finished = _run(config, directory, out)
  if not finished:
    raise Stopped


def _run(config, directory: str, out):
  """The last state, and whether it is that of the last step."""
  workdir.check(directory, config.to_dict())
  job = jobs.prepare(config)
  first = jax.process_index() == 0
  with contextlib.ExitStack() as stack:
    if first:
      stack.enter_context(workdir.claim(directory, config.to_dict()))
    state = _train(job, directory, out if first else None)
    return state, int(state.step) == job.horizon.steps


def start(job: Job) -> state_lib.TrainState:
  """The state of step 0, or of another run's weights (config.init)."""
  init = job.config.init
  if init.checkpoint and init.part == 'backbone':
    weights = loading.load_for(job.config.model, init.checkpoint, init.which)
    return with_backbone(jobs.create_state(job), weights)
  step = job.horizon.steps_in(init.epoch)
  if init.checkpoint:
    parts = restore_parts(
      init.checkpoint, ('params', 'teacher', 'extra'), step or None
    )
    state = continue_from(jobs.create_state(job), parts)
    step = jax.device_put(jnp.int32(step), state.step.sharding)
    return state._replace(step=step)
  if init.epoch:
    raise UserError(
      f'this recipe adds the region task to a view-only run at epoch '
      f'{init.epoch}: train that first (the config variant ..._view), then '
      'pass --config.init.checkpoint=ITS_WORKDIR; or set '
      '--config.init.epoch=0 to train both from the start'
    )
  return jobs.create_state(job)


def with_backbone(state, weights: Weights):
  """`state` with the backbone of a finished network, all else fresh.

  Args:
    state: of step 0.
    weights: of a finished network.

  Raises:
    UserError: it is of another model.
  """
  variables = weights.variables()
  parts = {'params': {'backbone': variables['params']}, 'extra': {}}
  stats = {'backbone': variables.get('batch_stats', {})}
  if state.teacher is not None:
    parts['teacher'] = parts['params']
  parts['extra'] = dict.fromkeys(state.extra, stats)
  return continue_from(state, parts, ADDED)


def continue_from(state, parts: dict, fresh=FRESH) -> state_lib.TrainState:
  """`state` with another run's params, teacher and extra.

  As published, what that run lacks of the region task stays fresh, and so do
  centres; the optimiser starts from zero and the schedules go on. `fresh` are
  words of paths that may be missing.

  Raises:
    UserError: anything else is missing, or something is of another shape.
  """

  def merge(path, ours):
    node = parts
    try:
      for key in path:
        node = node[getattr(key, 'key', getattr(key, 'name', None))]
    except (KeyError, TypeError):
      name = jax.tree_util.keystr(path, simple=True, separator='.')
      if any(word in name for word in fresh):
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


def _train(job: Job, directory: str, out) -> state_lib.TrainState:
  """Restores or starts, loops, saves and evaluates."""
  config, steps = job.config, job.horizon.steps
  with contextlib.ExitStack() as stack:
    checkpoints = Checkpoints(
      os.path.join(directory, 'checkpoints'),
      config.save.keep,
      job.horizon.steps_in(config.save.keep_every_epochs),
    )
    stack.callback(checkpoints.close)
    resumed = checkpoints.latest()
    state = start(job) if resumed is None else checkpoints.restore(job.state)
    first = int(state.step)
    metrics = Metrics(directory, resumed, config.tensorboard, out is not None)
    stack.callback(metrics.close)
    score = headline(job.method)
    checkpoints.scores |= {
      line['step']: line[score]
      for line in metrics.history
      if line.get(score) is not None
    }
    progress = Progress(
      steps, first, job.horizon.steps_per_epoch, config.batch_size, out
    )
    stack.callback(progress.close)
    evaluation = Evaluation(job, directory, progress.say)
    if out is not None and first < steps:
      record = os.path.join(directory, 'run.json')
      about = {'chance': job.method.chance, 'network': job.method.network}
      workdir.write_json(record, provenance.record() | about)
    summary.introduce(job, directory, resumed, progress.say)
    if resumed is None:
      metrics.write(first, evaluation(state, at_start=True))
      metrics.flush()
    elif due(config.eval, job.horizon, first) and first not in (
      checkpoints.scores
    ):
      # It ended between saving this step and evaluating it.
      evaluate(state, evaluation, checkpoints, metrics, first == steps)
    album = None
    if out is not None and config.eval.pictures:
      inspect = networks.inspect(models.build(config.model))
      album = Album(job, directory, inspect)
    if first < steps:
      state = _loop(
        job, state, evaluation, checkpoints, metrics, progress, album
      )
    metrics.flush()
    paths = []
    if int(state.step) == steps:
      paths += draw(album, state, evaluation, progress.say, last=True)
    if out is not None:
      paths += report_page(directory, progress.say, running=False)
  if int(state.step) < steps:
    progress.say(
      f'stopped at step {int(state.step)}: saved; the same command goes on '
      'from there'
    )
  else:
    verdict = health.verdict(metrics.history, job.method.chance)
    summary.conclude(
      directory,
      metrics,
      verdict,
      paths,
      report.next_step(directory) if out is not None else '',
      progress.say,
    )
  return state


def _loop(job, state, evaluation, checkpoints, metrics, progress, album):
  """data -> step -> report, until the last step or a signal to stop."""
  config, horizon = job.config, job.horizon
  began = time.perf_counter()
  step_fn = jobs.compile_step(job)
  progress.say(f'compiled in {duration(time.perf_counter() - began)}')
  log = Log(job, metrics, progress)
  key, first = job.key, int(state.step)
  pipeline = data.Pipeline(
    job.sources['train'],
    config.seed,
    config.batch_size,
    jax.process_index(),
    jax.process_count(),
    config.data.workers,
    config.data.max_unreadable,
    os.path.join(evaluation.directory, 'unreadable.txt'),
  )
  with stop_signals() as stopping, pipeline.iterate(first) as feed:
    progress.restart(first)
    for step in range(first, horizon.steps):
      batch = sharding.global_batch(job.mesh, next(feed))
      state, values = step_fn(state, batch, key)
      log.receive(step + 1, values, feed.waited)
      if log.bad_in_row >= config.max_bad_steps:
        give_up(state, batch, evaluation.directory, checkpoints, log)
      done, last = step + 1, step + 1 == horizon.steps
      if done == first + FIRST_STEPS:
        left = duration(progress.eta(done))
        progress.say(f'       about {left} to go, evaluations left out')
      stop, evaluates = stopping(done), due(config.eval, horizon, done)
      if evaluates or stop or due(config.save, horizon, done):
        log.catch_up(report=evaluates or stop)
        if not evaluates:
          metrics.flush()  # else the line waits for the figures
        checkpoints.save(state)
      if evaluates:
        with progress.paused():
          evaluate(state, evaluation, checkpoints, metrics, last)
          if progress.out is not None and not last:
            draw(album, state, evaluation, progress.say)
            report_page(evaluation.directory, progress.say)
      if stop:
        break
  return state


def due(section, horizon, step: int) -> bool:
  """Whether it is time for `section` (eval or save), as always at the end."""
  every = horizon.steps_in(section.every_epochs)
  return step == horizon.steps or bool(every and step % every == 0)


def evaluate(state, evaluation, checkpoints, metrics, at_end: bool) -> None:
  """Evaluates a state that is saved; its figures are written."""
  step = int(state.step)
  figures = evaluation(state, at_end=at_end)
  if figures:
    metrics.write(step, figures)
  metrics.flush()
  score = figures.get(headline(evaluation.job.method))
  if score is not None:
    checkpoints.scores[step] = score


def draw(album, state, evaluation, say, last: bool = False) -> list[str]:
  """Draws pictures if it is time; a failure costs the pictures only."""
  if album is None:
    return []
  try:
    album.update(state, gallery(evaluation), last)
  except Exception as e:
    say(f'pictures failed, training goes on: {in_one_line(e)}')
  return album.paths


def report_page(directory: str, say, running: bool = True) -> list[str]:
  """Writes the report; a failure costs the page only."""
  try:
    return [report.build([directory], running=running)]
  except Exception as e:
    say(f'the report failed: {in_one_line(e)}')
    return []


def gallery(evaluation: Evaluation) -> Gallery | None:
  """The test images with the features they had at the last evaluation."""
  if evaluation.features is None:
    return None
  classes = evaluation.job.sources['test'].classes
  return Gallery(
    evaluation.features, evaluation.labels, classes, evaluation.images
  )


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
    for line in health.verdict(history, self.job.method.chance):
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
