"""Linear probes by SGD: many heads trained at once over one stream.

A head is a linear classifier on fixed features. All heads of a sweep (learning
rate x features x normalisation) see the same batches, so a sweep costs one
reading of the features, however many heads it has. The best head is chosen on
a part of train that is held out, never on test; the published code tracks the
best epoch on test instead.

  D length of features, L learning rates, C classes, B images of a batch.
"""

import functools
import itertools
import math
from collections.abc import Iterable, Iterator, Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from esvit_jax.data import fewshot
from esvit_jax.errors import UserError
from esvit_jax.evals.finite import counted, only_finite
from esvit_jax.evals.scores import METRICS

Features = Mapping[str, np.ndarray]  # name -> f[B, D of that name]
Labelled = tuple[Features, np.ndarray]  # with labels i[B], or i[B, C]

HELD_OUT = 0.1  # share of train that chooses a head
EPSILON = 1e-6  # of batch normalisation
PACK = 2**26  # bytes of batches that go to the device together


class Recipe(NamedTuple):
  """How heads are trained; as it is, EsViT's published probe (spec 8)."""

  lrs: tuple[float, ...] = (0.001,)  # per 256 images
  norms: tuple[str, ...] = ('none',)  # or 'batch': batch norm, nothing learnt
  epochs: int = 100
  batch_size: int = 1024
  optimizer: str = 'sgd'  # or 'lars'
  momentum: float = 0.9
  trust: float = 0.001  # lars: step length over weight length
  warmup_epochs: float = 0.0
  cosine: str = 'epoch'  # the rate falls after each 'epoch', or each 'step'
  init_std: float = 0.01


PUBLISHED = Recipe()
# MAE's (mae_lite_and_sit.md 2.5).
MAE = Recipe(
  lrs=(0.1,),
  norms=('batch',),
  epochs=90,
  batch_size=16384,
  optimizer='lars',
  warmup_epochs=10,
  cosine='step',
)
# One that finds its own learning rate, on features of any scale and sets of any
# size: the published ones count on the 1,250 steps of an epoch of ImageNet.
SWEEP = Recipe(
  lrs=(0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0),
  norms=('none', 'batch'),
  epochs=60,
  batch_size=256,
  cosine='step',
)


class Sweep(NamedTuple):
  """What a sweep found: scores = x @ weight + bias on features `name`.

  `table` has one row for each head, best first: 'features', 'norm', 'lr' and
  'held_out', the metric in percent on the held-out part (NaN without one).
  `figures` are those of the best head on test, in percent.
  """

  name: str
  weight: np.ndarray  # f32[D, C], normalisation included
  bias: np.ndarray  # f32[C]
  table: list[dict]
  figures: dict[str, float]


class Heads(NamedTuple):
  """L heads on the same features, their momenta, and batch norm's memory."""

  w: jax.Array  # D L C
  b: jax.Array  # L C
  w_speed: jax.Array
  b_speed: jax.Array
  mean: jax.Array  # D
  var: jax.Array  # D


def figures(
  train_x, train_y, test_x, test_y, recipe: Recipe = SWEEP
) -> dict[str, float]:
  """`probe` as an evaluator: top-1, top-5 and mean per class."""
  train_x, train_y, test_x, test_y, left_out = only_finite(
    train_x, train_y, test_x, test_y
  )
  train, test = ({'x': train_x}, train_y), ({'x': test_x}, test_y)
  return counted(probe(train, test, recipe).figures, left_out)


