"""The figures of a run over its steps: metrics.jsonl and TensorBoard."""

import contextlib
import json
import math
import os
import sys
from collections.abc import Callable, Mapping, Sequence

from esvit_jax.errors import UserError, in_one_line
from esvit_jax.workdir.files import parse_json, read_json, writing

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


# Beyond it is no number of 32 bits, and sums of such overflow.
LARGEST = 1e100


class Metrics:
  """metrics.jsonl: one JSON object a line, one line a step.

  Values of one step may come in several calls; the line is written, whole,
  once a later step speaks or `flush` is called. Opening the file for a
  resumed run drops what comes after its step, so no step stands there twice,
  and moves damaged lines to metrics.damaged.jsonl. What cannot be written is
  said and ends no run: the next line tries again.

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
    self.history: list[dict] = []
    self._file = self._board = None
    self._writes, self._amends = write, False
    self._failing: set[str] = set()
    if resumed is not None:
      lines, damaged = parse(self.path)
      self.history = [x for x in lines if x['step'] <= resumed]
      if damaged and write:
        self._keep_aside(damaged)
    if tensorboard and write:
      writers = tensorboard_writers()
      self._try(
        lambda: self._begin_board(writers, directory), f'events in {directory}'
      )
    self._try(self._rewrite, self.path)

  def write(self, step: int, values: dict[str, float]) -> None:
    """Adds values to the line of `step`; not-a-number becomes null."""
    if self.pending and self.pending['step'] != step:
      self.flush()
    values = {k: _finite(v) for k, v in values.items()}
    if not self.pending and self.history and self.history[-1]['step'] == step:
      # Written before its figures were known, so that no kill loses it.
      if values.keys() <= self.history[-1].keys():
        return
      self.pending, self._amends = self.history.pop(), True
    self.pending = {**(self.pending or {'step': step}), **values}

  def flush(self) -> None:
    """Writes the line in hand."""
    if not self.pending:
      return
    line, self.pending = self.pending, {}
    self.history.append(line)
    appends = self._file and not self._amends
    self._try(self._append if appends else self._rewrite, self.path)
    self._amends = False
    if self._board:
      self._try(lambda: self._draw(line), f'events beside {self.path}')

  def scores(self, name: str) -> dict[int, float]:
    """step -> figure, of the steps that have it."""
    return {
      line['step']: line[name]
      for line in self.history
      if line.get(name) is not None
    }

  def _try(self, write: Callable[[], None], path: str) -> None:
    """Writes if this process does; says the first failure in a row."""
    if not self._writes:
      return
    try:
      write()
      self._failing.discard(path)
    except Exception as e:  # TensorFlow raises what it likes
      if path not in self._failing:
        print(
          f'cannot write {path} ({in_one_line(e)}): training goes on, and the '
          'next line tries again',
          file=sys.stderr,
        )
      self._failing.add(path)
      if path == self.path:
        self._close()

  def _append(self) -> None:
    """Writes the last line of `history`."""
    self._file.write(json.dumps(self.history[-1]) + '\n')
    self._file.flush()

  def _rewrite(self) -> None:
    """Makes the file hold `history`, and opens it to go on."""
    self._close()
    with open(self.path + '.tmp', 'w', encoding='utf-8') as f:
      f.writelines(json.dumps(line) + '\n' for line in self.history)
    os.replace(self.path + '.tmp', self.path)
    self._file = open(self.path, 'a', encoding='utf-8')  # noqa: SIM115

  def _keep_aside(self, damaged: list[str]) -> None:
    """Says that lines are damaged; they are kept in a file of their own.

    Raises:
      UserError: they cannot be kept, so that nothing may be rewritten.
    """
    aside = self.path.replace('.jsonl', '.damaged.jsonl')
    with writing(aside), open(aside, 'ab') as f:
      f.writelines(
        line.encode(errors='surrogateescape') + b'\n' for line in damaged
      )
    print(
      f'{len(damaged)} lines of {self.path} are damaged: left out, and kept in '
      f'{aside}',
      file=sys.stderr,
    )

  def _begin_board(self, writers, directory: str) -> None:
    self._board = writers.SummaryWriter(directory)

  def _draw(self, line: dict) -> None:
    scalars = {k: v for k, v in line.items() if v is not None}
    self._board.write_scalars(scalars.pop('step'), scalars)
    self._board.flush()

  def _close(self) -> None:
    if self._file:
      with contextlib.suppress(OSError):  # half a line may be in its buffer
        self._file.close()
    self._file = None

  def last(self, name: str) -> float | None:
    """The newest value of a metric, or None."""
    return last([*self.history, self.pending], name)

  def close(self) -> None:
    self.flush()
    self._close()


def read(path: str) -> list[dict]:
  """The sound lines of a metrics.jsonl; damaged ones are said on stderr."""
  lines, damaged = parse(path)
  if damaged:
    print(
      f'{len(damaged)} lines of {path} are damaged, and left out: they are no '
      'JSON objects of numbers with a step',
      file=sys.stderr,
    )
  return lines


def parse(path: str) -> tuple[list[dict], list[str]]:
  """The sound lines of a metrics.jsonl, and the text of all others.

  A last line that is still being written is neither.

  Raises:
    UserError: the file cannot be read.
  """
  try:
    with open(path, encoding='utf-8', errors='surrogateescape') as f:
      *texts, unfinished = f.read().split('\n')
  except FileNotFoundError:
    return [], []
  except OSError as e:
    raise UserError(f'cannot read {path}: {e.strerror}') from e
  lines, damaged = [], []
  for text in texts:
    line = _line(text)
    if line is not None:
      lines.append(line)
    elif text.strip():
      damaged.append(text)
  last_line = _line(unfinished)
  lines += [last_line] if last_line else []
  return _in_percent(lines, os.path.dirname(path)), damaged


def _line(text: str) -> dict | None:
  """What a line says; None where it is no object of numbers with a step."""
  try:
    line = parse_json(text)
  except ValueError:
    return None
  if not isinstance(line, dict) or type(line.get('step')) is not int:
    return None
  sound = all(x is None or type(x) in (int, float) for x in line.values())
  if not sound or not 0 <= line['step'] < 2**53:
    return None
  step = line.pop('step')
  return {'step': step} | {
    k: None if v is None or abs(v) > LARGEST else _finite(v)
    for k, v in line.items()
  }


def _in_percent(lines: list[dict], directory: str) -> list[dict]:
  """Figures in percent, also those that older runs wrote as shares of 1."""
  name, record = 'train/contrast_accuracy', os.path.join(directory, 'run.json')
  values = [line[name] for line in lines if line.get(name) is not None]
  if not values or max(values) > 1 or not os.path.exists(record):
    return lines
  with contextlib.suppress(OSError, ValueError):
    if read_json(record).get('units') == PERCENT:
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
