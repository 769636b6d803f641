"""metrics.jsonl is valid after any kill."""

import json
import math
import os
import sys

import numpy as np
import pytest

from esvit_jax.errors import UserError
from esvit_jax.workdir import metrics
from esvit_jax.workdir.metrics import Metrics


def lines(directory):
  """What a stranger reads: every line must be strict JSON."""

  def no_constants(name):
    raise ValueError(name)

  with open(f'{directory}/metrics.jsonl', encoding='utf-8') as f:
    return [json.loads(x, parse_constant=no_constants) for x in f]


def test_values_of_one_step_share_a_line(tmp_path):
  m = Metrics(tmp_path)
  m.write(1, {'train/loss': 2.0})
  m.write(1, {'knn/teacher': 50})
  m.write(2, {'train/loss': np.float32(1.5)})
  # Only whole lines stand in the file.
  assert lines(tmp_path) == [
    {'step': 1, 'train/loss': 2.0, 'knn/teacher': 50.0}
  ]
  m.close()
  assert lines(tmp_path)[1] == {'step': 2, 'train/loss': 1.5}
  assert next(iter(lines(tmp_path)[0])) == 'step'


def test_not_a_number_is_null(tmp_path):
  m = Metrics(tmp_path)
  m.write(3, {'a': math.nan, 'b': math.inf, 'c': -np.inf, 'd': 1.0})
  m.close()
  assert lines(tmp_path) == [
    {'step': 3, 'a': None, 'b': None, 'c': None, 'd': 1}
  ]


@pytest.mark.parametrize('kept', range(62, 125, 7))
def test_torn_at_any_byte_it_resumes_whole(tmp_path, kept):
  """Kill -9 leaves any prefix; what is resumed reads as if never stopped."""
  m = Metrics(tmp_path)
  for step in (0, 2, 4, 6):
    m.write(step, {'train/loss': step / 2})
  m.close()
  whole = lines(tmp_path)
  path = f'{tmp_path}/metrics.jsonl'
  os.truncate(path, kept)
  m = Metrics(tmp_path, resumed=2)
  assert m.history == whole[:2]
  for step in (4, 6):
    m.write(step, {'train/loss': step / 2})
  m.close()
  assert lines(tmp_path) == whole


def test_a_torn_line_is_not_read(tmp_path):
  with open(f'{tmp_path}/metrics.jsonl', 'w', encoding='utf-8') as f:
    f.write('{"step": 0, "a": 1.0}\n{"step": 2, "a"')
  assert metrics.read(f'{tmp_path}/metrics.jsonl') == [{'step': 0, 'a': 1.0}]
  assert metrics.read(f'{tmp_path}/missing.jsonl') == []


@pytest.mark.parametrize('resumed', [2, 4])
def test_no_step_stands_twice(tmp_path, resumed):
  m = Metrics(tmp_path)
  for step in range(6):
    m.write(step, {'a': step})
  m.close()
  m = Metrics(tmp_path, resumed=resumed)
  # The step of the checkpoint may be told again, those after it are anew.
  for step in range(resumed, 6):
    m.write(step, {'a': 10 * step})
  m.close()
  found = lines(tmp_path)
  assert [x['step'] for x in found] == list(range(6))
  assert found[resumed]['a'] == resumed
  assert found[resumed + 1]['a'] == 10 * (resumed + 1)


def test_a_fresh_run_starts_a_fresh_file(tmp_path):
  m = Metrics(tmp_path)
  m.write(0, {'knn/raw_pixels': 1})
  m.close()
  m = Metrics(tmp_path)
  m.write(0, {'knn/raw_pixels': 2})
  m.close()
  assert lines(tmp_path) == [{'step': 0, 'knn/raw_pixels': 2}]


def test_last_is_the_newest_number(tmp_path):
  m = Metrics(tmp_path)
  assert m.last('a') is None
  m.write(1, {'a': 1, 'b': 1})
  m.write(2, {'a': math.nan})
  m.write(3, {'b': 2})
  assert (m.last('a'), m.last('b'), m.last('c')) == (1, 2, None)
  m.close()


def test_only_one_process_writes(tmp_path):
  m = Metrics(tmp_path, write=False)
  m.write(1, {'a': 1})
  m.close()
  assert os.listdir(tmp_path) == []
  assert m.history == [{'step': 1, 'a': 1}]


class Board:
  """Stands for clu's writer."""

  def __init__(self, directory):
    self.seen = []

  def write_scalars(self, step, scalars):
    self.seen.append((step, scalars))

  def flush(self):
    pass


def test_tensorboard_gets_the_same_numbers(tmp_path, monkeypatch):
  class Writers:
    SummaryWriter = Board

  monkeypatch.setattr(metrics, 'tensorboard_writers', lambda: Writers)
  m = Metrics(tmp_path, tensorboard=True)
  m.write(1, {'a': 1.0, 'b': math.nan})
  m.close()
  assert m._board.seen == [(1, {'a': 1.0})]


def test_tensorboard_without_tensorflow_is_refused(tmp_path, monkeypatch):
  monkeypatch.setitem(sys.modules, 'clu', None)
  with pytest.raises(UserError, match='pip install'):
    Metrics(tmp_path, tensorboard=True)
  assert os.listdir(tmp_path) == []


def test_figures_that_come_after_a_resume_join_their_line(tmp_path):
  m = Metrics(tmp_path)
  m.write(1, {'a': 1})
  m.write(2, {'a': 2})
  m.close()
  m = Metrics(tmp_path, resumed=2)
  m.write(2, {'a': 3})  # it stands there
  m.write(2, {'knn/teacher': 50})
  m.write(3, {'a': 4})
  m.close()
  assert lines(tmp_path) == [
    {'step': 1, 'a': 1},
    {'step': 2, 'a': 2, 'knn/teacher': 50},
    {'step': 3, 'a': 4},
  ]


def test_a_full_disk_costs_no_line(tmp_path, capfd):
  m = Metrics(tmp_path)
  m.write(1, {'a': 1})
  m.flush()
  whole = m._file
  m._file = open('/dev/full', 'w')  # noqa: SIM115
  for step in (2, 3):
    m.write(step, {'a': step})
  m.flush()
  m.write(4, {'a': 4})
  m.close()
  whole.close()
  assert [x['step'] for x in lines(tmp_path)] == [1, 2, 3, 4]
  (line,) = capfd.readouterr().err.splitlines()
  assert 'No space left on device' in line


@pytest.mark.parametrize(
  ('record', 'values', 'percent'),
  [
    ({}, [0.25, None, 0.5], [25, None, 50]),
    ({'units': 'percent'}, [0.25, None, 0.5], [0.25, None, 0.5]),
    ({}, [0.25, None, 50], [0.25, None, 50]),
  ],
)
def test_shares_of_older_runs_become_percent(tmp_path, record, values, percent):
  (tmp_path / 'run.json').write_text(json.dumps(record))
  name = 'train/contrast_accuracy'
  lines = [json.dumps({'step': i, name: x}) for i, x in enumerate(values)]
  (tmp_path / 'metrics.jsonl').write_text('\n'.join(lines) + '\n')
  for _ in range(2):  # a resumed run writes them anew, once
    read = Metrics(os.fspath(tmp_path), resumed=9)
    read.close()
    assert [line[name] for line in read.history] == percent
