"""What a config leaves open, from the images, the device and a time."""

import json
import math
import os
import re
from collections.abc import Collection
from typing import NamedTuple

import jax
import numpy as np

from esvit_jax import data, sharding
from esvit_jax.data import headers
from esvit_jax.data.statistics import statistics
from esvit_jax.errors import UserError
from esvit_jax.run import pace
from esvit_jax.workdir.files import flatten

LEAST_EPOCHS = 10  # that a larger network must be worth
MOST_EPOCHS = 1600
SHARE = 0.8  # of the time that steps may take; others compile and evaluate
_SECONDS = {'s': 1, 'm': 60, 'h': 3600, 'd': 86400}


class Size(NamedTuple):
  """A network and what goes with it, as in the recipes that were measured.

  Attributes:
    view: pixels of a global view; local_view and local_count of the others.
    model: a name of models.BACKBONES.
    lr: per 256 images.
    hidden, bottleneck: of the heads.
    prototypes: at most.
    init_scale: of network and heads.
  """

  view: int
  local_view: int
  local_count: int
  model: str
  lr: float
  hidden: int
  bottleneck: int
  prototypes: int
  init_scale: str


SIZES = (
  Size(28, 16, 2, 'swin_28', 0.012, 128, 64, 1024, 'fan_in'),
  Size(96, 48, 6, 'swin_96', 1e-3, 1024, 256, 8192, 'published'),
  Size(224, 96, 8, 'swin_tiny', 5e-4, 2048, 256, 65536, 'published'),
)


class Images(NamedTuple):
  """What is known of the images before training.

  Attributes:
    count: to train on.
    shorter, longer: median sides in pixels.
    labelled: whether they have classes.
    judged: whether there is a split to judge on.
  """

  count: int
  shorter: int
  longer: int
  labelled: bool
  judged: bool


class Choices:
  """Fields of a config that are set with a reason, unless the user set them.

  Attributes:
    lines: 'field = value: reason', in order.
  """

  def __init__(self, config, given: Collection[str]):
    """Takes the config to change, and the fields that it must not."""
    self.config, self.lines, self._given = config, [], given

  def copy(self) -> 'Choices':
    """The same so far, to go on with in another way."""
    other = Choices(self.config.copy_and_resolve_references(), self._given)
    other.lines = [*self.lines]
    return other

  def set(self, field: str, value, reason: str) -> None:
    """Sets a field such as 'optim.lr'."""
    section, _, name = field.rpartition('.')
    place = self.config
    for part in filter(None, section.split('.')):
      place = place[part]
    if field in self._given:
      self.lines.append(f'{field} = {place[name]}: as the command says')
      return
    with place.unlocked():
      place[name] = value
    self.lines.append(f'{field} = {value}: {reason}')


def derive(config, given: Collection[str], directory: str, say=print):
  """The config with all that it leaves open.

  A run that was begun goes on with what was derived then.

  Args:
    config: of EsViT, with `budget`; it is not changed.
    given: fields that the command sets, such as 'optim.lr'.
    directory: of the run, or ''.
    say: prints a line.

  Raises:
    UserError: the budget is no time, another method, or the images cannot be
      used.
  """
  budget = seconds(config.budget)
  if config.method != 'esvit':
    raise UserError(
      f'config.budget derives a recipe of EsViT, and this is {config.method}: '
      'use configs/own.py, or leave config.budget empty'
    )
  config = config.copy_and_resolve_references()
  if _as_begun(config, given, directory):
    say(f'recipe as derived when the run began, see {directory}/config.json')
    return config
  choices = Choices(config, given)
  images = look(choices)
  mesh = sharding.mesh()
  attempt, size, measured = _largest(choices, images, SHARE * budget, mesh)
  total = int(SHARE * budget * measured.images_per_s)
  schedule(attempt, size, images, total, measured, mesh.size)
  if jax.process_index() == 0:
    for line in attempt.lines:
      say(f'recipe {line}')
  return attempt.config