def probe(
  train: Labelled,
  test: Labelled,
  recipe: Recipe = PUBLISHED,
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
    The best head, its figures on test, and the table of all heads.

  Raises:
    UserError: images without a label, or several labels where one is needed.
  """
  train_x, train_y, test_y = train[0], np.asarray(train[1]), np.asarray(test[1])
  fewshot.require_labels('a linear probe', train_y, test_y)
  classes = _classes(train_y, test_y)

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

  every = np.arange(len(train_y))
  if len(train_x) * len(recipe.norms) * len(recipe.lrs) == 1:
    return trained(every, recipe, train_x, None)
  kept, held = fewshot.held_out(train_y, held_out, seed, keep_singles=True)
  held_x = {name: x[held] for name, x in train_x.items()}
  best = trained(kept, recipe, train_x, (held_x, train_y[held]))
  if not refit:
    return best
  chosen = best.table[0]
  alone = recipe._replace(lrs=(chosen['lr'],), norms=(chosen['norm'],))
  return trained(every, alone, [best.name], None)._replace(table=best.table)


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
      None or no images the middle head is taken.
    test: what the best head is tested on.
    recipe: `batch_size` is the stream's matter.
    metric: of scores.METRICS.
    seed: of the first weights.
    mesh: devices among which to split each batch; by default one device.

  Returns:
    The best head, its figures on test, and the table of all heads.

  Raises:
    UserError: the stream ends early or holds images without a label.
  """
  _check(recipe, metric)
  stream = iter(stream)
  first = next(stream, None)
  if first is None or steps_per_epoch < 1:
    raise UserError('a linear probe needs at least one batch of features')
  stream = itertools.chain([first], stream)
  lengths = {name: x.shape[1] for name, x in first[0].items()}
  heads = _first_heads(lengths, classes, recipe, seed)
  rates = _rates(recipe, steps_per_epoch, len(first[1]))
  trust = recipe.trust if recipe.optimizer == 'lars' else None
  done = 0
  for x, y in _packs(stream, len(rates), classes):
    place = functools.partial(_placed, mesh=mesh)
    now = slice(done, done + len(y))
    steps = place(np.arange(len(rates))[now]), place(rates[now])
    pack = jax.tree.map(functools.partial(place, split=True), (x, y))
    heads = _train(heads, *pack, *steps, recipe.momentum, trust)
    done += len(y)
  heads = jax.device_get(heads)
  table = _table(heads, recipe, held_out, metric)
  best = table[0]
  W, b = _affine(heads, recipe, best)
  x, y = test
  figures = _figures(x[best['features']] @ W + b, np.asarray(y), metric)
  return Sweep(best['features'], W, b, table, figures)


def _check(recipe: Recipe, metric: str) -> None:
  words = {
    'metric': ([metric], METRICS),
    'optimizer': ([recipe.optimizer], ('sgd', 'lars')),
    'cosine': ([recipe.cosine], ('epoch', 'step')),
    'norm': (recipe.norms, ('none', 'batch')),
  }
  for what, (given, known) in words.items():
    for word in given:
      if word not in known:
        raise UserError(
          f"a linear probe has no {what} '{word}': choose one of "
          f'{", ".join(known)}'
        )


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


def _packs(stream, steps: int, classes: int) -> Iterator[Labelled]:
  """Batches stacked along a new first axis, up to PACK bytes together."""
  while steps:
    batches, size = [], 0
    while steps and (not batches or size + size // len(batches) <= PACK):
      batch = next(stream, None)
      if batch is None:
        raise UserError(
          f'the stream of features ended {steps} batches early: repeat it, '
          'or train for fewer epochs'
        )
      _check_labels(batch[1], classes)
      batches.append(batch)
      size += sum(x.nbytes for x in batch[0].values())
      steps -= 1
    yield jax.tree.map(lambda *arrays: np.stack(arrays), *batches)


def _placed(x: np.ndarray, mesh: Mesh | None, split: bool = False):
  """On one device, or on all: whole, or split along the axis of images."""
  if mesh is None:
    return jnp.asarray(x)
  axes = (None, mesh.axis_names[0]) if split else ()
  place = NamedSharding(mesh, PartitionSpec(*axes))
  return jax.make_array_from_callback(x.shape, place, lambda index: x[index])


def _rates(recipe: Recipe, steps_per_epoch: int, batch: int) -> np.ndarray:
  """The learning rate of each head at each step, f32[steps, L]."""
  epoch = np.arange(recipe.epochs * steps_per_epoch) / steps_per_epoch
  if recipe.cosine == 'epoch':
    epoch = np.floor(epoch)
  warm = recipe.warmup_epochs
  phase = (epoch - warm) / max(recipe.epochs - warm, 1)
  falling = 0.5 * (1 + np.cos(math.pi * phase))
  factor = np.where(epoch < warm, epoch / max(warm, 1e-9), falling)
  lrs = np.array(recipe.lrs) * batch / 256
  return (factor[:, None] * lrs[None]).astype(np.float32)


def _first_heads(lengths, classes: int, recipe: Recipe, seed: int):
  """(features, norm) -> heads, which start alike for all learning rates."""
  L = len(recipe.lrs)

  def start(D):
    w = jax.random.normal(jax.random.key(seed), (D, 1, classes))
    w = jnp.tile(recipe.init_std * w, (1, L, 1))
    b = jnp.zeros((L, classes))
    return Heads(w, b, 0 * w, 0 * b, mean=jnp.zeros(D), var=jnp.ones(D))

  return {
    (name, norm): start(D)
    for name, D in lengths.items()
    for norm in recipe.norms
  }


@functools.partial(jax.jit, static_argnames=('momentum', 'trust'))
def _train(heads, x, y, steps, rates, momentum: float, trust: float | None):
  """Trains on S batches one after the other: x f[S, B, D], y i[S, B]."""

  def step(heads, batch):
    x, y, t, rate = batch
    return {
      (name, norm): _step(head, x[name], y, t, rate, norm, momentum, trust)
      for (name, norm), head in heads.items()
    }, None

  return jax.lax.scan(step, heads, (x, y, steps, rates))[0]


def _step(head, x, y, t, rate, norm: str, momentum: float, trust) -> Heads:
  """SGD with momentum on the cross-entropy of one batch.

    error = softmax(x w + b) - onehot(y)         (sigmoid, of several labels)
    speed = momentum speed + x^T error / B,      w = w - rate speed

  x f[B, D], y i[B] or i[B, C], t i[], rate f[L].
  """
  x = x.astype(jnp.float32)
  mean, var = head.mean, head.var
  if norm == 'batch':
    now, spread = x.mean(0), x.var(0)
    # A plain mean of the first ten batches, then torch's 0.9 and 0.1.
    new = jnp.maximum(0.1, 1 / (t + 1))
    mean = mean + new * (now - mean)
    var = var + new * (spread * len(x) / max(len(x) - 1, 1) - var)
    x = (x - now[None]) * jax.lax.rsqrt(spread + EPSILON)[None]
  product = functools.partial(jnp.einsum, precision='highest')
  logits = product('bd,dlc->blc', x, head.w) + head.b[None]
  B, _, C = logits.shape
  if y.ndim == 1:
    truth = jax.nn.one_hot(y, C)[:, None]  # B 1 C
    error = (jax.nn.softmax(logits) - truth) / B
  else:
    truth = y[:, None]  # B 1 C
    error = jnp.where(truth < 0, 0, jax.nn.sigmoid(logits) - truth) / (B * C)
  w_slope, b_slope = product('bd,blc->dlc', x, error), error.sum(0)
  if trust is not None:
    # As MAE has it: for each head alone, and not for its bias.
    length, slope = (
      jnp.sqrt(jnp.square(a).sum((0, 2), keepdims=True))
      for a in (head.w, w_slope)
    )
    ratio = trust * length / jnp.where(slope > 0, slope, 1)
    w_slope *= jnp.where((length > 0) & (slope > 0), ratio, 1)
  w_speed = momentum * head.w_speed + w_slope
  b_speed = momentum * head.b_speed + b_slope
  w = head.w - rate[None, :, None] * w_speed
  b = head.b - rate[:, None] * b_speed
  return Heads(w, b, w_speed, b_speed, mean, var)


def _table(heads, recipe: Recipe, held_out, metric: str) -> list[dict]:
  """A row for each head, best by `held_out` first."""
  rows = [
    {'features': name, 'norm': norm, 'lr': lr, 'held_out': math.nan}
    for name, norm in heads
    for lr in recipe.lrs
  ]
  if held_out is None or not len(held_out[1]):
    rows.insert(0, rows.pop(len(rows) // 2))
    return rows
  x, y = held_out[0], np.asarray(held_out[1])
  fewshot.require_labels('a linear probe', y)

  def merit(row):
    W, b = _affine(heads, recipe, row)
    scores = x[row['features']] @ W + b
    row['held_out'] = METRICS[metric](scores, y)
    # Few images tie often; the loss then tells.
    return row['held_out'], -_loss(scores, y)

  merits = [merit(row) for row in rows]
  order = sorted(range(len(rows)), key=merits.__getitem__, reverse=True)
  return [rows[i] for i in order]


def _affine(heads, recipe: Recipe, row: dict) -> tuple[np.ndarray, np.ndarray]:
  """Weight f32[D, C] and bias f32[C] of a head, batch norm folded in."""
  head = heads[row['features'], row['norm']]
  i = recipe.lrs.index(row['lr'])
  W, b = head.w[:, i].astype(np.float64), head.b[i]
  if row['norm'] == 'batch':
    W = W / np.sqrt(head.var + EPSILON)[:, None]
    b = b - head.mean @ W
  return W.astype(np.float32), b.astype(np.float32)


def _loss(scores: np.ndarray, y: np.ndarray) -> float:
  """Mean cross-entropy; inf if scores are not finite."""
  if not np.isfinite(scores).all():
    return math.inf
  if y.ndim == 1:
    scores = scores - scores.max(1, keepdims=True)
    own = np.take_along_axis(scores, y[:, None], 1)[:, 0]
    return float((np.log(np.exp(scores).sum(1)) - own).mean())
  return float((np.logaddexp(0, scores) - y * scores)[y >= 0].mean())


def _figures(scores, y, metric: str) -> dict[str, float]:
  names = ('top1', 'top5', 'mean_per_class') if y.ndim == 1 else ()
  return {
    name: METRICS[name](scores, y) for name in dict.fromkeys((*names, metric))
  }


def _check_labels(y: np.ndarray, classes: int) -> None:
  fewshot.require_labels('a linear probe', y)
  if (y.max() >= classes) if y.ndim == 1 else (y.shape[1] != classes):
    raise UserError(
      f'a linear probe of {classes} classes met '
      + (f'label {y.max()}' if y.ndim == 1 else f'{y.shape[1]} labels each')
      + ': give it the number of classes of the whole set'
    )


def _classes(train_y: np.ndarray, test_y: np.ndarray) -> int:
  if train_y.ndim == 2:
    return train_y.shape[1]
  return int(max(train_y.max(), test_y.max())) + 1
