"""Line charts: curves, ticks and labels at their places in an SVG.

templates/macros.html draws them. Colours are classes (s0, s1, ...) that
report.css fills for light and dark; report.js moves the read-out along the
curves.
"""

import math
import statistics
from collections.abc import Sequence
from typing import NamedTuple

WIDTH, HEIGHT = 360, 190
LEFT, RIGHT, TOP, BOTTOM = 46, 16, 10, 24  # margins
COLORS = 8
SIZE = {'width': WIDTH, 'height': HEIGHT, 'left': LEFT, 'right': WIDTH - RIGHT}
SIZE |= {'top': TOP, 'bottom': HEIGHT - BOTTOM}
TINY = 1e-30  # is zero to the eye
BUCKETS = 300  # a curve keeps the lowest and the highest of each
DOTTED = 24  # curves of at most this many points have a dot at each
LETTER, LINE = 6.2, 12.0  # width of a letter and height of a line of a label

Point = tuple[float, float | None]


class Series(NamedTuple):
  """One curve: (step, value) in order of steps; None leaves a gap."""

  label: str
  points: Sequence[Point]
  color: int = 0


class Rule(NamedTuple):
  """A value drawn across a chart, with what it is."""

  value: float
  label: str
  color: int | None = None


class Scale(NamedTuple):
  """Maps a value to a share of the axis, 0 to 1."""

  low: float
  high: float
  log: bool = False

  def __call__(self, value: float) -> float:
    low, high = self.low, self.high
    if self.log:
      low, high, value = math.log(low), math.log(high), math.log(value)
    return (value - low) / (high - low)


class Tick(NamedTuple):
  """A label of an axis; `place` is its x or y in the SVG."""

  text: str
  place: float
  style: str = ''


class Line(NamedTuple):
  """A curve as drawn: SVG paths, and its numbers for the read-out."""

  label: str
  style: str
  newest: str
  path: str
  trend: str
  dots: str
  dot_size: float
  numbers: str


class Chart(NamedTuple):
  """All that templates/macros.html needs to draw a chart.

  Attributes:
    title: of the figure.
    words: the chart in words, for those who cannot see it.
    step: the last one, as text.
    plot: edges of the plot in pixels and in steps, and the width, for
      report.js.
    steps: ticks of the horizontal axis.
    values: ticks of the vertical axis.
    rules: (height of the line, height and side of the label, label, style).
    lines: curves.
  """

  title: str
  words: str
  step: str
  plot: str
  steps: list[Tick]
  values: list[Tick]
  rules: list[tuple[float, float, str, str, str]]
  lines: list[Line]


def chart(
  title: str,
  curves: Sequence[Series],
  axis: str = 'fit',
  rules: Sequence[Rule] = (),
  last_step: float = 0,
) -> Chart | None:
  """Places curves on a chart.

  Args:
    title: of the figure.
    curves: those without a finite value are left out.
    axis: 'zero' starts there, 'log' is logarithmic, 'fit' is what fits.
    rules: values drawn across.
    last_step: where the axis of steps ends at least.

  Returns:
    None where there is nothing to draw.
  """
  curves = [
    s._replace(points=drawable(s.points, axis == 'log')) for s in curves
  ]
  curves = [s for s in curves if has_values(s)]
  if not curves:
    return None
  rules = [rule for rule in rules if axis != 'log' or rule.value > 0]
  values = [y for s in curves for _, y in s.points if y is not None]
  values += [rule.value for rule in rules]
  steps = [x for s in curves for x, _ in s.points]
  xs = Scale(min(0, *steps), max(1, last_step, *steps))
  ys = value_scale(values, axis)
  marks = log_ticks if ys.log else ticks
  return Chart(
    title,
    _in_words(title, curves, xs),
    f'{max(s.points[-1][0] for s in curves):,.0f}',
    f'{LEFT} {WIDTH - RIGHT} {xs.low:.12g} {xs.high:.12g} {WIDTH}',
    _step_ticks(xs),
    [Tick(short(y, 6), _y(y, ys)) for y in marks(ys.low, ys.high)],
    _place_rules(rules, curves, xs, ys),
    [_line(s, len(curves) - i, xs, ys) for i, s in enumerate(curves)],
  )


