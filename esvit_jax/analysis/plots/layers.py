"""A heat map of how similar layers are."""

from collections.abc import Sequence

import numpy as np

from esvit_jax.analysis.attention import short_names
from esvit_jax.analysis.plots import images
from esvit_jax.analysis.representation import OUTPUT, Similarity

CELL = 0.4  # inches
MOST_NUMBERS = 400  # cells, up to which their values are written in


def heat_map_png(
  path: str, similarity: Similarity, first: str, second: str
) -> None:
  """Draws the CKA of all pairs of layers, shallow layers at the bottom left.

  Args:
    path: of the picture.
    similarity: to draw.
    first: name of the network on the vertical axis.
    second: name of the one on the horizontal axis.
  """
  x = similarity.cka
  rows, columns = x.shape
  figure = images.figure(
    max(3.6, CELL * columns + 1.6), max(3.2, CELL * rows + 1.3)
  )
  ax = figure.subplots()
  ax.set_facecolor('#DDDDDD')  # undefined
  image = ax.imshow(x, 'magma', vmin=0, vmax=1, origin='lower')
  if rows * columns <= MOST_NUMBERS:
    for (i, j), value in np.ndenumerate(x):
      if np.isfinite(value):
        ink = 'black' if value > 0.6 else 'white'
        text = f'{value:.2f}'.removeprefix('0') if value < 0.995 else '1'
        ax.text(j, i, text, ha='center', va='center', fontsize=8, color=ink)
  ax.set_xticks(range(columns), _labels(similarity.columns), rotation=90)
  ax.set_yticks(range(rows), _labels(similarity.rows))
  style = {'fontsize': 9, 'color': images.INK}
  ax.set_xlabel(f'layer of {second}', **style)
  ax.set_ylabel(f'layer of {first}', **style)
  ax.set_title('CKA of layers', fontsize=10, pad=8, color=images.INK)
  bar = figure.colorbar(image, ax=ax, shrink=0.8, pad=0.02)
  bar.outline.set_visible(False)
  for axis in (ax, bar.ax):
    images.label_ticks(axis)
  ax.spines[:].set_visible(False)
  images.save(figure, path)


def _labels(names: Sequence[str]) -> Sequence[str]:
  return [
    name if name == OUTPUT else short
    for name, short in zip(names, short_names(names))
  ]
