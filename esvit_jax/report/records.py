"""The contents of a run directory, read without the code that ran it."""

import fcntl
import math
import os
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from esvit_jax.errors import UserError
from esvit_jax.workdir import flatten, health, metrics, parse_json
from esvit_jax.workdir.metrics import NETWORKS, SCORES
from esvit_jax.workdir.terminal import duration


class Figure(NamedTuple):
  """A number of the headline; None if unknown."""

  label: str
  value: float | None
  unit: str = ''  # '%', 's' or none
  note: str = ''

  @property
  def text(self) -> str:
    """The number, without its unit."""
    if self.unit == 's':
      return duration(self.value)
    if self.unit == '%':
      return f'{self.value:.1f}'
    return f'{self.value:,.0f}' if self.value >= 100 else f'{self.value:.3g}'

  @property
  def sign(self) -> str:
    return '%' if self.unit == '%' else ''


class Record(NamedTuple):
  """A run directory.

  Attributes:
    directory: its path as given.
    name: for display.
    config: flat, 'model.name' -> value; empty if there is none.
    lines: of metrics.jsonl.
    origin: run.json: command, git revision, versions, devices and so on.
    evaluations: contents of eval/*.json.
    pictures: paths, sorted.
    unreadable: lines of unreadable.txt.
    running: whether it still trains.
  """

  directory: str
  name: str
  config: dict
  lines: list[dict]
  origin: dict
  evaluations: list[dict]
  pictures: list[str]
  unreadable: list[str]
  running: bool

  @property
  def step(self) -> int:
    return int(self.lines[-1]['step']) if self.lines else 0

  @property
  def steps(self) -> int | None:
    """Steps of the whole run, if they can be told."""
    if steps := self._number('steps'):
      return int(steps)
    epochs = self._number('epochs')
    at = next((x for x in self.lines[::-1] if x.get('train/epoch')), None)
    if not epochs or not at:
      return None
    return round(epochs * at['step'] / at['train/epoch'])

  @property
  def status(self) -> tuple[str, str]:
    """The status as a CSS class, and in words."""
    step, steps = self.step, self.steps
    if not self.lines:
      return ('running', 'begun') if self.running else ('idle', 'not trained')
    place = f'step {step:,}' + (f' of {steps:,}' if steps else '')
    if steps and step >= steps:
      return 'finished', f'finished, {steps:,} steps'
    if self.running:
      return 'running', f'running, {place}'
    return 'stopped', f'stopped at {place}'

  @property
  def network(self) -> str:
    """The network, teacher or student, that is evaluated and handed on."""
    if self.origin.get('network') in NETWORKS:
      return self.origin['network']
    judged = {network for _, network in self.scores()}
    alone = 'student' in judged and 'teacher' not in judged
    return 'student' if alone else 'teacher'

  @property
  def chance(self) -> float | None:
    """The loss of an uninformed network, if defined."""
    if 'chance' in self.origin:
      chance = self.origin['chance']
      return chance if isinstance(chance, float) else None
    prototypes = self._number('head.out_dim')
    if self.config.get('method') == 'esvit' and prototypes:
      return math.log(prototypes)
    return None

  @property
  def chance_accuracy(self) -> float | None:
    """The accuracy of an uninformed classifier, in percent."""
    if self.config.get('method') != 'finetune' or self.chance is None:
      return None
    return 100 * math.exp(-self.chance)  # its loss is ln of the classes

  def verdict(self) -> list[str]:
    """See health.verdict; empty if nothing was reported."""
    lines = self.lines
    if self.chance is None:  # to which these metrics would be compared
      targets = ('train/teacher_entropy', 'train/teacher_kl_uniform')
      lines = [
        {name: x for name, x in line.items() if name not in targets}
        for line in lines
      ]
    return health.verdict(lines, self.chance)

  def last(self, name: str) -> float | None:
    """The newest value of a metric."""
    return metrics.last(self.lines, name)

  def scores(self) -> dict[tuple[str, str], float]:
    """(kind, network) -> the newest score, such as ('knn', 'teacher'): 74.0."""
    scores = {}
    for line in self.lines:
      for name, score in line.items():
        kind, _, network = name.partition('/')
        if network in NETWORKS and score is not None:
          scores[kind, network] = score
    return scores

  def speed(self) -> float | None:
    """The median of the reported images per second."""
    speeds = [x.get('train/images_per_s') for x in self.lines]
    speeds = sorted(x for x in speeds if x)
    return speeds[len(speeds) // 2] if speeds else None

  def headline(self) -> list[Figure]:
    """The figures by which a run is judged."""
    scores = self.scores()
    figures = []
    for kind in sorted({k for k, _ in scores}, key=order):
      baselines = [
        f'{NETWORKS[network]} {scores[kind, network]:.1f}'
        for network in ('random_init', 'raw_pixels')
        if (kind, network) in scores
      ]
      if kind == 'accuracy' and self.chance_accuracy is not None:
        baselines.append(f'chance {self.chance_accuracy:.3g}')
      score = scores.get((kind, self.network))
      note = '; '.join(filter(None, (self.network, ', '.join(baselines))))
      figures.append(Figure(SCORES.get(kind, kind), score, '%', note))
    chance = '' if self.chance is None else f'chance {self.chance:.3g}'
    waiting = self.last('train/data_wait')
    waiting = '' if waiting is None else f'{100 * waiting:.0f} % data wait'
    return [
      *figures,
      Figure('effective rank', self.last('train/feature_rank')),
      Figure('loss', health.recent(self.lines, 'loss'), '', chance),
      Figure('images per second', self.speed(), '', waiting),
      Figure(
        'training time', self.seconds(), 's', 'h:min:s, without evaluations'
      ),
    ]

  def seconds(self) -> float | None:
    """Spent in training steps, over all sittings."""
    spent, before = 0.0, 0
    for line in self.lines:
      if speed := line.get('train/images_per_s'):
        images = (line['step'] - before) * (self._number('batch_size') or 0)
        spent, before = spent + images / speed, line['step']
    return spent or None

  def _number(self, field: str) -> float | None:
    """A field of the config if it is a positive number, else None."""
    x = self.config.get(field)
    return x if isinstance(x, (int, float)) and x > 0 else None


def read(directory: str, running: bool | None = None) -> Record:
  """Reads a run directory.

  Args:
    directory: of the run.
    running: whether it still trains; by default, whether a process holds it.

  Raises:
    UserError: it is no run directory, or has a broken file.
  """
  if not os.path.isdir(directory):
    raise UserError(
      f'no run directory {directory}: give the --workdir of a run'
    )
  config = _json(os.path.join(directory, 'config.json'))
  lines = metrics.read(os.path.join(directory, 'metrics.jsonl'))
  evaluations = []
  for file in _files(os.path.join(directory, 'eval'), '.json'):
    stem = os.path.splitext(os.path.basename(file))[0]
    evaluations.append({'name': stem, **_json(file)})
  if not (config or lines or evaluations):
    raise UserError(
      f'{directory} is no run directory: it has neither config.json nor '
      'metrics.jsonl nor eval/*.json; give the --workdir of a run'
    )
  return Record(
    directory,
    os.path.basename(os.path.abspath(directory)),
    flatten(config),
    [_numbers(line) for line in lines],
    _json(os.path.join(directory, 'run.json')),
    evaluations,
    _files(os.path.join(directory, 'pictures'), '.png'),
    _text(os.path.join(directory, 'unreadable.txt')).splitlines(),
    _in_use(directory) if running is None else running,
  )


def order(kind: str) -> tuple:
  """A sort key: kinds of scores in the order of SCORES, then by name."""
  return [*SCORES, kind].index(kind), kind


def score_title(kind: str) -> str:
  """'knn' -> 'k-NN top-1, %'."""
  return f'{SCORES.get(kind, kind)}, %'


def series(lines: Sequence[Mapping], name: str) -> list[tuple]:
  """(step, value) wherever a metric was reported; None if not finite."""
  return [(x['step'], x[name]) for x in lines if name in x]


def _text(path: str) -> str:
  """The text of a file; empty if there is none."""
  try:
    with open(path, encoding='utf-8', errors='replace') as f:
      return f.read()
  except FileNotFoundError:
    return ''
  except OSError as e:
    raise UserError(f'cannot read {path}: {e.strerror}') from e


def _json(path: str) -> dict:
  """The JSON object in a file; empty if there is none."""
  text = _text(path)
  if not text and not os.path.exists(path):
    return {}
  try:
    content = parse_json(text)
  except ValueError as e:
    raise UserError(f'{path} is not JSON ({e}); mend or remove it') from e
  if not isinstance(content, dict):
    raise UserError(f'{path} is not a JSON object; mend or remove it')
  return content


def _numbers(line: dict) -> dict:
  """The numbers of a line; those that are not finite become None."""
  return {
    name: x if x is None or math.isfinite(x) else None
    for name, x in line.items()
    if x is None or isinstance(x, (int, float))
  }


def _files(folder: str, ending: str) -> list[str]:
  if not os.path.isdir(folder):
    return []
  names = sorted(x for x in os.listdir(folder) if x.endswith(ending))
  return [os.path.join(folder, name) for name in names]


def _in_use(directory: str) -> bool:
  """Whether a process holds the lock of esvit_jax.workdir."""
  try:
    with open(os.path.join(directory, '.lock'), 'rb') as f:
      fcntl.flock(f, fcntl.LOCK_SH | fcntl.LOCK_NB)
  except BlockingIOError:
    return True
  except OSError:
    return False
  return False
