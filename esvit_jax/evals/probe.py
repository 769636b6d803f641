"""Linear probes by SGD: many heads trained at once, and the best one tested.

The best head is chosen on a part of train that is held out, never on test; the
published code tracks the best epoch on test instead.
"""

import itertools
import math
from collections.abc import Iterable, Iterator
from typing import NamedTuple

import numpy as np
from jax.sharding import Mesh

from esvit_jax.data import fewshot
from esvit_jax.errors import UserError
from esvit_jax.evals import heads as heads_lib
from esvit_jax.evals.finite import counted, finite_rows, take
from esvit_jax.evals.heads import SWEEP, Features, Labelled, Recipe
from esvit_jax.evals.scores import METRICS

HELD_OUT = 0.1  # share of train that chooses a head


class Sweep(NamedTuple):
  """The result of a sweep: scores = x @ weight + bias on features `name`.

  `table` has one row for each head, best first: 'features', 'norm', 'lr' and
  'held_out', the metric in percent on the held-out part (NaN without one).
  `figures` are those of the best head on test, in percent.
  """

  name: str
  weight: np.ndarray  # f32[D, C], normalisation included
  bias: np.ndarray  # f32[C]
  table: list[dict]
  figures: dict[str, float]


def figures(
  train_x, train_y, test_x, test_y, recipe: Recipe = SWEEP
) -> dict[str, float]:
  """`probe` as an evaluator: top-1, top-5 and mean per class."""
  train, test = ({'x': train_x}, train_y), ({'x': test_x}, test_y)
  return probe(train, test, recipe).figures


