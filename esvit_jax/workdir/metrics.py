"""The figures of a run over its steps: metrics.jsonl and TensorBoard."""

import contextlib
import json
import math
import os
import sys
from collections.abc import Mapping, Sequence

from esvit_jax.errors import UserError

# Scores are named kind/network, such as 'knn/teacher': top-1 accuracy on test
# images in percent.
SCORES = {
  'knn': 'k-NN',
  'linear': 'linear',
  'probe': 'probe',
  'accuracy': 'accuracy',
}
# As run.json says of the figures beside it. Runs that do not say so may have
# written accuracies of contrast as shares of 1.
PERCENT = 'percent'
NETWORKS = {
  'teacher': 'teacher',
  'student': 'student',
  'random_init': 'untrained network',
  'raw_pixels': 'raw pixels',
}


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
    self._failed = False
    self._board = None
    if tensorboard and write:
      self._board = tensorboard_writers().SummaryWriter(directory)
    past = [] if resumed is None else read(self.path)
    self.history = [x for x in past if x['step'] <= resumed]
    if write:
      self._rewrite()

  def write(self, step: int, values: dict[str, float]) -> None:
    """Adds values to the line of `step`; not-a-number becomes null."""
    if self.pending and self.pending['step'] != step:
      self.flush()
    values = {k: _finite(v) for k, v in values.items()}
    if not self.pending and self.history and self.history[-1]['step'] == step:
      # The checkpoint that the run goes on from was taken after its line.
      if values.keys() <= self.history[-1].keys():
        return
      self.pending = self.history.pop()
      if self._file:
        self._file.close()
        self._rewrite()
    self.pending = {**(self.pending or {'step': step}), **values}

  def flush(self) -> None:
    """Writes the line in hand.

    A full disk ends no run: it is said once, and all lines are written again
    the next time.
    """
    if not self.pending:
      return
    self.history.append(self.pending)
    if self._file:
      try:
        self._append(self.pending)
        self._failed = False
      except OSError as e:
        if not self._failed:
          print(
            f'cannot write {self.path} ({e.strerror}): training goes on, and '
            'the next line tries again',
            file=sys.stderr,
          )
        self._failed = True
    if self._board:
      scalars = {k: v for k, v in self.pending.items() if v is not None}
      self._board.write_scalars(scalars.pop('step'), scalars)
      self._board.flush()
    self.pending = {}

  def _append(self, line: dict) -> None:
    """Writes the last line of `history`, or all after a failure."""
    if self._failed:
      with contextlib.suppress(OSError):  # half a line may be in its buffer
        self._file.close()
      self._rewrite()
    else:
      self._file.write(json.dumps(line) + '\n')
      self._file.flush()

  def _rewrite(self) -> None:
    """Makes the file hold `history`, and opens it to go on."""
    with open(self.path + '.tmp', 'w', encoding='utf-8') as f:
      f.writelines(json.dumps(line) + '\n' for line in self.history)
    os.replace(self.path + '.tmp', self.path)
    self._file = open(self.path, 'a', encoding='utf-8')  # noqa: SIM115

  def last(self, name: str) -> float | None:
    """The newest value of a metric, or None."""
    return last([*self.history, self.pending], name)

  def close(self) -> None:
    self.flush()
    if self._file:
      with contextlib.suppress(OSError):
        self._file.close()


def read(path: str) -> list[dict]:
  """The lines of a metrics.jsonl; one that is still being written is left out.

  Raises:
    UserError: a line is no JSON object with a step.
  """
  if not os.path.exists(path):
    return []
  with open(path, encoding='utf-8', errors='replace') as f:
    texts = f.read().split('\n')
  lines = []
  for number, text in enumerate(texts, 1):
    if not text.strip():
      continue
    try:
      line = json.loads(text)
      lines.append({**line, 'step': int(line['step'])})
    except (ArithmeticError, LookupError, TypeError, ValueError) as e:
      if number == len(texts):
        break
      raise UserError(
        f'line {number} of {path} is no JSON object with a step; remove it'
      ) from e
  return _in_percent(lines, os.path.dirname(path))


def _in_percent(lines: list[dict], directory: str) -> list[dict]:
  """Figures in percent, also those that older runs wrote as shares of 1."""
  name, record = 'train/contrast_accuracy', os.path.join(directory, 'run.json')
  values = [line[name] for line in lines if line.get(name) is not None]
  if not values or max(values) > 1 or not os.path.exists(record):
    return lines
  with open(record, encoding='utf-8', errors='replace') as f:
    if f'"units": "{PERCENT}"' in f.read():
      return lines
  return [
    line | {name: 100 * line[name]} if line.get(name) is not None else line
    for line in lines
  ]


def last(lines: Sequence[Mapping], name: str) -> float | None:
  """The newest value of a metric, or None."""
  for line in reversed(lines):
    if line.get(name) is not None:
      return line[name]
  return None


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
