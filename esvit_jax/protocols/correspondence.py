"""Do regions find themselves again in a mirrored, recoloured copy? (spec 9)"""

import jax
import jax.numpy as jnp

from esvit_jax import augment
from esvit_jax.analysis import correspondence
from esvit_jax.analysis.plots.correspondence import matches_png
from esvit_jax.analysis.plots.images import pixels
from esvit_jax.protocols.subject import Result, prepare
from esvit_jax.weights import networks as weights_lib


def run(config, directory: str, out) -> Result:
  """The published measure, and a picture of the first image's matches.

  Raises:
    UserError: the network cannot be used.
  """
  del out
  subject = prepare(config, directory)
  c = subject.config
  copy = {**correspondence.COPY, 'size': c.size}
  if subject.weights.about['channels'] != 3:
    copy |= {'hue': 0.0, 'saturation': 0.0, 'gray': 0.0}
  groups = augment.view_groups({'copy': copy})
  forward = weights_lib.forward(subject.module)

  mean, std = (
    jnp.asarray(x)[None, None, None] for x in (c.data.mean, c.data.std)
  )

  def views(rows):
    """The middle of each image, and a copy of that."""
    images = subject.middle(rows['batch'])  # B s s C
    levels = jnp.clip(jnp.round((images * std + mean) * 255), 0, 255)
    copies = augment.multi_crop(
      levels.astype(jnp.uint8),
      jnp.full((len(images), 2), c.size, jnp.int32),
      rows['keys'],
      groups,
      c.data.mean,
      c.data.std,
    )
    return images, copies['copy'][:, 0]

  def grids(variables, pair):
    return tuple(forward(variables, x).grid for x in pair)

  both = subject.images(grids, views)

  def of(batch, keys):
    return both({'batch': batch, 'keys': keys})

  key = jax.random.key(c.seed)
  batch = next(iter(subject.batches(subject.judged)))
  keys = jax.random.split(key, len(batch['mask']))
  first, second = jax.device_get(of(batch, keys))
  stride = c.size // first.shape[1]
  figures = correspondence.mean_flip_score(
    of, subject.batches(subject.judged), key, stride, c.correspondence.images
  )
  images = jax.device_get(jax.jit(views)({'batch': batch, 'keys': keys}))
  matches_png(
    subject.picture('copies'),
    *(pixels(x[0], c.data.mean, c.data.std) for x in images),
    first[0],
    second[0],
  )
  return subject.result(figures)
