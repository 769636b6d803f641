"""What an evaluation is done on: a network, images, a place for figures."""

import json
import os
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np

from esvit_jax import data, evals, sharding
from esvit_jax.errors import UserError
from esvit_jax.models.layers import Features
from esvit_jax.weights import networks as weights_lib

IMAGENET = {'mean': (0.485, 0.456, 0.406), 'std': (0.229, 0.224, 0.225)}
OPEN = {'source': '', 'data_dir': '', 'canvas': -1, 'mean': (), 'std': ()}


class Result(NamedTuple):
  """What an evaluation found.

  Attributes:
    directory: for the figures.
    config: of the evaluation, nothing left open.
    network: 'teacher' or 'student'.
    figures: as JSON.
  """

  directory: str
  config: Any
  network: str
  figures: dict


class Subject(NamedTuple):
  """A network to be evaluated, and the images to do it on.

  Attributes:
    config: of the evaluation; what it left open is filled in.
    weights: the network.
    which: 'teacher' or 'student'.
    mesh: of all devices.
    train, test: images; test is None where there is no such split.
    directory: for figures and pictures.
  """

  config: Any
  weights: weights_lib.Weights
  which: str
  mesh: jax.sharding.Mesh
  train: data.Source
  test: data.Source | None
  directory: str

  def features(
    self, of: Callable[[Features], Any], view: Callable | None = None
  ) -> Callable:
    """batch -> of(Features of its views): jitted, whole on every device.

    Args:
      of: what to take of the features of N images.
      view: batch -> images f32[N, H, W, C]; by default their middle.
    """
    forward = weights_lib.forward(self.module)
    return self.images(lambda v, x: of(forward(v, x)), view)

  def images(self, of: Callable, view: Callable | None = None) -> Callable:
    """batch -> of(variables, its views): jitted, whole on every device."""
    view = view or self.middle
    everywhere = sharding.replicated(self.mesh)

    @jax.jit
    def apply(variables, batch):
      found = of(variables, view(batch))
      return jax.lax.with_sharding_constraint(found, everywhere)

    variables = jax.device_put(
      weights_lib.part_variables(self.weights, self.which), everywhere
    )
    return lambda batch: apply(variables, batch)

  def middle(self, batch) -> jax.Array:
    """The middle of each image, normalised f32[N, size, size, C]."""
    c = self.config
    return evals.center_view(
      batch['image'], batch['size'], c.size, c.data.mean, c.data.std
    )

  @property
  def module(self):
    """The backbone, in the dtype asked for."""
    return self.weights.backbone.clone(dtype=np.dtype(self.config.dtype))

  def picture(self, name: str) -> str:
    """The path of a picture, its folder made."""
    folder = os.path.join(self.directory, 'pictures')
    os.makedirs(folder, exist_ok=True)
    return os.path.join(folder, f'{name}.png')

  @property
  def judged(self) -> data.Source:
    """The test images; where there are none, the training images."""
    return self.test or self.train

  def result(self, figures: dict) -> Result:
    return Result(self.directory, self.config, self.which, figures)

  def batches(self, source: data.Source):
    """Each image of a source once, as global batches."""
    c = self.config
    return evals.batches(
      source,
      self.mesh,
      c.batch_size,
      c.data.workers,
      c.data.max_unreadable,
      os.path.join(self.directory, 'unreadable.txt'),
    )


def prepare(config, directory: str = '') -> Subject:
  """Opens the network and the images, and checks that they fit."""
  path = config.checkpoint
  if path and not os.path.exists(path):
    raise UserError(f'--config.checkpoint={path}: there is no such file')
  if not path:
    raise UserError(
      'no --config.checkpoint: give a run directory, a .safetensors file or '
      'a .pth'
    )
  directory = directory or (path if os.path.isdir(path) else '')
  if not directory:
    raise UserError(f'{path} is a file: say where figures go, --workdir=DIR')
  weights, which = weights_lib.pick(path, config.which)
  config = config.copy_and_resolve_references()
  fill_data(config, path, weights)
  if not config.size:
    model = weights.about['model']
    config.size = run_config(path).get('eval', {}).get('size') or model.get(
      'image_size', 224
    )
  train, test = data.open_pair(
    config.data.to_dict() | {'channels': weights.about['channels']}
  )
  train = data.subsample(
    train,
    config.data.label_fraction,
    config.data.labels_per_class,
    config.seed,
  )
  return Subject(
    config, weights, which, sharding.mesh(), train, test, directory
  )


def fill_data(config, path: str, weights: weights_lib.Weights | None) -> None:
  """Takes what `config.data` leaves open from the network's own run.

  Args:
    config: changed in place.
    path: of the network, or ''.
    weights: the network, or None.

  Raises:
    UserError: something stays open.
  """
  theirs = run_config(path).get('data', {})
  defaults = {'canvas': 512, 'data_dir': ''}
  if weights is None or weights.about['channels'] == 3:
    defaults |= IMAGENET
  for field, value in OPEN.items():
    if config.data[field] == value:
      found = theirs.get(field, defaults.get(field, value))
      config.data[field] = tuple(found) if isinstance(found, list) else found
  for field in ('source', 'mean', 'std'):
    if not config.data[field]:
      raise UserError(
        f'{path or "the config"} does not say which images: set '
        f'--config.data.{field}'
      )


def require_test(subject: Subject) -> None:
  """Raises UserError unless there are labels and a test split."""
  source = subject.config.data.source
  if not subject.train.classes:
    raise UserError(
      f'{source} has no labels: put its images into one folder per class, or '
      'name a labelled set with --config.data.source'
    )
  if subject.test is None:
    raise UserError(
      f'{source} has no test split: name it with --config.data.test_split, or '
      "take 'held_out', a tenth of train"
    )


def run_config(path: str) -> dict:
  """The config.json of a run directory; {} where there is none."""
  try:
    with open(os.path.join(path, 'config.json'), encoding='utf-8') as f:
      return json.load(f)
  except (OSError, ValueError):
    return {}
