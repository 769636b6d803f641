"""The pictures of a run directory."""

import os

import jax
import numpy as np

from esvit_jax import data
from esvit_jax.analysis import correspondence, plots

IMAGES = 8


def draw(job, state, lines: list[dict], directory: str) -> list[str]:
  """Draws views, curves and matched regions of a run.

  Args:
    job: of the run.
    state: its state; the teacher is drawn.
    lines: of metrics.jsonl.
    directory: of the run; files go to pictures/.

  Returns:
    Their paths.
  """
  folder = os.path.join(directory, 'pictures')
  os.makedirs(folder, exist_ok=True)
  paths = [os.path.join(folder, 'curves.png')]
  plots.curves_png(paths[0], lines, job.config.head.out_dim)
  if not all(x.is_fully_replicated for x in jax.tree.leaves(state.teacher)):
    return paths  # pieces on other machines

  c = job.config.data
  with data.epoch(job.sources['train'], IMAGES) as feed:
    batch = next(feed)
  keys = jax.random.split(job.key, IMAGES)
  views = jax.device_get(jax.jit(job.method.views)(batch, keys))
  paths.append(os.path.join(folder, 'views.png'))
  plots.views_png(paths[-1], views, c.mean, c.std)

  teacher, stats = jax.device_get((state.teacher, state.extra['teacher']))
  first, second = np.swapaxes(views['globals'], 0, 1)[:2]
  grid = jax.jit(lambda x: job.method.features(teacher, stats, x).grid)
  paths.append(os.path.join(folder, 'matches.png'))
  correspondence.correspondences_png(
    paths[-1],
    *plots.pixels(np.stack([first[0], second[0]]), c.mean, c.std),
    *jax.device_get(grid(np.stack([first[0], second[0]]))),
  )
  return paths
