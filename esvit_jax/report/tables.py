"""Tables with formatted cells; templates lay them out."""

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple


class Column(NamedTuple):
  """A column: its title and the CSS class of its cells ('number' or '')."""

  title: str
  style: str


class Cell(NamedTuple):
  """A text, a note below it, and whether it is the best of its row."""

  text: str
  note: str = ''
  best: bool = False


class Table(NamedTuple):
  """Rows of formatted cells; the first cell names the row."""

  columns: list[Column]
  rows: list[list[str | Cell]]
  caption: str = ''


def table(
  titles: Sequence[str], rows: Iterable[Sequence], caption: str = ''
) -> Table:
  """Formats a table; numbers of one column get the same number of decimals.

  Args:
    titles: of the columns.
    rows: of as many cells; None is an unknown value.
    caption: of the table.
  """
  columns, cells = [], []
  for title, *values in zip(titles, *rows):
    style, texts = _column(values)
    columns.append(Column(title, style))
    cells.append(texts)
  return Table(columns, [list(row) for row in zip(*cells)], caption)


def of_mappings(rows: Sequence[Mapping], caption: str = '') -> Table:
  """A table of mappings; its columns are the keys of all rows."""
  titles = list(dict.fromkeys(key for row in rows for key in row))
  cells = [[row.get(key) for key in titles] for row in rows]
  return table(titles, cells, caption)


def sections(config: Mapping) -> dict[str, list[tuple[str, object]]]:
  """A flat config by section: {'optim': [('lr', 0.1)]}, sorted."""
  groups: dict[str, list] = {}
  for key, x in config.items():
    section, _, field = key.rpartition('.')
    groups.setdefault(section, []).append((field, x))
  return {section or 'general': groups[section] for section in sorted(groups)}


def value(x) -> str:
  """A figure, or a value of a config, as text."""
  if x is None:
    return '–'
  if isinstance(x, bool):
    return 'yes' if x else 'no'
  if isinstance(x, int):
    return f'{x:,}'
  if isinstance(x, float):
    return f'{x:,.0f}' if abs(x) >= 1e4 else f'{x:.4g}'
  if isinstance(x, Mapping):
    return ', '.join(f'{k} {value(v)}' for k, v in x.items())
  if isinstance(x, (list, tuple)):
    return ', '.join(value(v) for v in x)
  return str(x)


def _column(values: Sequence) -> tuple[str, list[str]]:
  """The CSS class and the texts of the cells of a column."""
  texts = [value(x) for x in values]
  numbers = [x for x in values if x is not None]
  if not numbers or not all(_is_number(x) for x in numbers):
    return '', texts
  sizes = [abs(x) for x in numbers if x]
  if any(isinstance(x, float) for x in numbers) and (
    sizes and min(sizes) > 1e-3 and max(sizes) < min(1e4, 100 * min(sizes))
  ):
    places = max(len(x.partition('.')[2]) for x in texts)
    texts = [value(x) if x is None else f'{x:,.{places}f}' for x in values]
  return 'number', texts


def _is_number(x) -> bool:
  return isinstance(x, (int, float)) and not isinstance(x, bool)
