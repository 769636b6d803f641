"""The pictures of a run, and of a network."""

import os
import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import numpy as np

from esvit_jax import data, sharding
from esvit_jax.analysis import attention, embedding
from esvit_jax.analysis.plots.attention import attention_png
from esvit_jax.analysis.plots.correspondence import matches_png
from esvit_jax.analysis.plots.embedding import (
  neighbours_png,
  plane_png,
  regions_png,
)
from esvit_jax.analysis.plots.images import columns_png, pixels, views_png
from esvit_jax.errors import UserError
from esvit_jax.evals.neighbours import nearest_others

IMAGES = 8
MAPPED = 1000  # images on the map; t-SNE takes seconds
ATTENDED = 3  # images whose attention is drawn
RECONSTRUCTED = 4  # images whose reconstruction is drawn
QUERIES, NEAREST = (
  5,
  5,
)  # queries whose neighbours are drawn, neighbours of each
JUDGED = 500  # queries whose neighbours' labels are counted
SHARE = 0.01  # of a run's time that drawing may take
FIRST_GUESS = 10.0  # seconds to draw all pictures


class Gallery(NamedTuple):
  """Images and their features.

  Attributes:
    features: f32[N, D].
    labels: i32[N].
    classes: names of classes.
    images: indices -> normalised images f32[n, H, W, C].
  """

  features: np.ndarray
  labels: np.ndarray
  classes: Sequence[str] | None
  images: Callable


class Album:
  """Draws a run's pictures again and again, in at most SHARE of its time."""

  def __init__(self, job, directory: str, inspect: Callable):
    """Prepares; nothing is drawn yet.

    Args:
      job: of the run.
      directory: of the run; files go to pictures/.
      inspect: as for `of_network`, with the backbone's variables first.
    """
    self.job, self.directory, self.inspect = job, directory, inspect
    self.paths: list[str] = []
    self._began, self._spent, self._guess = time.monotonic(), 0.0, FIRST_GUESS

  def update(self, state, gallery=None, last: bool = False) -> None:
    """Draws if there is time; always for the `last` state."""
    began = time.monotonic()
    allowed = SHARE * (began - self._began)
    if last or self._spent + self._guess <= allowed:
      folder = os.path.join(self.directory, 'pictures')
      os.makedirs(folder, exist_ok=True)
      self.paths = draw(self.job, state, self.inspect, gallery, folder)
      self._guess = time.monotonic() - began
      self._spent += self._guess


def draw(job, state, inspect, gallery, folder: str) -> list[str]:
  """Draws views, matched regions, and features of the network handed on.

  Args:
    job: of the run.
    state: of the run.
    inspect: (variables, images) -> (Features, intermediates) of the backbone.
    gallery: labelled images, or None.
    folder: of the pictures.

  Returns:
    Their paths.
  """
  whole = (state.params, state.teacher)
  if not all(x.is_fully_replicated for x in jax.tree.leaves(whole)):
    return []  # other processes hold parts of it

  c = job.config.data
  state = jax.device_get(state)
  sample = data.sample(job.sources['train'], IMAGES, job.config.seed)
  with data.epoch(sample, len(sample)) as feed:
    batch = next(feed)
  readable = batch.pop('mask')
  batch = {k: v[readable] for k, v in batch.items()}
  make_views = jax.jit(job.method.views)
  first, second = (
    jax.device_get(
      make_views(batch, jax.random.split(key, int(readable.sum())))
    )
    for key in jax.random.split(job.key)
  )
  images = {k: v for k, v in first.items() if v.ndim == 5}
  paths = [os.path.join(folder, 'views.png')]
  views_png(paths[0], images, c.mean, c.std)

  if job.method.show is not None:
    paths += _shown(job, state, first, folder)

  variables = _variables(job.method, state)

  def look(images):
    return jax.device_get(inspect(variables, images))

  pair = np.stack([first['globals'][0, 0], second['globals'][0, 0]])
  paths.append(os.path.join(folder, 'matches.png'))
  matches_png(paths[-1], *pixels(pair, c.mean, c.std), *look(pair)[0].grid)
  shown = first['globals'][:, 0]
  if gallery is not None:
    shown = gallery.images(data.balanced(gallery.labels, IMAGES))
  paths += of_images(folder, look, shown, c.mean, c.std)
  if gallery is not None:
    paths += of_gallery(folder, gallery, c.mean, c.std)[0]
  return paths


