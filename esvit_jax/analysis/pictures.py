"""The pictures of a run directory."""

import os
import time

import jax
import numpy as np

from esvit_jax import data
from esvit_jax.analysis import correspondence, plots

IMAGES = 8
SHARE = 0.01  # of a run's time that pictures may take
FIRST_GUESS = 10.0  # seconds to draw them


class Album:
  """Keeps a run's pictures fresh without slowing it by more than SHARE."""

  def __init__(self, job, directory: str):
    self.job, self.directory = job, directory
    self.paths: list[str] = []
    self._began, self._spent, self._guess = time.monotonic(), 0.0, FIRST_GUESS

  def update(self, state, lines: list[dict], last: bool = False) -> None:
    """Draws, if there is time for it; the `last` state is always drawn."""
    began = time.monotonic()
    allowed = SHARE * (began - self._began)
    if last or self._spent + self._guess <= allowed:
      self.paths = draw(self.job, state, lines, self.directory)
      self._guess = time.monotonic() - began
      self._spent += self._guess


def draw(job, state, lines: list[dict], directory: str) -> list[str]:
  """Draws views, curves, matched regions and what the method has to show.

  Args:
    job: of the run.
    state: its state; the network to hand on is drawn.
    lines: of metrics.jsonl.
    directory: of the run; files go to pictures/.

  Returns:
    Their paths.
  """
  folder = os.path.join(directory, 'pictures')
  os.makedirs(folder, exist_ok=True)
  paths = [os.path.join(folder, 'curves.png')]
  plots.curves_png(paths[0], lines, job.method.chance)
  whole = (state.params, state.teacher)
  if not all(x.is_fully_replicated for x in jax.tree.leaves(whole)):
    return paths  # pieces on other machines

  c = job.config.data
  state = jax.device_get(state)
  with data.epoch(job.sources['train'], IMAGES) as feed:
    batch = next(feed)
  make_views = jax.jit(job.method.views)
  first, second = (
    jax.device_get(make_views(batch, jax.random.split(key, IMAGES)))
    for key in jax.random.split(job.key)
  )
  images = {k: v for k, v in first.items() if v.ndim == 5}
  paths.append(os.path.join(folder, 'views.png'))
  plots.views_png(paths[-1], images, c.mean, c.std)

  params = state.teacher if job.method.network == 'teacher' else state.params
  stats = state.extra[job.method.network]
  pair = np.stack([first['globals'][0, 0], second['globals'][0, 0]])
  grid = jax.jit(lambda x: job.method.features(params, stats, x).grid)
  paths.append(os.path.join(folder, 'matches.png'))
  correspondence.correspondences_png(
    paths[-1],
    *plots.pixels(pair, c.mean, c.std),
    *jax.device_get(grid(pair)),
  )

  if job.method.show is not None:
    titles = {}

    @jax.jit
    def show(state, views, key):
      shown = job.method.show(state, views, key)
      titles.update({name: columns for name, (columns, _) in shown.items()})
      return {name: images for name, (_, images) in shown.items()}

    shown = jax.device_get(show(state, first, job.key))
    for name, images in shown.items():
      paths.append(os.path.join(folder, f'{name}.png'))
      plots.columns_png(paths[-1], titles[name], images, c.mean, c.std)
  return paths
