"""Pre-training, from a config to a finished run directory.

  from esvit_jax import train
  state = train.run(config, 'runs/quickstart')

The story: check everything, claim the directory, restore or start, loop
(data -> step -> report), save, evaluate. Randomness comes from (seed, step)
alone, so the same call resumes bit for bit, on any number of devices.
"""

import contextlib
import sys
import time

import jax

from esvit_jax import data, sharding, workdir
from esvit_jax import state as state_lib
from esvit_jax.errors import Stopped
from esvit_jax.run import jobs
from esvit_jax.run.jobs import Job
from esvit_jax.run.log import Log
from esvit_jax.run.session import Session
from esvit_jax.run.signals import StopRequest
from esvit_jax.workdir.terminal import duration

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
  with contextlib.ExitStack() as stack:
    session = Session(job, directory, out, stack)
    state = session.start()
    if int(state.step) < job.horizon.steps:
      state = _loop(session, state, request)
    session.finish(state)
  return state


def _loop(
  session: Session, state: state_lib.TrainState, request: StopRequest
) -> state_lib.TrainState:
  """data -> step -> report, until the last step or a signal to stop."""
  job, progress = session.job, session.progress
  config, steps = job.config, job.horizon.steps
  began = time.perf_counter()
  step_fn = jobs.compile_step(job)
  progress.say(f'compiled in {duration(time.perf_counter() - began)}')
  log = Log(job, session.metrics, progress)
  key, first = job.key, int(state.step)
  pipeline = data.Pipeline(
    job.sources['train'],
    config.seed,
    config.batch_size,
    jax.process_index(),
    jax.process_count(),
    data.reading(config.data, session.directory),
  )
  with pipeline.iterate(first) as feed:
    request.arm()
    progress.restart(first)
    for done in range(first + 1, steps + 1):
      batch = sharding.global_batch(job.mesh, next(feed))
      state, values = step_fn(state, batch, key)
      log.receive(done, values, feed.waited)
      if log.bad_in_row >= config.max_bad_steps:
        state = session.rescue(state, batch, log)
      if done == first + FIRST_STEPS:
        left = duration(progress.eta(done))
        progress.say(f'       about {left} to go, evaluations left out')
      stop = sharding.stops_at(done, bool(request) or progress.unread)
      evaluates = session.evaluates(done)
      if stop or session.saves(done):
        log.catch_up(report=evaluates or stop)
        session.metrics.flush()
        session.checkpoints.save(state)
      if evaluates:
        with progress.paused():
          session.evaluate(state)
        if done < steps:
          session.show(state)
      if stop:
        break
  return state
