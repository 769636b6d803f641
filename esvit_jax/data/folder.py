"""A folder of images, nested or flat, with or without labels."""

import collections
import os
import pathlib
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from esvit_jax.data import formats, splits
from esvit_jax.data.source import Source
from esvit_jax.errors import UserError

# Files that systems leave everywhere.
LITTER = ('thumbs.db', 'desktop.ini')


class Layout(NamedTuple):
  """How a folder is read.

  Attributes:
    root: the folder, or the one in it that holds all.
    splits: name -> folder. One split 'train' where the folder has none.
    stray: sub-folders with images that are no split.
  """

  root: pathlib.Path
  splits: dict[str, pathlib.Path]
  stray: tuple[str, ...] = ()


def split_names(place: str, data_dir: str | None) -> tuple[str, ...]:
  """The splits there are. Raises UserError where there is no folder."""
  return tuple(layout(place).splits)


def open_split(
  place: str,
  split: str,
  data_dir: str | None,
  canvas: tuple[int, int] | None,
  channels: int | None,
) -> Source:
  """Opens the images below a folder, in sorted order.

  A folder whose sub-folders are named as splits (`splits.NAMES`, in any case)
  holds these; any other is one split, 'train'. In a split the sub-folders with
  images are the labels, numbered in sorted order over all the splits together;
  images beside or without sub-folders have no label.

  Args:
    place: path of the folder.
    split: name of the split.
    data_dir: unused.
    canvas: (height, width), or None.
    channels: of the images; None means 3.

  Raises:
    UserError: no such folder or split, or no image in it.
  """
  root, folders, stray = layout(place)
  split = _require_split(root, split, folders)
  top = folders[split]
  classes_of = {name: _classes(folder) for name, folder in folders.items()}
  classes = sorted(set().union(*classes_of.values()))
  paths, skipped = [], collections.Counter()
  for path in _files(top):
    if _is_image(path):
      paths.append(path)
    else:
      skipped[_ending(path)] += 1
  if not paths:
    raise UserError(_no_images(top, skipped))
  number = {name: k for k, name in enumerate(classes)}
  labels = [number.get(p.partition(os.sep)[0], -1) for p in paths]
  # A single sub-folder is only where the images lie: it tells nothing apart.
  if len(classes) < 2 or max(labels) < 0:
    classes, labels = None, [-1] * len(paths)
  notes = [*_skipped(skipped), *_left_out(root, stray)]
  if classes:
    notes += _unlabelled(paths, labels)
    notes += _odd_classes(classes, classes_of[split], top)

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
    canvas=canvas,
    channels=channels or 3,
    labels=np.array(labels, np.int32),
    upright=True,
    notes=tuple(notes),
  )


def layout(place: str) -> Layout:
  """Tells splits from classes.

  Sub-folders named as splits are splits if no other sub-folder holds images,
  or if there is one for training and one to judge on. All may lie below one
  folder, as archives unpack. A class may so be called `train`.

  Raises:
    UserError: there is no such folder.
  """
  root = pathlib.Path(place).expanduser()
  _require_folder(root)
  inner = root
  while True:
    names = _folders(inner)
    named = {name: inner / name for name in names if splits.kind(name)}
    stray = tuple(
      name
      for name in names
      if name not in named and _holds_images(inner / name)
    )
    kinds = {splits.kind(name) for name in named}
    if named and (not stray or (len(kinds) > 1 and 'train' in kinds)):
      return Layout(inner, named, stray)
    if len(names) != 1 or any(map(_is_image, os.listdir(inner))):
      return Layout(root, {'train': root})
    inner /= names[0]


def _require_split(root, split: str, folders: dict) -> str:
  if list(folders.values()) == [root] and splits.kind(split) != 'train':
    raise UserError(
      f'folder {str(root)!r} has no split {split!r}: it has no sub-folders '
      f"train and {split}, so all its images are the split 'train'"
    )
  return splits.require(f'folder {str(root)!r}', split, tuple(folders))


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


def _no_images(root: pathlib.Path, skipped: collections.Counter) -> str:
  kinds = ', '.join(f'{n} {ending}' for ending, n in skipped.most_common(4))
  return (
    f'no images in folder {str(root)!r}: '
    + (f'found only {kinds}' if skipped else 'found no files at all')
    + f'; wanted {", ".join(formats.endings())}'
  )


# What a person should know of a folder


def _skipped(skipped: collections.Counter) -> Iterator[str]:
  if skipped:
    kinds = ', '.join(f'{n:,} {ending}' for ending, n in skipped.most_common(6))
    heif = any(f'.{ending}' in skipped for ending in formats.HEIF)
    yield (
      f'not read, by their ending: {kinds}'
      + (' (pip install pillow-heif to read .heic)' if heif else '')
    )


def _left_out(root: pathlib.Path, stray: tuple[str, ...]) -> Iterator[str]:
  if stray:
    yield (
      f'beside the splits {root} has images in {", ".join(stray[:5])}, which '
      'are left out'
    )


def _unlabelled(paths: list[str], labels: list[int]) -> Iterator[str]:
  bare = [path for path, label in zip(paths, labels) if label < 0]
  if bare:
    yield (
      f'{len(bare):,} images lie beside the class folders, such as {bare[0]}: '
      'without a label they train but are not judged; move them into a class '
      'folder'
    )


def _odd_classes(classes: list, own: set, top: pathlib.Path) -> Iterator[str]:
  named = [name for name in classes if splits.kind(name)]
  if named:
    yield f'{", ".join(named)}: read as a class, beside other class folders'
  lacking = sorted(set(classes) - own)
  if lacking:
    yield (
      f'{len(lacking)} classes of other splits are not in {top}, such as '
      f'{lacking[0]}'
    )


# Files and folders


def _classes(top: pathlib.Path) -> set[str]:
  """Names of the sub-folders that hold images."""
  return {name for name in _folders(top) if _holds_images(top / name)}


def _holds_images(top: pathlib.Path) -> bool:
  return any(map(_is_image, _files(top)))


def _is_image(path: str) -> bool:
  return _ending(path)[1:] in formats.endings()


def _ending(path: str) -> str:
  """'.png' and so on, in lower case."""
  return os.path.splitext(path)[1].lower() or 'without ending'


def _folders(top: pathlib.Path) -> list[str]:
  """Sorted names of the sub-folders that may hold images."""
  with os.scandir(top) as entries:
    return sorted(e.name for e in entries if e.is_dir() and _visible(e.name))


def _visible(name: str) -> bool:
  return not name.startswith(('.', '__MACOSX')) and name.lower() not in LITTER


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
