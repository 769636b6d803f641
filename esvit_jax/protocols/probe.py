"""Linear probes of a frozen network: the published protocol, and a sweep.

One reading of the images (or, with augmentation, one stream of crops) feeds
all heads. The best is chosen on a part of train, never on test.
"""

from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np

from esvit_jax import augment, data, evals, sharding
from esvit_jax.errors import UserError
from esvit_jax.evals import probe
from esvit_jax.models.layers import Features
from esvit_jax.protocols.subject import (
  Result,
  Subject,
  prepare,
  require_test,
)

RECIPES = {
  'published': probe.PUBLISHED,
  'mae': probe.MAE,
  'sweep': probe.SWEEP,
}


def run(config, directory: str, out) -> Result:
  """Figures of the best head in percent, which it is, and the table of all."""
  del out
  subject = prepare(config, directory)
  return subject.result(figures(subject))


def figures(subject: Subject) -> dict:
  """See `run`."""
  require_test(subject)
  c = subject.config.probe
  if c.recipe not in RECIPES:
    raise UserError(
      f"config.probe.recipe is '{c.recipe}': choose {', '.join(RECIPES)}"
    )
  recipe = RECIPES[c.recipe]
  changes = {'lrs': tuple(c.lrs), 'epochs': c.epochs, 'batch_size': c.batch}
  recipe = recipe._replace(**{k: v for k, v in changes.items() if v})
  test = _read(subject, subject.test)
  if c.augment:
    found = _streamed(subject, recipe, test)
  else:
    train = _read(subject, subject.train)
    found = probe.probe(train, test, recipe, c.metric, seed=subject.config.seed)
  best = found.table[0]
  return {
    **found.figures,
    'train_images': len(subject.train),
    **{name: best[name] for name in ('features', 'norm', 'lr')},
    'table': found.table,
  }


def kinds(features: Features, blocks: tuple[int, ...]) -> dict[str, jax.Array]:
  """What heads may read: 'view', and 'last n' blocks side by side [N, D]."""
  counts = sorted({min(n, len(features.blocks)) for n in blocks})
  last = {
    f'last {n}': jnp.concatenate(features.blocks[-n:], -1) for n in counts
  }
  return last or {'view': features.view}


def _read(subject: Subject, source: data.Source) -> probe.Labelled:
  """Features of the middle of all images of a source."""
  blocks = tuple(subject.config.probe.blocks)
  of = subject.features(lambda f: kinds(f, blocks))
  found, labels = evals.extract({'x': of}, subject.batches(source))
  return found['x'], labels


def _streamed(subject: Subject, recipe: probe.Recipe, test) -> probe.Sweep:
  """Heads trained on features of random crops, as published (spec 8)."""
  c = subject.config
  source, held = subject.train, None
  if len(recipe.lrs) * len(recipe.norms) * len(c.probe.blocks) > 1:
    rest, held = data.hold_out(source, probe.HELD_OUT, c.seed)
    source, held = rest, _read(subject, held)
  size = min(recipe.batch_size, len(source))
  size = max(size // subject.mesh.size, 1) * subject.mesh.size
  return probe.sweep(
    _crops(subject, source, size),
    len(source) // size,
    len(subject.train.classes),
    held,
    test,
    recipe,
    c.probe.metric,
    c.seed,
    subject.mesh,
  )


def _crops(subject, source, size: int) -> Iterator[probe.Labelled]:
  """Batches of features of random resized crops, flipped or not, for ever."""
  c = subject.config
  group = augment.view_groups(
    {'crop': {'size': c.size, 'bilinear': 1.0, 'flip': 0.5 * c.probe.flip}}
  )
  key = jax.random.key(c.seed)

  def view(batch):
    step, batch = batch['step'], batch['rows']
    keys = jax.random.fold_in(key, step)
    keys = jax.random.split(keys, len(batch['image']))
    crops = augment.multi_crop(
      batch['image'], batch['size'], keys, group, c.data.mean, c.data.std
    )
    return crops['crop'][:, 0]

  blocks = tuple(c.probe.blocks)
  of = subject.features(lambda f: kinds(f, blocks), view)
  pipeline = data.Pipeline(
    source,
    c.seed,
    size,
    jax.process_index(),
    jax.process_count(),
    c.data.workers,
    c.data.max_unreadable,
  )
  with pipeline.iterate() as feed:
    for step, local in enumerate(feed):
      rows = sharding.global_batch(subject.mesh, local)
      found = of({'step': np.uint32(step), 'rows': rows})
      yield jax.device_get((found, rows['label']))
