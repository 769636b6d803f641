"""Do regions find themselves again in a mirrored, recoloured copy?

EsViT (arXiv 2106.09785), section 4.3.
"""

import math

import jax

from esvit_jax import augment
from esvit_jax.analysis import correspondence
from esvit_jax.analysis.plots.correspondence import matches_png
from esvit_jax.analysis.plots.images import pixels
from esvit_jax.protocols import baselines
from esvit_jax.protocols.setup import Result, prepare
from esvit_jax.weights import networks


def run(config, directory: str, out) -> Result:
  """The published measure, of the untrained network too, and a picture.

  Raises:
    UserError: the network cannot be used.
  """
  setup = prepare(config, directory, out)
  c = setup.config
  copy = {**correspondence.COPY, 'size': c.size}
  if setup.weights.about['channels'] != 3:
    copy |= {'hue': 0.0, 'saturation': 0.0, 'gray': 0.0}
  groups = augment.view_groups({'copy': copy})
  forward = networks.forward(setup.backbone)

  def pair(rows):
    """Images, and a copy of each."""
    batch, keys = rows
    copies = augment.multi_crop(
      batch['image'], batch['size'], keys, groups, c.data.mean, c.data.std
    )
    return setup.normalize(batch), copies['copy'][:, 0]

  def grids(variables, images):
    return tuple(forward(variables, x).grid for x in images)

  trained = setup.apply(grids, pair)
  untrained = setup.apply(grids, pair, baselines.untrained(setup))

  def batches():
    return setup.batches(setup.sample(c.correspondence.images))

  def score(network):
    return correspondence.mean_flip_score(
      lambda *rows: network(rows), batches(), key, c.size // first.shape[1]
    )

  key = jax.random.key(c.seed)
  batch = next(iter(batches()))
  keys = jax.random.split(key, len(batch['mask']))
  first, second = jax.device_get(trained((batch, keys)))
  figures = score(trained) | {
    'chance': 100 / math.prod(first.shape[1:3]),
    'random_init': score(untrained)['accuracy'],
  }
  images = jax.device_get(jax.jit(pair)((batch, keys)))
  matches_png(
    setup.picture('copies'),
    *(pixels(x[0], c.data.mean, c.data.std) for x in images),
    first[0],
    second[0],
  )
  return setup.result(figures)
