"""Scores of the network in training, on labelled images."""

import os

import jax
from jax.experimental import multihost_utils

from esvit_jax import data, evals, health, sharding
from esvit_jax.jobs import Job

RANK_IMAGES = 512  # the effective rank is read off this many


class Judge:
  """Scores the network in training, by its features of labelled images.

  Where the data has no labels or no test split, it says nothing.
  """

  def __init__(self, job: Job, directory: str):
    self.job, self.directory = job, directory
    train, test = job.sources['train'], job.sources['test']
    self.able = bool(test and train.classes and test.classes)

    c = job.config
    view = (c.eval.size, c.data.mean, c.data.std)

    def features(params, stats, batch):
      images = evals.center_view(batch['image'], batch['size'], *view)
      return job.method.features(params, stats, images).view

    def pixels(batch):
      return evals.raw_pixels(batch['image'], batch['size'], *view)

    # Replicated, so that every process can read all of them.
    everywhere = sharding.replicated(job.mesh)
    self._features = jax.jit(features, out_shardings=everywhere)
    self._pixels = jax.jit(pixels, out_shardings=everywhere)

  def __call__(self, state, at_start=False, at_end=False) -> dict[str, float]:
    """Figures such as 'knn/teacher'; 'linear/...' at both ends only.

    The untrained network and the raw pixels are judged at the start.
    """
    if not self.able:
      return {}

    def network(params, stats):
      return lambda batch: self._features(params, stats, batch)

    teacher = network(state.teacher, state.extra['teacher'])
    if at_start:
      who = {'raw_pixels': self._pixels, 'random_init': teacher}
    else:
      student = network(state.params, state.extra['student'])
      who = {'teacher': teacher, 'student': student}
    limit = self.job.config.eval.train_images
    train = evals.extract(who, self._batches('train'), limit)
    test = evals.extract(who, self._batches('test'))
    names = evals.EVALS if at_start or at_end else ('knn',)
    scores = evals.judge(names, train, test)
    scores = {name: figures['top1'] for name, figures in scores.items()}
    if not at_start:
      sample = test[0]['teacher'][:RANK_IMAGES]
      scores['train/feature_rank'] = health.rankme(sample)
    return scores

  def _batches(self, split: str):
    config = self.job.config
    size = config.eval.batch_size
    size += -size % self.job.mesh.size
    feed = data.epoch(
      self.job.sources[split],
      size,
      jax.process_index(),
      jax.process_count(),
      config.data.workers,
      config.data.max_corrupt,
      os.path.join(self.directory, 'corrupt.txt'),
    )
    with feed:
      for local in feed:
        batch = sharding.global_batch(self.job.mesh, local)
        if jax.process_count() > 1:
          for name in ('mask', 'label'):
            batch[name] = multihost_utils.process_allgather(
              local[name], tiled=True
            )
        yield batch
