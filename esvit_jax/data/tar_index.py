"""Random access to tar files by an index of offsets, built once."""

import concurrent.futures
import json
import os
import tarfile
from typing import NamedTuple

import numpy as np

from esvit_jax.data import cache, shards
from esvit_jax.data.progress import Progress
from esvit_jax.errors import UserError

_BLOCK = 512
_LABELS = ('.cls', '.json')  # members whose content goes into the index
_LONGEST = 2**20  # bytes of a member with a label


class Tars:
  """The files in one or several tars, in order.

  Attributes:
    names: of the members; links, devices and folders are left out.
    shard: which tar each is in, i64[n].
    labels: what .cls and .json members say, '' of others.
    notes: what is damaged or left out.
  """

  def __init__(self, paths: list[str]):
    """Reads or builds the index of each.

    Raises:
      UserError: a file is no tar, or cannot be read.
    """
    self._paths = paths
    self._changed = [os.stat(path).st_mtime_ns for path in paths]
    total = sum(os.path.getsize(path) for path in paths)
    progress = Progress(f'indexing {len(paths):,} tar files', total)

    def index(path: str) -> _Index:
      arrays = cache.kept(path, 'tar', lambda: _build(path, progress))
      return _Index.of(arrays)

    with concurrent.futures.ThreadPoolExecutor(8) as pool:
      each = list(pool.map(index, paths))
    self.names = [name for x in each for name in x.names]
    self.labels = [label for x in each for label in x.labels]
    self._spans = np.concatenate([x.spans for x in each])
    self.shard = np.repeat(np.arange(len(each)), [len(x.names) for x in each])
    self.notes = tuple(
      f'{path}: {problem}'
      for path, x in zip(paths, each)
      for problem in x.problems
    )

  def read(self, i: int) -> bytes:
    """The content of member `i`. Raises Unreadable where it is cut off."""
    k = self.shard[i]
    offset, size = self._spans[i].tolist()
    return shards.read_span(self._paths[k], offset, size, self._changed[k])

  def where(self, i: int) -> str:
    """'shard.tar/name'."""
    return os.path.join(self._paths[self.shard[i]], self.names[i])


class _Index(NamedTuple):
  """What is known of one tar file."""

  names: list[str]
  labels: list[str]
  spans: np.ndarray  # (offset, size) in bytes, i64[n, 2]
  problems: list[str]

  @classmethod
  def of(cls, arrays: cache.Arrays) -> '_Index':
    """From what is kept."""
    texts = (cache.apart(arrays[k]) for k in ('names', 'labels', 'problems'))
    names, labels, problems = texts
    return cls(names, labels, arrays['spans'], problems)


def _build(path: str, progress: Progress) -> cache.Arrays:
  """Walks the headers of one file."""
  names, labels, spans, links, done = [], [], [], [], 0
  try:
    with tarfile.open(path, 'r:') as tar:
      problem = ''
      while True:
        try:
          member = tar.next()
        except tarfile.ReadError:
          problem = 'is cut off'
          break
        if member is None:
          break
        tar.members = []  # which it keeps for ever
        progress.add(tar.offset - done)
        done = tar.offset
        if member.issym() or member.islnk():
          links.append(member.name)
        if not member.isreg() or member.sparse is not None:
          continue
        names.append(member.name)
        spans.append((member.offset_data, member.size))
        labels.append(_label(tar, member))
      tar.fileobj.seek(tar.offset)
      end = tar.fileobj.read(_BLOCK)
  except OSError as error:
    raise UserError(f'cannot read {path!r}: {error.strerror}') from None
  except tarfile.TarError as error:
    raise UserError(
      f'{path!r} is no tar file ({error}); one that is compressed must be '
      'unpacked first (gunzip), since its members cannot be found apart'
    ) from None
  if not problem and end.count(0) != _BLOCK:
    problem = 'is damaged' if end else 'has no end mark and may be cut off'
  problems = []
  if problem:
    problems.append(f'{problem} after {len(names):,} members; copy it again')
  if links:
    problems.append(f'{len(links):,} links are not read, such as {links[0]}')
  return {
    'names': cache.joined(names),
    'labels': cache.joined(labels),
    'spans': np.array(spans, np.int64).reshape(-1, 2),
    'problems': cache.joined(problems),
  }


def _label(tar: tarfile.TarFile, member: tarfile.TarInfo) -> str:
  """The label that a small member tells; '' where it tells none."""
  if not member.name.lower().endswith(_LABELS) or member.size > _LONGEST:
    return ''
  tar.fileobj.seek(member.offset_data)
  text = tar.fileobj.read(member.size).decode('utf-8', 'replace').strip()
  if member.name.lower().endswith('.json'):
    try:
      content = json.loads(text)
    except ValueError:
      return ''
    label = content.get('label', '') if isinstance(content, dict) else ''
    text = str(label) if isinstance(label, (int, str)) else ''
  return text.replace('\0', '')
