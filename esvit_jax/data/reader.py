"""Reads images into batches; counts and names those that cannot be read."""

import os
import pathlib
import sys
import threading
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from esvit_jax.data.source import Source, tolerable
from esvit_jax.data.unreadable import Unreadable
from esvit_jax.errors import UserError

Batch = dict[str, np.ndarray]

UNREADABLE = 'unreadable.txt'  # in the directory of a run


class Reading(NamedTuple):
  """How images are read.

  Attributes:
    workers: threads; None takes one per core, at most 16.
    max_unreadable: share of the source that may be unreadable.
    log: file that names each unreadable image once.
  """

  workers: int | None = None
  max_unreadable: float = 0.01
  log: str | os.PathLike | None = None


DEFAULT = Reading()


def reading(section: Mapping[str, Any], directory: str) -> Reading:
  """As `data` of a config says, with a log in the directory of a run."""
  log = os.path.join(directory, UNREADABLE)
  return Reading(section['workers'], section['max_unreadable'], log)


class Reader:
  """Fills batches from a source; knows which of its images are unreadable."""

  def __init__(self, source: Source, reading: Reading, substitute: bool):
    self.unreadable: set[int] = set()
    self.reading = reading
    self._source = source
    self._allowed = tolerable(len(source), reading.max_unreadable)
    self._log = pathlib.Path(reading.log) if reading.log else None
    self._substitute = substitute
    self._lock = threading.Lock()

  def empty(self, rows: int) -> Batch:
    """A batch of nothing but padding."""
    batch = {
      name: np.full((rows, *shape), padding, dtype)
      for name, (shape, dtype, padding) in self._source.arrays().items()
    }
    if not self._substitute:
      batch['mask'] = np.zeros(rows, bool)
    return batch

  def fill(self, batch: Batch, indices: np.ndarray, rows: range) -> None:
    """Reads the images of some rows into their place; -1 stays padding."""
    for row in rows:
      i = int(indices[row])
      example = self._read(i) if i >= 0 else None
      while example is None and self._substitute:
        i = (i + 1) % len(self._source)
        example = self._read(i)
      if i < 0:
        continue
      batch['index'][row] = i
      if example is None:
        continue
      h, w, _ = example['image'].shape
      batch['image'][row, :h, :w] = example['image']
      batch['size'][row] = h, w
      batch['label'][row] = example['label']
      if 'segmentation' in batch:
        batch['segmentation'][row, :h, :w] = example['segmentation']
      for name in ('boxes', 'classes', 'shapes'):
        if name in batch:
          batch[name][row, : len(example[name])] = example[name]
      if 'mask' in batch:
        batch['mask'][row] = True

  def _read(self, i: int) -> dict[str, Any] | None:
    """Image i, or None where it is unreadable."""
    if i in self.unreadable:
      return None
    try:
      return self._source[i]
    except Unreadable as error:
      self._note(i, error)
      return None

  def _note(self, i: int, error: Unreadable) -> None:
    """Counts and names an unreadable image; raises when there are too many."""
    with self._lock:
      if i in self.unreadable:
        return
      self.unreadable.add(i)
      where = self._source.where(i)
      if self._log:
        try:
          self._append(where, error)
        except OSError as e:  # the list is a help, and no reason to stop
          print(
            f'cannot write {self._log} ({e.strerror}): {where} is unreadable '
            f'({error})',
            file=sys.stderr,
          )
      if len(self.unreadable) > self._allowed:
        listed = f'; all are listed in {self._log}' if self._log else ''
        raise UserError(
          f'{self._source.name}: {len(self.unreadable)} of {len(self._source)} '
          f'images are unreadable, more than the {self._allowed} that '
          f'max_unreadable={self.reading.max_unreadable:g} allows. The last '
          f'one: {where} ({error}){listed}. Mend or remove them'
        )

  def _append(self, where: str, error: Unreadable) -> None:
    """One line per image, also after a resume and with several processes."""
    line = f'{where}\t'.encode(errors='backslashreplace')
    self._log.parent.mkdir(parents=True, exist_ok=True)
    with self._log.open('ab+') as file:
      file.seek(0)
      if line not in file.read():
        file.write(line + f'{error}\n'.encode(errors='backslashreplace'))
