"""Tables, and a progress line that is honest about time."""

import io
import re
import time

import pytest

from esvit_jax.workdir import terminal
from esvit_jax.workdir.terminal import Progress


class Terminal(io.StringIO):
  def isatty(self):
    return True


@pytest.fixture
def clock(monkeypatch):
  """A clock that stands until it is told to move."""
  now = [100.0]
  monkeypatch.setattr(time, 'perf_counter', lambda: now[0])

  def move(seconds):
    now[0] += seconds

  return move


VALUES = {'train/loss': 1.2345678, 'train/lr': 5e-4}


def test_a_log_file_gets_a_line_a_report(clock):
  out = io.StringIO()
  progress = Progress(100, 0, 50, 64, out)
  for step in (10, 20):
    clock(5)
    progress.waited(0.5)
    progress.report(step, VALUES)
  progress.say('done')
  progress.close()
  first, second, done = out.getvalue().splitlines()
  assert done == 'done'
  assert first == (
    'step 10/100  epoch 0.2  ETA 0:45  loss 1.2346  lr 5.00e-04  128 img/s  '
    'data wait 10%'
  )
  assert second.startswith('step 20/100  epoch 0.4  ETA 0:40')
  assert '\r' not in out.getvalue() and '\x1b' not in out.getvalue()


def test_a_terminal_has_one_bar(clock):
  out = Terminal()
  progress = Progress(100, 0, 50, 64, out)
  for step in (10, 20):
    clock(1)
    progress.report(step, VALUES)
  progress.say('a word')
  progress.report(30, VALUES)
  progress.close()
  progress.close()
  progress.say('the end')
  rows = screen(out.getvalue())
  assert rows[0] == 'a word'
  assert 'step 30/100  epoch 0.6  ETA' in rows[1]
  assert rows[2:] == ['the end']


def screen(text: str) -> list[str]:
  """The rows that a terminal shows after `text`, as rich writes it."""
  rows, y = [''], 0
  for code, char in re.findall(r'\x1b\[([?\d;]*[A-Za-z])|(.)', text, re.S):
    if code == '2K':
      rows[y] = ''
    elif code.endswith('A'):
      y -= int(code[:-1] or 1)
    elif char == '\n':
      y += 1
      rows += [''] * (y == len(rows))
    elif char and char != '\r':
      rows[y] += char
  return [row.rstrip() for row in rows if row.strip()]


def test_a_narrow_terminal_is_not_wrapped(clock, monkeypatch):
  monkeypatch.setenv('COLUMNS', '40')
  out = Terminal()
  clock(1)
  progress = Progress(100, 0, 50, 64, out)
  progress.report(10, VALUES)
  progress.close()
  (row,) = screen(out.getvalue())
  assert len(row) <= 40
  assert 'step 10/100' in row


def test_silent_processes_still_measure(clock):
  progress = Progress(100, 0, 50, 64, None)
  clock(2)
  speeds = progress.report(10, VALUES)
  progress.say('nothing')
  progress.close()
  assert speeds == {'train/images_per_s': 320.0, 'train/data_wait': 0.0}


def test_eta_counts_only_what_this_process_did(clock):
  progress = Progress(1000, 400, 50, 64, None)
  clock(60)  # compilation
  progress.restart(400)
  clock(10)
  assert progress.eta(500) == pytest.approx(50)
  assert progress.eta(1000) == 0


def test_evaluations_slow_the_run_not_the_steps(clock):
  progress = Progress(100, 0, 50, 10, None)
  clock(1)
  with progress.paused():
    clock(30)
  speeds = progress.report(10, VALUES)
  assert speeds['train/images_per_s'] == pytest.approx(100)
  assert progress.eta(10) == pytest.approx(31 * 9)


def test_waiting_is_counted_once(clock):
  progress = Progress(100, 0, 50, 10, None)
  shares = []
  for waited in (0.25, 0.0, 5.0):
    clock(1)
    progress.waited(waited)
    shares.append(progress.report(10, VALUES)['train/data_wait'])
  assert shares == [0.25, 0.0, 1.0]


@pytest.mark.parametrize(
  ('seconds', 'text'),
  [
    (0, '0:00'),
    (59.6, '1:00'),
    (75, '1:15'),
    (3599.9, '1:00:00'),
    (4000, '1:06:40'),
  ],
)
def test_duration(seconds, text):
  assert terminal.duration(seconds) == text


def test_a_table_is_plain_text_and_takes_any_name():
  rows = [('[red]cats', '1.5'), ('dogs', '10.25')]
  text = terminal.table('scores', ('class', 'top-1'), rows)
  title, _, *body = [line.strip() for line in text.splitlines()]
  assert title == 'scores'
  assert body[-2].split() == ['[red]cats', '1.5']
  assert body[-1].split() == ['dogs', '10.25']
  assert body[-2].rindex('1.5') > body[-1].rindex('10.25')
  assert '\x1b' not in text
