"""Tables of files and labels: CSV, TSV and JSON lines."""

import csv
import json
import pathlib
from typing import NamedTuple

from esvit_jax.errors import UserError

ENDINGS = ('.csv', '.tsv', '.jsonl')
# What columns are called, in any case.
PATHS = ('path', 'file', 'file_name', 'filename', 'filepath', 'image', 'img')
LABELS = ('label', 'class', 'category', 'target', 'species')
SPLITS = ('split', 'set', 'subset')


class Row(NamedTuple):
  """A line: '' where it has no label or split."""

  path: str
  label: str
  split: str


def read(file: pathlib.Path) -> list[Row]:
  """The rows of a table with a header, or of a file of JSON objects.

  Raises:
    UserError: it cannot be read, has no column of paths, or a row has none.
  """
  try:
    text = file.read_text(encoding='utf-8-sig')
    records = _json(text) if file.suffix == '.jsonl' else _csv(text, file)
  except (OSError, ValueError, csv.Error) as error:
    reason = ' '.join(str(error).split())
    raise UserError(f'cannot read the table {file} ({reason})') from None
  if not records:
    raise UserError(f'the table {file} has no rows')
  columns = list(dict.fromkeys(k for x in records for k in x if k))
  path, label, split = (
    next((k for name in names for k in columns if k.lower() == name), None)
    for names in (PATHS, LABELS, SPLITS)
  )
  if path is None:
    raise UserError(
      f'the table {file} has no column of paths, such as {PATHS[0]} or '
      f'{PATHS[2]}; it has: {", ".join(columns)}'
    )
  rows = [Row(*(_text(x, k) for k in (path, label, split))) for x in records]
  for k, row in enumerate(rows):
    if not row.path:
      raise UserError(f'the table {file}: row {k + 1} has no {path}')
  return rows


def _csv(text: str, file: pathlib.Path) -> list[dict]:
  delimiter = '\t' if file.suffix == '.tsv' else ','
  return list(csv.DictReader(text.splitlines(), delimiter=delimiter))


def _json(text: str) -> list[dict]:
  try:
    records = [json.loads(line) for line in text.splitlines() if line.strip()]
  except RecursionError:
    raise ValueError('a line is nested too deeply') from None
  if not all(isinstance(record, dict) for record in records):
    raise ValueError('a line is no JSON object')
  return records


def _text(record: dict, column: str | None) -> str:
  value = record.get(column) if column else None
  return '' if value is None else str(value).strip()
