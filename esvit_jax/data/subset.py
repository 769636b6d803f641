"""Part of a source: held-out images, few labels."""

import concurrent.futures
import dataclasses
from collections.abc import Sequence

import numpy as np

from esvit_jax.data import fewshot
from esvit_jax.data.decode import Unreadable
from esvit_jax.data.source import Source
from esvit_jax.errors import UserError

HELD_OUT = 0.1  # share of the images


def subset(source: Source, indices: Sequence[int], what: str) -> Source:
  """The images of `source` at `indices`, in that order.

  Args:
    source: the whole.
    indices: positions in it.
    what: said in its name.

  Raises:
    UserError: there are none.
  """
  if not len(indices):
    raise UserError(f'{source.name}: {what} leaves no images')
  indices = np.asarray(indices)
  return dataclasses.replace(
    source,
    name=f'{source.name}, {what}',
    count=len(indices),
    read=lambda i: source.read(int(indices[i])),
    where=lambda i: source.where(int(indices[i])),
  )


def hold_out(
  source: Source, share: float = HELD_OUT, seed: int = 0
) -> tuple[Source, Source]:
  """(the rest, a random `share`): a test split for sets that have none.

  Raises:
    UserError: there are too few images.
  """
  count = round(share * len(source))
  if not 0 < count < len(source):
    raise UserError(
      f'{source.name} has {len(source)} images: too few to hold some out; set '
      "data.test_split=''"
    )
  order = np.random.default_rng(seed).permutation(len(source))
  held, rest = np.sort(order[:count]), np.sort(order[count:])
  return (
    subset(source, rest, f'all but {count:,} held out'),
    subset(source, held, f'{count:,} held out'),
  )


def labels(source: Source, workers: int = 8) -> np.ndarray:
  """Every label of a source, i32[N] (i32[N, C] where an image has several).

  -1 where an image cannot be read.
  """

  def label(i):
    try:
      return source.read(i)[1]
    except (OSError, Unreadable):
      return np.full(source.label_shape, -1, np.int32)

  with concurrent.futures.ThreadPoolExecutor(max(workers, 1)) as pool:
    found = pool.map(label, range(len(source)), chunksize=256)
    return np.array(list(found), np.int32)


def few_labels(source: Source, amount: str, seed: int = 0) -> Source:
  """A small labelled part of a source.

  Args:
    source: labelled.
    amount: '' for all, a share of each class such as '1%' (at least one
      image), or a number of each class such as '10'.
    seed: of the draw.

  Raises:
    UserError: the amount is none, or a class has too few images.
  """
  if not amount:
    return source
  number = amount.removesuffix('%')
  try:
    if amount.endswith('%'):
      rows = fewshot.share(labels(source), float(number) / 100, seed)
    else:
      rows = fewshot.per_class(labels(source), int(number), seed)
  except ValueError as e:
    if isinstance(e, UserError):
      raise
    raise UserError(
      f"'{amount}' is no amount of labels: give a share of each class, '1%', "
      "or a number of each class, '10'"
    ) from None
  return subset(source, rows, f'{amount} of the labels, seed {seed}')
