"""HTML and SVG in small: text is escaped unless it was made here."""

import html
from collections.abc import Iterable, Mapping, Sequence

VOID = {'meta', 'img', 'path', 'line', 'circle'}


class Markup(str):
  """Text that is markup already."""

  __slots__ = ()


def element(tag: str, *children, **attributes) -> Markup:
  """A tag with its children; plain text among them is escaped.

  Args:
    tag: such as 'p'.
    *children: text, numbers, Markup or lists of those; None is left out.
    **attributes: class_='x' for class, data_x=1 for data-x, True for one
      without a value; None and False are left out.
  """
  words = [tag]
  for name, value in attributes.items():
    name = name.rstrip('_').replace('_', '-')
    if value is True:
      words.append(name)
    elif value is not None and value is not False:
      words.append(f'{name}="{html.escape(str(value))}"')
  if tag in VOID:
    return Markup(f'<{" ".join(words)} />')
  return Markup(f'<{" ".join(words)}>{join(children)}</{tag}>')


def join(children: Iterable) -> Markup:
  """All of them, one after the other, escaped where they are plain text."""
  out = []
  for child in children:
    if isinstance(child, Markup):
      out.append(child)
    elif isinstance(child, (list, tuple)):
      out.append(join(child))
    elif child is not None:
      out.append(html.escape(str(child)))
  return Markup(''.join(out))


def table(columns: Sequence, rows: Iterable[Sequence], caption=None) -> Markup:
  """A table in a box of its own that scrolls sideways where it must.

  Args:
    columns: titles; the first is that of the names of rows.
    rows: as many cells each; the first names the row.
    caption: says what it shows.
  """
  cells = [_texts(column) for column in zip(*rows)]
  sides = [side for side, _ in cells] or [None] * len(columns)
  head = [
    element('th', title, scope='col', class_=side)
    for title, side in zip(columns, sides)
  ]
  body = []
  for first, *rest in zip(*(texts for _, texts in cells)):
    row = [element('th', first, scope='row', class_=sides[0])]
    row += [element('td', x, class_=side) for x, side in zip(rest, sides[1:])]
    body.append(element('tr', row))
  inner = element(
    'table',
    element('caption', caption) if caption else None,
    element('thead', element('tr', head)),
    element('tbody', body),
  )
  return element(
    'div', inner, class_='scroll', tabindex=0, role='region', aria_label=caption
  )


def facts(rows: Iterable[Sequence], caption=None) -> Markup:
  """A plain table of names and values."""
  body = [
    element('tr', element('th', name, scope='row'), element('td', value(x)))
    for name, x in rows
  ]
  return element(
    'table',
    element('caption', caption) if caption else None,
    element('tbody', body),
  )


def fields(config: Mapping) -> Markup:
  """A small table for each section of a flat config."""
  groups: dict[str, list] = {}
  for key, x in config.items():
    section, _, field = key.rpartition('.')
    groups.setdefault(section, []).append((field, x))
  order = sorted(groups)  # the fields of no section come first
  return element(
    'div',
    [facts(groups[k], k or 'general') for k in order],
    class_='fields',
  )


def value(x) -> str:
  """A value of a config or a figure, to be read."""
  if x is None:
    return '–'
  if isinstance(x, Markup):
    return x
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


def _texts(column: Sequence) -> tuple[str | None, list[str]]:
  """The class of a column and its cells; like numbers get like decimals."""
  texts = [value(x) for x in column]
  numbers = [x for x in column if x is not None]
  if not numbers or not all(_is_number(x) for x in numbers):
    return None, texts
  sizes = [abs(x) for x in numbers if x]
  if any(isinstance(x, float) for x in numbers) and (
    sizes and min(sizes) > 1e-3 and max(sizes) < min(1e4, 100 * min(sizes))
  ):
    places = max(len(x.partition('.')[2]) for x in texts)
    texts = [value(x) if x is None else f'{x:,.{places}f}' for x in column]
  return 'number', texts


def _is_number(x) -> bool:
  return isinstance(x, (int, float)) and not isinstance(x, bool)
