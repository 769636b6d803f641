"""A zip file, read as the folder that it unpacks to."""

import os
import zipfile

from esvit_jax.data import layout, shards
from esvit_jax.data.members import Members, links_note
from esvit_jax.data.source import Request, Source
from esvit_jax.data.unreadable import Unreadable
from esvit_jax.errors import UserError


def split_names(place: str, data_dir: str | None) -> tuple[str, ...]:
  """The splits there are. Raises UserError as `open_split`."""
  return tuple(layout.layout(Zip(place)).splits)


def open_split(request: Request) -> Source:
  """Opens the images in a zip file by the rules of `layout.open_tree`.

  Args:
    request: its place is the path of the file.

  Raises:
    UserError: it is no zip file, has no such split, or no image in it.
  """
  return layout.open_tree(Zip(request.place), request)


class Zip:
  """A zip file as a `layout.Tree`; safe for many threads."""

  kind = 'zip'

  def __init__(self, place: str):
    """Reads the names of the members.

    Raises:
      UserError: it is no zip file, or damaged, or encrypted.
    """
    self.path = os.path.expanduser(place)
    try:
      self._zip = zipfile.ZipFile(self.path)
    except OSError as error:
      raise UserError(f'cannot read {place!r}: {error.strerror}') from None
    except (zipfile.BadZipFile, NotImplementedError, ValueError) as error:
      raise UserError(
        f'{place!r} is no zip file, or is cut off ({error}): copy it again'
      ) from None
    infos = [info for info in self._zip.infolist() if not info.is_dir()]
    locked = sum(info.flag_bits & 1 for info in infos)
    if locked:
      raise UserError(
        f'{place!r}: {locked:,} of its members are encrypted: unpack it with '
        'its password, and name the folder'
      )
    links = [i.filename for i in infos if i.external_attr >> 28 == 0xA]
    self._infos = [i for i in infos if i.external_attr >> 28 != 0xA]
    self._members = Members([info.filename for info in self._infos])
    self.notes = self._members.notes() + links_note(links)

  def entries(self, folder: str) -> list[tuple[str, bool]]:
    """(name, whether it is a folder), sorted."""
    return self._members.entries(folder)

  def read(self, path: str) -> bytes:
    """The content of a member, whose checksum is verified.

    Raises:
      Unreadable: it is damaged, or would fill the memory.
    """
    info = self._infos[self._members.files[path]]
    if info.file_size > shards.LARGEST:
      raise shards.too_large(info.file_size)
    try:
      # A number of bytes bounds what a member that lies of its size unpacks to.
      with self._zip.open(info) as file:
        return file.read(info.file_size + 1)
    except Exception as error:  # zlib, lzma and bz2 each have their own
      raise Unreadable(error) from error
