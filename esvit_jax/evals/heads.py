"""Linear classifiers on fixed features, many trained at once.

A sweep has a head for each learning rate x features x normalisation. All see
the same batches, so it costs one reading of the features.

  D length of features, L learning rates, C classes, B images of a batch.
"""

import functools
import math
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from esvit_jax.data import fewshot
from esvit_jax.errors import UserError

Features = Mapping[str, np.ndarray]  # name -> f[B, D of that name]
Labelled = tuple[Features, np.ndarray]  # with labels i[B], or i[B, C]

EPSILON = 1e-6  # of batch normalisation
PACK = 2**26  # bytes of batches that go to the device together


class Recipe(NamedTuple):
  """How heads are trained; as it is, EsViT's published probe.

  EsViT (arXiv 2106.09785), section 4.1.
  """

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
# MAE's (arXiv 2111.06377, table 10).
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


class Heads(NamedTuple):
  """L heads on the same features.

  Attributes:
    params: 'w' f32[L, D, C] and 'b' f32[L, C].
    opt_state: of all.
    mean, var: what batch norm remembers, f32[D].
  """

  params: dict[str, jax.Array]
  opt_state: Any
  mean: jax.Array
  var: jax.Array


def check(recipe: Recipe) -> None:
  """Raises UserError for a word or a number that no recipe can have."""
  least = min(recipe.epochs, recipe.batch_size)
  if least < 1 or not recipe.lrs or not min(recipe.lrs) > 0:
    raise UserError(
      f'a linear probe with epochs={recipe.epochs}, batch={recipe.batch_size} '
      f'and lrs={recipe.lrs}: use 1 or more, and rates above 0'
    )
  words = {
    'optimizer': ([recipe.optimizer], ('sgd', 'lars')),
    'cosine': ([recipe.cosine], ('epoch', 'step')),
    'norm': (recipe.norms, ('none', 'batch')),
  }
  for field, (given, known) in words.items():
    for word in given:
      if word not in known:
        raise UserError(
          f"a linear probe has no {field} '{word}': choose one of "
          f'{", ".join(known)}'
        )


def train(
  stream: Iterator[Labelled],
  steps_per_epoch: int,
  lengths: Mapping[str, int],
  classes: int,
  batch_size: int,
  recipe: Recipe,
  seed: int = 0,
  mesh: Mesh | None = None,
) -> dict[tuple[str, str], Heads]:
  """Trains all heads of a recipe on recipe.epochs x steps_per_epoch batches.

  Args:
    stream: batches of one size.
    steps_per_epoch: batches.
    lengths: name of features -> D.
    classes: C.
    batch_size: B.
    recipe: its `batch_size` is the stream's matter.
    seed: of the first weights.
    mesh: devices among which to split each batch; by default one device.

  Returns:
    (features, norm) -> heads, on the host.

  Raises:
    UserError: the stream ends early, or holds images without a label or
      features that are not finite.
  """
  tx = optimizer(recipe)
  heads = _first_heads(lengths, classes, recipe, tx, seed)
  rates = _rates(recipe, steps_per_epoch, batch_size)
  trained = 0
  for x, y in _packs(stream, len(rates), classes):
    place = functools.partial(_placed, mesh=mesh)
    at = slice(trained, trained + len(y))
    steps = place(np.arange(len(rates))[at]), place(rates[at])
    pack = jax.tree.map(functools.partial(place, split=True), (x, y))
    heads = _train(heads, *pack, *steps, tx=tx)
    trained += len(y)
  return jax.device_get(heads)


@functools.lru_cache(maxsize=8)
def optimizer(recipe: Recipe) -> optax.GradientTransformation:
  """All but the learning rate, which each head has for itself."""
  momentum = optax.trace(recipe.momentum)
  if recipe.optimizer == 'sgd':
    return momentum
  trust = optax.scale_by_trust_ratio(trust_coefficient=recipe.trust)
  # As MAE has it: not for the bias.
  return optax.chain(optax.masked(trust, {'w': True, 'b': False}), momentum)


def cross_entropy(params, x: jax.Array, y: jax.Array) -> jax.Array:
  """Mean over the images (and, of several labels each, over the classes).

  Args:
    params: 'w' f32[D, C] and 'b' f32[C].
    x: f32[B, D].
    y: classes i[B], or 1, 0 and -1 (not counted) i[B, C].
  """
  logits = jnp.matmul(x, params['w'], precision='highest') + params['b'][None]
  if y.ndim == 1:
    return optax.softmax_cross_entropy_with_integer_labels(logits, y).mean()
  each = optax.sigmoid_binary_cross_entropy(logits, y)
  return jnp.where(y < 0, 0, each).mean()


