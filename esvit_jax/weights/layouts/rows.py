"""Rows of a layout: pairs of a published array and our variable.

`{i}` and `{j}` in keys and paths stand for any numbers.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np


class Row(NamedTuple):
  """An array that both sides have.

  Attributes:
    published: its key.
    ours: its path with the collection, params/... or batch_stats/...
    axes: the permutation from published axes to ours, if there is one.
  """

  published: str
  ours: str
  axes: tuple[int, ...] | None = None

  @property
  def inverse(self) -> tuple[int, ...] | None:
    """The permutation from our axes to the published ones."""
    return self.axes and tuple(int(i) for i in np.argsort(self.axes))


class Buffer(NamedTuple):
  """An array that only the published side has, computed from another.

  Attributes:
    published: its key.
    source: the key of the array that it is computed from.
    compute: array -> buffer.
    constant: whether the value in a file must be the computed one.
    beside: keys that must exist for this row to apply.
  """

  published: str
  source: str
  compute: Callable[[np.ndarray], np.ndarray]
  constant: bool = True
  beside: tuple[str, ...] = ()


Rows = tuple[Row | Buffer, ...]


def same(published: str, ours: str) -> Rows:
  return (Row(published, f'params/{ours}'),)


def matrix(published: str, ours: str) -> Rows:
  """(out, in) <-> (in, out)."""
  return (Row(f'{published}.weight', f'params/{ours}/kernel', (1, 0)),)


def linear(published: str, ours: str) -> Rows:
  return matrix(published, ours) + same(f'{published}.bias', f'{ours}/bias')


def conv(published: str, ours: str) -> Rows:
  """OIHW <-> HWIO, and a bias."""
  weight = Row(f'{published}.weight', f'params/{ours}/kernel', (2, 3, 1, 0))
  return (weight, *same(f'{published}.bias', f'{ours}/bias'))


def norm(published: str, ours: str) -> Rows:
  return (
    *same(f'{published}.weight', f'{ours}/scale'),
    *same(f'{published}.bias', f'{ours}/bias'),
  )


def batch_norm(published: str, ours: str) -> Rows:
  return (
    *norm(published, ours),
    Row(f'{published}.running_mean', f'batch_stats/{ours}/mean'),
    Row(f'{published}.running_var', f'batch_stats/{ours}/var'),
    # A counter of batches, which nothing here uses; the value of a file is
    # kept in `Weights.about`.
    Buffer(
      f'{published}.num_batches_tracked',
      f'{published}.running_mean',
      lambda mean: np.zeros((), np.int64),
      constant=False,
    ),
  )


def within(rows: Rows, published: str = '', ours: str = '') -> Rows:
  """`rows` with prefixes on the published and on our side."""

  def moved(row):
    if isinstance(row, Buffer):
      return row._replace(
        published=published + row.published,
        source=published + row.source,
        beside=tuple(published + key for key in row.beside),
      )
    collection, path = row.ours.split('/', 1)
    return row._replace(
      published=published + row.published, ours=f'{collection}/{ours}{path}'
    )

  return tuple(moved(row) for row in rows)
