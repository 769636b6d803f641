"""Pictures of attention: maps of heads, and heads block by block."""

import math
from collections.abc import Mapping

import numpy as np

from esvit_jax.analysis import attention
from esvit_jax.analysis.plots import images

MOST_HEADS = 8  # of a row, evenly taken from wide to narrow


def attention_png(path: str, shown: np.ndarray, maps: np.ndarray) -> None:
  """Draws images and, beside each, the regions that its heads attend to most.

  Args:
    path: of the picture.
    shown: images in 0..1 (see images.pixels), f32[B, H, W, C].
    maps: of the same images, f32[B, heads, h, w].
  """
  order, bits = attention.widest_first(maps)
  ranks = np.linspace(0, len(order) - 1, min(MOST_HEADS, len(order)))
  ranks = ranks.round().astype(int)
  rows, columns = len(shown), 1 + len(ranks)
  tall = shown.shape[1] / shown.shape[2]
  figure = images.figure(
    1.4 * columns, (1.4 * tall + 0.04) * rows + 0.5, pad=0.02
  )
  axes = figure.subplots(rows, columns, squeeze=False)
  for line, image, heads in zip(axes, shown, attention.top_mass(maps)):
    images.draw(line[0], image)
    for ax, rank in zip(line[1:], ranks):
      _overlay(ax, image, heads[order[rank]])
  style = {'fontsize': 10, 'color': images.INK}
  axes[0, 0].set_title('image', **style)
  for ax, rank in zip(axes[0, 1:], ranks):
    ax.set_title(f'head {order[rank]}\n{bits[rank]:.1f} bits', **style)
  images.save(figure, path)


def _overlay(ax, image: np.ndarray, values: np.ndarray) -> None:
  """A dimmed grey image, lit in colour where attention is."""
  from matplotlib import colormaps

  level = values / max(values.max(), 1e-12)
  level = images.enlarge(level, *image.shape[:2])  # H W
  grey = np.repeat(image.mean(-1, keepdims=True), 3, -1)
  color = colormaps['inferno'](0.1 + 0.85 * level)[..., :3]
  mix = (0.35 + 0.5 * level)[..., None]
  images.draw(ax, (1 - mix) * 0.6 * grey + mix * color)


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
