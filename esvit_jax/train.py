"""Pre-training, from a config to a finished run directory.

  from esvit_jax import train
  state = train.run(config, 'runs/quickstart')

The story: check everything, claim the directory, restore or start, loop
(data -> step -> report), save, evaluate. Randomness comes from (seed, step)
alone, so the same call resumes bit for bit, on any number of devices.
"""

import contextlib
import os
import sys
import time

import jax

from esvit_jax import data, models, report, sharding, workdir
from esvit_jax import state as state_lib
from esvit_jax.analysis.pictures import Album, Gallery
from esvit_jax.errors import Stopped, UserError, in_one_line
from esvit_jax.run import jobs, replay, startup, summary
from esvit_jax.run.evaluation import Evaluation, headline
from esvit_jax.run.initial import initial_state
from esvit_jax.run.jobs import Job
from esvit_jax.run.log import Log
from esvit_jax.run.signals import StopRequest
from esvit_jax.weights import networks
from esvit_jax.workdir import health, provenance
from esvit_jax.workdir.checkpoint import Checkpoints
from esvit_jax.workdir.metrics import PERCENT, Metrics
from esvit_jax.workdir.terminal import Progress, duration

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
  first = jax.process_index() == 0
  with contextlib.ExitStack() as stack:
    with sharding.together():
      workdir.check(directory, config.to_dict())
      job = jobs.prepare(config)
      if first:
        stack.enter_context(workdir.claim(directory, config.to_dict()))
    request = stack.enter_context(StopRequest())
    state = _train(job, directory, request, out if first else None)
    return state, int(state.step) == job.horizon.steps


def _train(
  job: Job, directory: str, request: StopRequest, out
) -> state_lib.TrainState:
  """Restores or starts, loops, saves and evaluates."""
  config, steps = job.config, job.horizon.steps
  with contextlib.ExitStack() as stack:
    checkpoints = stack.enter_context(
      Checkpoints(
        os.path.join(directory, 'checkpoints'),
        config.save.keep,
        job.horizon.steps_in(config.save.keep_every_epochs),
        config.to_dict(),
      )
    )
    resumed = checkpoints.latest()
    if resumed is None:
      state, damaged = initial_state(job), ''
    else:
      state, damaged = checkpoints.resume(job.state)
      resumed = int(state.step)
    first = int(state.step)
    if first < steps:
      summary.space(job, directory).check()
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
      about = {
        'chance': job.method.chance,
        'network': job.method.network,
        'units': PERCENT,
      }
      about |= startup.settings()
      workdir.write_json(record, provenance.record() | about)
    if damaged:
      progress.say(damaged)
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
        job,
        state,
        evaluation,
        checkpoints,
        metrics,
        progress,
        album,
        request,
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
      next_step(directory) if out is not None else '',
      progress.say,
    )
  return state


def _loop(
  job, state, evaluation, checkpoints, metrics, progress, album, request
):
  """data -> step -> report, until the last step or a signal to stop."""
  config, horizon = job.config, job.horizon
  began = time.perf_counter()
  step_fn = jobs.compile_step(job)
  progress.say(f'compiled in {duration(time.perf_counter() - began)}')
  log = Log(job, metrics, progress)
  key, first, rollbacks = job.key, int(state.step), 0
  pipeline = data.Pipeline(
    job.sources['train'],
    config.seed,
    config.batch_size,
    jax.process_index(),
    jax.process_count(),
    data.reading(config.data, evaluation.directory),
  )
  with pipeline.iterate(first) as feed:
    request.arm()
    progress.restart(first)
    for step in range(first, horizon.steps):
      batch = sharding.global_batch(job.mesh, next(feed))
      state, values = step_fn(state, batch, key)
      log.receive(step + 1, values, feed.waited)
      if log.bad_in_row >= config.max_bad_steps:
        if rollbacks == config.max_rollbacks:
          directory = evaluation.directory
          replay.give_up(job, state, batch, directory, checkpoints, log)
        rollbacks += 1
        log.bad_in_row = 0
        state = replay.roll_back(job, state, checkpoints, progress.say)
      done, last = step + 1, step + 1 == horizon.steps
      if done == first + FIRST_STEPS:
        left = duration(progress.eta(done))
        progress.say(f'       about {left} to go, evaluations left out')
      stop = sharding.stops_at(done, bool(request) or progress.unread)
      evaluates = due(config.eval, horizon, done)
      if evaluates or stop or due(config.save, horizon, done):
        log.catch_up(report=evaluates or stop)
        metrics.flush()
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


def next_step(directory: str) -> str:
  """What to try next; a file that cannot be read costs the advice only."""
  try:
    return report.next_step(directory)
  except UserError as e:
    return f'mend a file: {e}'


def gallery(evaluation: Evaluation) -> Gallery | None:
  """The test images with the features they had at the last evaluation."""
  if evaluation.features is None:
    return None
  classes = evaluation.job.sources['test'].classes
  return Gallery(
    evaluation.features, evaluation.labels, classes, evaluation.images
  )
