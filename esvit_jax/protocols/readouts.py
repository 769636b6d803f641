"""Read-outs of maps: learned from masks in one reading, judged in another."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from esvit_jax import sharding
from esvit_jax.dense import (
  in_context,
  linear,
  metrics,
  resize,
  tokens,
  views,
)
from esvit_jax.evals import neighbours
from esvit_jax.protocols import maps as maps_lib
from esvit_jax.protocols.setup import Setup
from esvit_jax.workdir import terminal

READOUTS = ('linear', 'balanced', 'in_context')


class Learned(NamedTuple):
  """What was learned from the training images on one map.

  Attributes:
    linear, balanced: read-outs, the latter with classes weighted alike.
    bank: patches to compare with f32[M, D].
    shares: their classes f32[M, C].
  """

  linear: linear.Readout
  balanced: linear.Readout
  bank: np.ndarray
  shares: np.ndarray


class Task(NamedTuple):
  """What the jitted functions below share.

  Attributes:
    setup: the network, its images, the config.
    network: to judge.
    balance: weight of each class f32[C].
    count: patches to remember of an image.
    out: where to show how far it is.
  """

  setup: Setup
  network: maps_lib.Network
  balance: np.ndarray
  count: int
  out: Any

  def batches(self, source, what: str):
    """Each image of a source once; see `Setup.whole_batches`."""
    total = -(-len(source) // self.setup.config.batch_size)
    batches = self.setup.whole_batches(source)
    return terminal.counted(batches, total, what, self.out)

  def view(self, batch) -> tuple[jax.Array, jax.Array]:
    """Whole images, normalised, and the size of their pixels in a view."""
    c = self.setup.config
    images = views.whole(
      batch['image'], batch['size'], c.size, c.data.mean, c.data.std
    )
    return images, views.steps(batch['size'], c.size)


def learn(task: Task, parts) -> dict[str, Learned]:
  """Reads the training images once; `parts` are to learn from and to check."""
  key = jax.random.key(task.setup.config.seed)

  @maps_lib.replicated_by(task.setup)
  def read(variables, batch):
    images, steps = task.view(batch)
    found = task.network.maps(variables, images)
    result = {}
    for name, maps in maps_lib.named(found, images.shape[1]).items():
      x = resize.side_by_side(maps)
      shares, counted = tokens.class_shares(
        batch['segmentation'], steps, x.shape[1:3], len(task.balance)
      )
      weights = counted > 0, jnp.einsum('bhwc,c->bhw', shares, task.balance)
      sums = tuple(linear.sums(x, shares, w) for w in weights)
      keys = jax.vmap(jax.random.fold_in, (None, 0))(key, batch['index'])
      result[name] = sums, _memory(maps, shares, keys, task.count)
    return result

  sums, banks = [], {}
  for part in parts:
    total = None
    for batch in task.batches(part, 'learning'):
      found = jax.device_get(read(task.network.variables, batch))
      some = jax.tree.map(np.float64, {k: v[0] for k, v in found.items()})
      total = some if total is None else jax.tree.map(np.add, total, some)
      for name, (_, (bank, shares)) in found.items():
        known = shares.any(-1)
        banks.setdefault(name, []).append((bank[known], shares[known]))
    sums.append(total)
  kept, held = sums
  return {
    name: Learned(
      *(linear.solve(*pair) for pair in zip(kept[name], held[name])),
      *(np.concatenate(x) for x in zip(*banks[name])),
    )
    for name in kept
  }


def _memory(maps, shares, keys, count: int) -> tuple[jax.Array, jax.Array]:
  """Some patches of each image f32[B, n, D], and their classes f32[B, n, C]."""
  B, h, w, C = shares.shape
  count = min(count, h * w)
  shares = shares.reshape(B, h * w, C)
  rows = jax.vmap(lambda s, k: in_context.rare_first(s, k, count))(shares, keys)
  rows = rows[..., None]
  bank = maps_lib.unit(maps).reshape(B, h * w, -1)
  return tuple(jnp.take_along_axis(x, rows, 1) for x in (bank, shares))


def judge(task: Task, test, learned) -> dict[str, dict[str, metrics.Scores]]:
  """map -> read-out -> scores, on the test images."""
  classes, k = len(task.balance), task.setup.config.segmentation.neighbours
  canvas = test.canvas

  def compare(x, batch, steps):
    found = resize.classes_at_pixels(x, steps, canvas)
    return metrics.confusion(batch['segmentation'], found, classes)

  @maps_lib.replicated_by(task.setup)
  def read(variables, readouts, batch):
    images, steps = task.view(batch)
    found = task.network.maps(variables, images)
    result = {}
    for name, maps in maps_lib.named(found, images.shape[1]).items():
      x = resize.side_by_side(maps)
      confusions = [compare(r(x), batch, steps) for r in readouts[name]]
      result[name] = confusions, maps_lib.unit(maps)
    return result

  @maps_lib.replicated_by(task.setup)
  def ask(similarity, index, shares, batch):
    def vote(found):
      return in_context.vote(found[0], shares[found[1]])

    x = jax.lax.map(lambda rows: jax.lax.map(vote, rows), (similarity, index))
    return compare(x, batch, task.view(batch)[1])

  everywhere = sharding.replicated(task.setup.mesh)
  readouts = {name: tuple(x[:2]) for name, x in learned.items()}
  banks = {k: jax.device_put(x.shares, everywhere) for k, x in learned.items()}
  totals = {name: [0, 0, 0] for name in learned}
  for batch in task.batches(test, 'judging'):
    found = read(task.network.variables, readouts, batch)
    for name, (confusions, unit) in jax.device_get(found).items():
      near = neighbours.nearest(
        learned[name].bank,
        unit.reshape(-1, unit.shape[-1]),
        min(k, len(learned[name].bank)),
        task.setup.mesh,
      )
      near = (x.reshape(*unit.shape[:3], -1) for x in near)
      confusions.append(ask(*near, banks[name], batch))
      for i, confusion in enumerate(confusions):
        totals[name][i] = totals[name][i] + np.asarray(confusion, np.int64)
  return {
    name: dict(zip(READOUTS, map(metrics.scores, confusions)))
    for name, confusions in totals.items()
  }
