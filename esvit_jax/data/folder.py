"""A folder of images, nested or flat, with or without labels."""

import os
import pathlib

from esvit_jax.data import guard, layout
from esvit_jax.data.source import Request, Source
from esvit_jax.errors import UserError


def split_names(place: str, data_dir: str | None) -> tuple[str, ...]:
  """The splits there are. Raises UserError where there is no folder."""
  return tuple(layout.layout(Folder(place)).splits)


def open_split(request: Request) -> Source:
  """Opens the images below a folder by the rules of `layout.open_tree`.

  Args:
    request: its place is the path of the folder.

  Raises:
    UserError: no such folder or split, or no image in it.
  """
  return layout.open_tree(Folder(request.place), request)


class Folder:
  """A folder on disk as a `layout.Tree`."""

  kind = 'folder'
  notes = ()

  def __init__(self, place: str):
    """Opens PLACE. Raises UserError where there is no folder."""
    self.path = str(pathlib.Path(place).expanduser())
    _require_folder(pathlib.Path(self.path))

  def entries(self, folder: str) -> list[tuple[str, bool]]:
    """Names and whether they are folders, sorted.

    A link to a folder is followed unless it leads back to one above it.
    """
    top = os.path.join(self.path, folder)
    with os.scandir(top) as entries:
      return sorted(
        (entry.name, entry.is_dir())
        for entry in entries
        if not (entry.is_symlink() and entry.is_dir() and self._above(entry))
      )

  def _above(self, link: os.DirEntry) -> bool:
    path = os.path.dirname(link.path)
    while len(path) >= len(self.path):
      if os.path.samefile(link.path, path):
        return True
      path = os.path.dirname(path) if path != '/' else ''
    return False

  def read(self, path: str) -> bytes:
    """The content of a file."""
    return guard.read_file(os.path.join(self.path, path))


def _require_folder(root: pathlib.Path) -> None:
  if root.is_dir():
    return
  if root.exists():
    raise UserError(f'{str(root)!r} is a file: data.source wants a folder')
  parent = root.absolute().parent
  while not parent.is_dir():
    parent = parent.parent
  with os.scandir(parent) as entries:
    names = sorted(
      e.name for e in entries if e.is_dir() and layout.visible(e.name)
    )
  listed = ', '.join(names[:5]) + (', ...' if len(names) > 5 else '')
  raise UserError(
    f'folder {str(root)!r} does not exist; the closest that does is '
    f'{str(parent)!r}, with the sub-folders: {listed or "none"}'
  )
