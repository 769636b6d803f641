"""What breaks, breaks without loss and in one line: the quick forms.

The long ones are `python -m tests.trust`; their table is docs/trust.md.
"""

import errno
import io
import json
import logging
import os
import pathlib
import shutil
import subprocess
import sys

import numpy as np
import pytest

from esvit_jax import data, train, workdir
from esvit_jax.errors import UserError, printable
from esvit_jax.report import records
from esvit_jax.run import replay
from esvit_jax.run.log import Log
from esvit_jax.weights import loading
from esvit_jax.workdir import checkpoint, metrics, space
from esvit_jax.workdir.checkpoint import Checkpoints, restore_parts
from esvit_jax.workdir.metrics import Metrics
from tests.trust import bombs, descriptions, faults, kills, runs


def full(*unused, **also_unused):
  raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


# Write errors


@pytest.mark.parametrize('name', ['config.json', 'run.json', 'eval/knn.json'])
def test_a_file_that_cannot_be_replaced_stays(tmp_path, monkeypatch, name):
  path = tmp_path / name
  path.parent.mkdir(exist_ok=True)
  workdir.write_json(str(path), {'a': 1})
  monkeypatch.setattr(os, 'replace', full)
  with pytest.raises(UserError, match='No space left') as e:
    workdir.write_json(str(path), {'a': 2})
  assert str(path) in str(e.value) and 'the same command' in str(e.value)
  assert workdir.read_json(str(path)) == {'a': 1}
  assert os.listdir(path.parent) == [path.name]


@pytest.mark.parametrize('call', ['makedirs', 'replace', 'listdir'])
def test_a_directory_that_cannot_be_claimed(tmp_path, monkeypatch, call):
  directory = tmp_path / 'run'
  directory.mkdir()
  monkeypatch.setattr(os, call, full)
  with (
    pytest.raises(UserError, match=f'cannot write .*{directory}'),
    workdir.claim(str(directory), {'a': 1}),
  ):
    pass
  monkeypatch.undo()
  with workdir.claim(str(directory), {'a': 1}):
    pass


def test_a_checkpoint_that_cannot_be_written(tmp_path, monkeypatch):
  from test_checkpoint import state

  with Checkpoints(str(tmp_path)) as checkpoints:
    checkpoints.save(state(1))
  with (
    Checkpoints(str(tmp_path)) as checkpoints,
    pytest.raises(UserError, match='No space left') as e,
  ):
    monkeypatch.setattr(checkpoints._manager, 'save', full)
    checkpoints.save(state(2))
  text = str(e.value)
  assert f'cannot write a checkpoint in {tmp_path}' in text
  assert 'the same command goes on' in text and '\n' not in text
  assert os.listdir(tmp_path) == ['1']


def test_metrics_try_again(tmp_path, monkeypatch, capsys):
  monkeypatch.setattr(os, 'replace', full)
  m = Metrics(tmp_path)
  for step in (1, 2):
    m.write(step, {'a': 1.0})
    m.flush()
  said = capsys.readouterr().err
  assert said.count('\n') == 1 and f'{tmp_path}/metrics.jsonl' in said
  monkeypatch.undo()
  m.write(3, {'a': 1.0})
  m.close()
  lines = metrics.read(f'{tmp_path}/metrics.jsonl')
  assert [x['step'] for x in lines] == [1, 2, 3]


def test_damaged_lines_are_kept_aside(tmp_path, capsys):
  path = tmp_path / 'metrics.jsonl'
  path.write_bytes(b'{"step": 1, "a": 2}\nno\xff\n{"step": 2, "a": 3}\n{"st')
  m = Metrics(tmp_path, resumed=2)
  m.write(3, {'a': 4.0})
  m.close()
  assert [x['step'] for x in metrics.read(str(path))] == [1, 2, 3]
  aside = tmp_path / 'metrics.damaged.jsonl'
  assert aside.read_bytes() == b'no\xff\n'
  said = capsys.readouterr().err
  assert said.count('\n') == 1 and str(aside) in said


