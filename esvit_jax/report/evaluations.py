"""Scores of a run and the figures of eval/*.json, as tables."""

from collections.abc import Mapping, Sequence

from esvit_jax.report import records
from esvit_jax.report.markup import (
  Markup,
  element,
  facts,
  fields,
  join,
  table,
  value,
)
from esvit_jax.report.records import Record


def of_run(run: Record) -> Markup:
  """Scores during training, then those of stand-alone evaluations."""
  parts = []
  if scores := run.scores():
    kinds = sorted({kind for kind, _ in scores}, key=records.order)
    rows = [
      (title, *(scores.get((kind, who)) for kind in kinds))
      for who, title in records.WHO.items()
      if any((kind, who) in scores for kind in kinds)
    ]
    titles = [records.KINDS.get(kind, kind) for kind in kinds]
    parts.append(
      table(
        ['features of', *titles],
        rows,
        'The newest scores of the run: top-1 accuracy on test images, %',
      )
    )
  for evaluation in run.evaluations:
    parts.append(_evaluation(evaluation))
  if not parts:
    text = 'Nothing was scored: that takes labels and a test split.'
    return element('p', text, class_='soft')
  return join(parts)


def _evaluation(evaluation: Mapping) -> Markup:
  """One file of eval/: its figures, its tables, and how it was done."""
  rest = dict(evaluation)
  parts = [element('h3', rest.pop('name'))]
  figures = rest.pop('figures', None)
  if not isinstance(figures, Mapping):
    figures = {} if figures is None else {'figures': figures}
  if 'table' in rest:
    figures = {**figures, 'table': rest.pop('table')}
  single, groups, tables = [], [], []
  for key, x in figures.items():
    rows = _rows(x)
    if rows is not None:
      tables.append(_of_rows(rows, None if key == 'table' else key))
    elif isinstance(x, Mapping):
      groups.append({'': key, **records.flat(x)})
    else:
      single.append((key, x))
  if single:
    rows = [(key, value(x)) for key, x in single]
    parts.append(table(['figure', 'value'], rows))
  parts += [_of_rows(groups), *tables]
  said = [(k, x) for k, x in rest.items() if not isinstance(x, Mapping)]
  if said:
    parts.append(element('div', facts(said), class_='facts'))
  how = {k: x for k, x in rest.items() if isinstance(x, Mapping) and x}
  if how:
    summary = element('summary', f'How: {", ".join(how)}')
    parts.append(element('details', summary, fields(records.flat(how))))
  return join(parts)


def _rows(x) -> list[Mapping] | None:
  """A table as a list of mappings, in either form; None where it is none."""
  if isinstance(x, Mapping) and set(x) == {'columns', 'rows'}:
    columns, rows = x['columns'], x['rows']
    if all(isinstance(y, list) for y in (columns, rows, *rows)):
      x = [dict(zip(columns, row)) for row in rows]
  is_table = isinstance(x, list) and all(isinstance(y, Mapping) for y in x)
  return x if is_table and x else None


def _of_rows(rows: Sequence[Mapping], caption=None) -> Markup | None:
  """A table of mappings; its columns are all keys that occur."""
  columns = list(dict.fromkeys(key for row in rows for key in row))
  if not columns:
    return None
  cells = [[row.get(key) for key in columns] for row in rows]
  return table(columns, cells, caption)