def _largest(choices: Choices, images: Images, time: float, mesh):
  """The largest network that suits the images and learns enough in a time.

  Returns:
    The choices with that network, its size, and its measured pace.
  """
  rate = pace.rate()
  wanted = LEAST_EPOCHS * images.count
  for size in reversed(SIZES):
    last = size is SIZES[0]
    attempt = choices.copy()
    network(attempt, size, images)
    if not last:
      if images.shorter < 0.7 * size.view:
        continue
      if wanted * pace.flops(attempt.config, mesh) > rate * time:
        continue
    measured = pace.measure(attempt.config, mesh)
    if last or time * measured.images_per_s >= wanted:
      return attempt, size, measured
  raise AssertionError('the smallest network is always taken')


def seconds(text: str) -> float:
  """'2h' -> 7200; parts are added, as in '1h30m'.

  Raises:
    UserError: it is no such time.
  """
  parts = re.findall(r'(\d+(?:\.\d+)?)([smhd])', text)
  total = sum(float(number) * _SECONDS[unit] for number, unit in parts)
  if ''.join(map(''.join, parts)) != text or not total:
    raise UserError(
      f"config.budget is {text!r}: use a time such as '90m', '2h' or '1d12h'"
    )
  return total


def _as_begun(config, given: Collection[str], directory: str) -> bool:
  """Takes what is not given from the run in a directory, if there is one."""
  file = os.path.join(directory, 'config.json')
  if not directory or not os.path.exists(file):
    return False
  try:
    with open(file, encoding='utf-8') as f:
      begun = json.load(f)
  except (OSError, ValueError):
    return False  # what cannot be read is told when the directory is claimed
  if not begun.get('budget'):
    return False
  known = flatten(config.to_dict())
  for field, value in flatten(begun).items():
    if field in known and field not in given and field != 'budget':
      place = config
      *sections, name = field.split('.')
      for part in sections:
        place = place[part]
      with place.unlocked():
        place[name] = tuple(value) if isinstance(value, list) else value
  return True


def look(choices: Choices) -> Images:
  """Opens the images; sets channels, canvas later, mean and std."""
  config = choices.config
  train, test = data.open_pair(config.data)
  seen = list(headers.headers(train).values())
  if not seen:
    raise UserError(f'{train.name}: none of the images looked at can be read')
  if train.channels == 3 and all(x.bands == 1 for x in seen):
    choices.set('data.channels', 1, f'{len(seen)} of {len(seen)} are grey')
  if test is None and len(train) >= 20:
    choices.set('data.test_split', 'held_out', 'there is no split to judge on')
    test = train
  sides = np.array([x.size for x in seen])
  images = Images(
    len(train),
    int(np.median(sides.min(1))),
    int(np.median(sides.max(1))),
    bool(train.classes),
    test is not None,
  )
  opened = {**config.data.to_dict(), 'canvas': 256, 'test_split': ''}
  source, _ = data.open_pair(opened)
  mean, std = statistics(source, 200).round(3).tolist()
  choices.set('data.mean', tuple(mean), 'of 200 images')
  std = tuple(max(x, 0.001) for x in std)
  choices.set('data.std', std, 'of 200 images')
  return images


