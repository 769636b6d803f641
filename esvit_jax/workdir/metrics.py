"""The figures of a run over its steps: metrics.jsonl and TensorBoard."""

import json
import math
import os

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
