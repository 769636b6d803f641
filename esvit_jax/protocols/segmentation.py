"""Frozen segmentation: what the tokens of a network tell of each pixel.

Two read-outs without a training loop: a linear one in one solve, and the
classes of the nearest patches of training images (Hummingbird, 2306.01667).
Judged at the pixels of the canvas, by one confusion matrix over all images.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from esvit_jax import data, sharding
from esvit_jax.analysis.plots import overlays
from esvit_jax.dense import (
  VOID,
  in_context,
  linear,
  metrics,
  resize,
  tokens,
  views,
)
from esvit_jax.errors import UserError
from esvit_jax.evals import neighbours
from esvit_jax.protocols import maps as maps_lib
from esvit_jax.protocols.setup import Result, Setup, prepare
from esvit_jax.workdir import terminal

READOUTS = ('linear', 'balanced', 'in_context')
SHOWN = 10  # images in the picture
# In-context mIoU on VOC 2012, memory of 10^5, 10^6, 10^7 patches, by
# open-hummingbird-eval 5e79da2: two passes of crops at 512 px.
PUBLISHED = {
  'DINO S/16': (37.2, 43.1, 46.6),
  'DINO B/16': (44.9, 50.8, 55.7),
  'DINOv2 S/14': (70.2, 74.9, 77.0),
}


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
  """

  setup: Setup
  network: maps_lib.Network
  balance: np.ndarray
  count: int

  def view(self, batch) -> tuple[jax.Array, jax.Array]:
    """Whole images, normalised, and the size of their pixels in a view."""
    c = self.setup.config
    images = views.whole(
      batch['image'], batch['size'], c.size, c.data.mean, c.data.std
    )
    return images, views.steps(batch['size'], c.size)


def run(config, directory: str, out) -> Result:
  """mIoU and accuracies in percent of each map, read-out and network.

  Raises:
    UserError: the network or the masks cannot be used.
  """
  setup = prepare(config, directory, out)
  c = setup.config
  if setup.test is None:
    raise UserError(
      f'{c.data.source} has no test split: name it with '
      "--config.data.test_split, or take 'held_out', a tenth of train"
    )
  train, test = (
    data.sample(source, c.segmentation[f'{split}_images'], c.seed)
    for split, source in (('train', setup.train), ('test', setup.test))
  )
  surveys = [data.survey(x, c.data.workers) for x in (train, test)]
  for source, survey in zip((train, test), surveys):
    print(f'masks    {survey.line(source)}', file=out)
  counts = surveys[0].counts
  balance = np.where(counts > 0, counts.sum() / np.maximum(counts, 1), 0)
  parts = data.hold_out(train, seed=c.seed)
  per_image = max(1, c.segmentation.memory // len(train))
  rows, classes = [], {}
  for name, network in maps_lib.networks(setup, (c.size, c.size)).items():
    task = Task(setup, network, balance.astype(np.float32), per_image)
    learned = _learn(task, parts)
    for features, scores in _judge(task, test, learned).items():
      rows.append({'network': name, 'features': features, **_row(scores)})
      if name == maps_lib.PRE_TRAINED:
        classes = scores  # those of all maps come last
    if name == maps_lib.PRE_TRAINED:
      _draw(task, test, features, learned[features])
  print(_tables(rows), file=out)
  own = [row for row in rows if row['network'] == maps_lib.PRE_TRAINED][-1]
  return setup.result(
    {
      'miou': own['linear_miou'],
      **{f'miou_{k}': own[f'{k}_miou'] for k in READOUTS[1:]},
      'pixel_accuracy': own['linear_pixel_accuracy'],
      'mean_accuracy': own['linear_mean_accuracy'],
      'train_images': len(train),
      'test_images': len(test),
      'void_percent': 100 * surveys[1].void,
      'table': rows,
      'iou_of_classes': _per_class(train, surveys[1].counts, classes),
    }
  )


def _learn(task: Task, parts) -> dict[str, Learned]:
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
    for batch in task.setup.whole_batches(part):
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


def _judge(task: Task, test, learned) -> dict[str, dict[str, metrics.Scores]]:
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
  for batch in task.setup.whole_batches(test):
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


def _draw(task: Task, test, features: str, learned: Learned) -> None:
  """Images, their masks and what the linear read-out makes of them."""
  batch = next(iter(task.setup.whole_batches(test)))

  @maps_lib.replicated_by(task.setup)
  def predict(variables, readout, batch):
    images, steps = task.view(batch)
    maps = task.network.maps(variables, images)
    maps = maps_lib.named(maps, images.shape[1])[features]
    x = readout(resize.side_by_side(maps))
    return resize.classes_at_pixels(x, steps, test.canvas)

  found = predict(task.network.variables, learned.linear, batch)
  batch, found = jax.device_get((batch, found))
  shown = np.flatnonzero(batch['mask'])[:SHOWN]
  outside = batch['segmentation'][shown] == VOID
  overlays.segmentation_png(
    task.setup.picture('segmentation'),
    batch['image'][shown] / np.float32(255),
    {
      'target': batch['segmentation'][shown],
      'linear': np.where(outside, VOID, found[shown]),
    },
    test.segmentation.classes,
  )


def _row(scores: dict[str, metrics.Scores]) -> dict[str, float]:
  return {
    f'{readout}_{name}': getattr(x, name)
    for readout, x in scores.items()
    for name in ('miou', 'pixel_accuracy', 'mean_accuracy')
  }


def _per_class(source, counts, scores) -> list[dict]:
  """IoU of each class on all maps, None where it does not occur."""
  share = 100 * counts / counts.sum()
  return [
    {
      'class': name,
      'pixels_percent': float(share[k]),
      **{
        readout: None if np.isnan(x.iou[k]) else float(x.iou[k])
        for readout, x in scores.items()
      },
    }
    for k, name in enumerate(source.segmentation.classes)
  ]


def _tables(rows) -> str:
  """mIoU of our networks, and what is published."""
  columns = ('network', 'features', 'linear', 'balanced', 'in context')
  cells = [
    (
      row['network'],
      row['features'],
      *(f'{row[f"{k}_miou"]:.1f}' for k in READOUTS),
    )
    for row in rows
  ]
  published = [(k, *map(str, x)) for k, x in PUBLISHED.items()]
  return '\n'.join(
    [
      terminal.table('frozen segmentation, mIoU in percent', columns, cells),
      terminal.table(
        'published, in context on VOC 2012 (open-hummingbird-eval)',
        ('network', '10^5 patches', '10^6', '10^7'),
        published,
      ),
    ]
  )
