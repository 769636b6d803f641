"""Scores of the network in training, on labelled images."""

import os

import jax
import numpy as np

from esvit_jax import data, evals, sharding
from esvit_jax.errors import UserError
from esvit_jax.evals.scores import METRICS
from esvit_jax.run.jobs import Job
from esvit_jax.workdir import health

RANK_IMAGES = 512  # the effective rank is read off this many


class Judge:
  """Scores the network in training.

  By its features of labelled images or, where the method learns labels, by
  its predictions. Without labels or a test split it says nothing.

  Raises:
    UserError: the config names an evaluator that is none.
  """

  def __init__(self, job: Job, directory: str):
    self.job, self.directory = job, directory
    train, test = job.sources['train'], job.sources['test']
    self.able = bool(test and train.classes and test.classes)
    if not job.method.predict and train.multi_label:
      self.able = False  # k-NN votes for one class

    c = job.config
    self._during = evaluators('eval.during', c.eval.during)
    self._at_ends = evaluators('eval.at_ends', c.eval.at_ends)
    if c.eval.metric not in METRICS:
      raise UserError(
        f"config.eval.metric is '{c.eval.metric}': choose from "
        f'{", ".join(METRICS)}'
      )
    view = (c.eval.size, c.data.mean, c.data.std)

    def network(params, stats, batch):
      images = evals.center_view(batch['image'], batch['size'], *view)
      if job.method.predict:
        return job.method.predict(params, stats, images)
      return job.method.features(params, stats, images).view

    def pixels(batch):
      return evals.raw_pixels(batch['image'], batch['size'], *view)

    def middle(batch):
      return evals.center_view(batch['image'], batch['size'], *view)

    self._middle = jax.jit(middle)
    # Features and labels of the test images, as of the last time.
    self.features = self.labels = None
    # Replicated, so that every process can read all of them.
    everywhere = sharding.replicated(job.mesh)
    self._network = jax.jit(network, out_shardings=everywhere)
    self._pixels = jax.jit(pixels, out_shardings=everywhere)

  def __call__(self, state, at_start=False, at_end=False) -> dict[str, float]:
    """Figures such as 'knn/teacher' or 'accuracy/student', in percent.

    Before training, the untrained network and the raw pixels are judged.
    """
    if not self.able:
      return {}

    def network(params, stats):
      return lambda batch: self._network(params, stats, batch)

    method = self.job.method
    who = {'student': network(state.params, state.extra['student'])}
    if method.momentum is not None:
      who['teacher'] = network(state.teacher, state.extra['teacher'])
    if method.predict:
      return {} if at_start else self._accuracy(who)
    if at_start:
      who = {'raw_pixels': self._pixels, 'random_init': who[method.network]}
    limit = self.job.config.eval.train_images
    train = evals.extract(who, self._batches('train'), limit)
    test = evals.extract(who, self._batches('test'))
    names = self._at_ends if at_start or at_end else self._during
    scores = evals.judge(names, train, test)
    scores = {name: figures['top1'] for name, figures in scores.items()}
    if not at_start:
      self.features, self.labels = test[0][method.network], test[1]
      rank = health.rankme(self.features[:RANK_IMAGES])
      scores['train/feature_rank'] = rank
    return scores

  def middle(self, rows) -> np.ndarray:
    """The middle of some test images, normalised f32[n, size, size, C]."""
    some = data.subset(self.job.sources['test'], list(rows), 'shown')
    with data.epoch(some, len(some)) as feed:
      return np.asarray(self._middle(next(feed)))

  def _accuracy(self, who) -> dict[str, float]:
    found, labels = evals.extract(who, self._batches('test'))
    metric = METRICS[self.job.config.eval.metric]
    return {
      f'accuracy/{name}': metric(scores, labels)
      for name, scores in found.items()
    }

  def _batches(self, split: str):
    config = self.job.config
    return evals.batches(
      self.job.sources[split],
      self.job.mesh,
      config.eval.batch_size,
      config.data.workers,
      config.data.max_unreadable,
      os.path.join(self.directory, 'unreadable.txt'),
    )


def headline(method) -> str:
  """The score by which a run's best checkpoint is known."""
  return f'{"accuracy" if method.predict else "knn"}/{method.network}'


def evaluators(field: str, names: str) -> list[str]:
  """'knn,linear' -> ['knn', 'linear'], checked."""
  found = [name.strip() for name in names.split(',') if name.strip()]
  for name in found:
    if name not in evals.EVALS:
      raise UserError(
        f"config.{field}: no evaluator '{name}'; choose from "
        f'{", ".join(evals.EVALS)}'
      )
  return found
