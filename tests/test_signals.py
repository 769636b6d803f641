"""A run that is asked to stop saves itself; exit codes say what happened."""

import os
import pathlib
import signal
import subprocess
import sys
import time

import pytest

from esvit_jax.run import signals
from esvit_jax.run.signals import StopRequest
from esvit_jax.workdir.terminal import Progress

ROOT = pathlib.Path(__file__).parent.parent
LONG = (
  '--config=configs/quickstart.py:debug',
  '--config.steps=100000',
  '--config.batch_size=8',
  '--config.eval.pictures=False',
  '--config.eval.at_ends=',
  '--config.eval.during=',
  '--config.save.every_epochs=1000',
)


def test_all_signals_are_one_request(monkeypatch):
  now = [5.0]
  monkeypatch.setattr(time, 'monotonic', lambda: now[0])
  handler = signal.getsignal(signal.SIGHUP)
  with StopRequest() as request:
    request.arm()
    assert not request
    for number in signals.SIGNALS:
      signal.raise_signal(number)
    assert request
    now[0] += 1
    with pytest.raises(KeyboardInterrupt):
      signal.raise_signal(signal.SIGTERM)
  assert signal.getsignal(signal.SIGHUP) is handler


def test_a_reader_that_has_gone_is_noticed():
  read, write = os.pipe()
  os.close(read)
  with os.fdopen(write, 'w') as out:
    progress = Progress(10, 0, 5, 8, out)
    progress.say('to nobody')
    assert progress.unread
    progress.say('nothing is raised')
    os.dup2(os.open(os.devnull, os.O_WRONLY), write)


def python(code: str, **options):
  return subprocess.Popen(
    [sys.executable, '-c', code], cwd=ROOT, text=True, **options
  )


@pytest.mark.parametrize('number', signals.SIGNALS)
def test_a_command_that_has_nothing_to_save_ends_at_once(number):
  """Even where the main thread never comes back to Python."""
  code = (
    'import ctypes\n'
    'from esvit_jax.run import signals\n'
    'with signals.ends_at_once():\n'
    '  print(1, flush=True)\n'
    '  ctypes.CDLL(None).pause()\n'
    '  while ctypes.CDLL(None).sleep(60): pass\n'
  )
  pipe = subprocess.PIPE
  with python(code, stdout=pipe, stderr=pipe) as process:
    process.stdout.readline()
    process.send_signal(number)
    _, text = process.communicate(timeout=30)
  assert process.returncode == 75
  assert text.splitlines() == [
    f'stopped at once by {number.name}; the same command goes on'
  ]


def test_a_second_signal_ends_a_run_at_once():
  code = (
    'import time\n'
    'from esvit_jax.run import signals\n'
    'with signals.ends_at_once(), signals.StopRequest() as request:\n'
    '  request.arm()\n'
    '  print(1, flush=True)\n'
    '  while not request: time.sleep(0.01)\n'
    '  print(2, flush=True)\n'
    '  time.sleep(60)\n'
  )
  with python(code, stdout=subprocess.PIPE) as process:
    process.stdout.readline()
    process.terminate()
    assert process.stdout.readline() == '2\n'
    time.sleep(2 * signals.ANOTHER)
    process.terminate()
    assert process.wait(timeout=30) == 75


class Group:
  """Processes that train together, in a session of the launcher's."""

  def __init__(self, count: int, directory):
    self.directory, self.log = directory, directory.with_suffix('.log')
    with self.log.open('w') as log:
      self.launcher = subprocess.Popen(
        [
          sys.executable,
          'launch/local_processes.py',
          f'--processes={count}',
          '--devices=1',
          '--',
          *LONG,
          f'--workdir={directory}',
        ],
        cwd=ROOT,
        stdout=log,
        stderr=subprocess.STDOUT,
      )
    self.wait_for('\nstep 2')

  def wait_for(self, words: str) -> None:
    while words not in self.log.read_text():
      assert self.launcher.poll() is None, self.log.read_text()
      time.sleep(0.2)

  def worker(self, index: int) -> int:
    """The id of a process."""
    children = pathlib.Path(
      f'/proc/{self.launcher.pid}/task/{self.launcher.pid}/children'
    )
    for pid in children.read_text().split():
      command = pathlib.Path('/proc', pid, 'cmdline').read_text()
      if f'--process={index}\0' in command:
        return int(pid)
    raise LookupError(index)

  def ends_within(self, seconds: float) -> int:
    return self.launcher.wait(timeout=seconds)

  def saved(self) -> list[str]:
    return os.listdir(self.directory / 'checkpoints')


@pytest.mark.slow
@pytest.mark.parametrize(
  ('count', 'target'), [(2, 'one'), (2, 'all'), (4, 'one')]
)
def test_processes_stop_at_one_step(tmp_path, count, target):
  group = Group(count, tmp_path / 'run')
  if target == 'all':
    group.launcher.send_signal(signal.SIGINT)
  else:
    os.kill(group.worker(count - 1), signal.SIGTERM)
  assert group.ends_within(60) == 75, group.log.read_text()
  (step,) = group.saved()
  assert f'stopped at step {step}: saved' in group.log.read_text()
  assert 'Traceback' not in group.log.read_text()


@pytest.mark.slow
def test_a_killed_process_ends_the_others(tmp_path):
  group = Group(2, tmp_path / 'run')
  os.kill(group.worker(1), signal.SIGKILL)
  assert group.ends_within(60) != 0
  assert 'Traceback' not in group.log.read_text()
