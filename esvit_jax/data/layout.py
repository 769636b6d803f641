"""Which files of a folder, or of an archive, are images, splits and classes."""

import collections
import os
from collections.abc import Callable, Iterator
from typing import NamedTuple, Protocol

import numpy as np

from esvit_jax.data import formats, splits
from esvit_jax.data.source import Request, Source
from esvit_jax.errors import UserError

# Files that systems leave everywhere.
LITTER = ('thumbs.db', 'desktop.ini')


class Tree(Protocol):
  """Folders and files, by paths relative to the root, which is ''.

  Attributes:
    kind: 'folder', 'zip' or 'tar', for people.
    path: of the root, for people.
    notes: what a person should know of it, a line each.
  """

  kind: str
  path: str
  notes: tuple[str, ...]

  def entries(self, folder: str) -> list[tuple[str, bool]]:
    """(name, whether it is a folder) of what lies in a folder, sorted."""

  def read(self, path: str) -> bytes:
    """The content of a file."""


class Layout(NamedTuple):
  """How a tree is read.

  Attributes:
    root: the folder in it that holds all.
    splits: name -> folder. One split 'train' where the tree has none.
    stray: sub-folders with images that are no split.
  """

  root: str
  splits: dict[str, str]
  stray: tuple[str, ...] = ()


def layout(tree: Tree) -> Layout:
  """Tells splits from classes.

  Sub-folders named as splits are splits if no other sub-folder holds images,
  if there is one for training and one to judge on, or if one of them is
  divided into classes and none of the others is. All may lie below one folder,
  as archives unpack, and so may the images of a split. A class may so be
  called `train`.
  """
  inner = ''
  while True:
    folders = _folders(tree, inner)
    named = {name: _join(inner, name) for name in folders if splits.kind(name)}
    holding = [x for x in folders if _holds_images(tree, _join(inner, x))]
    stray = tuple(name for name in holding if name not in named)
    if named and _are_splits(tree, inner, named, stray):
      tops = {name: _unpacked(tree, top) for name, top in named.items()}
      return Layout(inner, tops, stray)
    if len(holding) != 1 or _has_images(tree, inner):
      return Layout('', {'train': ''})
    inner = _join(inner, holding[0])


def _are_splits(tree: Tree, inner: str, named: dict, stray: tuple) -> bool:
  kinds = {splits.kind(name) for name in named}
  if not stray or (len(kinds) > 1 and 'train' in kinds):
    return True
  others = (_join(inner, name) for name in stray)
  return any(_is_divided(tree, top) for top in named.values()) and not any(
    _is_divided(tree, top) for top in others
  )


def _is_divided(tree: Tree, top: str) -> bool:
  """Whether all images lie in sub-folders, and these are several."""
  return len(_classes(tree, top)) > 1 and not _has_images(tree, top)


def _unpacked(tree: Tree, top: str) -> str:
  """Follows `train/train`, as an archive of a single split unpacks."""
  classes = _classes(tree, top)
  if len(classes) == 1 and not _has_images(tree, top):
    (name,) = classes
    if splits.kind(name):
      return _unpacked(tree, _join(top, name))
  return top


def open_tree(tree: Tree, request: Request) -> Source:
  """Opens the images of one split of a tree, in sorted order.

  A folder whose sub-folders are named as splits (`splits.NAMES`, in any case)
  holds these; any other is one split, 'train'. In a split the sub-folders with
  images are the labels, numbered in sorted order over all the splits together;
  images beside or without sub-folders have no label.

  Args:
    tree: a folder or an archive.
    request: its place has become the tree.

  Raises:
    UserError: no such split, or no image in it.
  """
  root, folders, stray = layout(tree)
  split = _require_split(tree, request.split, folders)
  top = folders[split]
  where_top = os.path.join(tree.path, top) if top else tree.path
  classes_of = {name: _classes(tree, each) for name, each in folders.items()}
  classes = sorted(set().union(*classes_of.values()))
  paths, skipped = [], collections.Counter()
  for path in _files(tree, top):
    if _is_image(path):
      paths.append(path)
    else:
      skipped[_ending(path)] += 1
  if not paths:
    raise UserError(_no_images(tree.kind, where_top, skipped))
  number = {name: k for k, name in enumerate(classes)}
  labels = [number.get(p.partition('/')[0], -1) for p in paths]
  # A single sub-folder is only where the images lie: it tells nothing apart.
  if len(classes) < 2 or max(labels) < 0:
    classes, labels = None, [-1] * len(paths)
  notes = [*tree.notes, *_skipped(skipped)]
  notes += _left_out(os.path.join(tree.path, root).rstrip('/'), stray)
  notes += _not_taken(split, folders)
  if classes:
    notes += _unlabelled(paths, labels)
    notes += _odd_classes(classes, classes_of[split], where_top)
  return Source(
    name=f'{tree.kind} {where_top}',
    split=split,
    count=len(paths),
    classes=classes,
    read=_reader(tree, top, paths, labels),
    where=lambda i: os.path.join(where_top, paths[i]),
    canvas=request.canvas,
    channels=request.channels or 3,
    labels=np.array(labels, np.int32),
    upright=True,
    notes=tuple(notes),
  )


