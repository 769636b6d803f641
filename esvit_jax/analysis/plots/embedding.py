"""Pictures of features: regions as colours, neighbours, a map of images."""

from collections.abc import Sequence

import numpy as np

from esvit_jax.analysis.embedding import Colors
from esvit_jax.analysis.plots import images

# Okabe and Ito's, then three more; each with a marker of its own.
PALETTE = (
  *('#0072B2', '#E69F00', '#009E73', '#D55E00', '#CC79A7', '#56B4E9'),
  *('#B8A800', '#7B3FA0', '#8C564B', '#7F7F7F'),
)
MARKERS = 'osD^vPX*<>'


def regions_png(path: str, shown: np.ndarray, colors: Colors) -> None:
  """Draws images, and below each its regions as colours.

  Args:
    path: of the picture.
    shown: images in 0..1 (see images.pixels), f32[B, H, W, C].
    colors: of the same images.
  """
  size = shown.shape[1:3]
  regions = [images.enlarge(rgb, *size) for rgb in colors.rgb]
  figure, _ = images.grid([shown, regions], margin=0.35)
  share = 100 * colors.explained.sum()
  images.title(
    figure,
    f'first three principal components of regions, {share:.0f} % of the '
    'variance',
  )
  images.save(figure, path)


def neighbours_png(
  path: str,
  queries: np.ndarray,
  near: np.ndarray,
  similarity: np.ndarray,
  same: np.ndarray | None = None,
) -> None:
  """Draws a row for each query: the query, then its neighbours.

  Args:
    path: of the picture.
    queries: images in 0..1 (see images.pixels), f32[Q, H, W, C].
    near: their neighbours, f32[Q, k, H, W, C].
    similarity: cosine of each, f32[Q, k].
    same: whether they have the query's label, bool[Q, k]: framed in blue if
      so, else in orange.
  """
  cells = [[query, *images_] for query, images_ in zip(queries, near)]
  figure, axes = images.grid(cells, side=1.2, gap=0.26)
  for (q, k), ax in np.ndenumerate(axes[:, 1:]):
    text = f'{similarity[q, k]:.2f}'
    ax.set_title(text, fontsize=9, pad=4, color=images.INK)
    if same is not None:
      _frame(ax, images.BLUE if same[q, k] else images.ORANGE)
  text = 'an image, and those of the highest cosine'
  if same is not None:
    text += f'; {100 * same.mean():.0f} % are of its class (blue)'
  images.title(figure, text)
  images.save(figure, path)


def plane_png(
  path: str,
  points: np.ndarray,
  labels: np.ndarray | None = None,
  names: Sequence[str] | None = None,
  title: str = '',
) -> None:
  """Draws images as points in the colours of their classes.

  Up to ten classes get a colour and a marker each. With more, names are
  written at the centres of their classes where they fit.

  Args:
    path: of the picture.
    points: f[N, 2].
    labels: i[N]; -1 is none and drawn in grey.
    names: of classes; their numbers if not given.
    title: such as the name of the network.
  """
  from matplotlib import colormaps

  labels = np.full(len(points), -1) if labels is None else np.asarray(labels)
  classes = np.unique(labels[labels >= 0])
  few = len(classes) <= len(PALETTE)
  figure = images.figure(6.4 if few and len(classes) else 5.6, 5.2)
  ax = figure.subplots()
  size = float(np.clip(12000 / len(points), 6, 30))
  if (labels < 0).any():
    ax.scatter(*points[labels < 0].T, s=size, color=images.FAINT, lw=0)
  # In random order, so that no class covers all others.
  drawn = np.random.default_rng(0).permutation(np.flatnonzero(labels >= 0))
  style = {'s': size, 'alpha': 0.8, 'lw': 0}
  if few:
    for part in np.array_split(drawn, 8):
      for i, c in enumerate(classes):
        here = points[part[labels[part] == c]]
        ax.scatter(*here.T, color=PALETTE[i], marker=MARKERS[i], **style)
  else:
    # Multiples of the golden section: consecutive classes get distant hues.
    hues = np.searchsorted(classes, labels[drawn]) * 0.618034 % 1
    colors = colormaps['turbo'](0.05 + 0.9 * hues)
    ax.scatter(*points[drawn].T, color=colors, **style)
  titles = [str(c if names is None else names[c]) for c in classes]
  if few and len(classes):
    for i, name in enumerate(titles):
      ax.scatter([], [], s=32, color=PALETTE[i], marker=MARKERS[i], label=name)
    ax.legend(
      loc='center left',
      bbox_to_anchor=(1, 0.5),
      fontsize=10,
      frameon=False,
      labelcolor=images.INK,
      handletextpad=0.3,
    )
  elif len(classes) <= 120:
    _name_classes(ax, points, labels, classes, titles)
  ax.set_xticks([])
  ax.set_yticks([])
  ax.spines[:].set_color(images.FAINT)
  ax.spines[:].set_alpha(0.5)
  if title:
    ax.set_title(title, fontsize=10, loc='left', color=images.INK)
  images.save(figure, path)


def _name_classes(ax, points, labels, classes, titles) -> None:
  """Writes class names that do not overlap, the densest classes first."""
  from matplotlib.patheffects import Normal, Stroke

  halo = [Stroke(linewidth=2, foreground='white'), Normal()]
  named = []
  for c, name in zip(classes, titles):
    own = points[labels == c]
    middle = np.median(own, 0)
    text = ax.text(
      *middle,
      name if len(name) <= 20 else f'{name[:19]}…',
      ha='center',
      va='center',
      fontsize=9,
      color='#333333',
      path_effects=halo,
    )
    spread = np.median(np.linalg.norm(own - middle[None], axis=1))
    named.append((float(spread), text))
  ax.figure.draw_without_rendering()  # fixes the positions of the texts
  boxes = []
  for _, text in sorted(named, key=lambda x: x[0]):
    box = text.get_window_extent()
    if any(box.overlaps(other) for other in boxes):
      text.set_visible(False)
    else:
      boxes.append(box)


def _frame(ax, color: str) -> None:
  ax.axis('on')
  ax.set_xticks([])
  ax.set_yticks([])
  ax.spines[:].set(color=color, linewidth=2.5)
