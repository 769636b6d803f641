"""What features make of images: regions, attention, neighbours, a map."""

import os

import jax
import numpy as np

from esvit_jax import data, evals
from esvit_jax.analysis import pictures
from esvit_jax.protocols.subject import Result, prepare
from esvit_jax.weights import networks as weights_lib


def run(config, directory: str, out) -> Result:
  """Pictures, and how many neighbours share the label.

  Raises:
    UserError: the network cannot be used.
  """
  del out
  subject = prepare(config, directory)
  c, source = subject.config, subject.judged
  source = data.subset(
    source, data.spread(len(source), c.embedding.images), 'some'
  )
  who = {'x': subject.features(lambda f: f.view)}
  found, labels = evals.extract(who, subject.batches(source))
  middle = jax.jit(subject.middle)

  def images(rows):
    some = data.subset(source, list(rows), 'shown')
    with data.epoch(some, len(some)) as feed:
      return np.asarray(middle(next(feed)))

  inspect = weights_lib.inspect(subject.module)
  variables = weights_lib.part_variables(subject.weights, subject.which)
  folder = os.path.dirname(subject.picture('x'))
  pictures.of_images(
    folder,
    lambda x: jax.device_get(inspect(variables, x)),
    images(range(min(pictures.IMAGES, len(labels)))),
    c.data.mean,
    c.data.std,
  )
  gallery = pictures.Gallery(found['x'], labels, source.classes, images)
  _, figures = pictures.of_gallery(folder, gallery, c.data.mean, c.data.std)
  return subject.result(figures)
