"""Which regions of two views have the most similar features.

EsViT (arXiv 2106.09785), section 4.3: correspondence learning.
"""

from collections.abc import Callable, Iterable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from esvit_jax.errors import UserError
from esvit_jax.evals.finite import counted, refuse_many
from esvit_jax.models.layers import l2_normalize

TOP = 10  # published: only the most similar pairs count
# Published: what makes the copy of an image, as a view of augment.view_groups
# (with `size`): all of it, mirrored, recoloured, then grey.
COPY = {
  'scale': (1.0, 1.0),
  'ratio': (1.0, 1.0),
  'bilinear': 0.0,
  'flip': 1.0,
  'jitter': 0.8,
  'brightness': 0.4,
  'contrast': 0.4,
  'saturation': 0.2,
  'hue': 0.1,
  'gray': 1.0,
  'blur': 0.0,
  'solarize': 0.0,
}


class Matches(NamedTuple):
  """For every region of one grid its most similar region of another.

  Most similar first; positions are (row, column) in their grid.

  Attributes:
    first: i64[n, 2].
    second: i64[n, 2].
    similarity: cosine, f32[n].
  """

  first: np.ndarray
  second: np.ndarray
  similarity: np.ndarray


def match(grid1: np.ndarray, grid2: np.ndarray) -> Matches:
  """Matches all regions of `grid1`.

  Args:
    grid1: region features of one view, f32[h, w, D].
    grid2: of another, f32[h', w', D].
  """
  cosine = np.einsum('hwd,HWd->hwHW', _unit(grid1), _unit(grid2))
  cosine = cosine.reshape(grid1.shape[0] * grid1.shape[1], -1)  # hw HW
  order = np.argsort(-cosine.max(1), kind='stable')
  return Matches(
    _positions(order, grid1),
    _positions(cosine.argmax(1)[order], grid2),
    cosine.max(1)[order],
  )


def flip_score(
  grid1: np.ndarray, grid2: np.ndarray, stride: int, top: int = TOP
) -> dict[str, float]:
  """The published measure, on an image and its mirrored (recoloured) copy.

  Args:
    grid1: region features of the image, f32[h, w, D].
    grid2: of the copy.
    stride: pixels between regions.
    top: how many matches count.

  Returns:
    accuracy (percent of the `top` most similar matches that are exactly right),
    distance_error (their mean distance from it, pixels), and sim_11th, the
    similarity of the first match that does not count.
  """
  first, second, similarity = match(grid1, grid2)
  last_column = grid1.shape[1] - 1
  mirrored = np.stack([first[:, 0], last_column - first[:, 1]], 1)
  error = stride * np.linalg.norm(mirrored - second, axis=1)[:top]
  return {
    'accuracy': 100 * float((error == 0).mean()),
    'distance_error': float(error.mean()),
    'sim_11th': float(similarity[min(top, len(similarity) - 1)]),
  }


def mean_flip_score(
  grids: Callable[[dict, jax.Array], tuple[jax.Array, jax.Array]],
  batches: Iterable[dict],
  key: jax.Array,
  stride: int,
  top: int = TOP,
) -> dict[str, float]:
  """The published measure in the mean over images.

  Args:
    grids: a batch and a key for each of its images -> region features
      f[B, h, w, D] of the images and of their copies (see COPY).
    batches: with `mask`, its real rows, and `index`, by which an image has the
      same copy whatever the batch it is in.
    key: of all copies.
    stride: pixels between regions.
    top: how many matches of an image count.

  Returns:
    As `flip_score`, and `images`, how many there were; 'non_finite', how many
    were left out for features that are not finite, if any.

  Raises:
    UserError: there are no images, or many features are not finite.
  """
  keys = jax.jit(jax.vmap(jax.random.fold_in, (None, 0)))
  scores, bad = [], 0
  for batch in batches:
    first, second = jax.device_get(grids(batch, keys(key, batch['index'])))
    for row in np.flatnonzero(np.asarray(batch['mask'])):
      if not (np.isfinite(first[row]).all() and np.isfinite(second[row]).all()):
        bad += 1
        continue
      scores.append(flip_score(first[row], second[row], stride, top))
  refuse_many(bad, bad + len(scores))
  if not scores:
    raise UserError('there are no images to find matches in')
  means = {k: float(np.mean([x[k] for x in scores])) for k in scores[0]}
  return counted({**means, 'images': len(scores)}, bad)


def _positions(index, grid) -> np.ndarray:
  return np.stack(np.unravel_index(index, grid.shape[:2]), 1)


def _unit(x: np.ndarray) -> np.ndarray:
  return np.asarray(l2_normalize(jnp.asarray(x, jnp.float32)))
