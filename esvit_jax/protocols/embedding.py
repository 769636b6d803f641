"""What features make of images: regions, attention, neighbours, a map."""

import os

import jax
import numpy as np

from esvit_jax import data, evals
from esvit_jax.analysis import pictures
from esvit_jax.evals.finite import counted, finite_rows
from esvit_jax.protocols.setup import Result, prepare
from esvit_jax.weights import networks


def run(config, directory: str, out) -> Result:
  """Pictures, and how many neighbours share the label.

  Raises:
    UserError: the network cannot be used.
  """
  setup = prepare(config, directory, out)
  c, source = setup.config, setup.sample(setup.config.embedding.images)
  view = setup.features(lambda f: f.view)
  extracted = evals.extract({'x': view}, setup.batches(source))
  rows = finite_rows(extracted.features['x'])
  features, labels = extracted.features['x'][rows], extracted.labels[rows]
  index = extracted.index[rows]
  crops = data.center_cropped(source, c.size)

  def images(rows):
    shown = data.subset(crops, index[np.asarray(rows)], 'shown')
    with data.epoch(shown, len(shown)) as feed:
      return np.asarray(setup.normalize(next(feed)))

  inspect = networks.inspect(setup.backbone)
  variables = setup.variables
  folder = os.path.dirname(setup.picture('x'))
  pictures.of_images(
    folder,
    lambda x: jax.device_get(inspect(variables, x)),
    images(data.balanced(labels, pictures.IMAGES)),
    c.data.mean,
    c.data.std,
  )
  gallery = pictures.Gallery(features, labels, source.classes, images)
  _, figures = pictures.of_gallery(folder, gallery, c.data.mean, c.data.std)
  return setup.result(counted(figures, int((~rows).sum())))
