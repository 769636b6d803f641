"""Accounting for every array of a published file, and what may differ."""

import fnmatch
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import numpy as np

from esvit_jax.errors import UserError
from esvit_jax.weights import tables
from esvit_jax.weights.published import Arrays


class Allowed(NamedTuple):
  """What the user accepts, by name; * stands for anything.

  Attributes:
    missing: published keys that start afresh.
    unexpected: published keys that are left out: what is not of this
      architecture or of another shape.
    fp16: whether float16 becomes float32.
  """

  missing: Sequence[str] = ()
  unexpected: Sequence[str] = ()
  fp16: bool = False


def single(arrays: Arrays, allowed: Allowed, notes: list[str]) -> Arrays:
  """The arrays, those of float16 as float32 where that is allowed."""
  half = [k for k, v in arrays.items() if v.dtype == np.float16]
  if half and not allowed.fp16:
    raise UserError(
      f'{len(half)} of {len(arrays)} arrays are float16, such as {half[0]}: '
      '--allow-fp16 takes them as float32'
    )
  if half:
    notes.append(f'{len(half)} arrays made float32 from float16')
  return {
    k: v.astype(np.float32) if v.dtype == np.float16 else v
    for k, v in arrays.items()
  }


def leave_out(others: Arrays, allowed: Allowed, notes: list[str]) -> set[str]:
  """Checks arrays that are of no network; returns the patterns used."""
  used = set()
  rest = [k for k in others if not _match(k, allowed.unexpected, used)]
  if rest:
    raise UserError(
      f'{tables.listed("unexpected", rest)}: --allow-unexpected=KEY leaves '
      'one out, * stands for anything'
    )
  if others:
    notes.append(tables.listed('left out', list(others)))
  return used


def agree(
  arrays: Arrays,
  table: str,
  init: Callable,
  lead: str,
  where: str,
  allowed: Allowed,
  used: set[str],
) -> tuple[dict, list[str]]:
  """Our variables of a part of a network.

  Args:
    arrays: by published key, without the name of the part.
    table: of tables.TABLES.
    init: key -> fresh variables.
    lead: what the published keys of this part begin with.
    where: the part, for messages.
    allowed: what may differ.
    used: patterns of `allowed` that were of use; grows.

  Returns:
    {'params': ..., 'batch_stats': ...} and what there is to say.

  Raises:
    UserError: something differs that is not allowed.
  """
  notes = []
  try:
    like = jax.eval_shape(init, jax.random.key(0))
  except UserError:
    raise
  except Exception as e:  # odd fields fail in many ways
    why = (str(e).splitlines() or [type(e).__name__])[0][:160]
    raise UserError(f'{where}: no such network can be built ({why})') from None
  if allowed.missing or allowed.unexpected:
    known = tables.to_published(
      jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), like), table
    )
    dropped = [
      k
      for k, v in arrays.items()
      if (k not in known or v.shape != known[k].shape)
      and _match(lead + k, allowed.unexpected, used)
    ]
    arrays = {k: v for k, v in arrays.items() if k not in dropped}
    absent = [
      k
      for k in known
      if k not in arrays and _match(lead + k, allowed.missing, used)
    ]
    if absent:
      fresh = jax.device_get(jax.jit(init)(jax.random.key(0)))
      fresh = tables.to_published(fresh, table)
      arrays |= {k: fresh[k] for k in absent}
    for title, keys in (('left out', dropped), ('started afresh', absent)):
      if keys:
        keys = [lead + k for k in keys]
        notes.append(f'{where}: {tables.listed(title, keys)}')
  try:
    return tables.from_published(arrays, table, like), notes
  except UserError as e:
    raise UserError(
      f'{where}: {e}. --allow-missing=KEY starts one afresh, '
      '--allow-unexpected=KEY leaves one out'
    ) from None


def check_all_used(allowed: Allowed, used: set[str]) -> None:
  """Raises UserError for a pattern that was of no use: a slip of the pen."""
  for kind in ('missing', 'unexpected'):
    for pattern in getattr(allowed, kind):
      if pattern not in used:
        raise UserError(f'--allow-{kind}={pattern}: no key like that is {kind}')


def _match(key: str, patterns: Sequence[str], used: set[str]) -> bool:
  found = [p for p in patterns if fnmatch.fnmatchcase(key, p)]
  used.update(found)
  return bool(found)
