"""Correspondence: matching the regions of two views by their features.

EsViT (arXiv 2106.09785), section 4.3.
"""

from collections.abc import Callable, Iterable
from typing import NamedTuple

import jax
import numpy as np

from esvit_jax.errors import UserError
from esvit_jax.evals.finite import counted, refuse_many
from esvit_jax.models.layers import l2_normalize

TOP = 10  # published: only the most similar pairs count
# Published: the copy of an image is mirrored, recoloured, then made grey.
# These are the fields of a view of augment.view_groups, without `size`.
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
  """The most similar region of a second grid for every region of a first.

  The most similar pairs come first. Positions are (row, column).

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
  unit1, unit2 = (l2_normalize(np.float32(x)) for x in (grid1, grid2))
  cosine = np.einsum('hwd,HWd->hwHW', unit1, unit2)
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
  """The published measure, of an image and its mirrored copy.

  Args:
    grid1: region features of the image, f32[h, w, D].
    grid2: of the copy.
    stride: pixels between regions.
    top: number of matches that count.

  Returns:
    accuracy (percent of the `top` most similar matches that are exactly right),
    distance_error (mean distance from the right region, pixels), and sim_11th,
    the similarity of the first match that does not count.
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
) -> dict[str, float]:
  """The published measure, averaged over images.

  Args:
    grids: a batch and a key for each of its images -> region features
      f[B, h, w, D] of the images and of their copies (see COPY).
    batches: with `mask`, the real rows, and `index` of each image, from which
      the random key of its copy is derived.
    key: random key.
    stride: pixels between regions.

  Returns:
    As `flip_score`, and `images`, their number; `non_finite` is the number of
    images left out because their features are not finite, if any.

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
      scores.append(flip_score(first[row], second[row], stride))
  refuse_many(bad, bad + len(scores))
  if not scores:
    raise UserError('there are no images to find matches in')
  means = {k: float(np.mean([x[k] for x in scores])) for k in scores[0]}
  return counted({**means, 'images': len(scores)}, bad)


def _positions(index, grid) -> np.ndarray:
  return np.stack(np.unravel_index(index, grid.shape[:2]), 1)
