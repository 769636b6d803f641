"""Several runs on one page: figures, curves and configs side by side."""

import os
from collections.abc import Sequence

from esvit_jax.report import charts, curves
from esvit_jax.report.markup import (
  Markup,
  element,
  facts,
  join,
  table,
  value,
)
from esvit_jax.report.records import Figure, Record

ORIGIN = ('git', 'devices', 'processes')  # of run.json: what may matter


def body(runs: Sequence[Record]) -> Markup:
  """All sections, top to bottom."""
  runs = distinct(runs)
  return join(
    [
      element(
        'header',
        element('h1', f'{len(runs)} runs compared'),
        element('p', 'Their figures, curves and configs.', class_='subtitle'),
      ),
      element('section', element('h2', 'Figures'), headline(runs)),
      element('section', element('h2', 'Health'), health(runs)),
      element(
        'section',
        element('h2', 'Curves'),
        legend(runs),
        curves.of_runs(runs),
      ),
      element('section', element('h2', 'Where they differ'), fields(runs)),
    ]
  )


def distinct(runs: Sequence[Record]) -> list[Record]:
  """Runs of one name are called by as much of their path as it takes."""
  names = [run.name for run in runs]
  paths = [os.path.abspath(run.directory).split(os.sep) for run in runs]
  depth = 1
  while len(set(names)) < len(names) and depth < max(map(len, paths)):
    depth += 1
    names = ['/'.join(path[-depth:]) for path in paths]
  return [run._replace(name=name) for run, name in zip(runs, names)]


def headline(runs: Sequence[Record]) -> Markup:
  """A column for each run; the best score of a kind is bold."""
  found = [{x.label: x for x in run.headline()} for run in runs]
  rows = [['status', *(run.status[1] for run in runs)]]
  for label in dict.fromkeys(label for figures in found for label in figures):
    figures = [x.get(label, Figure(label, None)) for x in found]
    if any(x.value is not None for x in figures):
      rows.append([label, *_cells(figures)])
  names = [run.name for run in runs]
  return table(['', *names], rows, 'The newest figures of each run')


def _cells(figures: Sequence[Figure]) -> list[Markup | None]:
  scores = [x.value for x in figures if x.unit == '%' and x.value is not None]
  cells = []
  for x in figures:
    if x.value is None:
      cells.append(None)
      continue
    best = len(set(scores)) > 1 and x.value == max(scores)
    cells.append(
      join(
        [
          element('strong' if best else 'span', x.text, ' ', x.sign),
          element('div', x.note, class_='soft small') if x.note else None,
        ]
      )
    )
  return cells


def health(runs: Sequence[Record]) -> Markup:
  """The verdict of each run."""
  rows = []
  for run in runs:
    lines = run.verdict() or ['nothing was reported yet']
    rows.append((run.name, join(element('div', line) for line in lines)))
  return element('div', facts(rows), class_='facts')


def legend(runs: Sequence[Record]) -> Markup:
  """Whose curve has which colour."""
  return element(
    'ul',
    [element('li', charts.swatch(i), run.name) for i, run in enumerate(runs)],
    class_='legend runs',
  )


def fields(runs: Sequence[Record]) -> Markup:
  """Fields of the configs, and revisions, that are not the same in all."""
  rows = []
  for of in ('config', 'origin'):
    keys = dict.fromkeys(k for run in runs for k in getattr(run, of))
    for key in keys:
      if of == 'origin' and key not in ORIGIN:
        continue
      cells = [getattr(run, of).get(key) for run in runs]
      if any(x != cells[0] for x in cells):
        rows.append([key, *(value(x) for x in cells)])
  if not rows:
    return element('p', 'Their configs are the same.', class_='soft')
  names = [run.name for run in runs]
  return table(['field', *names], rows, 'Fields that are not the same in all')