def test_two_checkpoints_must_fit(tmp_path, monkeypatch):
  arrays = {'w': np.zeros((2**10, 2**8), np.float32)}  # 1 MiB
  usage = shutil.disk_usage(tmp_path)
  for free, saved, fits in ((2, 0, True), (1, 0, False), (1, 1, True)):
    monkeypatch.setattr(
      shutil, 'disk_usage', lambda _, n=free: usage._replace(free=n * 2**20)
    )
    place = tmp_path / f'{free}{saved}'
    (place / 'checkpoints').mkdir(parents=True)
    for step in range(saved):
      (place / 'checkpoints' / str(step)).mkdir()
    needed = space.Space(str(place), arrays, kept=3)
    assert needed.line().startswith('up to 4 of 1 MiB: 4 MiB of the ')
    if fits:
      needed.check()
    else:
      with pytest.raises(UserError, match='two must fit'):
        needed.check()


# Reading


def saved(tmp_path):
  """A run directory with checkpoints of steps 1 and 2."""
  from test_checkpoint import save

  save(tmp_path / 'run/checkpoints', (1, 2))
  return tmp_path / 'run'


def failing(times: int, call):
  """`call`, whose first `times` calls fail."""
  left = [times]

  def maybe(*args, **kwargs):
    if left[0]:
      left[0] -= 1
      raise OSError(errno.EIO, os.strerror(errno.EIO))
    return call(*args, **kwargs)

  return maybe


@pytest.mark.parametrize('times', [1, 2])
def test_a_disk_that_fails_once_has_damaged_nothing(
  tmp_path, monkeypatch, capfd, times
):
  from test_checkpoint import like, state

  run = saved(tmp_path)
  verify = failing(times, checkpoint._verify)
  monkeypatch.setattr(checkpoint, '_verify', verify)
  if times == 2:  # and does not give the bytes either
    monkeypatch.setattr(checkpoint.os, 'walk', full)
  with Checkpoints(str(run / 'checkpoints')) as checkpoints:
    if times == 1:
      resumed, said = checkpoints.resume(like(state(1)))
      assert (int(resumed.step), said) == (2, '')
      assert 'it was read again, and is sound' in capfd.readouterr().err
    else:
      with pytest.raises(UserError, match='mend the disk'):
        checkpoints.resume(like(state(1)))
  assert sorted(os.listdir(run / 'checkpoints')) == ['1', '2']


def test_a_reader_beside_a_writer_that_deletes(tmp_path, monkeypatch, capfd):
  run = saved(tmp_path)
  read = checkpoint._read_parts

  def deleted_meanwhile(folder, parts):
    if folder.endswith('/2'):
      shutil.rmtree(folder)
    return read(folder, parts)

  monkeypatch.setattr(checkpoint, '_read_parts', deleted_meanwhile)
  assert restore_parts(str(run), ('params',))['params']
  assert capfd.readouterr().err == ''


def test_a_config_that_contradicts_its_checkpoint(tiny_run, tmp_path):
  run = tmp_path / 'run'
  shutil.copytree(tiny_run, run)
  config = workdir.read_json(f'{run}/config.json')
  config['model']['dtype'] = 'bfloat16'
  workdir.write_json(f'{run}/config.json', config)
  with pytest.raises(UserError, match=r'contradicts .* model\.dtype'):
    loading.load(str(run))


# Hostile files


def test_bombs(tmp_path):
  for name, line, cost in bombs.results(tmp_path):
    assert line and '\n' not in line, name
    assert cost.megabytes < bombs.MEGABYTES, (name, cost.megabytes)


def test_a_larger_image_is_a_matter_of_the_config(tmp_path):
  runs.images(tmp_path / 'images')
  source = {'source': f'folder:{tmp_path}/images', 'max_pixels': 28 * 28 - 1}
  with pytest.raises(data.Unreadable, match=r'28 x 28 .* 783 .*max_pixels'):
    data.open_source(source)[0]
  assert data.open_source(source | {'max_pixels': 28 * 28})[0]