def affine(heads: Heads, i: int, norm: str) -> tuple[np.ndarray, np.ndarray]:
  """Weight f32[D, C] and bias f32[C] of the i-th head, batch norm folded in."""
  W, b = heads.params['w'][i].astype(np.float64), heads.params['b'][i]
  if norm == 'batch':
    W = W / np.sqrt(heads.var + EPSILON)[:, None]
    b = b - heads.mean @ W
  return W.astype(np.float32), b.astype(np.float32)


def _first_heads(lengths, classes: int, recipe: Recipe, tx, seed: int):
  """(features, norm) -> heads, which start alike for all learning rates."""
  L = len(recipe.lrs)

  def start(D):
    w = jax.random.normal(jax.random.key(seed), (D, 1, classes))
    w = jnp.tile(recipe.init_std * w.transpose(1, 0, 2), (L, 1, 1))
    params = {'w': w, 'b': jnp.zeros((L, classes))}
    return Heads(params, jax.vmap(tx.init)(params), jnp.zeros(D), jnp.ones(D))

  return {
    (name, norm): start(D)
    for name, D in lengths.items()
    for norm in recipe.norms
  }


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
      _check(*batch, classes)
      batches.append(batch)
      size += sum(x.nbytes for x in batch[0].values())
      steps -= 1
    yield jax.tree.map(lambda *arrays: np.stack(arrays), *batches)


def _check(x: Features, y: np.ndarray, classes: int) -> None:
  fewshot.require_labels('a linear probe', y)
  if not all(np.isfinite(array).all() for array in x.values()):
    raise UserError(
      'a linear probe met features that are not finite: the network has '
      'diverged, or overflows in its dtype (try float32)'
    )
  if (y.max() >= classes) if y.ndim == 1 else (y.shape[1] != classes):
    raise UserError(
      f'a linear probe of {classes} classes met '
      + (f'label {y.max()}' if y.ndim == 1 else f'{y.shape[1]} labels each')
      + ': give it the number of classes of the whole set'
    )


def _placed(x: np.ndarray, mesh: Mesh | None, split: bool = False):
  """On one device, or on all: whole, or split along the axis of images."""
  if mesh is None:
    return jnp.asarray(x)
  axes = (None, mesh.axis_names[0]) if split else ()
  place = NamedSharding(mesh, PartitionSpec(*axes))
  return jax.make_array_from_callback(x.shape, place, lambda index: x[index])


@functools.partial(jax.jit, static_argnames='tx')
def _train(heads, x, y, steps, rates, tx):
  """Trains on S batches one after the other: x f[S, B, D], y i[S, B]."""

  def step(heads, batch):
    x, y, t, rate = batch
    return {
      (name, norm): _step(head, x[name], y, t, rate, norm, tx)
      for (name, norm), head in heads.items()
    }, None

  return jax.lax.scan(step, heads, (x, y, steps, rates))[0]


def _step(heads: Heads, x, y, t, rate, norm: str, tx) -> Heads:
  """One batch for L heads: x f[B, D], y i[B] or i[B, C], t i[], rate f[L]."""
  x = x.astype(jnp.float32)
  mean, var = heads.mean, heads.var
  if norm == 'batch':
    batch_mean, batch_var = x.mean(0), x.var(0)
    # A plain mean of the first ten batches, then torch's 0.9 and 0.1.
    new = jnp.maximum(0.1, 1 / (t + 1))
    mean = mean + new * (batch_mean - mean)
    var = var + new * (batch_var * len(x) / max(len(x) - 1, 1) - var)
    x = (x - batch_mean[None]) * jax.lax.rsqrt(batch_var + EPSILON)[None]

  def update(params, opt_state, rate):
    grads = jax.grad(cross_entropy)(params, x, y)
    updates, opt_state = tx.update(grads, opt_state, params)
    return jax.tree.map(lambda p, u: p - rate * u, params, updates), opt_state

  params, opt_state = jax.vmap(update)(heads.params, heads.opt_state, rate)
  return Heads(params, opt_state, mean, var)
