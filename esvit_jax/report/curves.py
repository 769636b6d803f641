"""The curves of runs: the panels of plots.PANELS, and all that is left."""

from collections.abc import Sequence

from esvit_jax.analysis.plots import PANELS
from esvit_jax.report import charts, records
from esvit_jax.report.charts import Series
from esvit_jax.report.markup import Markup, element, join, table
from esvit_jax.report.records import Record

QUIET = {'step', 'train/epoch', 'train/skipped'}
BASELINES = ('random_init', 'raw_pixels')  # drawn across the others' panel
MOST_ROWS = 20  # of the table of figures, and as many evaluations


def of_run(run: Record) -> Markup:
  """A panel for all that changes, a line for what does not, a table."""
  figures, still = [], []
  for title, axis, names in panels([run]):
    curves = [
      Series(label, records.series(run.lines, name), i)
      for i, (name, label) in enumerate(names.items())
    ]
    curves = [s for s in curves if any(y is not None for _, y in s.points)]
    if not any(changes(s) for s in curves):
      for s in curves:
        what = title if len(names) == 1 else s.label
        still.append(f'{what} {charts.short(charts.newest(s.points))}')
      continue
    figures.append(
      charts.chart(title, curves, axis, rules(run, names), run.step)
    )
  if not figures and not still:
    text = 'Nothing was measured yet.'
    return element('p', text, class_='soft')
  parts = [element('div', figures, class_='charts')]
  if still:
    text = f'Constant throughout: {", ".join(still)}.'
    parts.append(element('p', text, class_='soft below'))
  parts.append(figures_by_step(run))
  return join(parts)


def of_runs(runs: Sequence[Record]) -> Markup:
  """One panel for each metric, a curve in it for each run."""
  last = max(run.step for run in runs)
  figures = []
  for title, axis, names in panels(runs):
    for name, label in names.items():
      curves = [
        Series(run.name, records.series(run.lines, name), i)
        for i, run in enumerate(runs)
      ]
      if not any(changes(s) for s in curves):
        continue
      both = title if len(names) == 1 else f'{title}: {label}'
      figures.append(charts.chart(both, curves, axis, last_step=last))
  figures = [x for x in figures if x is not None]
  if not figures:
    return element('p', 'Nothing was measured yet.', class_='soft')
  return element('div', figures, class_='charts')


def panels(runs: Sequence[Record]) -> list[tuple[str, str, dict[str, str]]]:
  """plots.PANELS, then panels for metrics that it does not have.

  Scores of one kind share a panel; other metrics have one each.
  """
  known = {name for _, _, names in PANELS for name in names} | QUIET
  found = {name: None for run in runs for line in run.lines for name in line}
  more: dict[str, dict[str, str]] = {}
  for name in found:
    kind, _, who = name.rpartition('/')
    if name in known or who in BASELINES:
      continue
    if who in records.WHO:
      title = f'{records.KINDS.get(kind, kind)}, %'
      more.setdefault(title, {})[name] = records.WHO[who]
    else:
      title = name.removeprefix('train/').replace('_', ' ')
      more.setdefault(title, {})[name] = title
  return [*PANELS, *((title, 'fit', names) for title, names in more.items())]


def rules(run: Record, names) -> list[tuple[float, str]]:
  """What is drawn across a panel: chance, or scores before training."""
  if 'train/loss' in names:
    return [] if run.chance is None else [(run.chance, 'chance')]
  kinds = {name.rpartition('/')[0] for name in names} - {'train'}
  found = [
    (run.last(f'{kind}/{who}'), records.WHO[who])
    for kind in kinds
    for who in BASELINES
  ]
  return [(score, text) for score, text in found if score is not None]


def changes(series: Series) -> bool:
  """Whether there is something to see."""
  values = [y for _, y in series.points if y is not None]
  return len(values) == 1 or len(set(values)) > 1


def figures_by_step(run: Record) -> Markup | None:
  """The curves as a table, folded; evenly chosen lines of long runs."""
  shown = {
    name: title if len(names) == 1 else f'{title}: {label}'
    for title, _, names in panels([run])
    for name, label in names.items()
    if run.last(name) is not None
  }
  lines = [x for x in run.lines if any(name in x for name in shown)]
  if not lines:
    return None
  judged = [
    x
    for x in lines
    if any(name.rpartition('/')[2] in records.WHO for name in x)
  ]
  lines = sorted(
    {x['step']: x for x in [*_some(lines), *_some(judged)]}.items()
  )
  rows = [[x['step'], *(x.get(name) for name in shown)] for _, x in lines]
  return element(
    'details',
    element('summary', 'The same as numbers'),
    table(['step', *shown.values()], rows, 'Metrics by step'),
    class_='below',
  )


def _some(lines: Sequence) -> Sequence:
  """At most MOST_ROWS of them, evenly, with the last."""
  every = -(-len(lines) // MOST_ROWS) or 1
  return lines[::-every]