def test_descriptions(tiny_run, tmp_path):
  run = tmp_path / 'tiny'
  shutil.copytree(tiny_run, run)
  (run / 'eval').mkdir()
  workdir.write_json(f'{run}/eval/knn.json', {'figures': {'top1': 1.0}})
  harmed = list(descriptions.harmed(run, seed=0))
  assert len(harmed) > 100
  for what, name, content in harmed[:: len(harmed) // 20]:
    path, before = run / name, None
    if path.exists():
      before = path.read_bytes()
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    code, said = descriptions.quiet(lambda: records.read(str(run)).headline())
    assert descriptions.clean(code, said), (what, said)
    if before is None:
      shutil.rmtree(path.parent)
    else:
      path.write_bytes(before)


NAMES = (b'caf\xe9', b'\x1b[31mred', b'two\nlines', b'$x_{', 'ü中'.encode())


def test_names_are_shown_escaped(tmp_path):
  runs.images(tmp_path / 'images')
  folder = os.fsencode(tmp_path / 'images')
  for name in NAMES:
    shutil.copytree(folder + b'/dark', folder + b'/' + name)
  source = data.open_source({'source': f'folder:{tmp_path}/images'})
  assert set(source.classes) == {
    *(r'caf\xe9', r'\x1b[31mred', r'two\x0alines', '$x_{', 'ü中'),
    *('dark', 'light'),
  }
  for i in range(len(source)):
    assert source[i]['label'] >= 0
    assert printable(source.where(i)) == source.where(i)


@pytest.mark.slow
def test_names_in_terminal_pictures_and_page(tmp_path):
  images = runs.images(tmp_path / 'images')
  for name in NAMES:
    shutil.copytree(images / 'dark', images / os.fsdecode(name))
  config = runs.config(images, **{'eval.pictures': True})
  with open(tmp_path / 'out', 'w', encoding='ascii') as out:
    train.run(config, str(tmp_path / 'run'), out)
  said = (tmp_path / 'out').read_bytes()
  page = (tmp_path / 'run/report.html').read_bytes()
  assert b'\x1b' not in said + page and b'\xe9' not in said
  assert rb'caf\xe9' in said
  assert b'pictures failed' not in said, said.decode()
  assert (tmp_path / 'run/pictures/neighbours.png').exists()


# Steps without finite numbers


class Silent:
  """Stands for the progress of a run."""

  def waited(self, seconds):
    pass

  def report(self, step, values):
    return {}

  def say(self, text):
    pass


@pytest.mark.parametrize('most', [1, 2, 3])
def test_bad_steps_are_counted_when_they_happen(tmp_path, most):
  from types import SimpleNamespace

  config = SimpleNamespace(max_bad_steps=most, log_every=1)
  horizon = SimpleNamespace(steps_per_epoch=1.0)
  method = SimpleNamespace(chance=None)
  job = SimpleNamespace(
    config=config, horizon=horizon, method=method, schedules={}
  )
  written = Metrics(tmp_path)
  log, given_up = Log(job, written, Silent()), []
  for step, bad in enumerate([0, 1, 0, 1, 1, 1, 1], 1):
    log.receive(step, {'skipped': bad, 'loss': 1.0}, 0.0)
    if log.bad_in_row >= most:
      given_up.append(step)
  written.close()
  assert given_up[0] == {1: 2, 2: 5, 3: 6}[most]


DIVERGING = {
  'optim.lr': 1e9,
  'optim.warmup_epochs': 0.0,
  'optim.clip': 0.0,
  'steps': 12,
}


@pytest.mark.slow
def test_a_run_that_diverges_can_be_looked_into(tmp_path):
  images, run = runs.images(tmp_path / 'images'), tmp_path / 'run'
  out = io.StringIO()
  with pytest.raises(UserError, match='3 steps in a row') as e:
    train.run(runs.config(images, **DIVERGING), str(run), out)
  assert 'no state of the run is sound' in str(e.value)
  lines = metrics.read(f'{run}/metrics.jsonl')
  skipped = [x['step'] for x in lines if x.get('train/skipped')]
  (file,) = run.glob('replay_*.npz')
  with np.load(file) as kept:
    assert (len(skipped), int(kept['step'])) == (3, skipped[-1] - 1)
    assert kept['image'].shape[0] == 8
    assert str(kept['index'][0]) in str(e.value)
  # Parameters of 1e7 are no last good state.
  assert os.listdir(run / 'checkpoints') == []
  assert list(run.glob('diverged_*')) and (run / 'report.html').exists()
  replay.recompute(str(run), out)
  assert 'first non-finite: layer ' in out.getvalue()


@pytest.mark.slow
def test_a_run_may_go_back_and_leave_batches_out(tmp_path):
  images, out = runs.images(tmp_path / 'images'), io.StringIO()
  config = runs.config(images, **DIVERGING, max_rollbacks=9)
  state = train.run(config, str(tmp_path / 'run'), out)
  assert int(state.step) == 12
  assert 'went back to the state of step 0' in out.getvalue()


# Long runs


@pytest.mark.slow
def test_nothing_is_compiled_after_the_second_step(tmp_path, monkeypatch):
  compiled, receive = [], Log.receive

  class Compilations(logging.Handler):
    def emit(self, record):
      if record.getMessage().startswith('Compiling'):
        compiled.append(record.getMessage().split()[1])

  def received(log, step, *args):
    if step == 3:
      compiled.clear()
    receive(log, step, *args)

  monkeypatch.setattr(Log, 'receive', received)
  logger, handler = logging.getLogger('jax'), Compilations()
  logger.addHandler(handler)
  images = runs.images(tmp_path / 'images')
  config = runs.config(images, steps=12, log_every=4)
  import jax

  jax.config.update('jax_log_compiles', True)
  try:
    train.run(config, str(tmp_path / 'run'), io.StringIO())
  finally:
    jax.config.update('jax_log_compiles', False)
    logger.removeHandler(handler)
  assert compiled == []


# The long matrix, in short


@pytest.mark.slow
def test_a_directory_in_use_is_refused_by_all_processes(tmp_path):
  images = runs.images(tmp_path / 'images')
  flags = runs.flags(images, tmp_path / 'run', steps=4)
  with workdir.claim(str(tmp_path / 'run'), {'held': True}):
    done = subprocess.run(
      [
        *(sys.executable, 'launch/local_processes.py', '--processes=2'),
        *('--devices=1', '--', *flags),
      ],
      cwd=runs.ROOT,
      env=runs.environment(tmp_path / 'cache'),
      capture_output=True,
      text=True,
    )
  assert done.returncode == 2
  assert done.stderr.count(f'is in use by process {os.getpid()}') == 2
  assert 'Traceback' not in done.stderr


@pytest.mark.slow
def test_kills(tmp_path):
  assert len(list(kills.results(tmp_path, 3))) == 3


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which('cc'), reason='needs a C compiler')
def test_faults(tmp_path):
  for outcome in faults.results(tmp_path, 8):
    assert not outcome.wrong, outcome


def test_the_table_is_rewritten_row_by_row(tmp_path):
  from tests.trust.__main__ import written

  path = pathlib.Path(tmp_path / 'table.md')
  path.write_text('# Trust\n\nText.\n')
  for part, cell in (('kills', 'a'), ('bombs', 'b'), ('kills', 'c')):
    written(path, part, [cell])
  text = path.read_text()
  assert text.index('Text.') < text.index('| c |') < text.index('| b |')
  assert '| a |' not in text and json.dumps(text).count('kills') == 1
