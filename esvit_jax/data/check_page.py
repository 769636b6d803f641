"""The findings of a check as text, JSON and a page of its own."""

import html
import json
import math
import pathlib
from collections.abc import Iterator

import numpy as np

from esvit_jax.data.check import THUMBNAIL, Check
from esvit_jax.data.statistics import as_fields

_SHOWN = 5  # examples of each finding


def lines(found: Check) -> Iterator[tuple[str, str]]:
  """(what, how it is) of each finding."""
  for split in found.splits:
    classes = f', {len(split.classes)} classes' if split.classes else ''
    yield split.name, f'{split.count:,} images{classes} in {split.source}'
    if split.classes:
      least = min(split.classes, key=split.classes.get)
      most = max(split.classes, key=split.classes.get)
      yield (
        '',
        (
          f'{split.classes[least]:,} ({least}) to {split.classes[most]:,} '
          f'({most}) images a class'
        ),
      )
    for note in split.notes:
      yield '', f'note: {note}'
  yield 'sizes', _sizes(found)
  for field in ('format', 'bands', 'dtype'):
    counts = found.tally(field).most_common(6)
    yield field, ', '.join(f'{n:,} of {value}' for value, n in counts)
  yield 'pixels', as_fields(found.mean_and_std).replace('\n', ' ')
  yield 'unreadable', f'{len(found.unreadable):,}'
  for image in found.unreadable[:_SHOWN]:
    yield '', f'{image.where}: {image.problem}'
  for title, groups in _groups(found).items():
    yield title, _counted(groups)
    for rows in groups[:_SHOWN]:
      yield '', ' = '.join(found.images[i].where for i in rows[:3])


def _groups(found: Check) -> dict[str, list[np.ndarray]]:
  return {
    'same bytes': found.exact,
    'look alike': found.near,
    'two splits': found.leaks(),
    'two labels': found.contradictions(),
  }


def _counted(groups: list[np.ndarray]) -> str:
  images = sum(map(len, groups))
  return f'{images:,} images in {len(groups):,} groups' if groups else 'none'


def _sizes(found: Check) -> str:
  """Shorter and longer sides: least, median and largest."""
  sizes = np.array([x.size for x in found.images if not x.problem])
  short, long = sizes.min(1), sizes.max(1)
  return ', '.join(
    f'{name} side {side.min()} to {side.max()} px (median {np.median(side):g})'
    for name, side in (('shorter', short), ('longer', long))
  )


def text(found: Check) -> str:
  """Lines for a terminal."""
  return '\n'.join(f'{what:<11}{how}' for what, how in lines(found))


def as_json(found: Check) -> dict:
  """All findings, with every image that is named."""
  return {
    'splits': [split._asdict() for split in found.splits],
    'sizes': _counter(found, 'size'),
    **{field: _counter(found, field) for field in ('format', 'bands', 'dtype')},
    'mean': found.mean_and_std[0].tolist(),
    'std': found.mean_and_std[1].tolist(),
    'unreadable': [[x.where, x.problem] for x in found.unreadable],
    **{
      title.replace(' ', '_'): [
        [found.images[i].where for i in rows] for rows in groups
      ]
      for title, groups in _groups(found).items()
    },
  }


def _counter(found: Check, field: str) -> list:
  return [[value, n] for value, n in found.tally(field).most_common()]


def write(found: Check, folder: str) -> str:
  """Writes check.json, contact_sheet.jpg and check.html; returns its path."""
  root = pathlib.Path(folder).expanduser()
  root.mkdir(parents=True, exist_ok=True)
  content = json.dumps(as_json(found), indent=1)
  (root / 'check.json').write_text(content, encoding='utf-8')
  contact_sheet(found).save(root / 'contact_sheet.jpg', quality=90)
  rows = '\n'.join(
    f'<tr><th>{html.escape(what)}</th><td>{html.escape(how)}</td></tr>'
    for what, how in lines(found)
  )
  page = root / 'check.html'
  page.write_text(_PAGE.replace('ROWS', rows), encoding='utf-8')
  return str(page)


def contact_sheet(found: Check):
  """The thumbnails on one PIL image."""
  from PIL import Image

  columns = max(math.ceil(math.sqrt(1.5 * len(found.thumbnails))), 1)
  rows = max(-(-len(found.thumbnails) // columns), 1)
  cell = THUMBNAIL + 4
  sheet = Image.new('RGB', (columns * cell, rows * cell), 'white')
  for k, (_, pixels) in enumerate(found.thumbnails):
    planes = pixels[..., :3] if pixels.shape[2] >= 3 else pixels[..., 0]
    corner = (k % columns * cell + 2, k // columns * cell + 2)
    sheet.paste(Image.fromarray(planes).convert('RGB'), corner)
  return sheet


_PAGE = """<!doctype html>
<meta charset="utf-8">
<title>Images</title>
<style>
body { font: 15px/1.5 system-ui, sans-serif; margin: 2em auto; max-width: 60em }
th { text-align: left; padding-right: 1em; vertical-align: top }
td { overflow-wrap: anywhere }
img { max-width: 100%; margin-top: 1em }
</style>
<h1>Images</h1>
<table>
ROWS
</table>
<img src="contact_sheet.jpg" alt="a sample of the images">
"""