def _variables(method, state) -> dict:
  """Variables of the backbone that is handed on."""
  params = state.teacher if method.network == 'teacher' else state.params
  stats = state.extra[method.network]
  variables = {'params': params['backbone']}
  if 'backbone' in stats:
    variables['batch_stats'] = stats['backbone']
  return variables


def of_images(folder, look, images, mean, std) -> list[str]:
  """Draws colours of regions and, if the backbone has any, attention.

  Args:
    folder: of the pictures.
    look: images -> (Features, intermediates), on the host.
    images: normalised f32[B, H, W, C].
    mean, std: per channel.

  Returns:
    Paths.
  """
  features, sown = look(images)
  shown = pixels(images, mean, std)
  paths = [os.path.join(folder, 'pca.png')]
  colors = embedding.region_colors(features.grid)
  regions_png(paths[0], shown, colors)
  if blocks := attention.blocks(features, sown):
    paths.append(os.path.join(folder, 'attention.png'))
    maps = attention.maps(blocks[-1])[:ATTENDED]
    attention_png(paths[-1], shown[:ATTENDED], maps)
  return paths


def of_gallery(
  folder: str, gallery: Gallery, mean, std
) -> tuple[list[str], dict]:
  """Draws nearest neighbours and a map of images.

  Returns:
    Paths, and figures of both.
  """
  x, y = gallery.features, gallery.labels
  count = min(NEAREST, len(x) - 1)
  # Only one process draws, so only its own devices are used.
  mesh = sharding.mesh(jax.local_devices())
  queries = data.balanced(y, QUERIES)
  near = nearest_others(x, queries, count, mesh)
  shown = [
    pixels(gallery.images(rows), mean, std) for rows in (queries, *near.index)
  ]
  labelled = y is not None and (y >= 0).all() and y.ndim == 1
  paths = [os.path.join(folder, 'neighbours.png')]
  neighbours_png(
    paths[0],
    shown[0],
    np.stack(shown[1:]),
    near.similarity,
    y[near.index] == y[queries][:, None] if labelled else None,
  )
  queries = data.balanced(y, JUDGED)
  near = nearest_others(x, queries, count, mesh)
  figures = embedding.neighbour_figures(
    near, y if labelled else None, y[queries] if labelled else None
  )
  rows = data.balanced(y, MAPPED)
  try:
    points, how = embedding.plane(x[rows]), 't-SNE'
  except UserError:  # scikit-learn is not installed
    points, how = embedding.plane(x[rows], 'pca'), 'principal components'
  paths.append(os.path.join(folder, 'map.png'))
  own = y[rows] if labelled else None
  plane_png(
    paths[-1], points, own, gallery.classes, f'{len(rows)} images, {how}'
  )
  return paths, figures | embedding.plane_figures(x[rows], points, own)


def _shown(job, state, views, folder: str) -> list[str]:
  """Draws what the method shows of itself, such as reconstructions."""
  c, titles = job.config.data, {}

  @jax.jit
  def show(state, views, key):
    shown = job.method.show(state, views, key)
    titles.update({name: columns for name, (columns, _) in shown.items()})
    return {name: images for name, (_, images) in shown.items()}

  paths = []
  shown = jax.device_get(show(state, views, job.key))
  for name, images in shown.items():
    paths.append(os.path.join(folder, f'{name}.png'))
    columns_png(paths[-1], titles[name], images[:RECONSTRUCTED], c.mean, c.std)
  return paths
