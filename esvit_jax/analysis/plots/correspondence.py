"""A picture of the best matching regions of two views."""

import numpy as np

from esvit_jax.analysis import correspondence
from esvit_jax.analysis.plots import images


def matches_png(
  path: str,
  image1: np.ndarray,
  image2: np.ndarray,
  grid1: np.ndarray,
  grid2: np.ndarray,
  top: int = correspondence.TOP,
) -> None:
  """Draws two views, and lines between their best matching regions.

  Args:
    path: of the picture.
    image1: view in 0..1, f32[H, W, C] (see images.pixels).
    image2: another, of any size.
    grid1: region features of the first, f32[h, w, D].
    grid2: of the second.
    top: number of lines, the most similar matches.
  """
  from matplotlib import colormaps
  from matplotlib.patches import ConnectionPatch
  from matplotlib.patheffects import Normal, Stroke

  figure = images.figure(8, 4.2)
  axes = figure.subplots(1, 2)
  for ax, image in zip(axes, (image1, image2)):
    images.draw(ax, image)
  matches = correspondence.match(grid1, grid2)
  shown = min(top, len(matches.similarity))
  colors = colormaps['plasma'](np.linspace(0.95, 0.15, shown))
  halo = [Stroke(linewidth=3.5, foreground='white'), Normal()]
  for rank in reversed(range(shown)):  # the most similar on top
    ends = [
      _centre(matches.first[rank], grid1, image1),
      _centre(matches.second[rank], grid2, image2),
    ]
    line = ConnectionPatch(
      *ends,
      coordsA=axes[0].transData,
      coordsB=axes[1].transData,
      color=colors[rank],
      linewidth=1.8,
      path_effects=halo,
    )
    figure.add_artist(line)
    for ax, end in zip(axes, ends):
      ax.plot(*end, 'o', ms=7, mfc=colors[rank], mec='white', mew=1.2)
  highest, lowest = matches.similarity[[0, shown - 1]]
  images.title(
    figure,
    f'the {shown} most similar pairs of regions, cosine {highest:.3f} (yellow) '
    f'to {lowest:.3f} (purple)',
  )
  images.save(figure, path)


def _centre(position, grid, image) -> tuple[float, float]:
  """x and y of the centre of a region; centres of pixels are integers."""
  y, x = (position + 0.5) * image.shape[:2] / grid.shape[:2] - 0.5
  return x, y
