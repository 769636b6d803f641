"""What a run tells: metrics.jsonl, TensorBoard, and a progress line."""

import json
import math
import os
import shutil
import sys
import time

from esvit_jax.errors import UserError


class Metrics:
  """metrics.jsonl: one JSON object a line, one line a step.

  Values of one step may come in several calls; the line is written, whole,
  once a later step speaks or `flush` is called. Opening the file for a
  resumed run drops what comes after its step, so no step stands there twice.

  Args:
    directory: of the run.
    resumed: the step the run goes on from; None drops all that is there.
    tensorboard: write event files too.
    write: False on all processes but the first.
  """

  def __init__(
    self,
    directory: str,
    resumed: int | None = None,
    tensorboard: bool = False,
    write: bool = True,
  ):
    self.path = os.path.join(directory, 'metrics.jsonl')
    self.pending: dict = {}
    self._file = None
    self._board = None
    if tensorboard and write:
      self._board = tensorboard_writers().SummaryWriter(directory)
    past = [] if resumed is None else read(self.path)
    self.history = [x for x in past if x['step'] <= resumed]
    if write:
      with open(self.path + '.tmp', 'w', encoding='utf-8') as f:
        f.writelines(json.dumps(line) + '\n' for line in self.history)
      os.replace(self.path + '.tmp', self.path)
      self._file = open(self.path, 'a', encoding='utf-8')  # noqa: SIM115

  def write(self, step: int, values: dict[str, float]) -> None:
    """Adds values to the line of `step`; not-a-number becomes null."""
    if self.pending and self.pending['step'] != step:
      self.flush()
    values = {k: _finite(v) for k, v in values.items()}
    if not self.pending and self.history and self.history[-1]['step'] == step:
      # The checkpoint of `step` was taken after its line.
      return
    self.pending = {**(self.pending or {'step': step}), **values}

  def flush(self) -> None:
    """Writes the line in hand."""
    if not self.pending:
      return
    self.history.append(self.pending)
    if self._file:
      self._file.write(json.dumps(self.pending) + '\n')
      self._file.flush()
    if self._board:
      scalars = {k: v for k, v in self.pending.items() if v is not None}
      self._board.write_scalars(scalars.pop('step'), scalars)
      self._board.flush()
    self.pending = {}

  def last(self, name: str) -> float | None:
    """The newest value of a metric, or None."""
    for line in reversed([*self.history, self.pending]):
      if line.get(name) is not None:
        return line[name]
    return None

  def close(self) -> None:
    self.flush()
    if self._file:
      self._file.close()


def read(path: str) -> list[dict]:
  """The lines of a metrics.jsonl; a torn last line is left out."""
  lines = []
  if os.path.exists(path):
    with open(path, encoding='utf-8') as f:
      for line in f:
        try:
          lines.append(json.loads(line))
        except json.JSONDecodeError:
          break
  return lines


class Progress:
  """Where a run stands, in one line: in place on a terminal, else appended.

  Args:
    steps: of the whole run.
    start: the step this process starts from.
    steps_per_epoch: for the epoch shown.
    batch_size: images a step.
    out: where to print; None says nothing.
  """

  def __init__(self, steps, start, steps_per_epoch, batch_size, out=sys.stdout):
    self.steps, self.start = steps, start
    self.steps_per_epoch, self.batch_size = steps_per_epoch, batch_size
    self.out = out
    self._began = self._last = time.perf_counter()
    self._last_step, self._waited, self._open = start, 0.0, False

  def restart(self, step: int) -> None:
    """Starts the clocks at `step`: what came before was compilation."""
    self.start = self._last_step = step
    self._began = self._last = time.perf_counter()
    self._waited = 0.0

  def waited(self, seconds: float) -> None:
    """Adds time spent waiting for data."""
    self._waited += seconds

  def pause(self, seconds: float) -> None:
    """Keeps an evaluation out of images/s (not out of the ETA)."""
    self._last += seconds

  def report(self, step: int, values: dict[str, float]) -> dict[str, float]:
    """Prints the line of `step`; returns its speeds as metrics."""
    now = time.perf_counter()
    span, steps = max(now - self._last, 1e-9), step - self._last_step
    speeds = {
      'train/images_per_s': steps * self.batch_size / span,
      'train/data_wait': min(self._waited / span, 1.0),
    }
    left = self.eta(step)
    self._last, self._last_step, self._waited = now, step, 0.0
    self._print(
      f'step {step}/{self.steps}  epoch {step / self.steps_per_epoch:.1f}  '
      f'ETA {duration(left)}  '
      f'loss {values.get("train/loss", math.nan):.4f}  '
      f'lr {values.get("train/lr", 0.0):.2e}  '
      f'{speeds["train/images_per_s"]:.0f} img/s  '
      f'data wait {100 * speeds["train/data_wait"]:.0f}%'
    )
    return speeds

  def eta(self, step: int) -> float:
    """Seconds to the end of the run at the pace so far."""
    done = max(step - self.start, 1)
    spent = time.perf_counter() - self._began
    return spent / done * (self.steps - step)

  def say(self, text: str) -> None:
    """Prints a line of its own."""
    self.close()
    if self.out:
      print(text, file=self.out, flush=True)

  def close(self) -> None:
    """Ends the line that is being updated, if there is one."""
    if self._open:
      self.out.write('\n')
      self.out.flush()
      self._open = False

  def _print(self, line: str) -> None:
    if self.out and self.out.isatty():
      # A line that wraps cannot be taken back.
      width = shutil.get_terminal_size().columns - 1
      self.out.write('\r\x1b[K' + line[:width])
      self.out.flush()
      self._open = True
    elif self.out:
      print(line, file=self.out, flush=True)


def duration(seconds: float) -> str:
  """75 -> '1:15', 4000 -> '1:06:40'."""
  seconds = round(seconds)
  hours, minutes = seconds // 3600, seconds // 60 % 60
  if hours:
    return f'{hours}:{minutes:02d}:{seconds % 60:02d}'
  return f'{minutes}:{seconds % 60:02d}'


def _finite(value) -> float | None:
  value = float(value)
  return value if math.isfinite(value) else None


def tensorboard_writers():
  """clu's writers: the one place where TensorFlow may come in.

  Raises:
    UserError: it is not installed.
  """
  try:
    from clu import metric_writers
  except ImportError as e:
    raise UserError(
      'config.tensorboard needs TensorFlow: '
      "pip install 'esvit_jax[tensorboard]', or leave it False"
    ) from e
  return metric_writers
