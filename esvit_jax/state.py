"""What training carries from step to step, and the step itself.

Everything here is a plain pytree and a pure function. A method (EsViT, MAE,
SiT, ...) is a tuple of functions; the step that moves the state is shared:

  keys -> views -> gradient of the loss -> optimiser -> EMA teacher
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

Tree = Any
Metrics = dict[str, jax.Array]


class TrainState(NamedTuple):
  """The whole of a run.

  Attributes:
    step: i32[], number of steps taken, skipped ones included.
    params: what the optimiser trains.
    teacher: a tree like `params` (its EMA), a frozen tree of any shape
      (distillation), or None.
    extra: what changes without gradients: centres, batch statistics.
    opt_state: the optimiser's.
  """

  step: jax.Array
  params: Tree
  teacher: Tree
  extra: Tree
  opt_state: Tree


class Horizon(NamedTuple):
  """Length of a run, in steps.

  An epoch is one pass over the images, images / batch size steps: seldom a
  whole number, and less than 1 where a batch is larger than the set.
  """

  steps: int
  steps_per_epoch: float

  @property
  def epochs(self) -> int:
    """Whole epochs, the last perhaps begun only.

    Steps are rounded, so half a step more begins no epoch.
    """
    half = 0.5 / max(self.steps_per_epoch, 1)
    return math.ceil(self.steps / self.steps_per_epoch - half)

  def steps_in(self, epochs: float) -> int:
    """Whole steps of some epochs: 0 of none, else at least 1."""
    return max(round(epochs * self.steps_per_epoch), 1) if epochs else 0


class Run(NamedTuple):
  """Facts about a run that a method may build on, beside its config.

  Attributes:
    horizon: length of the run.
    shards: number of devices the batch is split over.
    classes: of the data; 0 without labels.
    multi_label: whether an image may be of several.
    pixel_classes: classes of pixels; 0 where they are not known.
    object_classes: classes of objects; 0 where they are not known.
    teacher: (backbone, its variables) of a frozen network, or None.
  """

  horizon: Horizon
  shards: int = 1
  classes: int = 0
  multi_label: bool = False
  pixel_classes: int = 0
  object_classes: int = 0
  teacher: tuple[Any, Tree] | None = None


class Loss(NamedTuple):
  """value f32[]; extra: the next `TrainState.extra`; metrics: f32 scalars."""

  value: jax.Array
  extra: Tree
  metrics: Metrics


class Method(NamedTuple):
  """A way to learn, as functions; `methods.method.define` has the usual ones.

  Attributes:
    init: key -> (params, teacher, extra).
    views: (batch, keys[B]) -> Views, a dict of f32[B, V, h, w, C].
    loss: (params, state, views, key) -> Loss. Gradients flow to `params`.
    features: (params, stats, images f32[N, H, W, C]) -> Features of N images;
      `stats` is `extra['student']` or `extra['teacher']`.
    momentum: step -> EMA momentum, or None where the teacher stays as it is.
    stages: the loss in pieces, for measuring only: name -> (state, views,
      key, done) -> arrays, where `done` holds what the pieces before gave.
    network: 'teacher' or 'student', the one to evaluate and hand on.
    chance: the loss of a network that knows nothing, where there is one.
    predict: (params, stats, images) -> class scores f32[N, classes], of
      methods that learn from labels.
    show: (state, views, key) -> name -> (titles of columns, normalised images
      f32[B, columns, h, w, C]), to be drawn.
  """

  init: Callable
  views: Callable
  loss: Callable
  features: Callable
  momentum: Callable | None
  stages: dict[str, Callable]
  network: str = 'teacher'
  chance: float | None = None
  predict: Callable | None = None
  show: Callable | None = None


def create(method: Method, tx: optax.GradientTransformation, key) -> TrainState:
  """A fresh state."""
  params, teacher, extra = method.init(key)
  return TrainState(
    jnp.zeros((), jnp.int32), params, teacher, extra, tx.init(params)
  )


def make_train_step(
  method: Method,
  tx: optax.GradientTransformation,
  accumulate: int = 1,
  whole: jax.sharding.Sharding | None = None,
):
  """The shared step.

  Args:
    method: what is learned.
    tx: the optimiser.
    accumulate: number of parts the batch is taken in, see `gradient`.
    whole: where parameters are gathered for the loss, if they are stored in
      pieces.

  Returns:
    (state, batch, key) -> (state, metrics), to be jitted. Randomness is a
    function of (key, state.step) alone. A step whose loss or gradients are
    not finite moves nothing but the step count and reports `skipped` = 1.
  """

  def train_step(state: TrainState, batch, key) -> tuple[TrainState, Metrics]:
    key = jax.random.fold_in(key, state.step)
    views_key, loss_key = jax.random.split(key)
    keys = jax.random.split(views_key, len(batch['image']))
    grads, loss = gradient(
      method, gather(state, whole), batch, keys, loss_key, accumulate
    )
    updates, opt_state = tx.update(grads, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    teacher = follow(method, state, params)
    moved = TrainState(state.step, params, teacher, loss.extra, opt_state)
    metrics = {
      **loss.metrics,
      'loss': loss.value,
      'grad_norm': optax.tree.norm(grads),
      'update_norm': optax.tree.norm(updates),
      'param_norm': optax.tree.norm(state.params),
    }
    finite = jnp.isfinite(loss.value) & jnp.isfinite(metrics['grad_norm'])
    state = jax.tree.map(lambda a, b: jnp.where(finite, a, b), moved, state)
    metrics['skipped'] = 1.0 - finite
    return state._replace(step=state.step + 1), metrics

  return train_step


def gradient(
  method: Method, state: TrainState, batch, keys, key, accumulate: int = 1
) -> tuple[Tree, Loss]:
  """Gradient by the parameters, and the loss.

  Args:
    method: what is learned.
    state: with whole parameters.
    batch: arrays [B, ...].
    keys: of the views, [B].
    key: of the loss.
    accumulate: number of parts the batch is taken in, one after the other.
      For losses that are means over images the result is that of the whole
      batch; batch norm and contrastive negatives see one part at a time.
  """

  def of_part(batch, keys, key):
    def objective(params):
      loss = method.loss(params, state, method.views(batch, keys), key)
      return loss.value, loss

    return jax.grad(objective, has_aux=True)(state.params)

  if accumulate == 1:
    return of_part(batch, keys, key)
  # Every part starts from the same centres and statistics; these move linearly
  # in the batch, so the mean of the parts is the whole's.
  parts = jax.tree.map(lambda x: _parts(x, accumulate), (batch, keys))
  part_keys = jax.random.split(key, accumulate)
  zeros = jax.tree.map(
    lambda x: jnp.zeros(x.shape, x.dtype),
    jax.eval_shape(of_part, batch, keys, key),
  )
  total, _ = jax.lax.scan(
    lambda sums, part: (jax.tree.map(jnp.add, sums, of_part(*part)), None),
    zeros,
    (*parts, part_keys),
  )
  return jax.tree.map(lambda x: x / accumulate, total)


def gather(state: TrainState, whole) -> TrainState:
  """The state with parameters that were stored in pieces made whole.

  Once for the whole step: the loops of a loss must not do it.
  """
  if whole is None:
    return state
  params, teacher = jax.lax.with_sharding_constraint(
    (state.params, state.teacher), whole
  )
  return state._replace(params=params, teacher=teacher)


def follow(method: Method, state: TrainState, params: Tree) -> Tree:
  """The teacher after a step that made the student's parameters `params`."""
  if method.momentum is None:
    return state.teacher
  # A student may have parts that its teacher lacks, such as a predictor.
  followed = {name: params[name] for name in state.teacher}
  return ema(state.teacher, followed, method.momentum(state.step))


def ema(average: Tree, new: Tree, momentum) -> Tree:
  """momentum * average + (1 - momentum) * new, leaf by leaf."""
  return jax.tree.map(
    lambda a, n: (momentum * a + (1 - momentum) * n).astype(a.dtype),
    average,
    new,
  )


def _parts(x: jax.Array, n: int) -> jax.Array:
  """[B, ...] -> [n, B/n, ...], striding, so that B/n stays sharded."""
  x = x.reshape(x.shape[0] // n, n, *x.shape[1:])  # B/n n ...
  return jnp.swapaxes(x, 0, 1)  # n B/n ...
