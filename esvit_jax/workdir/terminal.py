"""What a command prints: tables, and how far a run is."""

import contextlib
import io
import math
import sys
import time
from collections.abc import Iterable, Iterator, Sequence

from rich import box
from rich.console import Console
from rich.progress import (
  BarColumn,
  MofNCompleteColumn,
  TextColumn,
  TimeRemainingColumn,
)
from rich.progress import Progress as Bar
from rich.table import Table
from rich.text import Text

from esvit_jax.errors import printable

WIDTH = 80  # of tables, on any terminal


def table(
  title: str,
  columns: Sequence[str],
  rows: Iterable[Sequence[str]],
  left: Sequence[str] = (),
) -> str:
  """A table as text, without colours.

  Args:
    title: above it.
    columns: their headings.
    rows: cells, one row after another.
    left: columns aligned to the left besides the first; others to the right.

  Returns:
    Its lines, without a newline at the end.
  """
  grid = Table(box=box.SIMPLE_HEAD, title=title)
  for column in columns:
    aligned_left = column in (columns[0], *left)
    grid.add_column(column, justify='left' if aligned_left else 'right')
  for row in rows:
    grid.add_row(*map(Text, row))
  console = Console(file=io.StringIO(), width=WIDTH)
  console.print(grid)
  lines = console.file.getvalue().splitlines()
  return '\n'.join(line.rstrip() for line in lines).strip('\n')


def counted(items: Iterable, total: int, what: str, out) -> Iterator:
  """The items, with a bar of how many of them have come on a terminal.

  Args:
    items: to pass on.
    total: how many there will be.
    what: stands before the bar.
    out: any text file; nothing is printed where it is no terminal.
  """
  with Bar(
    TextColumn('{task.description}', markup=False),
    BarColumn(bar_width=16),
    MofNCompleteColumn(),
    TimeRemainingColumn(),
    console=Console(file=out),
    transient=True,
    disable=not out.isatty(),
  ) as bar:
    yield from bar.track(items, total, description=what)


class Progress:
  """Step, epoch, time to go, loss and speed: a bar on a terminal, else lines.

  Args:
    steps: of the whole run.
    start: the step this process starts from.
    steps_per_epoch: for the epoch shown.
    batch_size: images a step.
    out: where to print, any text file; None prints nothing.

  Attributes:
    unread: whether the reader of `out` has gone, as `| head` does.
  """

  def __init__(self, steps, start, steps_per_epoch, batch_size, out=sys.stdout):
    self.steps, self.start = steps, start
    self.steps_per_epoch, self.batch_size = steps_per_epoch, batch_size
    self.out, self.unread = out, False
    self._began = self._last = time.perf_counter()
    self._last_step, self._waited = start, 0.0
    self._bar = Bar(
      BarColumn(bar_width=16),
      TextColumn('{task.description}', markup=False),
      console=Console(file=out),
      auto_refresh=False,
      disable=out is None or not out.isatty(),
    )
    self._task = self._bar.add_task('', total=steps, completed=start)

  def restart(self, step: int) -> None:
    """Starts the clocks at `step`: what came before was compilation."""
    self.start = self._last_step = step
    self._began = self._last = time.perf_counter()
    self._waited = 0.0

  def waited(self, seconds: float) -> None:
    """Adds time spent waiting for data."""
    self._waited += seconds

  @contextlib.contextmanager
  def paused(self):
    """Keeps an evaluation out of images/s (not out of the time to go)."""
    began = time.perf_counter()
    yield
    self._last += time.perf_counter() - began

  def report(self, step: int, values: dict[str, float]) -> dict[str, float]:
    """Shows where the run stands; returns its speeds as metrics."""
    now = time.perf_counter()
    span, steps = max(now - self._last, 1e-9), step - self._last_step
    speeds = {
      'train/images_per_s': steps * self.batch_size / span,
      'train/data_wait': min(self._waited / span, 1.0),
    }
    left = self.eta(step)
    self._last, self._last_step, self._waited = now, step, 0.0
    line = (
      f'step {step}/{self.steps}  epoch {step / self.steps_per_epoch:.1f}  '
      f'ETA {duration(left)}  '
      f'loss {values.get("train/loss", math.nan):.4f}  '
      f'lr {values.get("train/lr", 0.0):.2e}  '
      f'{speeds["train/images_per_s"]:.0f} img/s  '
      f'data wait {100 * speeds["train/data_wait"]:.0f}%'
    )
    if self._bar.disable:
      self.say(line)
    else:
      self._bar.start()
      self._bar.update(
        self._task, completed=step, description=line, refresh=True
      )
    return speeds

  def eta(self, step: int) -> float:
    """Seconds to the end of the run at the pace so far."""
    done = max(step - self.start, 1)
    spent = time.perf_counter() - self._began
    return spent / done * (self.steps - step)

  def say(self, text: str) -> None:
    """Prints lines of their own, above the bar if there is one."""
    if self.out is None or self.unread:
      return
    text = '\n'.join(map(printable, text.split('\n')))
    encoding = getattr(self.out, 'encoding', None) or 'utf-8'
    text = text.encode(encoding, 'backslashreplace').decode(encoding)
    if self._bar.disable:
      try:
        print(text, file=self.out, flush=True)
      except BrokenPipeError:
        self.unread = True
      except OSError:  # a full disk must not end a run
        pass
    else:
      self._bar.console.out(text, highlight=False)

  def close(self) -> None:
    """Leaves the bar as it is, if there is one; `say` goes on below it."""
    self._bar.stop()


def duration(seconds: float) -> str:
  """75 -> '1:15', 4000 -> '1:06:40'."""
  seconds = round(seconds)
  hours, minutes = seconds // 3600, seconds // 60 % 60
  if hours:
    return f'{hours}:{minutes:02d}:{seconds % 60:02d}'
  return f'{minutes}:{seconds % 60:02d}'