def network(choices: Choices, size: Size, images: Images) -> None:
  """Views, network and heads, which the time of a step depends on."""
  config = choices.config
  on_cpu = jax.default_backend() == 'cpu'
  why = f'shorter sides are {images.shorter} px (median)'
  choices.set('views.globals.size', size.view, why)
  view = config.views.globals.size
  canvas = 32 * -(-int(min(2.3 * size.view, images.longer)) // 32)
  choices.set('data.canvas', canvas, 'up to 2.3 views a side, no larger file')
  gentle = images.shorter <= 40
  why = 'small images show one thing' if gentle else 'photographs show a scene'
  choices.set('views.globals.scale', (0.6 if gentle else 0.4, 1.0), why)
  local = (0.25, 0.6) if gentle else (0.1, 0.4)
  choices.set('views.locals.scale', local, 'below that of the large views')
  choices.set('views.locals.size', size.local_view, f'beside {view} px')
  choices.set('views.locals.count', size.local_count, 'as the size allows')
  blur = (0.1, max(2.0 * size.view / 224, 0.5))
  for group in ('globals', 'locals'):
    choices.set(f'views.{group}.blur_sigma', blur, '2 px suits 224 px')
  choices.set('model.name', size.model, f'made for {size.view} px')
  if size.init_scale != 'published':
    if 'init_scale' not in config.model:
      with config.unlocked():
        config.model.init_scale = 'published'
    choices.set('model.init_scale', size.init_scale, 'the network is narrow')
    choices.set('head.init_scale', size.init_scale, 'the network is narrow')
    choices.set('model.drop_path', 0.0, 'the network is narrow')
  choices.set(
    'model.dtype',
    'float32' if on_cpu else 'bfloat16',
    f'the fastest on a {jax.default_backend()}',
  )
  choices.set('head.hidden', size.hidden, f'goes with {size.model}')
  choices.set('head.bottleneck', size.bottleneck, f'goes with {size.model}')
  prototypes = 2 ** int(math.log2(max(images.count, 2)))
  prototypes = min(max(prototypes, 256), size.prototypes)
  choices.set('head.out_dim', prototypes, f'about one an image, {size.model}')
  choices.set('data.workers', os.cpu_count() or 1, 'one a core')


def schedule(
  choices: Choices,
  size: Size,
  images: Images,
  total: int,
  measured: pace.Pace,
  devices: int,
) -> None:
  """Batch, length, learning rate and what is measured in epochs.

  Args:
    choices: set by `network`.
    size, images: as there.
    total: images that the budget pays for.
    measured: of a step.
    devices: how many.
  """
  config = choices.config
  by_count, by_steps = images.count // 16, total // 1000
  power = int(math.log2(max(min(by_count, by_steps, 512), 32)))
  batch = max(2**power, devices)
  batch = -(-batch // devices) * devices
  choices.set(
    'batch_size', batch, '1/16 of the set and 1,000 steps, from 32 to 512'
  )
  batch = config.batch_size
  fits = measured.fitting * devices
  parts = 1
  while batch // parts > fits and batch // parts % (2 * devices) == 0:
    parts *= 2
  gib = measured.memory / 2**30
  why = f'{fits:,} images at once fit {gib:.1f} GiB, by the compiled step'
  choices.set('accumulate', parts, why)
  speed = f'{measured.images_per_s:,.0f} images/s measured, {config.budget}'
  per_epoch = images.count
  epochs = max(min(total // per_epoch, MOST_EPOCHS), 1)
  choices.set('epochs', epochs, speed)
  if total < per_epoch:
    steps = max(total // batch, 10)
    choices.set('steps', steps, 'less than an epoch in that time')
  epochs = config.epochs
  choices.set('optim.lr', size.lr, f'per 256 images, of {size.model}')
  warm_up = round(min(10, epochs / 10), 2)
  choices.set('optim.warmup_epochs', warm_up, 'a tenth, at most 10')
  short = epochs < 100
  choices.set('loss.teacher_temp', 0.04 if short else 0.07, f'{epochs} epochs')
  choices.set(
    'loss.teacher_temp_warmup_epochs',
    0 if short else 30,
    'none of a constant' if short else 'as published',
  )
  choices.set(
    'optim.freeze_last_layer_epochs', int(epochs >= 50), f'{epochs} epochs'
  )
  steps = config.steps or epochs * per_epoch // batch
  span = min(max(steps / 40, 10), 250)
  choices.set(
    'ema.start', round(1 - 1 / span, 4), f'a memory of 1/40 of {steps:,} steps'
  )
  decay = 0.4 if size.view == 224 and epochs >= 100 else 0.04
  choices.set('optim.weight_decay_end', decay, f'{size.model}, {epochs} epochs')
  choices.set('eval.size', config.views.globals.size, 'as the large views')
  every = round(max(epochs / 5, 0.1), 2) if images.judged else 0.0
  choices.set('eval.every_epochs', every, 'five times')
  choices.set('save.every_epochs', round(max(epochs / 10, 0.1), 2), 'ten times')
  choices.set('log_every', max(min(steps // 20, 50), 1), 'twenty lines or more')
