"""Do regions find themselves again in a mirrored, recoloured copy?

EsViT (arXiv 2106.09785), section 4.3.
"""

import jax

from esvit_jax import augment
from esvit_jax.analysis import correspondence
from esvit_jax.analysis.plots.correspondence import matches_png
from esvit_jax.analysis.plots.images import pixels
from esvit_jax.protocols.setup import Result, prepare
from esvit_jax.weights import networks


def run(config, directory: str, out) -> Result:
  """The published measure, and a picture of the first image's matches.

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

  of_rows = setup.apply(grids, pair)

  def batches():
    return setup.batches(setup.sample(c.correspondence.images))

  key = jax.random.key(c.seed)
  batch = next(iter(batches()))
  keys = jax.random.split(key, len(batch['mask']))
  first, second = jax.device_get(of_rows((batch, keys)))
  figures = correspondence.mean_flip_score(
    lambda *rows: of_rows(rows), batches(), key, c.size // first.shape[1]
  )
  images = jax.device_get(jax.jit(pair)((batch, keys)))
  matches_png(
    setup.picture('copies'),
    *(pixels(x[0], c.data.mean, c.data.std) for x in images),
    first[0],
    second[0],
  )
  return setup.result(figures)
