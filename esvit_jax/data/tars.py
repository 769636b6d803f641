"""Tar files, read as the folder that they unpack to."""

import os

from esvit_jax.data import layout, shards
from esvit_jax.data.members import Members
from esvit_jax.data.source import Request, Source
from esvit_jax.data.tar_index import Tars


def split_names(place: str, data_dir: str | None) -> tuple[str, ...]:
  """The splits there are. Raises UserError as `open_split`."""
  return tuple(layout.layout(Tar(place)).splits)


def open_split(request: Request) -> Source:
  """Opens the images in tar files by the rules of `layout.open_tree`.

  Args:
    request: its place is a file, a folder of them, or a pattern, see
      `shards.expand`.

  Raises:
    UserError: a file is missing or no tar, there is no such split, or no image
      in it.
  """
  return layout.open_tree(Tar(request.place), request)


class Tar:
  """One tar file or several as a `layout.Tree`."""

  kind = 'tar'

  def __init__(self, place: str):
    """Reads the names of the members, or the index kept of them.

    Raises:
      UserError: a file is missing, or no tar.
    """
    self.path = os.path.expanduser(place)
    self._tars = Tars(shards.expand(place, ('.tar',)))
    self._members = Members(self._tars.names)
    self.notes = self._members.notes() + self._tars.notes

  def entries(self, folder: str) -> list[tuple[str, bool]]:
    """(name, whether it is a folder), sorted."""
    return self._members.entries(folder)

  def read(self, path: str) -> bytes:
    """The content of a member. Raises Unreadable where it is cut off."""
    return self._tars.read(self._members.files[path])
