"""What an evaluation is done with: a network, images, a place for figures."""

import os
import sys
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np

from esvit_jax import augment, data, evals, sharding, workdir
from esvit_jax.errors import UserError, require_local
from esvit_jax.models.backbone import IMAGE_SIZE, Features
from esvit_jax.run import limits
from esvit_jax.weights import loading, networks, reading

# Fields of `data` that a config leaves open -> their values there.
OPEN = {
  'source': '',
  'data_dir': '',
  'canvas': -1,
  'mean': (),
  'std': (),
  'value_range': (),
  'exif_orientation': True,
}


class Result(NamedTuple):
  """What came out of an evaluation.

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


class Setup(NamedTuple):
  """A network to be evaluated, and the images to do it on.

  Attributes:
    config: of the evaluation; what it left open is filled in.
    weights: what holds the network.
    network: 'teacher' or 'student'.
    mesh: of all devices.
    train, test: images; test is None where there is no such split.
    directory: for figures and pictures.
  """

  config: Any
  weights: networks.Weights
  network: str
  mesh: jax.sharding.Mesh
  train: data.Source
  test: data.Source | None
  directory: str

  @property
  def backbone(self):
    """The module, in the dtype asked for."""
    return self.weights.backbone.clone(dtype=np.dtype(self.config.dtype))

  @property
  def variables(self):
    """Of the backbone."""
    return self.weights.variables()

  @property
  def test_or_train(self) -> data.Source:
    """The test images; where there are none, the training images."""
    return self.test or self.train

  def sample(self, count: int) -> data.Source:
    """At most `count` of `test_or_train`, of all classes alike; 0: all."""
    return data.sample(self.test_or_train, count, self.config.seed)

  def batches(self, source: data.Source):
    """The center crop of each image of a source, once, as global batches."""
    return self.whole_batches(data.center_cropped(source, self.config.size))

  def whole_batches(self, source: data.Source):
    """Each image of a source as it lies on the canvas, once."""
    c = self.config
    return evals.batches(
      source,
      self.mesh,
      c.batch_size,
      data.reading(c.data, self.directory),
    )

  def normalize(self, batch) -> jax.Array:
    """The images of a batch as the network takes them, f32[B, H, W, C]."""
    c = self.config.data
    return augment.normalize(batch['image'], c.mean, c.std)

  def apply(
    self, fn: Callable, views: Callable | None = None, variables=None
  ) -> Callable:
    """batch -> fn(variables, images): jitted, whole on every device.

    Args:
      fn: of the backbone's variables and images.
      views: batch -> images f32[B, H, W, C]; by default they are normalised.
      variables: of the backbone; by default those of the network.
    """
    views = views or self.normalize
    everywhere = sharding.replicated(self.mesh)

    @jax.jit
    def call(variables, batch):
      outputs = fn(variables, views(batch))
      return jax.lax.with_sharding_constraint(outputs, everywhere)

    variables = self.variables if variables is None else variables
    variables = jax.device_put(variables, everywhere)
    return lambda batch: call(variables, batch)

  def features(
    self, read: Callable[[Features], Any], views: Callable | None = None
  ) -> Callable:
    """batch -> read(Features of its images); see `apply`."""
    forward = networks.forward(self.backbone)
    return self.apply(lambda v, x: read(forward(v, x)), views)

  def picture(self, name: str) -> str:
    """The path of a picture, its folder made."""
    folder = os.path.join(self.directory, 'pictures')
    os.makedirs(folder, exist_ok=True)
    return os.path.join(folder, f'{name}.png')

  def result(self, figures: dict) -> Result:
    return Result(self.directory, self.config, self.network, figures)


def prepare(config, directory: str = '', out=sys.stdout) -> Setup:
  """Opens the network and the images, and checks that they fit.

  Args:
    config: as in configs/eval/.
    directory: for figures; '' takes the checkpoint's own.
    out: where to say that images are enlarged.

  Raises:
    UserError: the network or the images cannot be used.
  """
  setup = without_images(config, directory)
  c = setup.config
  train, test = data.open_pair(
    c.data.to_dict() | {'channels': setup.weights.about['channels']}
  )
  train, test = data.labelled(train), test and data.labelled(test)
  train = data.subsample(
    train, c.data.label_fraction, c.data.labels_per_class, c.seed
  )
  note = data.enlarged(data.center_cropped(test or train, c.size))
  if note:
    print(note, file=out)
  return setup._replace(train=train, test=test)


def without_images(config, directory: str = '') -> Setup:
  """`prepare` for what opens its images itself: train and test are None.

  Raises:
    UserError: the network cannot be used.
  """
  path = require_local(config.checkpoint, '--config.checkpoint')
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
  weights = loading.load_one(
    path, config.which, loading.answers(config.published)
  )
  config = config.copy_and_resolve_references()
  if not config.size:
    config.size = (
      run_config(path).get('eval', {}).get('size')
      or weights.backbone.image_size
      or IMAGE_SIZE
    )
  fill_data(config.data, path, weights, config.size)
  limits.check(config)
  network = weights.handed_on
  return Setup(config, weights, network, sharding.mesh(), None, None, directory)


def fill_data(section, path: str, weights, size: int) -> None:
  """Takes what `data` leaves open from the network's own run.

  Args:
    section: `data` of a config, changed in place.
    path: of the network, or ''.
    weights: the network, or None.
    size: pixels of the images it will see. An open canvas is large enough for
      that: no side of it under twice the shorter side of center crops.

  Raises:
    UserError: something stays open.
  """
  about = weights.about if weights else {}
  known = {k: about[k] for k in ('mean', 'std') if k in about}
  recorded = known | run_config(path).get('data', {})
  defaults = {'canvas': 512, 'data_dir': ''}
  if weights is None or weights.about['channels'] == 3:
    defaults |= {k: tuple(v) for k, v in reading.IMAGENET.items()}
  canvas_is_open = section.canvas == OPEN['canvas']
  for field, value in OPEN.items():
    if field in section and section[field] == value:
      given = recorded.get(field, defaults.get(field, value))
      try:
        section[field] = tuple(given) if isinstance(given, list) else given
      except (TypeError, ValueError):
        raise UserError(
          f'the config.json of {path}: data.{field} is {str(given)[:80]}'
        ) from None
  least = 2 * round(data.MARGIN * size)
  # 0 fits the canvas to the images, up to 512.
  if canvas_is_open and np.min(section.canvas or 512) < least:
    section.canvas = least
  for field in ('source', 'mean', 'std'):
    if not section[field]:
      raise UserError(
        f'{path or "the config"} does not say which images: set '
        f'--config.data.{field}'
      )


def require_test(setup: Setup) -> None:
  """Raises UserError unless there are labels and a test split."""
  source = setup.config.data.source
  if not setup.train.classes:
    raise UserError(
      f'{source} has no labels: put its images into one folder per class, or '
      'name a labelled set with --config.data.source'
    )
  require_test_split(setup.test, setup.config.data)


def require_test_split(test: data.Source | None, section) -> None:
  """Raises UserError unless `section` (data of a config) has a test split."""
  if test is None:
    raise UserError(
      f'{section.source} has no test split: name it with '
      "--config.data.test_split, or take 'held_out', a tenth of train"
    )


def run_config(path: str) -> dict:
  """The config.json of a run directory; {} where there is none."""
  try:
    return workdir.read_json(os.path.join(path, 'config.json'))
  except (OSError, ValueError):
    return {}
