"""The disk space that the checkpoints of a run take."""

import contextlib
import math
import os
import shutil

import jax

from esvit_jax.errors import UserError


class Space:
  """What the checkpoints to be kept need, and what there is.

  Args:
    directory: of the run.
    state: TrainState of arrays or ShapeDtypeStructs.
    kept: how many checkpoints stay at the end.

  Attributes:
    each: bytes of a checkpoint, before compression.
    needed: bytes of those that stay and of the one that is being written.
    free: bytes that are free, or None where the file system does not say.
  """

  def __init__(self, directory: str, state, kept: int):
    self.directory, self.kept = directory, kept
    self.each = sum(
      math.prod(x.shape) * x.dtype.itemsize for x in jax.tree.leaves(state)
    )
    self.needed = (kept + 1) * self.each
    self.free = None
    with contextlib.suppress(OSError):
      usage = shutil.disk_usage(directory)
      self.free = usage.free if usage.total else None

  def check(self) -> None:
    """Raises UserError where there is no room for two checkpoints.

    One is whole while the next is written. What earlier sittings have saved
    is there already.
    """
    places = os.path.join(self.directory, 'checkpoints')
    saved = len(os.listdir(places)) if os.path.isdir(places) else 0
    least = max(2 - saved, 1) * self.each
    if self.free is not None and self.free < least:
      raise UserError(
        f'{self.directory} has {size(self.free)} free, and a checkpoint takes '
        f'{size(self.each)}: two must fit, so that one is whole while the next '
        'is written. Make room, or choose another --workdir'
      )

  def line(self) -> str:
    """'up to 4 of 1.2 GiB: 4.8 GiB of the 80 GiB that are free'."""
    text = f'up to {self.kept + 1} of {size(self.each)}'
    if self.free is None:
      return text
    return (
      f'{text}: {size(self.needed)} of the {size(self.free)} that are free'
      + ('; that is not enough for all' if self.free < self.needed else '')
    )


def size(count: float) -> str:
  """Bytes in words: '1.2 GiB'."""
  units = ('B', 'KiB', 'MiB', 'GiB', 'TiB')
  level = next(
    (i for i in range(len(units)) if count < 1024 ** (i + 1)), len(units) - 1
  )
  return f'{count / 1024**level:.3g} {units[level]}'
