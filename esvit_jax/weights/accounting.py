"""Accounting for every array of a published file, and what may differ."""

import dataclasses
import fnmatch
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

import jax
import numpy as np

from esvit_jax.errors import UserError
from esvit_jax.weights import tables
from esvit_jax.weights.tables import Arrays


class Allowed(NamedTuple):
  """What the user accepts, by name; * stands for anything.

  Attributes:
    missing: published keys that start afresh.
    unexpected: published keys that are left out: what is not of this
      architecture or of another shape.
  """

  missing: Sequence[str] = ()
  unexpected: Sequence[str] = ()


class Part(NamedTuple):
  """A part of a network, to be read.

  Attributes:
    where: for messages, such as 'teacher backbone'.
    layout: of layouts.LAYOUTS.
    init: key -> fresh variables.
    prefix: what its published keys begin with in the network.
  """

  where: str
  layout: str
  init: Callable
  prefix: str = ''


@dataclasses.dataclass
class Account:
  """What was allowed, what of it was used, and what there is to say.

  Attributes:
    allowed: by the user.
    notes: lines for the user.
    random: published keys of backbones that started afresh.
    used: patterns of `allowed` that were of use.
  """

  allowed: Allowed
  notes: list[str] = dataclasses.field(default_factory=list)
  random: list[str] = dataclasses.field(default_factory=list)
  used: set[str] = dataclasses.field(default_factory=set)

  def leave_out(self, keys: Iterable[str]) -> None:
    """Checks keys that are of no network.

    Raises:
      UserError: they may not be left out.
    """
    keys = list(keys)
    refused = [k for k in keys if not self._may('unexpected', k)]
    if refused:
      raise UserError(
        f"{tables.listed('unexpected', refused)}: convert's "
        '--allow-unexpected=KEY leaves one out, * stands for anything'
      )
    if keys:
      self.notes.append(tables.listed('left out', keys))

  def read(self, arrays: Arrays, part: Part) -> dict:
    """Our variables {'params', 'batch_stats'} of a part of a network.

    Args:
      arrays: by published key, without the prefix of the part.
      part: what they are of.

    Raises:
      UserError: something differs that is not allowed.
    """
    like = shapes(part.where, part.init)
    if self.allowed.missing or self.allowed.unexpected:
      arrays = self._mended(arrays, part, like)
    try:
      return tables.from_published(arrays, part.layout, like)
    except UserError as e:
      raise UserError(
        f"{part.where}: {e}. convert's --allow-missing=KEY starts one afresh, "
        'its --allow-unexpected=KEY leaves one out'
      ) from None

  def check_all_used(self) -> None:
    """Raises UserError for a pattern that was of no use: a slip of the pen."""
    for kind in ('missing', 'unexpected'):
      for pattern in getattr(self.allowed, kind):
        if pattern not in self.used:
          raise UserError(
            f'--allow-{kind}={pattern}: no key like that is {kind}'
          )

  def _mended(self, arrays: Arrays, part: Part, like) -> Arrays:
    """`arrays` without what may be left out, with what may start afresh."""
    known = tables.to_published(
      jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), like), part.layout
    )
    dropped = [
      k
      for k, v in arrays.items()
      if (k not in known or v.shape != known[k].shape)
      and self._may('unexpected', part.prefix + k)
    ]
    arrays = {k: v for k, v in arrays.items() if k not in dropped}
    absent = [
      k
      for k in known
      if k not in arrays and self._may('missing', part.prefix + k)
    ]
    if absent:
      fresh = jax.device_get(jax.jit(part.init)(jax.random.key(0)))
      fresh = tables.to_published(fresh, part.layout)
      arrays |= {k: fresh[k] for k in absent}
    for title, keys in (('left out', dropped), ('started afresh', absent)):
      if keys:
        keys = [part.prefix + k for k in keys]
        self.notes.append(f'{part.where}: {tables.listed(title, keys)}')
    if part.where.endswith('backbone'):
      self.random += [
        k for k in absent if known[k].dtype.kind == 'f' and k not in self.random
      ]
    return arrays

  def _may(self, kind: str, key: str) -> bool:
    patterns = getattr(self.allowed, kind)
    matching = [p for p in patterns if fnmatch.fnmatchcase(key, p)]
    self.used.update(matching)
    return bool(matching)


def single_precision(arrays: Arrays, notes: list[str]) -> Arrays:
  """The arrays, those of float16 as float32, which is exact."""
  half = [k for k, v in arrays.items() if v.dtype == np.float16]
  if half:
    notes.append(f'{len(half)} arrays made float32 from float16')
  return {
    k: v.astype(np.float32) if v.dtype == np.float16 else v
    for k, v in arrays.items()
  }


def shapes(where: str, init: Callable) -> dict:
  """Shapes of fresh variables.

  Raises:
    UserError: no such network can be built.
  """
  try:
    return jax.eval_shape(init, jax.random.key(0))
  except UserError:
    raise
  except Exception as e:  # odd fields fail in many ways
    why = (str(e).splitlines() or [type(e).__name__])[0][:160]
    raise UserError(f'{where}: no such network can be built ({why})') from None
