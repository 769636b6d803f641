"""Members of an archive as a tree of files; none is ever unpacked to disk."""

import collections


class Members:
  """Names of members as folders and files; what is unsafe is left out."""

  def __init__(self, names: list[str]):
    """Sorts the names.

    Args:
      names: paths in the archive, of files only.
    """
    self.files, self.unsafe = {}, []
    self._folders = collections.defaultdict(dict)
    for k, name in enumerate(names):
      parts = [part for part in name.split('/') if part not in ('', '.')]
      if name.startswith(('/', '\\')) or '..' in parts or not parts:
        self.unsafe.append(name)
        continue
      self.files['/'.join(parts)] = k
      for depth, part in enumerate(parts):
        is_folder = depth < len(parts) - 1
        self._folders['/'.join(parts[:depth])][part] = is_folder
    self._sorted = {}

  def entries(self, folder: str) -> list[tuple[str, bool]]:
    """(name, whether it is a folder), sorted."""
    if folder not in self._sorted:
      self._sorted[folder] = sorted(self._folders.get(folder, {}).items())
    return self._sorted[folder]

  def notes(self) -> tuple[str, ...]:
    """What is left out."""
    if not self.unsafe:
      return ()
    return (
      f'not read, since their names lead outside the archive: '
      f'{len(self.unsafe):,} members, such as {self.unsafe[0]}',
    )


def links_note(links: list[str]) -> tuple[str, ...]:
  """Says that links are not followed."""
  if not links:
    return ()
  return (f'not read: {len(links):,} links, such as {links[0]}',)
