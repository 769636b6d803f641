"""What a figure is to be compared with: chance, and no training at all."""

import os

import jax
import jax.numpy as jnp
import numpy as np

from esvit_jax.protocols.setup import Setup, run_config
from esvit_jax.workdir import metrics


def chance(labels: np.ndarray) -> dict[str, float]:
  """{'chance': percent of images that the best constant answer gets right}.

  Args:
    labels: i[N]; of several labels an image, i[N, C], it is not known.
  """
  if labels.ndim > 1:
    return {}
  return {'chance': 100 * float(np.bincount(labels).max() / len(labels))}


def of_run(setup: Setup, kind: str) -> dict[str, float]:
  """Scores before training, where the network's own run has measured them.

  Only where all training images are used both there and here.

  Args:
    setup: of the evaluation.
    kind: of score, such as 'knn'.

  Returns:
    {'random_init': percent, 'raw_pixels': percent}, as far as there are.
  """
  c, run = setup.config, run_config(setup.config.checkpoint)
  part = c.data.label_fraction < 1 or c.data.labels_per_class
  if part or run.get('eval', {}).get('train_images') != 0:
    return {}
  path = os.path.join(c.checkpoint, 'metrics.jsonl')
  lines = metrics.read(path)
  names = ('random_init', 'raw_pixels')
  scores = {name: metrics.last(lines, f'{kind}/{name}') for name in names}
  return {name: x for name, x in scores.items() if x is not None}


def untrained(setup: Setup) -> dict:
  """Variables of the network before any training, from the config's seed."""
  c = setup.config
  image = jnp.zeros((1, 1, c.size, c.size, setup.weights.about['channels']))
  init = jax.jit(setup.backbone.init)
  return init(jax.random.key(c.seed), (image,))
