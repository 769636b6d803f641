"""Features for display: colours of regions, neighbours, a map of images.

Axes: B images, h w a map of regions, D channels, N images, Q queries.
"""

from typing import NamedTuple

import numpy as np
from scipy.spatial import cKDTree

from esvit_jax import data
from esvit_jax.errors import UserError
from esvit_jax.evals.neighbours import Neighbours
from esvit_jax.models.layers import l2_normalize
from esvit_jax.workdir import health

RANK_IMAGES = 512  # from which the effective rank is computed


class Colors(NamedTuple):
  """Regions as colours.

  Attributes:
    rgb: f32[B, h, w, 3] in 0..1; colours agree across all B images.
    explained: share of the variance in each of the three, f64[3].
  """

  rgb: np.ndarray
  explained: np.ndarray


def region_colors(grids: np.ndarray) -> Colors:
  """The first three principal components of regions as red, green and blue.

  Args:
    grids: region features f[B, h, w, D].
  """
  x = np.asarray(grids, np.float64)
  parts, explained = components(x.reshape(-1, x.shape[-1]), 3)
  low, high = np.percentile(parts, (1, 99), axis=0)
  room = np.where(high > low, high - low, 1)
  rgb = np.clip((parts - low) / room, 0, 1)
  rgb = np.where(high > low, rgb, 0.5)
  return Colors(rgb.reshape(*x.shape[:3], 3).astype(np.float32), explained)


def components(x: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
  """Principal components; the largest weight of each is positive.

  Args:
    x: f[N, D].
    count: number of components; missing ones are 0.

  Returns:
    f64[N, count], and the share of variance in each, f64[count].
  """
  x = np.asarray(x, np.float64)
  x = x - x.mean(0, keepdims=True)
  variance, axes = np.linalg.eigh(x.T @ x)  # ascending
  variance = np.maximum(variance[::-1][:count], 0)
  axes = axes[:, ::-1][:, :count]
  largest = np.abs(axes).argmax(0)
  axes = axes * np.sign(axes[largest, np.arange(axes.shape[1])])[None]
  missing = count - axes.shape[1]
  total = max((x * x).sum(), 1e-30)
  return (
    np.pad(x @ axes, ((0, 0), (0, missing))),
    np.pad(variance / total, (0, missing)),
  )


def neighbour_figures(
  near: Neighbours,
  labels: np.ndarray | None = None,
  query_labels: np.ndarray | None = None,
) -> dict[str, float]:
  """Mean cosine of neighbours, and the percentage that share the label.

  Args:
    near: of Q images.
    labels: of all images, i[N]; -1 if unknown.
    query_labels: of the Q images.
  """
  out = {'similarity': float(near.similarity.mean())}
  if labels is not None and query_labels is not None:
    own = np.asarray(query_labels)
    same = np.asarray(labels)[near.index] == own[:, None]
    same = same[own >= 0]
    if len(same):
      out |= {
        'same_label': 100 * float(same.mean()),
        'same_label_first': 100 * float(same[:, 0].mean()),
        'chance': _chance(np.asarray(labels), own[own >= 0]),
      }
  return out


def _chance(labels: np.ndarray, query_labels: np.ndarray) -> float:
  """Percentage of other images that share a query's label, averaged."""
  counts = np.bincount(labels[labels >= 0])
  return 100 * float((counts[query_labels] - 1).mean() / (len(labels) - 1))


def plane(features: np.ndarray, method: str = 'tsne') -> np.ndarray:
  """A map of images: points f32[N, 2].

  Args:
    features: f[N, D].
    method: 'pca', or 'tsne' of unit features, as cosines are compared; it needs
      scikit-learn.

  Raises:
    UserError: no such method, too few images, or scikit-learn is missing.
  """
  if method not in ('tsne', 'pca'):
    raise UserError(f"there is no map '{method}': use tsne or pca")
  if len(features) < 3:
    raise UserError(
      f'a map needs 3 images, here are {len(features)}: take more'
    )
  if method == 'pca':
    return components(features, 2)[0].astype(np.float32)
  try:
    from sklearn.manifold import TSNE
    from threadpoolctl import threadpool_limits  # scikit-learn's own
  except ImportError as e:
    raise UserError(
      "a t-SNE map needs scikit-learn: pip install scikit-learn, or take 'pca'"
    ) from e
  x = np.asarray(l2_normalize(np.float32(features)))
  if x.shape[1] > 50:
    x = components(x, min(50, len(x)))[0].astype(np.float32)
  # Identical images have no spread; avoid a division by 0.
  spread = components(x, 2)[0]
  start = spread / max(spread[:, 0].std(), 1e-12) * 1e-4
  perplexity = min(30.0, (len(x) - 1) / 3)
  tsne = TSNE(
    perplexity=perplexity, init=start.astype(np.float32), random_state=0
  )
  # Its threads spin while waiting for each other: beside another busy process
  # they take sixty times as long as a single thread.
  with threadpool_limits(1):
    return tsne.fit_transform(x)


def plane_figures(
  features: np.ndarray, points: np.ndarray, labels: np.ndarray | None = None
) -> dict[str, float]:
  """Effective rank of the features, and how well the map keeps classes.

  Args:
    features: f[N, D].
    points: of the same images, f[N, 2].
    labels: i[N]; -1 if unknown.

  Returns:
    effective_rank and, with labels, same_label_on_map: the percentage of images
    whose nearest neighbour on the map is of their class.
  """
  classes = np.zeros(len(features)) if labels is None else labels
  sampled = data.balanced(classes, RANK_IMAGES)
  figures = {'effective_rank': health.rankme(features[sampled])}
  if labels is not None:
    labels = np.asarray(labels)
    known = np.flatnonzero(labels >= 0)
    if len(known) > 1:
      nearest = _nearest(np.asarray(points, np.float64)[known])
      same = labels[known][nearest] == labels[known]
      figures['same_label_on_map'] = 100 * float(same.mean())
  return figures


def _nearest(points: np.ndarray) -> np.ndarray:
  """The nearest other point of each point: f[N, 2] -> i64[N]."""
  _, near = cKDTree(points).query(points, 2)
  own = near[:, 0] == np.arange(len(points))  # False for some equal points
  return np.where(own, near[:, 1], near[:, 0])
