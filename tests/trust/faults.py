"""Write errors of every kind, at every kind of file of a run.

Each case goes on with a half-finished run while one call of the C library
fails, once or from then on. The run may end, in one line and with 2; then the
same command has to go on. Either way it has to end where an undisturbed run
ends, byte for byte.
"""

import collections
import ctypes
import errno
import functools
import gc
import io
import json
import math
import os
import pathlib
import random
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from typing import NamedTuple

from tests.trust import runs
from tests.trust.descriptions import quiet

# Part of a path -> the calls that may fail there.
PLACES = {
  'run/checkpoints': ('open', 'write', 'fsync', 'rename', 'mkdir', 'unlink'),
  'run/metrics.jsonl': ('open', 'write', 'rename'),
  'run/config.json': ('open', 'write', 'rename'),
  'run/run.json': ('open', 'write', 'rename'),
  'run/.lock': ('open', 'write'),
  'run/report.html': ('open', 'write', 'rename'),
  'run/pictures': ('open', 'write', 'mkdir'),
  'run/eval': ('open', 'write', 'rename', 'mkdir'),
  '/run': ('open', 'write', 'rename', 'mkdir', 'fsync'),
}
ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO, errno.EACCES)
# What may not be written without ending a run.
LUXURY = ('run/metrics.jsonl', 'run/report.html', 'run/pictures')
EVER = 0  # times


class Fault(NamedTuple):
  """One case.

  Attributes:
    place, call: where what fails.
    nth: the first call that does, from 0.
    times: how often; EVER: from then on.
    error: errno.
    fresh: whether the run begins, instead of going on.
  """

  place: str
  call: str
  nth: int
  times: int
  error: int
  fresh: bool

  def __str__(self) -> str:
    how = 'from then on' if self.times == EVER else f'{self.times} times'
    name = errno.errorcode[self.error]
    start = 'fresh' if self.fresh else 'resumed'
    return f'{name} at {self.call} {self.nth} of {self.place}, {how}, {start}'


class Outcome(NamedTuple):
  """What became of a case.

  Attributes:
    fault: the case.
    fired: calls that failed.
    code: of the command that met it.
    said: on stderr.
    wrong: what should not be, or ''.
  """

  fault: Fault
  fired: int
  code: int
  said: str
  wrong: str


def compiled(folder: pathlib.Path) -> pathlib.Path:
  """The library that makes calls fail."""
  library = folder / 'faults.so'
  source = pathlib.Path(__file__).with_name('faults.c')
  command = ['cc', '-shared', '-fPIC', '-o', library, source, '-ldl']
  subprocess.run(command, check=True)
  return library


def results(
  folder: pathlib.Path, count: int, seed: int = 0, seconds: float = math.inf
) -> list[Outcome]:
  """Outcomes of cases that fired, in a process of their own.

  Args:
    folder: empty.
    count: cases.
    seed: of them.
    seconds: after which no further case begins.
  """
  command = [sys.executable, '-m', 'tests.trust.faults', str(folder)]
  done = subprocess.run(
    [*command, str(count), str(seed), str(seconds)],
    env=runs.environment(folder / 'cache')
    | {'LD_PRELOAD': str(compiled(folder))},
    cwd=runs.ROOT,
    stdout=subprocess.PIPE,
    text=True,
    check=True,
  )
  outcomes = [json.loads(x) for x in done.stdout.splitlines() if x[:1] == '[']
  return [Outcome(Fault(*x[0]), *x[1:]) for x in outcomes]


class Shim:
  """The library, in this process."""

  def __init__(self):
    self._library = ctypes.CDLL(None)

  def arm(self, fault: Fault) -> None:
    call, place = fault.call.encode(), fault.place.encode()
    self._library.faults_arm(call, place, fault.nth, fault.times, fault.error)

  def disarm(self) -> int:
    return self._library.faults_disarm()

  def log(self, fd: int) -> None:
    self._library.faults_log(fd)


