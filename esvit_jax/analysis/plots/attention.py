"""Pictures of attention: maps of heads, and box plots over heads."""

import math
from collections.abc import Mapping

import numpy as np

from esvit_jax.analysis import attention
from esvit_jax.analysis.plots import images

MOST_HEADS = 8  # of a row, evenly spaced from the widest to the narrowest


def attention_png(path: str, shown: np.ndarray, maps: np.ndarray) -> None:
  """Draws images and, beside each, the regions its heads attend to most.

  Args:
    path: of the picture.
    shown: images in 0..1 (see images.pixels), f32[B, H, W, C].
    maps: of the same images, f32[B, heads, h, w].
  """
  order, bits = attention.widest_first(maps)
  ranks = np.linspace(0, len(order) - 1, min(MOST_HEADS, len(order)))
  ranks = ranks.round().astype(int)
  cells = [
    [image, *(_overlay(image, heads[order[rank]]) for rank in ranks)]
    for image, heads in zip(shown, attention.top_mass(maps))
  ]
  names = [f'head {order[rank]}\n{bits[rank]:.1f} bits' for rank in ranks]
  figure, _ = images.grid(cells, ['image', *names], gap=0.04, margin=0.5)
  images.save(figure, path)


def _overlay(image: np.ndarray, values: np.ndarray) -> np.ndarray:
  """The image f32[H, W, C] in dim grey, with attention [h, w] in colour."""
  from matplotlib import colormaps

  level = values / max(values.max(), 1e-12)
  level = images.enlarge(level, *image.shape[:2])  # H W
  grey = np.repeat(image.mean(-1, keepdims=True), 3, -1)
  color = colormaps['inferno'](0.1 + 0.85 * level)[..., :3]
  mix = (0.35 + 0.5 * level)[..., None]
  return (1 - mix) * 0.6 * grey + mix * color


def heads_png(path: str, heads: Mapping[str, np.ndarray], base: float) -> None:
  """Box plots over heads of entropy and distance, block by block.

  Args:
    path: of the picture.
    heads: block -> entropy and distance, f[heads, 2], first block first.
    base: of the entropy's logarithm, for its unit.
  """
  unit = {math.e: 'nats', 2: 'bits'}.get(base, f'base {base:g}')
  names = attention.short_names(heads)
  figure = images.figure(max(7.2, 0.62 * len(names) + 1), 3.1)
  panels = (
    (f'entropy of attention, {unit}', images.BLUE),
    ('distance of attention, pixels', images.ORANGE),
  )
  rng = np.random.default_rng(0)
  for i, (ax, (label, color)) in enumerate(zip(figure.subplots(1, 2), panels)):
    values = [np.asarray(x)[:, i] for x in heads.values()]
    boxes = ax.boxplot(
      values,
      tick_labels=names,
      widths=0.6,
      showfliers=False,
      patch_artist=True,
      medianprops={'color': images.INK, 'lw': 1.4},
      whiskerprops={'color': color},
      capprops={'color': color},
    )
    for box in boxes['boxes']:
      box.set(facecolor=color, alpha=0.35, edgecolor=color)
    for place, x in enumerate(values, 1):
      jitter = rng.uniform(-0.15, 0.15, len(x))
      ax.plot(place + jitter, x, 'o', ms=2.4, color=color, mew=0)
    ax.set_title(label, fontsize=10, loc='left', color=images.INK)
    ax.set_xlabel('block', fontsize=9, color=images.INK)
    ax.set_ylim(bottom=0)
    ax.spines[['top', 'right']].set_visible(False)
    ax.spines[['left', 'bottom']].set_color(images.FAINT)
    images.label_ticks(ax)
    ax.grid(axis='y', color=images.FAINT, alpha=0.25, lw=0.6)
  images.save(figure, path)
