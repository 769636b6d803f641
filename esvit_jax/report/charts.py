"""Line charts: positions of curves, ticks and labels in an SVG.

templates/macros.html draws them. Colours are CSS classes (s0, s1, ...), which
page.css defines for the light and the dark theme; page.js shows values under
the pointer.
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
TINY = 1e-30  # smaller values count as 0
BUCKETS = 300  # long curves keep the minimum and maximum of each
DOTTED = 24  # curves of at most this many points get dots
LETTER, LINE = 6.2, 12.0  # width of a letter and height of a line, pixels

Point = tuple[float, float | None]


class Series(NamedTuple):
  """A curve: (step, value) in order of steps; None leaves a gap."""

  label: str
  points: Sequence[Point]
  color: int = 0


class Rule(NamedTuple):
  """A labelled horizontal line."""

  value: float
  label: str
  color: int | None = None


class Scale(NamedTuple):
  """Maps values to 0..1 along an axis."""

  low: float
  high: float
  log: bool = False

  def __call__(self, value: float) -> float:
    low, high = self.low, self.high
    if self.log:
      low, high, value = math.log(low), math.log(high), math.log(value)
    return (value - low) / (high - low)


class Tick(NamedTuple):
  """A label on an axis; `place` is its x or y in the SVG."""

  text: str
  place: float
  style: str = ''


class Line(NamedTuple):
  """A curve as SVG paths, and its numbers for page.js."""

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
    words: a description for screen readers.
    step: the last step, as text.
    plot: edges of the plot in pixels and in steps, and the width, for page.js.
    steps: ticks of the horizontal axis.
    values: ticks of the vertical axis.
    rules: (y of the line, y and side of the label, label, style).
    lines: the curves.
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
  """Computes a chart.

  Args:
    title: of the figure.
    curves: those without a finite value are left out.
    axis: of values: 'zero' starts at 0, 'log' is logarithmic, 'fit' fits them.
    rules: horizontal lines.
    last_step: to which the axis of steps extends at least.

  Returns:
    None if there is nothing to draw.
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
  """The last value that is not None."""
  return next(y for _, y in reversed(points) if y is not None)


def drawable(points: Sequence[Point], log: bool = False) -> list[Point]:
  """`points` without gaps at the end or, with `log`, non-positive values."""
  points = [
    (x, None if y is None or (log and y < TINY) else y) for x, y in points
  ]
  while points and points[-1][1] is None:
    points.pop()
  return points


def thinned(points: Sequence[Point]) -> Sequence[Point]:
  """At most two values and a gap for each bucket, and both ends."""
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
  """Running medians of a long series; empty for a short one."""
  if len(points) <= 2 * BUCKETS:
    return []
  medians = []
  for bucket in _buckets(points, BUCKETS // 4):
    values = [y for _, y in bucket if y is not None]
    median = statistics.median(values) if values else None
    medians.append(((bucket[0][0] + bucket[-1][0]) / 2, median))
  return medians


def _buckets(points: Sequence[Point], count: int) -> list[list[Point]]:
  """Groups points by step into buckets of equal width."""
  first, last = points[0][0], points[-1][0]
  width = (last - first) / count or 1
  groups: dict[int, list[Point]] = {}
  for point in points:
    at = min(int((point[0] - first) / width), count - 1)
    groups.setdefault(at, []).append(point)
  return list(groups.values())


def value_scale(values: Sequence[float], axis: str) -> Scale:
  """The axis of values, with some room on either side."""
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
  """About `count` round numbers between low and high."""
  raw = (high - low) / count
  power = 10.0 ** math.floor(math.log10(raw))
  # The factor that is nearest on a logarithmic scale.
  factors = [(50, 10), (10, 5), (2, 2), (0, 1)]
  step = power * next(f for least, f in factors if raw >= power * least**0.5)
  first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
  return [i * step for i in range(first, last + 1)]


def log_ticks(low: float, high: float) -> list[float]:
  """Powers of ten; if these are few, also their multiples by 2, 3 or 5."""
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
  """Labels of steps; every second or third if not all fit."""
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
  """Places labels of rules: above the line, or below if another is close.

  They go to the side, right or left, where curves are farther away.
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
  """A curve; dots of several curves differ in size, so that none is hidden."""
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
  """An SVG path through the points; isolated points become dots."""
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
  """The CSS class of a colour; colours beyond COLORS are dashed."""
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
