"""Line charts as inline SVG, to be read with and without JavaScript.

Colours are classes (s0, s1, ...) that report.css fills for light and dark;
report.js moves the read-out along the curves.
"""

import math
import statistics
from collections.abc import Sequence
from typing import NamedTuple

from esvit_jax.report.markup import Markup, element

WIDTH, HEIGHT = 360, 190
LEFT, RIGHT, TOP, BOTTOM = 46, 8, 10, 24  # margins
COLORS = 8
TINY = 1e-30  # is zero to the eye
BUCKETS = 300  # a curve keeps the lowest and the highest of each

Point = tuple[float, float | None]


class Series(NamedTuple):
  """One curve: (step, value) in order of steps; None leaves a gap."""

  label: str
  points: Sequence[Point]
  color: int = 0


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


def chart(
  title: str,
  curves: Sequence[Series],
  axis: str = 'fit',
  rules: Sequence[tuple[float, str]] = (),
  last_step: float = 0,
) -> Markup | None:
  """A figure: title, legend with the newest values, curves over steps.

  Args:
    title: of the figure.
    curves: those without a finite value are left out.
    axis: 'zero' starts there, 'log' is logarithmic, 'fit' is what fits.
    rules: values drawn across, with what they are.
    last_step: where the axis of steps ends at least.

  Returns:
    Markup, or None where there is nothing to draw.
  """
  curves = [
    s._replace(points=drawable(s.points, axis == 'log')) for s in curves
  ]
  curves = [s for s in curves if any(y is not None for _, y in s.points)]
  if not curves:
    return None
  values = [y for s in curves for _, y in s.points if y is not None]
  rules = [(y, text) for y, text in rules if axis != 'log' or y > 0]
  values += [y for y, _ in rules]
  steps = [x for s in curves for x, _ in s.points]
  xs = Scale(min(0, *steps), max(1, last_step, *steps))
  ys = value_scale(values, axis)
  drawn = [
    _grid(xs, ys),
    [_curve(s, xs, ys) for s in curves],
    [_rule(y, text, ys) for y, text in rules],
    element('line', class_='cursor', y1=TOP, y2=HEIGHT - BOTTOM, hidden=True),
  ]
  svg = element(
    'svg',
    drawn,
    viewBox=f'0 0 {WIDTH} {HEIGHT}',
    role='img',
    aria_label=_in_words(title, curves, xs),
    data_plot=f'{LEFT} {WIDTH - RIGHT} {xs.low:.12g} {xs.high:.12g} {WIDTH}',
  )
  step = max(s.points[-1][0] for s in curves)
  legend = [
    element(
      'li',
      swatch(s.color),
      s.label,
      ' ',
      element('b', short(newest(s.points))),
    )
    for s in curves
  ]
  head = element(
    'figcaption',
    element('h3', title),
    element('span', 'step ', element('b', f'{step:,.0f}'), class_='at'),
    element('ul', legend, class_='legend'),
  )
  return element('figure', head, svg, class_='chart')


def swatch(color: int) -> Markup:
  """A dash in the colour of a curve, for legends."""
  return element('i', class_=_class(color))


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
    found = [f * 10.0**p for p in powers for f in factors]
    found = [x for x in found if low <= x <= high]
    if len(found) >= 3:
      every = -(-len(found) // 5)
      return found[::every]
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


def _grid(xs: Scale, ys: Scale) -> list[Markup]:
  """Lines and numbers of both axes."""
  out = []
  marks = log_ticks if ys.log else ticks
  for value in marks(ys.low, ys.high):
    y = _y(value, ys)
    out.append(
      element('line', class_='grid', x1=LEFT, x2=WIDTH - RIGHT, y1=y, y2=y)
    )
    out.append(element('text', short(value, 6), class_='y', x=LEFT - 6, y=y))
  for value in ticks(xs.low, xs.high):
    x = _x(value, xs)
    class_ = 'x end' if x > WIDTH - RIGHT - 12 else 'x'
    out.append(
      element('text', short(value, 6), class_=class_, x=x, y=HEIGHT - 7)
    )
  return out


def _rule(value: float, text: str, ys: Scale) -> list[Markup]:
  y = _y(value, ys)
  below = y < TOP + 12
  return [
    element('line', class_='rule', x1=LEFT, x2=WIDTH - RIGHT, y1=y, y2=y),
    element(
      'text',
      text,
      class_='rule',
      x=WIDTH - RIGHT,
      y=round(y + (11 if below else -4), 1),
    ),
  ]


def _curve(series: Series, xs: Scale, ys: Scale) -> list[Markup | None]:
  """The line, its dots or its trend, and its numbers for the read-out."""
  points = thinned(series.points)
  color = _class(series.color)
  numbers = ' '.join(f'{x:.12g} {y:.5g}' for x, y in points if y is not None)
  middle = _path(trend(series.points), xs, ys)
  line = element(
    'path',
    class_=f'curve {color} faint' if middle else f'curve {color}',
    d=_path(points, xs, ys),
    data_points=numbers,
  )
  extra = None
  if middle:
    extra = element('path', class_=f'trend {color}', d=middle)
  elif len(points) <= 24:
    dots = _path([(x, y) for p in points for x, y in (p, (p[0], None))], xs, ys)
    extra = element('path', class_=f'dots {color}', d=dots)
  return [line, extra]


def _path(points: Sequence[Point], xs: Scale, ys: Scale) -> str:
  """Lines from point to point; a point alone is a dot."""
  words, alone, pen = [], False, 'M'
  for step, value in [*points, (0, None)]:
    if value is None:
      if alone:
        words.append('h0')
      alone, pen = False, 'M'
      continue
    alone = pen == 'M'
    words.append(f'{pen}{_x(step, xs):g} {_y(value, ys):g}')
    pen = 'L'
  return ''.join(words)


def _class(color: int) -> str:
  """Colours come again, with dashes."""
  dashed = ' dashed' if color // COLORS % 2 else ''
  return f's{color % COLORS}{dashed}'


def _x(step: float, xs: Scale) -> float:
  return round(LEFT + xs(step) * (WIDTH - LEFT - RIGHT), 1)


def _y(value: float, ys: Scale) -> float:
  return round(HEIGHT - BOTTOM - ys(value) * (HEIGHT - TOP - BOTTOM), 1)


def _in_words(title: str, curves: Sequence[Series], xs: Scale) -> str:
  said = []
  for s in curves:
    first = next(y for _, y in s.points if y is not None)
    said.append(f'{s.label} from {short(first)} to {short(newest(s.points))}')
  return f'{title} up to step {xs.high:,.0f}: {"; ".join(said)}'
