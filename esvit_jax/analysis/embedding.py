"""Features to look at: regions as colours, neighbours, a map of all images.

Axes: B images, h w a map of regions, D channels, N images, Q queries.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from esvit_jax.analysis import plots
from esvit_jax.errors import UserError
from esvit_jax.evals.neighbours import Neighbours
from esvit_jax.workdir import health

RANK_IMAGES = 512  # the effective rank is read off this many
CHUNK = 1024  # points that are compared at a time
# Okabe and Ito's, then two more; each with a marker of its own.
PALETTE = (
  *('#0072B2', '#E69F00', '#009E73', '#D55E00', '#CC79A7', '#56B4E9'),
  *('#B8A800', '#000000', '#8C564B', '#7F7F7F'),
)
MARKERS = 'osD^vPX*<>'


class Colors(NamedTuple):
  """Regions as colours.

  Attributes:
    rgb: f32[B, h, w, 3] in 0..1; one colour means one thing in all B images.
    explained: share of the variance in each of the three, f64[3].
  """

  rgb: np.ndarray
  explained: np.ndarray


def region_colors(grids: np.ndarray) -> Colors:
  """First three principal components of all regions as red, green, blue.

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
  """Principal components, their largest weight positive.

  Args:
    x: f[N, D].
    count: how many; 0 stands for those there are not.

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


def color_figures(colors: Colors) -> dict[str, float]:
  """How much of the regions the colours tell."""
  return {
    'explained': float(colors.explained.sum()),
    'explained_first': float(colors.explained[0]),
  }


def neighbour_figures(
  found: Neighbours,
  labels: np.ndarray | None = None,
  query_labels: np.ndarray | None = None,
) -> dict[str, float]:
  """Mean cosine of neighbours, and in percent how many share the label.

  Args:
    found: of Q images.
    labels: of all images, i[N]; -1 is none.
    query_labels: of the Q images.
  """
  out = {'similarity': float(found.similarity.mean())}
  if labels is not None and query_labels is not None:
    asked = np.asarray(query_labels)
    same = np.asarray(labels)[found.index] == asked[:, None]
    same = same[asked >= 0]
    if len(same):
      out |= {
        'same_label': 100 * float(same.mean()),
        'same_label_first': 100 * float(same[:, 0].mean()),
      }
  return out


def plane(
  features: np.ndarray, method: str = 'tsne', seed: int = 0
) -> np.ndarray:
  """Images as points: f32[N, 2].

  Args:
    features: f[N, D].
    method: 'tsne' (of directions, so that it agrees with cosines; needs
      scikit-learn) or 'pca'.
    seed: of t-SNE.

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
  x = _unit(features)
  if x.shape[1] > 50:
    x = components(x, min(50, len(x)))[0].astype(np.float32)
  # Identical images have no first axis to start from.
  spread = components(x, 2)[0]
  start = spread / max(spread[:, 0].std(), 1e-12) * 1e-4
  perplexity = min(30.0, (len(x) - 1) / 3)
  tsne = TSNE(
    perplexity=perplexity, init=start.astype(np.float32), random_state=seed
  )
  # Its threads wait for each other busily: where another process has a core,
  # they take sixty times as long as one.
  with threadpool_limits(1):
    return tsne.fit_transform(x)


def plane_figures(
  features: np.ndarray, points: np.ndarray, labels: np.ndarray | None = None
) -> dict[str, float]:
  """What the map keeps, and how many dimensions it comes from.

  Args:
    features: f[N, D].
    points: of the same images, f[N, 2].
    labels: i[N]; -1 is none.

  Returns:
    effective_rank of the features and, with labels, same_label: how many
    images in a hundred have one of their class nearest on the map.
  """
  found = {'effective_rank': health.rankme(features[:RANK_IMAGES])}
  if labels is not None:
    labels = np.asarray(labels)
    known = np.flatnonzero(labels >= 0)
    if len(known) > 1:
      x = np.asarray(points, np.float64)[known]
      nearest = _nearest(x)
      same = labels[known][nearest] == labels[known]
      found['same_label'] = 100 * float(same.mean())
  return found


