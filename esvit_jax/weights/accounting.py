"""Every array of a published file is used, or the user allowed it to differ."""

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
  """Published keys that may differ, as patterns (* matches anything).

  Attributes:
    missing: keys that are initialised if they are missing.
    unexpected: keys that are left out if they are not of this architecture or
      have another shape.
  """

  missing: Sequence[str] = ()
  unexpected: Sequence[str] = ()


class Part(NamedTuple):
  """A part of a network.

  Attributes:
    name: for messages, such as 'teacher backbone'.
    layout: a key of layouts.LAYOUTS.
    init: random key -> initial variables.
    prefix: of its published keys in the network.
  """

  name: str
  layout: str
  init: Callable
  prefix: str = ''


@dataclasses.dataclass
class Account:
  """What the user allowed, and what was done with it.

  Attributes:
    allowed: by the user.
    notes: lines for the user.
    random: published keys of backbones that were initialised.
    used: patterns of `allowed` that matched a key.
  """

  allowed: Allowed
  notes: list[str] = dataclasses.field(default_factory=list)
  random: list[str] = dataclasses.field(default_factory=list)
  used: set[str] = dataclasses.field(default_factory=set)

  def leave_out(self, keys: Iterable[str]) -> None:
    """Leaves out keys that belong to no network.

    Raises:
      UserError: the user has not allowed it.
    """
    keys = list(keys)
    refused = [k for k in keys if not self._may('unexpected', k)]
    if refused:
      raise UserError(
        f'{tables.listed("unexpected", refused)}: leave keys out with '
        "convert's --allow-unexpected=KEY, where * matches anything"
      )
    if keys:
      self.notes.append(tables.listed('left out', keys))

  def read(self, arrays: Arrays, part: Part) -> dict:
    """The variables {'params', 'batch_stats'} of a part of a network.

    Args:
      arrays: by published key, without the prefix of the part.
      part: of the network.

    Raises:
      UserError: something differs that is not allowed to.
    """
    like = shapes(part.name, part.init)
    if self.allowed.missing or self.allowed.unexpected:
      arrays = self._mended(arrays, part, like)
    try:
      return tables.from_published(arrays, part.layout, like)
    except UserError as e:
      raise UserError(
        f"{part.name}: {e}. convert's --allow-missing=KEY starts one afresh, "
        'its --allow-unexpected=KEY leaves one out'
      ) from None

  def check_all_used(self) -> None:
    """Raises UserError for a pattern that matched nothing, such as a typo."""
    for kind in ('missing', 'unexpected'):
      for pattern in getattr(self.allowed, kind):
        if pattern not in self.used:
          raise UserError(
            f'--allow-{kind}={pattern}: no key like that is {kind}'
          )

  def _mended(self, arrays: Arrays, part: Part, like) -> Arrays:
    """`arrays` without those left out, and with those that are initialised."""
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
        self.notes.append(f'{part.name}: {tables.listed(title, keys)}')
    if part.name.endswith('backbone'):
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
  """Makes float16 arrays float32, which is exact."""
  half = [k for k, v in arrays.items() if v.dtype == np.float16]
  if half:
    notes.append(f'{len(half)} arrays made float32 from float16')
  return {
    k: v.astype(np.float32) if v.dtype == np.float16 else v
    for k, v in arrays.items()
  }


def shapes(name: str, init: Callable) -> dict:
  """Shapes of the variables that `init` makes.

  Raises:
    UserError: no such network can be built.
  """
  try:
    return jax.eval_shape(init, jax.random.key(0))
  except UserError:
    raise
  except Exception as e:  # odd fields fail in many ways
    why = (str(e).splitlines() or [type(e).__name__])[0][:160]
    raise UserError(f'{name}: no such network can be built ({why})') from None
