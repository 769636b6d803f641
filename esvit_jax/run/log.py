"""The metrics of each step, on their way to the file and the terminal."""

import jax
import jax.numpy as jnp
import numpy as np

from esvit_jax.run.jobs import Job
from esvit_jax.workdir import health
from esvit_jax.workdir.metrics import Metrics
from esvit_jax.workdir.terminal import Progress


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
    # Compiled here: nothing is, once steps are counted.
    schedules = job.schedules
    self._schedules = (
      jax.jit(
        lambda step: {k: jnp.asarray(f(step)) for k, f in schedules.items()}
      )
      .lower(jax.ShapeDtypeStruct((), jnp.int32))
      .compile()
    )

  def receive(self, step: int, values: dict, waited: float) -> None:
    """Keeps the values of `step`, looks at those of the step before.

    At those of `step` too where it may be the last that is allowed to be bad.
    """
    self.catch_up()
    self._pending = (step, values)
    self.progress.waited(waited - self._waited)
    self._waited = waited
    if self.bad_in_row + 1 >= self.job.config.max_bad_steps:
      self.catch_up()

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
    for name, value in self._schedules(np.int32(step - 1)).items():
      values[f'train/{name}'] = float(value)
    values['train/epoch'] = step / self.job.horizon.steps_per_epoch
    values |= self.progress.report(step, values)
    self.metrics.write(step, values)
    history = [*self.metrics.history, self.metrics.pending]
    for line in health.verdict(history, self.job.method.chance):
      finding = line.partition(':')[0]
      if finding not in self._said:
        self._said.add(finding)
        self.progress.say(f'health {line}')