def probe(
  train: Labelled,
  test: Labelled,
  recipe: Recipe = heads_lib.PUBLISHED,
  metric: str = 'top1',
  held_out: float = HELD_OUT,
  refit: bool = True,
  seed: int = 0,
  mesh: Mesh | None = None,
) -> Sweep:
  """Trains heads on features in memory, chooses one and tests it.

  With several heads, one is chosen on `held_out` of train and, if `refit`,
  trained once more on the whole. A single head is trained on the whole at
  once, as published. Memory as `sweep` says; the features may be
  memory-mapped files.

  Args:
    train: features by name and labels: classes from 0, or for each class 1,
      0 or -1 (not counted).
    test: likewise.
    recipe: of all heads; a batch has no more images than train.
    metric: of scores.METRICS, by which to choose.
    held_out: share of each class. A class with one image stays in train.
    refit: train the best head on all of train.
    seed: of first weights, order and held-out part.
    mesh: devices among which to split each batch; by default one device.

  Returns:
    The best head, its figures on test ('non_finite': how many images of both
    were left out), and the table of all heads.

  Raises:
    UserError: images without a label, several labels where one is needed, or
      many features that are not finite.
  """
  heads_lib.check(recipe)
  train_x, train_y, test_y = train[0], np.asarray(train[1]), np.asarray(test[1])
  fewshot.require_labels('a linear probe', train_y, test_y)
  classes = _classes(train_y, test_y)
  rows = np.flatnonzero(finite_rows(train_x, 'training'))

  def trained(rows, recipe, names, held):
    size = min(recipe.batch_size, len(rows))
    if mesh is not None:
      size = max(size // mesh.size, 1) * mesh.size
    x = {name: train_x[name] for name in names}
    return sweep(
      _epochs(x, train_y, rows, size, seed),
      len(rows) // size,
      classes,
      held,
      test,
      recipe,
      metric,
      seed,
      mesh,
    )

  if len(train_x) * len(recipe.norms) * len(recipe.lrs) == 1:
    best = trained(rows, recipe, train_x, None)
  else:
    kept, held = fewshot.held_out(
      train_y[rows], held_out, seed, keep_singles=True
    )
    held = rows[held]
    held_x = {name: x[held] for name, x in train_x.items()}
    best = trained(rows[kept], recipe, train_x, (held_x, train_y[held]))
    if refit:
      chosen, table = best.table[0], best.table
      alone = recipe._replace(lrs=(chosen['lr'],), norms=(chosen['norm'],))
      best = trained(rows, alone, [best.name], None)._replace(table=table)
  left_out = best.figures.pop('non_finite', 0) + len(train_y) - len(rows)
  return best._replace(figures=counted(best.figures, left_out))


def sweep(
  stream: Iterable[Labelled],
  steps_per_epoch: int,
  classes: int,
  held_out: Labelled | None,
  test: Labelled,
  recipe: Recipe = SWEEP,
  metric: str = 'top1',
  seed: int = 0,
  mesh: Mesh | None = None,
) -> Sweep:
  """Trains all heads of a recipe in one pass over a stream of batches.

  The device holds, in bytes, for each name of features and each norm
  8 D L C (heads and momentum) and 8 B L C for a step, and two packs of 64 MB
  (or of one batch) of features: with D 2304, L 8, C 1000 and B 1024, 147 MB
  for each pair, 66 MB and 128 MB. The host holds `held_out` and `test`.

  Args:
    stream: batches of one size, of images however augmented; recipe.epochs x
      steps_per_epoch of them are read.
    steps_per_epoch: batches.
    classes: C.
    held_out: images of train that the stream leaves out, to choose by; with
      None or no images the head in the middle of the list is taken.
    test: what the best head is tested on.
    recipe: `batch_size` is the stream's matter.
    metric: of scores.METRICS.
    seed: of the first weights.
    mesh: devices among which to split each batch; by default one device.

  Returns:
    The best head, its figures on test, and the table of all heads.

  Raises:
    UserError: the stream ends early, or holds images without a label or
      features that are not finite, or no head has learned.
  """
  heads_lib.check(recipe)
  if metric not in METRICS:
    raise UserError(
      f"a linear probe has no metric '{metric}': choose one of "
      f'{", ".join(METRICS)}'
    )
  stream = iter(stream)
  first = next(stream, None)
  if first is None or steps_per_epoch < 1:
    raise UserError('a linear probe needs at least one batch of features')
  lengths = {name: x.shape[1] for name, x in first[0].items()}
  heads = heads_lib.train(
    itertools.chain([first], stream),
    steps_per_epoch,
    lengths,
    classes,
    len(first[1]),
    recipe,
    seed,
    mesh,
  )
  table = _table(heads, recipe, held_out, metric)
  name = table[0]['features']
  W, b = _affine(heads, recipe, table[0])
  if not (np.isfinite(W).all() and np.isfinite(b).all()):
    raise UserError(
      'the linear probe has diverged at every learning rate: take lower ones'
    )
  rows = finite_rows(test[0], 'test')
  x, y = take(test[0][name], rows), take(np.asarray(test[1]), rows)
  figures = _figures(x @ W + b, y, metric)
  left_out = int((~rows).sum())
  return Sweep(name, W, b, table, counted(figures, left_out))


def _epochs(x: Features, y, rows, size: int, seed: int) -> Iterator[Labelled]:
  """Batches for ever, each epoch in an order of its own.

  What does not fill a batch waits for another epoch.
  """
  rng = np.random.default_rng(seed)
  while True:
    order = rng.permutation(rows)
    for start in range(0, len(rows) - size + 1, size):
      at = order[start : start + size]
      yield {name: array[at] for name, array in x.items()}, y[at]


def _table(heads, recipe: Recipe, held_out, metric: str) -> list[dict]:
  """A row for each head, best by `held_out` first."""
  table = [
    {'features': name, 'norm': norm, 'lr': lr, 'held_out': math.nan}
    for name, norm in heads
    for lr in recipe.lrs
  ]
  if held_out is None or not len(held_out[1]):
    table.insert(0, table.pop(len(table) // 2))
    return table
  rows = finite_rows(held_out[0], 'held-out')
  y = take(np.asarray(held_out[1]), rows)
  fewshot.require_labels('a linear probe', y)

  def merit(row):
    W, b = _affine(heads, recipe, row)
    x = take(held_out[0][row['features']], rows)
    row['held_out'] = METRICS[metric](x @ W + b, y)
    # Few images tie often; the loss then decides.
    loss = float(heads_lib.cross_entropy({'w': W, 'b': b}, x, y))
    return row['held_out'], -loss if math.isfinite(loss) else -math.inf

  merits = [merit(row) for row in table]
  order = sorted(range(len(table)), key=merits.__getitem__, reverse=True)
  return [table[i] for i in order]


def _affine(heads, recipe: Recipe, row: dict) -> tuple[np.ndarray, np.ndarray]:
  """Weight f32[D, C] and bias f32[C] of the head of a row."""
  i = recipe.lrs.index(row['lr'])
  return heads_lib.affine(heads[row['features'], row['norm']], i, row['norm'])


def _figures(scores, y, metric: str) -> dict[str, float]:
  names = ('top1', 'top5', 'mean_per_class') if y.ndim == 1 else ()
  return {
    name: METRICS[name](scores, y) for name in dict.fromkeys((*names, metric))
  }


def _classes(train_y: np.ndarray, test_y: np.ndarray) -> int:
  if train_y.ndim == 2:
    return train_y.shape[1]
  return int(max(train_y.max(), test_y.max())) + 1
