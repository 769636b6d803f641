"""Experiments: several runs, several seeds, one table."""

import importlib
import io
import json
import pathlib
import subprocess
import sys

import pytest
from runs import tiny

from configs import common
from esvit_jax import experiment
from esvit_jax.errors import Stopped, UserError

ROOT = pathlib.Path(__file__).parent.parent
FILES = sorted(
  x.stem for x in ROOT.glob('configs/experiments/*.py') if x.stem[0] != '_'
)


def config(**changes):
  c = common.experiment('toy', {'k-NN': 'knn', 'linear': 'linear'})
  c.seeds = (0, 1)
  c.runs.one, c.runs.other = tiny(), tiny()
  c.update(changes)
  return c


@pytest.fixture
def measured(monkeypatch):
  """Runs are not run: their scores are told, and which were asked for."""
  asked = []

  def measure(config, name, seed, directory, out):
    asked.append((name, seed))
    return {'knn': 70.0 + 10 * (name == 'other') + seed}

  monkeypatch.setattr(experiment, 'measure', measure)
  return asked


def run(c, directory):
  out = io.StringIO()
  return experiment.run(c, str(directory), out), out.getvalue()


def test_a_table_a_figure_and_all_numbers(measured, tmp_path):
  summary, said = run(config(), tmp_path)
  mean, spread = summary['other']['k-NN']
  assert (mean, round(spread, 2)) == (80.5, 0.71)
  assert '80.5 ± 0.7' in said and 'seeds 0, 1' in said
  assert '80.5 ± 0.7' in (tmp_path / 'experiment.txt').read_text()
  written = json.loads((tmp_path / 'experiment.json').read_text())
  assert [row['figures']['knn'] for row in written['rows']] == [70, 80, 71, 81]
  assert (tmp_path / 'experiment.png').stat().st_size > 1000


def test_the_same_command_goes_on(measured, tmp_path, monkeypatch):
  measure = experiment.measure

  def stopped(config, name, seed, directory, out):
    if (name, seed) == ('other', 0):
      raise Stopped
    return measure(config, name, seed, directory, out)

  with monkeypatch.context() as patch:
    patch.setattr(experiment, 'measure', stopped)
    with pytest.raises(Stopped):
      run(config(), tmp_path)
  run(config(), tmp_path)
  assert measured == [('one', 0), ('other', 0), ('one', 1), ('other', 1)]
  run(config(seeds=(0, 1, 2)), tmp_path)  # a further seed
  assert measured[4:] == [('one', 2), ('other', 2)]


def test_another_experiment_is_refused(measured, tmp_path):
  run(config(), tmp_path)
  other = config()
  other.runs.one.optim.lr = 0.5
  with pytest.raises(UserError, match=r'another config \(runs.one.optim.lr'):
    run(other, tmp_path)
  assert len(measured) == 4


@pytest.mark.parametrize(
  ('seeds', 'directory', 'words'),
  [
    ((), 'a', 'give distinct seeds'),
    ((1, 1), 'a', 'give distinct seeds'),
    ((0,), '', 'no --workdir'),
  ],
)
def test_what_is_refused(measured, seeds, directory, words, tmp_path):
  directory = directory and str(tmp_path / directory)
  with pytest.raises(UserError, match=words):
    experiment.run(config(seeds=seeds), directory, io.StringIO())
  assert not measured


def test_a_field_names_another_run_of_the_same_seed():
  c = config()
  c.runs.other.init.checkpoint = 'run:one'
  arm = experiment.resolved(c.runs.other, 3, '/x')
  assert (arm.init.checkpoint, arm.seed) == ('/x/one_3', 3)
  assert c.runs.other.init.checkpoint == 'run:one'


def test_runs_come_after_those_they_name():
  c = config()
  c.runs.one.init.checkpoint = 'run:other'
  assert experiment.ordered(c.runs) == ['other', 'one']
  c.runs.other.init.checkpoint = 'run:third'
  with pytest.raises(UserError, match="'run:third': there is no run third"):
    experiment.ordered(c.runs)


@pytest.mark.parametrize('name', FILES)
def test_files_of_experiments(name):
  module = importlib.import_module(f'configs.experiments.{name}')
  assert f'--config=configs/experiments/{name}.py' in module.__doc__
  for variant in (None, 'debug'):
    c = module.get_config(variant)
    assert set(c.seeds) == {0, 1, 2} and len(c.runs) > 1
    tasks = {*c.evaluations, *(arm.get('task', '') for arm in c.runs.values())}
    for _, key in c.figures:
      task, _, figure = key.partition('.')
      assert key in ('knn', 'linear') or task in tasks or task == 'bench'
      assert figure or key in ('knn', 'linear')


@pytest.mark.slow
@pytest.mark.parametrize('name', FILES)
def test_debug_forms_run(name, tmp_path):
  """Every figure of the table is there at the end."""
  command = [sys.executable, '-m', 'main']
  command += [
    f'--config=configs/experiments/{name}.py:debug',
    '--config.seeds=(0,)',
  ]
  subprocess.run([*command, f'--workdir={tmp_path}'], cwd=ROOT, check=True)
  lines = (tmp_path / 'experiment.txt').read_text().splitlines()
  assert not [line for line in lines if line.endswith(' -') or ' - ' in line]
