"""Numbers that are not finite, or of no use: whether, and which first."""

import math
from collections.abc import Iterator
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from esvit_jax import state as state_lib
from esvit_jax.run.jobs import Job

NETWORKS = ('student', 'teacher')
# Above this the root mean square of an array of parameters is that of no
# network that learns: weights start below 1, gains at 1.
LARGEST_RMS = 100.0


def unsound(state) -> str:
  """What is wrong with the arrays of a TrainState; '' where nothing is.

  Parameters, teacher and what changes beside them are to be finite, and no
  array of parameters larger than LARGEST_RMS. All processes call it.
  """
  trees = {'params': state.params, 'teacher': state.teacher}
  sizes, finite = jax.jit(
    lambda trees, extra: (
      jax.tree.map(_rms, trees),
      jax.tree.map(lambda x: jnp.isfinite(x).all(), extra),
    )
  )(trees, {'extra': state.extra})
  for path, ok in jax.tree_util.tree_leaves_with_path(finite):
    if not ok:
      return f'{_name(path)} is not finite'
  for path, rms in jax.tree_util.tree_leaves_with_path(sizes):
    if not math.isfinite(rms):
      return f'{_name(path)} is not finite'
    if rms > LARGEST_RMS:
      return f'{_name(path)} is of size {float(rms):.2g}'
  return ''


def _rms(x):
  """Root of the mean square, of the largest so that squares stay finite."""
  x = jnp.abs(x).astype(jnp.float32)
  largest = jnp.max(x, initial=1e-30)
  return largest * jnp.sqrt(jnp.mean((x / largest) ** 2))


def _name(path) -> str:
  return jax.tree_util.keystr(path, simple=True, separator='/')


class Extent(NamedTuple):
  """What some arrays hold: whether all is finite, and the largest size."""

  finite: bool
  largest: float

  def __str__(self) -> str:
    return f'up to {self.largest:.3g}'


def explain(job: Job, state, batch) -> Iterator[str]:
  """Lines that say what first went wrong in a step, from its inputs on.

  Args:
    job: of the run.
    state: before the step.
    batch: of the step.
  """
  if fault := unsound(state):
    yield f'state: {fault}'
  step_key = jax.random.fold_in(job.key, state.step)
  views_key, loss_key = jax.random.split(step_key)
  keys = jax.random.split(views_key, len(batch['image']))
  views = jax.jit(job.method.views)(batch, keys)
  for name, x in views.items():
    extent = extent_of(x)
    if not extent.finite:
      yield f'first non-finite: the input, views {name}'
      return
    yield f'views {name}: finite, {extent}'

  with Layers() as layers:
    loss = layers.run(job.method.loss, state, views, loss_key)
  before = None
  for layer, extent in layers.in_order():
    if not extent.finite:
      yield f'first non-finite: layer {layer}' + (
        f'; the one before, {before[0]}, gave {before[1]}' if before else ''
      )
      return
    before = layer, extent
  if before:
    yield f'layers: all {len(layers.in_order())} are finite'
  for name, x in {**loss.metrics, 'loss': loss.value}.items():
    if not np.isfinite(x):
      yield f'first non-finite: part {name} of the loss'
      return
  yield f'loss: {float(loss.value):.6g}'
  yield _of_gradient(job, state, batch, keys, loss_key)


def _of_gradient(job: Job, state, batch, keys, key) -> str:
  grads, _ = jax.jit(
    lambda *inputs: state_lib.gradient(
      job.method, *inputs, job.config.accumulate
    )
  )(state, batch, keys, key)
  bad = [
    jax.tree_util.keystr(path, simple=True, separator='/')
    for path, x in jax.tree_util.tree_leaves_with_path(grads)
    if not extent_of(x).finite
  ]
  if not bad:
    return 'gradient: finite, and so is this step on these devices'
  return (
    f'first non-finite: the gradient, of {len(bad)} parameters, such as '
    f'{bad[-1]}'
  )


class Layers:
  """Records what the modules of all networks give, in the order of calls.

  A context manager, in which modules are watched.
  """

  def __init__(self):
    self._names: list[str] = []
    self._extents: dict[int, list[Extent]] = {}
    self._network = ''
    self._owners: dict[int, str] = {}

  def __enter__(self) -> 'Layers':
    self._watch = nn.intercept_methods(self._record)
    self._watch.__enter__()
    return self

  def __exit__(self, *unused) -> None:
    self._watch.__exit__(*unused)

  def run(self, loss, state, views, key) -> state_lib.Loss:
    """The loss, computed under watch."""

    @jax.jit
    def watched(state, views, key):
      trees = dict(zip(NETWORKS, (state.params, state.teacher)))
      self._owners = {
        id(x): name
        for name, tree in trees.items()
        for x in jax.tree.leaves(tree)
      }
      return loss(state.params, state, views, key)

    result = jax.block_until_ready(watched(state, views, key))
    jax.effects_barrier()
    return result

  def in_order(self) -> list[tuple[str, Extent]]:
    """(name, extent) of each call; of those in a loop, all together."""
    return [
      (
        self._names[i],
        Extent(all(e.finite for e in seen), max(e.largest for e in seen)),
      )
      for i, seen in sorted(self._extents.items())
    ]

  def _record(self, call, args, kwargs, context):
    module = context.module
    if module.scope is None:  # no layer at work, but one being made
      return call(*args, **kwargs)
    if not module.path:
      leaves = jax.tree.leaves(module.variables)
      owners = {self._owners[id(x)] for x in leaves if id(x) in self._owners}
      self._network = owners.pop() if len(owners) == 1 else ''
    result = call(*args, **kwargs)
    arrays = [
      x
      for x in jax.tree.leaves(result)
      if isinstance(x, jax.Array) and jnp.issubdtype(x.dtype, jnp.floating)
    ]
    if arrays:
      names = (self._network, *module.path, context.method_name)
      name = '/'.join(x for x in names if x and x != '__call__')
      number = len(self._names)
      self._names.append(name)
      jax.debug.callback(
        lambda finite, largest: self._extents.setdefault(number, []).append(
          Extent(bool(np.all(finite)), float(np.max(largest)))
        ),
        *_measures(arrays),
      )
    return result


def extent_of(x) -> Extent:
  """Of one array."""
  finite, largest = jax.jit(lambda x: _measures([x]))(x)
  return Extent(bool(finite), float(largest))


def _measures(arrays):
  """(whether all is finite, the largest finite size)."""
  finite = [jnp.isfinite(x) for x in arrays]
  sizes = [
    jnp.max(jnp.where(ok, jnp.abs(x), 0), initial=0).astype(jnp.float32)
    for ok, x in zip(finite, arrays)
  ]
  every = jnp.stack([jnp.all(ok) for ok in finite])
  return jnp.all(every), jnp.max(jnp.stack(sizes))
