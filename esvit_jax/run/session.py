"""A run directory at work, and all that a process reports of it."""

import os

from esvit_jax import models, report, workdir
from esvit_jax.analysis.pictures import Album, Gallery
from esvit_jax.errors import UserError, in_one_line
from esvit_jax.run import replay, startup, summary
from esvit_jax.run.evaluation import Evaluation, headline
from esvit_jax.run.initial import initial_state
from esvit_jax.run.jobs import Job
from esvit_jax.state import TrainState
from esvit_jax.weights import networks
from esvit_jax.workdir import health, provenance
from esvit_jax.workdir.checkpoint import Checkpoints
from esvit_jax.workdir.metrics import PERCENT, Metrics
from esvit_jax.workdir.terminal import Progress


class Session:
  """From the start of a process to its end, within one run.

  Attributes:
    job, directory: of the run.
    checkpoints, metrics, progress, evaluation: of the run.
    resumed: the step of the checkpoint that it goes on from, or None.
  """

  def __init__(self, job: Job, directory: str, out, stack):
    """Opens what the directory holds.

    Args:
      job: the run.
      directory: claimed.
      out: where to report; None in all processes but the first.
      stack: a contextlib.ExitStack, which closes it.
    """
    self.job, self.directory = job, directory
    self._out, self._stack = out, stack
    self._album, self._rollbacks = None, 0
    config, horizon = job.config, job.horizon
    self.checkpoints = stack.enter_context(
      Checkpoints(
        os.path.join(directory, 'checkpoints'),
        config.save.keep,
        horizon.steps_in(config.save.keep_every_epochs),
        config.to_dict(),
      )
    )
    self.resumed = self.checkpoints.latest()

  def start(self) -> TrainState:
    """The state to go on from, introduced and, at step 0, evaluated."""
    job, config, steps = self.job, self.job.config, self.job.horizon.steps
    if self.resumed is None:
      state, note = initial_state(job), ''
    else:
      state, note = self.checkpoints.resume(job.state)
      self.resumed = int(state.step)
    step, reports = int(state.step), self._out is not None
    if step < steps:
      summary.space(job, self.directory).check()
    self.metrics = Metrics(
      self.directory, self.resumed, config.tensorboard, reports
    )
    self._stack.callback(self.metrics.close)
    self.checkpoints.scores |= self.metrics.scores(headline(job.method))
    self.progress = Progress(
      steps, step, job.horizon.steps_per_epoch, config.batch_size, self._out
    )
    self._stack.callback(self.progress.close)
    self.evaluation = Evaluation(job, self.directory, self.progress.say)
    if reports and step < steps:
      self._record()
    if note:
      self.progress.say(note)
    summary.introduce(job, self.directory, self.resumed, self.progress.say)
    if self.resumed is None:
      self.metrics.write(step, self.evaluation(state, at_start=True))
      self.metrics.flush()
    elif self.evaluates(step) and step not in self.checkpoints.scores:
      # It ended between saving this step and evaluating it.
      self.evaluate(state)
    if reports and config.eval.pictures:
      inspect = networks.inspect(models.build(config.model))
      self._album = Album(job, self.directory, inspect)
    return state

  def evaluates(self, step: int) -> bool:
    """Whether the network is evaluated after `step`."""
    return self._due(self.job.config.eval, step)

  def saves(self, step: int) -> bool:
    """Whether the state is saved after `step`: before it is evaluated too."""
    return self.evaluates(step) or self._due(self.job.config.save, step)

  def evaluate(self, state: TrainState) -> None:
    """Evaluates a state that is saved; its figures are written."""
    step = int(state.step)
    at_end = step == self.job.horizon.steps
    figures = self.evaluation(state, at_end=at_end)
    if figures:
      self.metrics.write(step, figures)
    self.metrics.flush()
    score = figures.get(headline(self.job.method))
    if score is not None:
      self.checkpoints.scores[step] = score

  def show(self, state: TrainState) -> None:
    """Brings pictures and the page up to date, in an unfinished run."""
    if self._out is not None:
      with self.progress.paused():
        self._draw(state)
        self._write_page(running=True)

  def rescue(self, state: TrainState, batch, log) -> TrainState:
    """The last good state, after too many bad steps in a row.

    Args:
      state: after the bad steps.
      batch: of the last of them.
      log: counts them.

    Raises:
      UserError: the run may not go back (any more); what was bad is kept.
    """
    if self._rollbacks == self.job.config.max_rollbacks:
      replay.give_up(
        self.job, state, batch, self.directory, self.checkpoints, log
      )
    self._rollbacks += 1
    log.bad_in_row = 0
    return replay.roll_back(
      self.job, state, self.checkpoints, self.progress.say
    )

  def finish(self, state: TrainState) -> None:
    """Says what was reached and where it lies, or how to go on."""
    self.metrics.flush()
    step = int(state.step)
    finished = step == self.job.horizon.steps
    paths = self._draw(state, last=True) if finished else []
    if self._out is not None:
      paths = [*paths, *self._write_page(running=False)]
    if not finished:
      self.progress.say(
        f'stopped at step {step}: saved; the same command goes on from there'
      )
      return
    summary.conclude(
      self.directory,
      self.metrics,
      health.verdict(self.metrics.history, self.job.method.chance),
      paths,
      self._advice() if self._out is not None else '',
      self.progress.say,
    )

  def _due(self, section, step: int) -> bool:
    """Whether it is time for `section` (eval or save), as always at the end."""
    every = self.job.horizon.steps_in(section.every_epochs)
    at_end = step == self.job.horizon.steps
    return at_end or bool(every and step % every == 0)

  def _record(self) -> None:
    """Writes what this process is, beside the config of the run."""
    method = self.job.method
    about = {
      'chance': method.chance,
      'network': method.network,
      'units': PERCENT,
      **startup.settings(),
    }
    path = os.path.join(self.directory, 'run.json')
    workdir.write_json(path, provenance.record() | about)

  def _draw(self, state: TrainState, last: bool = False) -> list[str]:
    """Draws pictures if it is time; a failure costs the pictures only."""
    if self._album is None:
      return []
    try:
      self._album.update(state, self._gallery(), last)
    except Exception as e:
      self.progress.say(f'pictures failed, training goes on: {in_one_line(e)}')
    return self._album.paths

  def _gallery(self) -> Gallery | None:
    """The test images with the features of the last evaluation."""
    evaluation = self.evaluation
    if evaluation.features is None:
      return None
    classes = self.job.sources['test'].classes
    return Gallery(
      evaluation.features, evaluation.labels, classes, evaluation.images
    )

  def _write_page(self, running: bool) -> list[str]:
    """Writes the report; a failure costs the page only."""
    try:
      return [report.build([self.directory], running=running)]
    except Exception as e:
      self.progress.say(f'the report failed: {in_one_line(e)}')
      return []

  def _advice(self) -> str:
    """What to try next; a file that cannot be read costs the advice only."""
    try:
      return report.next_step(self.directory)
    except UserError as e:
      return f'mend a file: {e}'
