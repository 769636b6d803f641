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
from esvit_jax.evals import heads, probe, scores
from esvit_jax.evals.finite import Stream, counted
from esvit_jax.models.backbone import Features
from esvit_jax.protocols import baselines
from esvit_jax.protocols.setup import Result, Setup, prepare, require_test

RECIPES = {
  'published': heads.PUBLISHED,
  'mae': heads.MAE,
  'sweep': heads.SWEEP,
}


def run(config, directory: str, out) -> Result:
  """Figures of the best head in percent, which it is, and the table of all."""
  setup = prepare(config, directory, out)
  return setup.result(figures(setup))


def figures(setup: Setup) -> dict:
  """See `run`."""
  require_test(setup)
  c = setup.config.probe
  if c.recipe not in RECIPES:
    raise UserError(
      f"config.probe.recipe is '{c.recipe}': choose {', '.join(RECIPES)}"
    )
  scores.check(c.metric, len(setup.test.classes), setup.test.multi_label)
  changes = {'lrs': tuple(c.lrs), 'epochs': c.epochs, 'batch_size': c.batch}
  recipe = RECIPES[c.recipe]._replace(**{k: v for k, v in changes.items() if v})
  test = _read(setup, setup.test)
  if c.augment:
    sweep = _streamed(setup, recipe, test)
  else:
    train = _read(setup, setup.train)
    sweep = probe.probe(train, test, recipe, c.metric, seed=setup.config.seed)
  best = sweep.table[0]
  return {
    **sweep.figures,
    **baselines.chance(test[1]),
    'train_images': len(setup.train),
    **{name: best[name] for name in ('features', 'norm', 'lr')},
    'table': sweep.table,
  }


def kinds(features: Features, blocks: tuple[int, ...]) -> dict[str, jax.Array]:
  """What heads may read: 'view', and 'last n' blocks side by side [N, D]."""
  counts = sorted({min(n, len(features.blocks)) for n in blocks})
  last = {
    f'last {n}': jnp.concatenate(features.blocks[-n:], -1) for n in counts
  }
  return last or {'view': features.view}


def _read(setup: Setup, source: data.Source) -> heads.Labelled:
  """Features of the center crops of all images of a source."""
  blocks = tuple(setup.config.probe.blocks)
  networks = {'x': setup.features(lambda f: kinds(f, blocks))}
  extracted = evals.extract(networks, setup.batches(source))
  return extracted.features['x'], extracted.labels


def _streamed(setup: Setup, recipe: heads.Recipe, test) -> probe.Sweep:
  """Heads trained on features of random crops, as published.

  EsViT (arXiv 2106.09785), section 4.1.
  """
  c = setup.config
  source, held = setup.train, None
  if len(recipe.lrs) * len(recipe.norms) * len(c.probe.blocks) > 1:
    source, held_out = data.hold_out(source, probe.HELD_OUT, c.seed)
    held = _read(setup, held_out)
  size = min(recipe.batch_size, len(source))
  size = max(size // setup.mesh.size, 1) * setup.mesh.size
  stream = Stream(_crops(setup, source, size), len(source))
  sweep = probe.sweep(
    stream,
    len(source) // size,
    len(setup.train.classes),
    held,
    test,
    recipe,
    c.probe.metric,
    c.seed,
    setup.mesh,
  )
  left_out = sweep.figures.pop('non_finite', 0) + len(stream.bad)
  return sweep._replace(figures=counted(sweep.figures, left_out))


def _crops(setup: Setup, source, size: int) -> Iterator[tuple]:
  """Batches of features of random resized crops, flipped or not, for ever.

  Yields:
    Features by name, labels, and which images they are.
  """
  c = setup.config
  group = augment.view_groups(
    {'crop': {'size': c.size, 'bilinear': 1.0, 'flip': 0.5 * c.probe.flip}}
  )
  key = jax.random.key(c.seed)

  def views(batch):
    keys = jax.random.fold_in(key, batch['step'])
    batch = batch['images']
    keys = jax.random.split(keys, len(batch['image']))
    crops = augment.multi_crop(
      batch['image'], batch['size'], keys, group, c.data.mean, c.data.std
    )
    return crops['crop'][:, 0]

  blocks = tuple(c.probe.blocks)
  features = setup.features(lambda f: kinds(f, blocks), views)
  pipeline = data.Pipeline(
    source,
    c.seed,
    size,
    jax.process_index(),
    jax.process_count(),
    data.reading(c.data, setup.directory),
  )
  with pipeline.iterate() as feed:
    for step, local in enumerate(feed):
      batch = sharding.global_batch(setup.mesh, local)
      outputs = features({'step': np.uint32(step), 'images': batch})
      yield jax.device_get((outputs, batch['label'], batch['index']))
