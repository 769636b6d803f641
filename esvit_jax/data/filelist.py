"""Images named by lists, as many sets are published: a text file or a table."""

import os
import pathlib
import re

import numpy as np

from esvit_jax.data import formats, guard, splits, tables
from esvit_jax.data.source import Request, Source
from esvit_jax.errors import UserError

_ENDINGS = ('', '.jpg', '.jpeg', '.png')
_TABLES = ', '.join(tables.ENDINGS)
# Paths may hold spaces.
_PATH = re.compile(
  rf'(.+?\.(?:{"|".join(formats.ENDINGS)}))(?:\s+(.*)|$)', re.I
)
_FOLDERS = ('', 'images')


def split_names(place: str, data_dir: str | None) -> tuple[str, ...]:
  """The lists there are."""
  return tuple(_lists(pathlib.Path(place).expanduser()))


def open_split(request: Request) -> Source:
  """Opens the images that PLACE/SPLIT.txt, .csv, .tsv or .jsonl lists.

  A line of text is a path, then (or not) its label, any text; tables name the
  columns, see `tables`, one of which may tell the split. Paths are relative to
  the folder or its sub-folder `images`, and may lack .jpg or .png. Labels are
  numbered in sorted order (as numbers, if all are) over all the lists.

  Args:
    request: its place is the folder, or one table, which is the split 'train'
      without a column of splits; split 'train+val' is one after the other.

  Raises:
    UserError: no such list, no images in it, some lines without a label.
  """
  split = request.split
  root = pathlib.Path(request.place).expanduser()
  lists = _lists(root)
  lines = []
  for part in split.split('+'):
    name = splits.match(part, tuple(lists))
    if name is None:
      listed = ', '.join(lists) or f'no .txt file and no table ({_TABLES})'
      raise UserError(
        f'file lists in {str(root)!r}: no split {part!r}; there is {listed}'
      )
    lines += lists[name]
  labels = [label for rows in lists.values() for _, label in rows]
  names = sorted(filter(None, set(labels)), key=_order(labels))
  number = {name: k for k, name in enumerate(names)}
  labelled = [bool(label) for _, label in lines]
  if not lines or any(labelled) != all(labelled):
    what = 'lists no images' if not lines else 'has lines without a label'
    raise UserError(f'file list {split!r} in {str(root)!r} {what}')
  labels = [number.get(label, -1) for _, label in lines]

  folder_of_lists = root.parent if root.is_file() else root

  def where(i: int) -> str:
    path = lines[i][0]
    for folder in _FOLDERS:
      for ending in _ENDINGS:
        file = folder_of_lists / folder / f'{path}{ending}'
        if file.is_file():
          return str(file)
    return os.path.join(folder_of_lists, path)

  def read(i: int) -> tuple[bytes, int]:
    return guard.read_file(where(i)), labels[i]

  return Source(
    name=f'list {root}',
    split=split,
    count=len(lines),
    classes=names or None,
    read=read,
    where=where,
    canvas=request.canvas,
    channels=request.channels or 3,
    upright=True,
    labels=np.array(labels, np.int32),
  )


def _lists(root: pathlib.Path) -> dict[str, list[tuple[str, str]]]:
  """Split -> (path, label or '') of each line."""
  alone = root.is_file()
  files = [root] if alone else sorted(root.glob('*'))
  lists = {}
  for file in files:
    if file.suffix == '.txt':
      rows = [(path, label, '') for path, label in _read(file)]
    elif file.suffix in tables.ENDINGS:
      rows = tables.read(file)
    elif alone:
      raise UserError(
        f'list {str(root)!r} is no .txt file and no table ({_TABLES})'
      )
    else:
      continue
    default = 'train' if alone else file.stem
    if not rows:
      lists[default] = []
    for path, label, split in rows:
      lists.setdefault(split or default, []).append((path, label))
  return lists


def _read(path: pathlib.Path) -> list[tuple[str, str]]:
  """(path, label or '') of each line that is not empty."""
  try:
    # Names of files are bytes, and need not be UTF-8.
    text = path.read_text(encoding='utf-8-sig', errors='surrogateescape')
  except OSError as e:
    raise UserError(f'cannot read the file list {path} ({e})') from None
  return [_parts(line) for line in text.splitlines() if line.strip()]


def _parts(line: str) -> tuple[str, str]:
  """'my cat.jpg tabby cat' -> ('my cat.jpg', 'tabby cat')."""
  path, _, label = line.strip().partition('\t')
  if label:
    return path, label.strip()
  # A path ends with the first ending of an image, or at the first space.
  match = _PATH.match(path) or re.match(r'(\S+)\s*(.*)', path)
  return match[1], (match[2] or '').strip()


def _order(labels):
  """Sorts numbers as numbers."""
  return int if all(x.isdigit() for x in labels if x) else str
