"""A folder of images, nested or flat, with or without labels."""

import collections
import os
import pathlib
from collections.abc import Iterator

import numpy as np

from esvit_jax.data.source import Source, fitting_canvas, require_split
from esvit_jax.errors import UserError

ENDINGS = ('bmp', 'gif', 'jpeg', 'jpg', 'png', 'ppm', 'tif', 'tiff', 'webp')
_SPLITS = ('train', 'val', 'valid', 'validation', 'test')


def open_split(
  place: str,
  split: str,
  data_dir: str | None,
  canvas: tuple[int, int] | None,
  channels: int | None,
) -> Source:
  """Opens the images below a folder, in sorted order.

  A folder with a sub-folder `train` holds the splits its sub-folders name
  (train, val, valid, validation, test); any other is one split, 'train'. In a
  split the sub-folders are the labels, numbered in sorted order over all the
  splits together; images beside or without sub-folders have no label.

  Args:
    place: path of the folder.
    split: name of the split.
    data_dir: unused.
    canvas: (height, width), or None to fit what the folder holds.
    channels: 1 or 3; None means 3.

  Raises:
    UserError: no such folder or split, or no image in it.
  """
  del data_dir
  root = pathlib.Path(place).expanduser()
  _require_folder(root)
  splits = [name for name in _SPLITS if (root / name).is_dir()]
  if 'train' in splits:
    require_split(f'folder {str(root)!r}', split, splits)
    roots = [root / name for name in splits]
    root = root / split
  elif split != 'train':
    raise UserError(
      f'folder {str(root)!r} has no split {split!r}: it has no sub-folders '
      f"train and {split}, so all its images are the split 'train'"
    )
  else:
    roots = [root]
  classes = sorted({name for top in roots for name in _folders(top)})
  paths, others = [], collections.Counter()
  for path in _files(root):
    ending = path.rpartition('.')[2].lower()
    if ending in ENDINGS:
      paths.append(path)
    else:
      others[f'.{ending}' if '.' in path else 'without ending'] += 1
  if not paths:
    raise UserError(_no_images(root, others))
  number = {name: k for k, name in enumerate(classes)}
  labels = [number.get(p.partition(os.sep)[0], -1) for p in paths]
  # A single sub-folder is only where the images lie: it tells nothing apart.
  if len(classes) < 2 or max(labels) < 0:
    classes, labels = None, [-1] * len(paths)
  top = str(root)

  def where(i: int) -> str:
    return os.path.join(top, paths[i])

  def read(i: int) -> tuple[bytes, int]:
    with open(where(i), 'rb') as file:
      return file.read(), labels[i]

  return Source(
    name=f'folder {top}',
    split=split,
    count=len(paths),
    classes=classes,
    read=read,
    where=where,
    canvas=canvas or fitting_canvas(len(paths), read),
    channels=channels or 3,
    labels=np.array(labels, np.int32),
  )


def _require_folder(root: pathlib.Path) -> None:
  if root.is_dir():
    return
  if root.exists():
    raise UserError(f'{str(root)!r} is a file: data.source wants a folder')
  parent = root.absolute().parent
  while not parent.is_dir():
    parent = parent.parent
  names = _folders(parent)
  listed = ', '.join(names[:5]) + (', ...' if len(names) > 5 else '')
  raise UserError(
    f'folder {str(root)!r} does not exist; the closest that does is '
    f'{str(parent)!r}, with the sub-folders: {listed or "none"}'
  )


def _no_images(root: pathlib.Path, others: collections.Counter) -> str:
  kinds = ', '.join(f'{n} {ending}' for ending, n in others.most_common(4))
  present = f'only {kinds}' if others else 'no files at all'
  return (
    f'no images in folder {str(root)!r}: found {present}; '
    f'wanted {", ".join(ENDINGS)}'
  )


def _folders(top: pathlib.Path) -> list[str]:
  """Sorted names of the sub-folders that may hold images."""
  with os.scandir(top) as entries:
    return sorted(e.name for e in entries if e.is_dir() and _visible(e.name))


def _visible(name: str) -> bool:
  return not name.startswith(('.', '__MACOSX'))


def _files(
  top: pathlib.Path | str, below: str = '', seen: frozenset = frozenset()
) -> Iterator[str]:
  """Paths below `top`, relative to it, each folder's entries sorted by name.

  A link to a folder is followed unless it leads back to one we came through.
  """
  status = os.stat(top)
  here = (status.st_dev, status.st_ino)
  if here in seen:
    return
  with os.scandir(top) as entries:
    entries = sorted(entries, key=lambda e: e.name)
  for entry in entries:
    if not _visible(entry.name):
      continue
    if entry.is_dir():
      folder = os.path.join(below, entry.name)
      yield from _files(entry.path, folder, seen | {here})
    else:
      yield os.path.join(below, entry.name)
