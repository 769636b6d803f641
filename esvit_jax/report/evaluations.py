"""Scores of a run, and figures of eval/*.json, as tables."""

from collections.abc import Mapping
from typing import NamedTuple

from esvit_jax.report import records, tables
from esvit_jax.report.records import Record
from esvit_jax.workdir import flatten
from esvit_jax.workdir.figures import title
from esvit_jax.workdir.metrics import NETWORKS


class Evaluation(NamedTuple):
  """A file of eval/.

  Attributes:
    name: of the evaluation.
    tables: of figures.
    facts: (name, value) of other entries that fit one line.
    settings: nested entries, such as config and versions.
  """

  name: str
  tables: list[tables.Table]
  facts: list[tuple[str, object]]
  settings: dict


def scores(run: Record) -> tables.Table | None:
  """The newest scores of training; None if there are none."""
  scored = run.scores()
  kinds = sorted({kind for kind, _ in scored}, key=records.order)
  rows = [
    (title, *(scored.get((kind, network)) for kind in kinds))
    for network, title in NETWORKS.items()
    if any((kind, network) in scored for kind in kinds)
  ]
  if not rows:
    return None
  return tables.table(
    ['features of', *map(records.score_title, kinds)],
    rows,
    'The newest scores of the run, on test images',
  )


def of_run(run: Record) -> list[Evaluation]:
  """All stand-alone evaluations."""
  return [_evaluation(content) for content in run.evaluations]


def _evaluation(content: Mapping) -> Evaluation:
  content = dict(content)
  name = content.pop('name')
  figures = content.pop('figures', None)
  if not isinstance(figures, Mapping):
    figures = {} if figures is None else {'figures': figures}
  if 'table' in content:
    figures = {**figures, 'table': content.pop('table')}
  single, groups, whole = [], [], []
  for key, x in figures.items():
    rows = _rows(x)
    if rows is not None:
      whole.append(tables.of_mappings(rows, '' if key == 'table' else key))
    elif isinstance(x, Mapping):
      groups.append({'': key, **flatten(x)})
    else:
      single.append((title(key), tables.value(x)))
  parts = []
  if single:
    parts.append(tables.table(['figure', 'value'], single))
  if groups:
    parts.append(tables.of_mappings(groups))
  facts = [(k, x) for k, x in content.items() if not isinstance(x, Mapping)]
  settings = {k: x for k, x in content.items() if isinstance(x, Mapping) and x}
  return Evaluation(name, parts + whole, facts, settings)


def _rows(x) -> list[Mapping] | None:
  """A table as a list of rows; None if `x` is not a table.

  A table is a list of mappings, {'columns': [...], 'rows': [[...], ...]}, or a
  mapping of mappings whose keys name the rows.
  """
  if isinstance(x, Mapping) and set(x) == {'columns', 'rows'}:
    columns, rows = x['columns'], x['rows']
    if all(isinstance(y, list) for y in (columns, rows, *rows)):
      x = [dict(zip(columns, row)) for row in rows]
  elif isinstance(x, Mapping) and all(
    isinstance(y, Mapping) for y in x.values()
  ):
    x = [{'': key, **flatten(y)} for key, y in x.items()]
  is_table = isinstance(x, list) and all(isinstance(y, Mapping) for y in x)
  return x if is_table and x else None
