"""Several runs side by side: figures, evaluations, differences of configs."""

import os
from collections.abc import Sequence

from esvit_jax.report import tables
from esvit_jax.report.records import Figure, Record
from esvit_jax.workdir.figures import title

ORIGIN = ('git', 'devices', 'processes')  # fields of run.json to compare


def distinct(runs: Sequence[Record]) -> list[Record]:
  """Lengthens equal names of runs by parts of their paths."""
  names = [run.name for run in runs]
  paths = [os.path.abspath(run.directory).split(os.sep) for run in runs]
  depth = 1
  while len(set(names)) < len(names) and depth < max(map(len, paths)):
    depth += 1
    names = ['/'.join(path[-depth:]) for path in paths]
  return [run._replace(name=name) for run, name in zip(runs, names)]


def headline(runs: Sequence[Record]) -> tables.Table:
  """Status and newest figures, a column for each run."""
  by_run = [{x.label: x for x in run.headline()} for run in runs]
  rows = [['status', *(run.status[1] for run in runs)]]
  for label in dict.fromkeys(label for figures in by_run for label in figures):
    figures = [x.get(label, Figure(label, None)) for x in by_run]
    if any(x.value is not None for x in figures):
      rows.append([label, *_cells(figures)])
  columns = [tables.Column(title, '') for title in ('', *_names(runs))]
  return tables.Table(columns, rows, 'The newest figures of each run')


def _cells(figures: Sequence[Figure]) -> list[tables.Cell | str]:
  """Marks the best score, unless all are equal."""
  scores = [x.value for x in figures if x.unit == '%' and x.value is not None]
  best = max(scores) if len(set(scores)) > 1 else None
  return [
    tables.value(None)
    if x.value is None
    else tables.Cell(f'{x.text} {x.sign}'.strip(), x.note, x.value == best)
    for x in figures
  ]


def evaluations(runs: Sequence[Record]) -> tables.Table | None:
  """Single figures of eval/*.json; None if there are none."""
  by_run = []
  for run in runs:
    figures = {}
    for content in run.evaluations:
      single = content.get('figures')
      for key, x in single.items() if isinstance(single, dict) else ():
        if isinstance(x, (int, float)):
          figures[f'{content["name"]}: {title(key)}'] = x
    by_run.append(figures)
  keys = dict.fromkeys(key for figures in by_run for key in figures)
  rows = [
    [key, *(tables.value(figures.get(key)) for figures in by_run)]
    for key in keys
  ]
  return tables.table(['', *_names(runs)], rows) if rows else None


def differences(runs: Sequence[Record]) -> tables.Table | None:
  """Fields of configs and of run.json that differ between runs."""
  rows = []
  for source in ('config', 'origin'):
    contents = [getattr(run, source) for run in runs]
    for key in dict.fromkeys(key for content in contents for key in content):
      values = [content.get(key) for content in contents]
      if source == 'origin' and key not in ORIGIN:
        continue
      if any(x != values[0] for x in values):
        rows.append([key, *map(tables.value, values)])
  if not rows:
    return None
  caption = 'Fields that are not the same in all'
  return tables.table(['field', *_names(runs)], rows, caption)


def _names(runs: Sequence[Record]) -> list[str]:
  return [run.name for run in runs]