def regions_png(path: str, images: np.ndarray, colors: Colors) -> None:
  """Draws images, and below each its regions as colours.

  Args:
    path: of the picture.
    images: in 0..1 (see plots.pixels), f32[B, H, W, C].
    colors: of the same images.
  """
  from matplotlib.figure import Figure

  count = len(images)
  tall = images.shape[1] / images.shape[2]
  figure = Figure(
    figsize=(1.4 * count, 2 * 1.4 * tall + 0.35), dpi=120, layout='constrained'
  )
  figure.get_layout_engine().set(w_pad=0.025, h_pad=0.025, wspace=0, hspace=0)
  axes = figure.subplots(2, count, squeeze=False)
  height, width = images.shape[1:3]
  for (upper, lower), image, rgb in zip(axes.T, images, colors.rgb):
    plots.draw(upper, image)
    rows = np.arange(height) * len(rgb) // height
    cols = np.arange(width) * rgb.shape[1] // width
    plots.draw(lower, rgb[rows][:, cols])
  share = 100 * colors.explained.sum()
  figure.suptitle(
    f'regions by their first three components, {share:.0f} % of the variance',
    fontsize=9,
    x=0.01,
    ha='left',
    color=plots.INK,
  )
  figure.savefig(path)


def neighbours_png(
  path: str,
  queries: np.ndarray,
  images: np.ndarray,
  similarity: np.ndarray,
  same: np.ndarray | None = None,
  names: Sequence[Sequence[str]] | None = None,
) -> None:
  """Draws a row for each query: itself, then its neighbours.

  Args:
    path: of the picture.
    queries: in 0..1 (see plots.pixels), f32[Q, H, W, C].
    images: their neighbours, f32[Q, k, H, W, C].
    similarity: of them, f32[Q, k].
    same: whether they have the query's label, bool[Q, k]; framed in blue
      where they have, in orange where not.
    names: of the classes, the query's first, Q times 1 + k.
  """
  from matplotlib.figure import Figure

  rows, k = images.shape[:2]
  tall = images.shape[2] / images.shape[3]
  line = 1.2 * tall + 0.24
  figure = Figure(
    figsize=(1.2 * (1 + k) + 0.1, line * rows + 0.3),
    dpi=120,
    layout='constrained',
  )
  figure.get_layout_engine().set(w_pad=0.03, h_pad=0.03, wspace=0, hspace=0)
  axes = figure.subplots(rows, 1 + k, squeeze=False)
  for q in range(rows):
    shown = [queries[q], *images[q]]
    for column, (ax, image) in enumerate(zip(axes[q], shown)):
      plots.draw(ax, image)
      text = '' if names is None else _short(names[q][column])
      if column:
        text = f'{text} {similarity[q, column - 1]:.2f}'.strip()
      color = plots.INK
      if column and same is not None:
        color = plots.BLUE if same[q, column - 1] else '#B35900'
        _frame(ax, plots.BLUE if same[q, column - 1] else plots.ORANGE)
      ax.set_title(
        text, fontsize=7, pad=4, color=color, weight=None if column else 'bold'
      )
  told = 'each row: an image, then its nearest by cosine'
  if same is not None:
    told += f'; {100 * same.mean():.0f} % of its class (blue), others orange'
  figure.suptitle(told, fontsize=9, x=0.01, ha='left', color=plots.INK)
  figure.savefig(path)