class Bench:
  """A run that is begun and gone on with, again and again."""

  def __init__(self, folder: pathlib.Path):
    self.shim, self.folder = Shim(), folder
    images = runs.images(folder / 'images')
    self.config = runs.config(images, **{'eval.pictures': True})
    _share_programs()
    self.run, self.half = folder / 'run', folder / 'half'
    self.go()
    self.last = self.checksums()
    # Half of it: without its last steps, and what it says at its end.
    for step in os.listdir(self.run / 'checkpoints'):
      if int(step) > runs.STEPS // 2 + 1:
        shutil.rmtree(self.run / 'checkpoints' / step)
    shutil.copytree(self.run, self.half)

  def go(self) -> tuple[int, str]:
    """Runs the command."""
    from esvit_jax import evaluate, train
    from esvit_jax.protocols.setup import Result

    def command():
      train.finish(self.config, str(self.run), io.StringIO())
      figures = {'top1': 50.0}
      from configs.eval import knn

      evaluate.write(
        Result(str(self.run), knn.get_config(), 'teacher', figures)
      )

    def patient():
      try:
        command()
      finally:
        gc.collect()  # tasks that were forgotten complain when they go

    return quiet(patient)

  def checksums(self) -> str:
    """Of the arrays of the last step."""
    steps = sorted(map(int, os.listdir(self.run / 'checkpoints')))
    path = self.run / 'checkpoints' / str(steps[-1]) / 'checksums/metadata'
    return f'{steps[-1]} {path.read_text()}'

  def begin(self, fresh: bool) -> None:
    shutil.rmtree(self.run, ignore_errors=True)
    if not fresh:
      shutil.copytree(self.half, self.run)

  def counts(self) -> dict[tuple, int]:
    """(place, call, fresh) -> how many calls an undisturbed run makes."""
    counts = collections.Counter()
    for fresh in (False, True):
      self.begin(fresh)
      path = self.folder / 'calls.txt'
      with path.open('w') as file:
        self.shim.log(file.fileno())
        self.go()
        self.shim.log(-1)
      for line in path.read_text(errors='replace').splitlines():
        call, _, where = line.partition(' ')
        for place, calls in PLACES.items():
          if call in calls and place in where:
            counts[place, call, fresh] += 1
    return counts

  def outcome(self, fault: Fault) -> Outcome:
    """Goes on under a fault, and then without it."""
    self.begin(fault.fresh)
    self.shim.arm(fault)
    code, said = self.go()
    fired = self.shim.disarm()
    wrong = _wrong(fault, code, said)
    if code:
      again, text = self.go()
      if again:
        wrong = wrong or f'the same command does not go on: {text[-300:]}'
    if not wrong and self.checksums() != self.last:
      wrong = 'it ends with other arrays'
    return Outcome(fault, fired, code, said[-3000:], wrong)


def _wrong(fault: Fault, code: int, said: str) -> str:
  """What should not be in an answer."""
  lines = said.strip().splitlines()
  if 'Traceback' in said:
    return f'a traceback: {lines[-1][:200]}'
  if code not in (0, 2):
    return f'exit code {code}'
  errors = [x for x in lines if x.startswith('error: ')]
  if code == 2 and (len(errors) != 1 or '/run' not in errors[0]):
    return f'{len(errors)} lines of error, or no path: {said[:200]}'
  if len(lines) > 4:
    return f'{len(lines)} lines'
  if code and fault.place in LUXURY:
    return f'a run ended for its {fault.place}'
  return ''


def _share_programs() -> None:
  """Compiles once: faults are in files, not in programs."""
  from esvit_jax import train
  from esvit_jax.analysis import pictures
  from esvit_jax.analysis.plots import images
  from esvit_jax.run import jobs, summary

  kept = {}

  def once(module, name):
    call = getattr(module, name)

    @functools.wraps(call)
    def first(*args, **kwargs):
      if name not in kept:
        kept[name] = call(*args, **kwargs)
      return kept[name]

    setattr(module, name, first)

  once(jobs, 'prepare')
  once(jobs, 'compile_step')
  once(summary, '_lowered')

  def draw(job, state, inspect, gallery, folder):
    path = os.path.join(folder, 'views.png')
    images.save(images.figure(1, 1), path)
    return [path]

  pictures.draw = draw
  assert train.jobs is jobs


def cases(counts: dict, seed: int) -> Iterator[Fault]:
  """Faults, the kinds of places and calls in turn."""
  rng = random.Random(seed)
  while True:
    keys = sorted(counts)
    rng.shuffle(keys)
    for place, call, fresh in keys:
      if fresh and rng.random() < 0.5:  # it takes twice as long
        continue
      nth = rng.randrange(counts[place, call, fresh])
      times = rng.choice((1, EVER))
      yield Fault(place, call, nth, times, rng.choice(ERRORS), fresh)


def main(folder: str, count: str, seed: str, seconds: str) -> None:
  began, done = time.monotonic(), 0
  bench = Bench(pathlib.Path(folder))
  for fault in cases(bench.counts(), int(seed)):
    if done == int(count) or time.monotonic() - began > float(seconds):
      break
    outcome = bench.outcome(fault)
    if outcome.fired:
      done += 1
      print(json.dumps([list(outcome.fault), *outcome[1:]]), flush=True)


if __name__ == '__main__':
  main(*sys.argv[1:])