def _reader(tree: Tree, top: str, paths: list, labels: list) -> Callable:
  return lambda i: (tree.read(_join(top, paths[i])), labels[i])


def _require_split(tree: Tree, split: str, folders: dict) -> str:
  what = f'{tree.kind} {tree.path!r}'
  if list(folders.values()) == [''] and splits.kind(split) != 'train':
    raise UserError(
      f'{what} has no split {split!r}: it has no sub-folders train and '
      f"{split}, so all its images are the split 'train'"
    )
  return splits.require(what, split, tuple(folders))


def _no_images(kind: str, path: str, skipped: collections.Counter) -> str:
  kinds = ', '.join(f'{n} {ending}' for ending, n in skipped.most_common(4))
  return (
    f'no images in {kind} {path!r}: '
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


def _left_out(root: str, stray: tuple[str, ...]) -> Iterator[str]:
  if stray:
    yield (
      f'beside the splits {root} has images in {", ".join(stray[:5])}, which '
      'are left out'
    )


def _not_taken(split: str, folders: dict) -> Iterator[str]:
  kind = splits.kind(split)
  alike = [x for x in folders if x != split and splits.kind(x) == kind]
  if alike:
    yield f'beside {split} there is {", ".join(alike)}, which is another split'


def _unlabelled(paths: list[str], labels: list[int]) -> Iterator[str]:
  bare = [path for path, label in zip(paths, labels) if label < 0]
  if bare:
    yield (
      f'{len(bare):,} images lie beside the class folders, such as {bare[0]}: '
      'without a label they train but are not judged; move them into a class '
      'folder'
    )


def _odd_classes(classes: list, own: set, top: str) -> Iterator[str]:
  named = [name for name in classes if splits.kind(name)]
  alike = [name for name in classes if splits.resembles(name)]
  if len(alike) == len(classes):
    yield (
      f'{", ".join(alike)} are read as classes; if they are splits, name them '
      'train and test'
    )
  elif named:
    yield f'{", ".join(named)}: read as a class, beside other class folders'
  lacking = sorted(set(classes) - own)
  if lacking:
    yield (
      f'{len(lacking)} classes of other splits are not in {top}, such as '
      f'{lacking[0]}'
    )


# Files and folders


def _join(folder: str, name: str) -> str:
  return f'{folder}/{name}' if folder else name


def _classes(tree: Tree, top: str) -> set[str]:
  """Names of the sub-folders that hold images."""
  names = _folders(tree, top)
  return {name for name in names if _holds_images(tree, _join(top, name))}


def _has_images(tree: Tree, folder: str) -> bool:
  """Whether images lie in the folder itself."""
  entries = tree.entries(folder)
  return any(
    _is_image(x) and visible(x) for x, is_folder in entries if not is_folder
  )


def _holds_images(tree: Tree, top: str) -> bool:
  return any(map(_is_image, _files(tree, top)))


def _is_image(path: str) -> bool:
  return _ending(path)[1:] in formats.endings()


def _ending(path: str) -> str:
  """'.png' and so on, in lower case."""
  return os.path.splitext(path)[1].lower() or 'without ending'


def _folders(tree: Tree, folder: str) -> list[str]:
  """Sorted names of the sub-folders that may hold images."""
  entries = tree.entries(folder)
  return [name for name, is_folder in entries if is_folder and visible(name)]


def visible(name: str) -> bool:
  """Whether a file or folder is one that people put there."""
  return not name.startswith(('.', '__MACOSX')) and name.lower() not in LITTER


def _files(tree: Tree, folder: str, below: str = '') -> Iterator[str]:
  """Paths below a folder, relative to it, sorted by name in each folder."""
  for name, is_folder in tree.entries(folder):
    if not visible(name):
      continue
    if is_folder:
      yield from _files(tree, _join(folder, name), _join(below, name))
    else:
      yield _join(below, name)