def plane_png(
  path: str,
  points: np.ndarray,
  labels: np.ndarray | None = None,
  names: Sequence[str] | None = None,
  title: str = '',
) -> None:
  """Draws images as points in the colours of their classes.

  Up to ten classes have a colour and a marker each; of more, the name stands
  in the middle of its class, where there is room for it.

  Args:
    path: of the picture.
    points: f[N, 2].
    labels: i[N]; -1 is none and drawn in grey.
    names: of classes; their numbers if not given.
    title: such as the name of the network.
  """
  from matplotlib import colormaps
  from matplotlib.figure import Figure

  labels = np.full(len(points), -1) if labels is None else np.asarray(labels)
  classes = np.unique(labels[labels >= 0])
  few = len(classes) <= len(PALETTE)
  figure = Figure(
    figsize=(6.4 if few and len(classes) else 5.6, 5.2),
    dpi=120,
    layout='constrained',
  )
  ax = figure.subplots()
  size = float(np.clip(12000 / len(points), 6, 30))
  if (labels < 0).any():
    ax.scatter(*points[labels < 0].T, s=size, color=plots.FAINT, lw=0)
  # In no order of classes, so that none lies over all others.
  drawn = np.random.default_rng(0).permutation(np.flatnonzero(labels >= 0))
  style = {'s': size, 'alpha': 0.8, 'lw': 0}
  if few:
    for part in np.array_split(drawn, 8):
      for i, c in enumerate(classes):
        here = points[part[labels[part] == c]]
        ax.scatter(*here.T, color=PALETTE[i], marker=MARKERS[i], **style)
  else:
    # Golden section: classes of neighbouring numbers get far hues.
    hues = np.searchsorted(classes, labels[drawn]) * 0.618034 % 1
    colors = colormaps['turbo'](0.05 + 0.9 * hues)
    ax.scatter(*points[drawn].T, color=colors, **style)
  called = [str(c if names is None else names[c]) for c in classes]
  if few and len(classes):
    for i, name in enumerate(called):
      ax.scatter([], [], s=32, color=PALETTE[i], marker=MARKERS[i], label=name)
    ax.legend(
      loc='center left',
      bbox_to_anchor=(1, 0.5),
      fontsize=8,
      frameon=False,
      labelcolor=plots.INK,
      handletextpad=0.3,
    )
  elif len(classes) <= 120:
    _name_classes(ax, points, labels, classes, called)
  ax.set_xticks([])
  ax.set_yticks([])
  ax.spines[:].set_color(plots.FAINT)
  ax.spines[:].set_alpha(0.5)
  if title:
    ax.set_title(title, fontsize=9, loc='left', color=plots.INK)
  figure.savefig(path)


def _name_classes(ax, points, labels, classes, called) -> None:
  """Names that fit without overlap, those of the densest classes first."""
  from matplotlib.patheffects import Normal, Stroke

  halo = [Stroke(linewidth=2, foreground='white'), Normal()]
  named = []
  for c, name in zip(classes, called):
    own = points[labels == c]
    middle = np.median(own, 0)
    text = ax.text(
      *middle,
      _short(name, 20),
      ha='center',
      va='center',
      fontsize=7,
      color=plots.INK,
      path_effects=halo,
    )
    spread = np.median(np.linalg.norm(own - middle[None], axis=1))
    named.append((float(spread), text))
  ax.figure.draw_without_rendering()  # places are known from here on
  taken = []
  for _, text in sorted(named, key=lambda x: x[0]):
    box = text.get_window_extent()
    if any(box.overlaps(other) for other in taken):
      text.set_visible(False)
    else:
      taken.append(box)


def _frame(ax, color: str) -> None:
  ax.axis('on')
  ax.set_xticks([])
  ax.set_yticks([])
  ax.spines[:].set(color=color, linewidth=2.5)


def _short(name: str, most: int = 14) -> str:
  return name if len(name) <= most else name[: most - 1] + '…'


def _nearest(x: np.ndarray) -> np.ndarray:
  """The nearest other point of each: f[N, 2] -> i64[N]."""
  found = []
  for first in range(0, len(x), CHUNK):
    here = x[first : first + CHUNK]
    square = ((here[:, None] - x[None]) ** 2).sum(-1)
    square[np.arange(len(here)), first + np.arange(len(here))] = np.inf
    found.append(square.argmin(1))
  return np.concatenate(found)


def _unit(x: np.ndarray) -> np.ndarray:
  x = np.asarray(x, np.float32)
  return x / np.maximum(np.linalg.norm(x, axis=-1, keepdims=True), 1e-12)
