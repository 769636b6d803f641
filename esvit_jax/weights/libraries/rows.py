"""Rows of a table of names: published keys and those of another library.

In keys `{i}` and `{j}` stand for any numbers.
"""

import functools
import re
from collections.abc import Callable, Mapping
from typing import NamedTuple

import numpy as np

Arrays = dict[str, np.ndarray]
Number = tuple[int, int]  # (scale, offset): theirs = scale * ours + offset


class Row(NamedTuple):
  """An array that both sides have.

  Attributes:
    published: its key here.
    library: its key there, or those of the parts that it is cut into along the
      first axis.
    numbers: 'i' -> how the number there follows from the one here.
    outward, inward: change the values, where both sides order them otherwise.
    written: False of what the library computes itself, though files may have
      it.
  """

  published: str
  library: tuple[str, ...]
  numbers: Mapping[str, Number] = {}
  outward: Callable[[np.ndarray], np.ndarray] | None = None
  inward: Callable[[np.ndarray], np.ndarray] | None = None
  written: bool = True


Rows = tuple[Row, ...]


def same(published: str, *library: str, **options) -> Rows:
  """One array."""
  return (Row(published, library, **options),)


def pair(published: str, *library: str, **options) -> Rows:
  """A weight and a bias."""
  return tuple(
    Row(f'{published}.{k}', tuple(f'{key}.{k}' for key in library), **options)
    for k in ('weight', 'bias')
  )


def batch_norm(published: str, library: str, **options) -> Rows:
  """A batch norm with its running statistics."""
  names = 'weight', 'bias', 'running_mean', 'running_var', 'num_batches_tracked'
  return tuple(
    Row(f'{published}.{k}', (f'{library}.{k}',), **options) for k in names
  )


def inward(arrays: Mapping, rows: Rows) -> tuple[Arrays, list[str]]:
  """Arrays of a library by published key.

  Returns:
    The arrays, and the keys that no row knows or whose other parts are
    missing, which are left out.
  """
  out, used = {}, set()
  for key in arrays:
    for row in rows:
      numbers = _numbers(row.library[0], key)
      ours = _ours(numbers, row.numbers)
      if ours is None:
        continue
      parts = [part.format(**numbers) for part in row.library]
      if not all(part in arrays for part in parts):
        continue
      value = arrays[key]
      if len(parts) > 1:
        value = np.concatenate([arrays[part] for part in parts])
      change = row.inward
      out[row.published.format(**ours)] = change(value) if change else value
      used.update(parts)
      break
  return out, [key for key in arrays if key not in used]


def outward(arrays: Mapping, rows: Rows) -> tuple[Arrays, list[str]]:
  """Published arrays by a library's keys, and the keys that no row knows."""
  out, unknown = {}, []
  for key, value in arrays.items():
    for row in rows:
      numbers = _numbers(row.published, key)
      if numbers is None:
        continue
      if not row.written:
        break
      value = row.outward(value) if row.outward else value
      keys = [
        part.format(**_theirs(numbers, row.numbers)) for part in row.library
      ]
      parts = np.split(value, len(keys)) if len(keys) > 1 else [value]
      out |= dict(zip(keys, parts))
      break
    else:
      unknown.append(key)
  return out, unknown


def _theirs(numbers: Mapping, scales: Mapping[str, Number]) -> dict:
  return {
    k: scales.get(k, (1, 0))[0] * n + scales.get(k, (1, 0))[1]
    for k, n in numbers.items()
  }


def _ours(numbers: Mapping | None, scales: Mapping) -> dict | None:
  """None where no number here gives the one there."""
  if numbers is None:
    return None
  ours = {}
  for k, n in numbers.items():
    scale, offset = scales.get(k, (1, 0))
    ours[k], left = divmod(n - offset, scale)
    if left or ours[k] < 0:
      return None
  return ours


@functools.lru_cache(maxsize=1024)
def _pattern(template: str) -> re.Pattern:
  return re.compile(re.sub(r'\\{(\w)\\}', r'(?P<\1>\\d+)', re.escape(template)))


def _numbers(template: str, key: str) -> dict[str, int] | None:
  """The numbers that make `template` into `key`."""
  match = _pattern(template).fullmatch(key)
  return match and {k: int(n) for k, n in match.groupdict().items()}