def has_values(series: Series) -> bool:
  """Whether any of its points is a number."""
  return any(y is not None for _, y in series.points)


def newest(points: Sequence[Point]) -> float:
  """The last value that is one."""
  return next(y for _, y in reversed(points) if y is not None)


def drawable(points: Sequence[Point], log: bool = False) -> list[Point]:
  """Without what a logarithm cannot show, and without gaps at the end."""
  points = [
    (x, None if y is None or (log and y < TINY) else y) for x, y in points
  ]
  while points and points[-1][1] is None:
    points.pop()
  return points


def thinned(points: Sequence[Point]) -> Sequence[Point]:
  """Both ends, and at most two values and a gap for each bucket between."""
  if len(points) <= 2 * BUCKETS:
    return points
  kept = []
  for bucket in _buckets(points[1:-1], BUCKETS):
    finite = [p for p in bucket if p[1] is not None]
    gaps = [p for p in bucket if p[1] is None][:1]
    ends = [f(finite, key=lambda p: p[1]) for f in (min, max) if finite]
    kept += sorted({*ends, *gaps}, key=lambda p: p[0])
  return [points[0], *kept, points[-1]]


def trend(points: Sequence[Point]) -> list[Point]:
  """Medians of a series that is thinned; empty for others."""
  if len(points) <= 2 * BUCKETS:
    return []
  medians = []
  for bucket in _buckets(points, BUCKETS // 4):
    values = [y for _, y in bucket if y is not None]
    median = statistics.median(values) if values else None
    medians.append(((bucket[0][0] + bucket[-1][0]) / 2, median))
  return medians


def _buckets(points: Sequence[Point], count: int) -> list[list[Point]]:
  """Neighbours together, by their steps."""
  first, last = points[0][0], points[-1][0]
  width = (last - first) / count or 1
  groups: dict[int, list[Point]] = {}
  for point in points:
    at = min(int((point[0] - first) / width), count - 1)
    groups.setdefault(at, []).append(point)
  return list(groups.values())


def value_scale(values: Sequence[float], axis: str) -> Scale:
  """The axis of values, ending at its outermost ticks where it has zero."""
  low, high = min(values), max(values)
  if axis == 'log':
    if low == high:
      low, high = low / 2, high * 2
    room = (high / low) ** 0.05
    return Scale(low / room, high * room, log=True)
  if axis == 'zero':
    low, high = min(low, 0.0), max(high, 0.0)
  size = max(abs(low), abs(high))
  if high - low < 1e-9 * size + TINY:
    room = size / 10 if size > TINY else 1.0
    return Scale(low - room, high + room)
  room = (high - low) * 0.06
  at_zero = axis == 'zero' and low == 0
  return Scale(0.0 if at_zero else low - room, high + room)


def ticks(low: float, high: float, count: int = 4) -> list[float]:
  """About `count` round numbers from low to high."""
  raw = (high - low) / count
  power = 10.0 ** math.floor(math.log10(raw))
  # The nearest of these, by its logarithm.
  factors = [(50, 10), (10, 5), (2, 2), (0, 1)]
  step = power * next(f for least, f in factors if raw >= power * least**0.5)
  first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
  return [i * step for i in range(first, last + 1)]


def log_ticks(low: float, high: float) -> list[float]:
  """Powers of ten, with 2 and 5 of each where there are few."""
  powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
  for factors in ((1,), (1, 3), (1, 2, 5)):
    marks = [f * 10.0**p for p in powers for f in factors]
    marks = [x for x in marks if low <= x <= high]
    if len(marks) >= 3:
      every = -(-len(marks) // 5)
      return marks[::every]
  return ticks(low, high)


def short(x: float, digits: int = 4) -> str:
  """A number in a few characters: 0, 0.25, 5e-5, 1,200, 1.25M."""
  if not x:
    return '0'
  if abs(x) >= 999_500:
    return f'{x / 1e6:.3g}M'
  if abs(x) >= 10_000:
    return f'{x / 1e3:.3g}k'
  if abs(x) >= 1000:
    return f'{x:,.0f}'
  if abs(x) < 1e-4:
    factor, _, power = f'{x:.2e}'.partition('e')
    return f'{float(factor):g}e{int(power)}'
  return f'{x:.{digits}g}'


def _step_ticks(xs: Scale) -> list[Tick]:
  """Labels of steps; every second or third where all would not fit."""
  steps = ticks(xs.low, xs.high)
  width = LETTER * max(len(short(x, 6)) for x in steps) + 8
  room = _x(steps[1], xs) - _x(steps[0], xs)
  marks = []
  for step in steps[:: max(1, math.ceil(width / room))]:
    x = _x(step, xs)
    style = 'end' if x > WIDTH - RIGHT - width / 2 else ''
    marks.append(Tick(short(step, 6), x, style))
  return marks


def _place_rules(
  rules: Sequence[Rule], curves: Sequence[Series], xs: Scale, ys: Scale
) -> list[tuple[float, float, str, str, str]]:
  """Labels stand above their lines, or below where another is close.

  They stand at the side, right or left, where curves are farther away.
  """
  placed, last = [], TOP
  for rule in sorted(rules, key=lambda rule: -rule.value):
    y = _y(rule.value, ys)
    label = y - 4 if y - LINE >= last else y + LINE - 1
    last = max(y, label)
    style = '' if rule.color is None else color_class(rule.color)
    side = 'left' if _left_is_free(rule, curves, xs, ys) else ''
    placed.append((y, round(label, 1), side, rule.label, style))
  return placed


def _left_is_free(
  rule: Rule, curves: Sequence[Series], xs: Scale, ys: Scale
) -> bool:
  """Whether curves are farther from the left end of a rule than the right."""
  share = 0.4  # of the width, for a label
  ends = ([1.0], [1.0])  # distances, as shares of the height
  for step, value in (point for s in curves for point in s.points):
    if value is not None:
      distance = abs(ys(value) - ys(rule.value))
      if xs(step) < share:
        ends[0].append(distance)
      elif xs(step) > 1 - share:
        ends[1].append(distance)
  return min(ends[0]) > min(ends[1])


def _line(series: Series, size: int, xs: Scale, ys: Scale) -> Line:
  """A curve; where dots of several lie on one another, each shows a ring."""
  points = thinned(series.points)
  middle = trend(series.points)
  dots = []
  if not middle and len(points) <= DOTTED:
    dots = [(x, y) for p in points for x, y in (p, (p[0], None))]
  return Line(
    series.label,
    color_class(series.color),
    short(newest(series.points)),
    _path(points, xs, ys),
    _path(middle, xs, ys),
    _path(dots, xs, ys),
    3 + 2.5 * size,
    ' '.join(f'{x:.12g} {y:.5g}' for x, y in points if y is not None),
  )


def _path(points: Sequence[Point], xs: Scale, ys: Scale) -> str:
  """Lines from point to point; a single point is a dot."""
  words, single, pen = [], False, 'M'
  for step, value in [*points, (0, None)]:
    if value is None:
      if single:
        words.append('h0')
      single, pen = False, 'M'
      continue
    single = pen == 'M'
    words.append(f'{pen}{_x(step, xs):g} {_y(value, ys):g}')
    pen = 'L'
  return ''.join(words)


def color_class(color: int) -> str:
  """The class of a colour in report.css; past COLORS they are dashed."""
  dashed = ' dashed' if color // COLORS % 2 else ''
  return f's{color % COLORS}{dashed}'


def _x(step: float, xs: Scale) -> float:
  return round(LEFT + xs(step) * (WIDTH - LEFT - RIGHT), 1)


def _y(value: float, ys: Scale) -> float:
  return round(HEIGHT - BOTTOM - ys(value) * (HEIGHT - TOP - BOTTOM), 1)


def _in_words(title: str, curves: Sequence[Series], xs: Scale) -> str:
  parts = []
  for s in curves:
    first = next(y for _, y in s.points if y is not None)
    parts.append(f'{s.label} from {short(first)} to {short(newest(s.points))}')
  return f'{title} up to step {xs.high:,.0f}: {"; ".join(parts)}'
