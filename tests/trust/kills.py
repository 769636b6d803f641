"""kill -9 at random moments; what is left goes on as if nothing had been."""

import json
import math
import os
import pathlib
import random
import signal
import subprocess
import time
from collections.abc import Iterator
from typing import NamedTuple

from tests.trust import runs

STEPS = 40
# Half of the kills come while it trains and saves, the others at any time.
AT_MOST = 12  # kills of one run
LATEST = 4.0  # seconds after the first step
CHANGE = {'steps': STEPS, 'eval.every_epochs': 4.0}
# Of metrics that tell of the machine.
SPEEDS = ('train/images_per_s', 'train/data_wait')


class Kill(NamedTuple):
  """One of them.

  Attributes:
    run: which run of several.
    after: the last step that was reported, 0 before the first.
    saved: the newest checkpoint that it left, 0 where there is none.
  """

  run: int
  after: int
  saved: int


class Command:
  """The command that trains, in processes of its own."""

  def __init__(self, folder: pathlib.Path, name: str):
    self.folder, self.run = folder, folder / name
    self.log = folder / f'{name}.log'
    images = runs.images(folder / 'images')
    self.command = runs.command(runs.flags(images, self.run, **CHANGE))

  def start(self) -> subprocess.Popen:
    with self.log.open('w') as log:
      return subprocess.Popen(
        self.command,
        cwd=runs.ROOT,
        env=runs.environment(self.folder / 'cache'),
        stdout=log,
        stderr=subprocess.STDOUT,
        start_new_session=True,
      )

  def finish(self) -> None:
    """Runs it to its end."""
    if code := self.start().wait():
      raise AssertionError(f'exit code {code}: {self.log.read_text()[-2000:]}')

  def step(self) -> int:
    """The last step that the log tells of."""
    words = [
      x.split()[1]
      for x in self.log.read_text().splitlines()
      if x.startswith('step ')
    ]
    return int(words[-1].partition('/')[0]) if words else 0

  def saved(self) -> int:
    try:
      names = os.listdir(self.run / 'checkpoints')
    except FileNotFoundError:
      return 0
    return max((int(x) for x in names if x.isdigit()), default=0)

  def kill(self, rng: random.Random, whole: float) -> Kill | None:
    """Starts it and kills it; None where it was quicker."""
    process = self.start()
    if rng.random() < 0.5:
      while not self.step() and process.poll() is None:
        time.sleep(0.05)
      wait = rng.uniform(0, LATEST)
    else:
      wait = rng.uniform(0, whole)
    try:
      process.wait(wait)
      return None
    except subprocess.TimeoutExpired:
      os.killpg(process.pid, signal.SIGKILL)
      process.wait()
    return Kill(0, self.step(), self.saved())

  def state(self) -> tuple:
    """What is left at the end: checksums of all arrays, and the metrics."""
    steps = self.run / 'checkpoints' / str(STEPS) / 'checksums/metadata'
    text = (self.run / 'metrics.jsonl').read_text()
    lines = map(json.loads, text.splitlines())
    return json.loads(steps.read_text()), [
      {k: x for k, x in line.items() if k not in SPEEDS} for line in lines
    ]


def results(
  folder: pathlib.Path, count: int, seed: int = 0, seconds: float = math.inf
) -> Iterator[Kill]:
  """Kills runs, AT_MOST times each; each of them then has to be whole.

  Args:
    folder: empty.
    count: kills.
    seed: of the moments.
    seconds: after which no further kill is begun.

  Raises:
    AssertionError: a run did not go on, or ended in another state.
  """
  rng = random.Random(seed)
  reference = Command(folder, 'whole')
  reference.finish()  # with cold programs
  began = time.monotonic()
  Command(folder, 'again').finish()
  whole, number = time.monotonic() - began, 0
  while count and time.monotonic() - began < seconds:
    number += 1
    command, left = Command(folder, f'run{number}'), min(AT_MOST, count)
    while left and time.monotonic() - began < seconds:
      kill = command.kill(rng, whole)
      if kill is None:
        break
      left, count = left - 1, count - 1
      yield kill._replace(run=number)
    command.finish()
    if differ := differences(command.state(), reference.state()):
      raise AssertionError(f'{command.run} ended otherwise: {differ[:5]}')


def differences(state: tuple, reference: tuple) -> list[str]:
  """What is not the same in two states, see `Command.state`."""
  (arrays, lines), (right, right_lines) = state, reference
  differ = [k for k in right if arrays.get(k) != right[k]]
  steps, right_steps = ([x['step'] for x in y] for y in (lines, right_lines))
  if steps != right_steps:
    return [*differ, f'steps {steps} and {right_steps}']
  return differ + [
    f'step {a["step"]}: {k} {a.get(k)} and {b.get(k)}'
    for a, b in zip(lines, right_lines)
    for k in a.keys() | b.keys()
    if a.get(k) != b.get(k)
  ]
