"""Figures of the network in training, on labelled images."""

import os
from collections.abc import Callable

import jax
import numpy as np

from esvit_jax import augment, data, evals, sharding
from esvit_jax.errors import UserError, in_one_line
from esvit_jax.evals import scores
from esvit_jax.evals.finite import finite_rows
from esvit_jax.run.jobs import Job
from esvit_jax.workdir import health

RANK_IMAGES = 512  # the effective rank is read off this many


class Evaluation:
  """Evaluates the network in training.

  By its features of labelled images or, where the method learns labels, by
  its predictions. Without labels or a test split there are no figures.

  Attributes:
    features: of the test images under the network to hand on, as of the last
      time, f32[N, D]; None before.
    labels: of the same images, i32[N].
  """

  def __init__(self, job: Job, directory: str, say: Callable[[str], None]):
    """Checks what can be known before training.

    Args:
      job: the run.
      directory: of the run.
      say: prints a line.

    Raises:
      UserError: the config names an evaluator or a metric that does not exist
        or does not fit the labels, or the features need more memory than
        there is.
    """
    c = job.config
    self.job, self.directory, self.say = job, directory, say
    self.features = self.labels = self._index = None
    self._during = evaluators('eval.during', c.eval.during)
    self._at_ends = evaluators('eval.at_ends', c.eval.at_ends)
    train, test = job.sources['train'], job.sources['test']
    self._sources, self._notes = {}, []
    if test and train.classes and test.classes:
      train, test = data.labelled(train), data.labelled(test)
      sample = data.sample(train, c.eval.train_images, c.seed)
      self._notes += sample.notes[len(train.notes) :]
      self._sources = {
        'train': data.center_cropped(sample, c.eval.size),
        'test': data.center_cropped(test, c.eval.size),
      }
      self._notes += filter(None, map(data.enlarged, self._sources.values()))
    if job.method.predict:
      self._check_predictions()
    elif train.multi_label:
      self._sources = {}  # k-NN votes for one class
    if self._sources and not job.method.predict:
      self._check_features()

    def network(params, stats, batch):
      images = augment.normalize(batch['image'], c.data.mean, c.data.std)
      if job.method.predict:
        return job.method.predict(params, stats, images)
      return job.method.features(params, stats, images).view

    def pixels(batch):
      return evals.raw_pixels(batch['image'], c.data.mean, c.data.std)

    # Replicated, so that every process can read all of them.
    everywhere = sharding.replicated(job.mesh)
    self._network = jax.jit(network, out_shardings=everywhere)
    self._pixels = jax.jit(pixels, out_shardings=everywhere)

  def __call__(self, state, at_start=False, at_end=False) -> dict[str, float]:
    """Figures such as 'knn/teacher' or 'accuracy/student', in percent.

    Before training, the untrained network and the raw pixels are evaluated.
    Later a failure is said and costs its figures only.

    Raises:
      UserError: at the start, what keeps evaluations from working.
    """
    if not self._sources:
      return {}
    if at_start:
      for note in self._notes:
        self.say(f'eval   {note}')
    try:
      return self._figures(state, at_start, at_end)
    except Exception as e:  # trained steps are worth more than a figure
      if at_start:
        raise
      self.say(f'evaluation failed, training goes on: {in_one_line(e)}')
      return {}

  def images(self, rows) -> np.ndarray:
    """Center crops of test images, normalised f32[n, size, size, C].

    Args:
      rows: of `features`.
    """
    source = self._sources['test']
    source = data.subset(source, list(self._index[rows]), 'shown')
    with data.epoch(source, len(source)) as feed:
      images = next(feed)['image']
    c = self.job.config.data
    return np.asarray(augment.normalize(images, c.mean, c.std))

  def _figures(self, state, at_start: bool, at_end: bool) -> dict[str, float]:
    def network(params, stats):
      return lambda batch: self._network(params, stats, batch)

    method = self.job.method
    networks = {'student': network(state.params, state.extra['student'])}
    if method.momentum is not None:
      networks['teacher'] = network(state.teacher, state.extra['teacher'])
    if method.predict:
      return {} if at_start else self._accuracy(networks)
    if at_start:
      networks = {
        'raw_pixels': self._pixels,
        'random_init': networks[method.network],
      }
    train, test = (
      evals.extract(networks, self._batches(split))
      for split in ('train', 'test')
    )
    names = self._at_ends if at_start or at_end else self._during
    judged = evals.figures(names, train, test)
    for name, figures in judged.items():
      if count := figures.get('non_finite'):
        self.say(f'eval   {name}: {count} non-finite features left out')
    percent = {name: figures['top1'] for name, figures in judged.items()}
    if at_start:
      return percent
    features = test.features[method.network]
    rows = finite_rows(features, 'test')
    self.features, self.labels = features[rows], test.labels[rows]
    self._index = test.index[rows]
    rows = data.balanced(self.labels, RANK_IMAGES)
    rank = health.rankme(self.features[rows])
    return {**percent, 'train/feature_rank': rank}

  def _accuracy(self, networks) -> dict[str, float]:
    test = evals.extract(networks, self._batches('test'))
    metric = scores.METRICS[self.job.config.eval.metric]
    return {
      f'accuracy/{name}': metric(predicted, test.labels)
      for name, predicted in test.features.items()
    }

  def _check_predictions(self) -> None:
    """Raises UserError unless the metric fits the classes."""
    train, test = self.job.sources['train'], self._sources.get('test')
    metric = self.job.config.eval.metric
    if test is None:
      if metric not in scores.METRICS:
        scores.check(metric, 0, False)
      return
    if len(test.classes) != len(train.classes):
      raise UserError(
        f'the test split has {len(test.classes)} classes and train has '
        f'{len(train.classes)}: both need the same'
      )
    scores.check(metric, len(test.classes), test.multi_label)

  def _check_features(self) -> None:
    """Raises UserError unless the features fit into memory."""
    images = sum(len(source) for source in self._sources.values())
    networks = 1 + (self.job.method.momentum is not None)
    needed = 4 * images * self._length() * networks
    there = os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES')
    if needed > there:
      raise UserError(
        f'the features of {images:,} images take {needed / 2**30:.1f} GiB at '
        f'evaluations, and this machine has {there / 2**30:.1f} GiB: set '
        'eval.train_images to fewer'
      )

  def _length(self) -> int:
    """Of the feature of an image."""
    c, state = self.job.config, self.job.state
    image = (1, c.eval.size, c.eval.size, c.data.channels)
    shape = jax.eval_shape(
      self.job.method.features,
      state.params,
      state.extra['student'],
      jax.ShapeDtypeStruct(image, 'float32'),
    )
    return shape.view.shape[-1]

  def _batches(self, split: str):
    c = self.job.config
    return evals.batches(
      self._sources[split],
      self.job.mesh,
      c.eval.batch_size,
      data.reading(c.data, self.directory),
    )


def headline(method) -> str:
  """The figure by which a run's best checkpoint is known."""
  return f'{"accuracy" if method.predict else "knn"}/{method.network}'


def evaluators(field: str, names: str) -> list[str]:
  """'knn,linear' -> ['knn', 'linear'], checked."""
  chosen = [name.strip() for name in names.split(',') if name.strip()]
  for name in chosen:
    if name not in evals.EVALS:
      raise UserError(
        f"config.{field}: no evaluator '{name}'; choose from "
        f'{", ".join(evals.EVALS)}'
      )
  return chosen
