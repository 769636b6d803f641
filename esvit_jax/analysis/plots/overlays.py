"""Pictures of segmentations: class colours over images."""

from collections.abc import Mapping, Sequence

import numpy as np

from esvit_jax.analysis.plots import images as images_lib

_LEGEND = 20  # classes in the legend, the most frequent first


def segmentation_png(
  path: str,
  images: np.ndarray,
  labels: Mapping[str, np.ndarray],
  classes: Sequence[str],
) -> None:
  """Draws images and, beside each, its segmentations.

  Args:
    path: of the picture.
    images: in 0..1, f32[N, H, W, 1 or 3].
    labels: title -> classes u8[N, H, W]; void is grey.
    classes: names.
  """
  from matplotlib.patches import Patch

  colors = palette(len(classes))
  columns = {'image': images}
  columns |= {name: colored(images, x, colors) for name, x in labels.items()}
  cells = list(zip(*columns.values()))
  figure, _ = images_lib.grid(cells, list(columns), margin=0.8)
  shown = np.concatenate([x.ravel() for x in labels.values()])
  counts = np.bincount(shown, minlength=256)[: len(classes)]
  common = np.argsort(-counts, kind='stable')[:_LEGEND]
  figure.legend(
    [Patch(color=colors[k]) for k in common if counts[k]],
    [classes[k] for k in common if counts[k]],
    loc='outside lower center',
    ncols=3,
    fontsize=7,
    labelcolor=images_lib.INK,
    frameon=False,
  )
  images_lib.save(figure, path)


def objects_png(
  path: str,
  images: np.ndarray,
  objects: Mapping[str, tuple],
  classes: Sequence[str],
) -> None:
  """Draws images, and beside each its objects: masks, boxes and classes.

  Args:
    path: of the picture.
    images: in 0..1, f32[N, H, W, 1 or 3].
    objects: column -> of each image boxes f32[n, 4] in pixels, classes i32[n]
      (-1: none) and masks bool[n, H, W].
    classes: their names.
  """
  from matplotlib.patches import Rectangle

  colors = palette(1 + len(classes))
  rows, (height, width) = len(images), images.shape[1:3]
  side = 2.0
  figure = images_lib.figure(
    side * (1 + len(objects)), side * rows * height / width + 0.3, pad=0.02
  )
  axes = figure.subplots(rows, 1 + len(objects), squeeze=False)
  for place, name in enumerate(('image', *objects)):
    axes[0, place].set_title(name, fontsize=9, color=images_lib.INK)
  for row, image in enumerate(images):
    images_lib.draw(axes[row, 0], image)
    for ax, (boxes, kinds, masks) in zip(axes[row, 1:], objects.values()):
      labels = np.zeros((height, width), np.uint8)
      for kind, mask in zip(kinds[row], masks[row]):
        labels[mask & (kind >= 0)] = 1 + max(kind, 0)
      images_lib.draw(ax, colored(image, labels, colors))
      for kind, (x1, y1, x2, y2) in zip(kinds[row], boxes[row]):
        if kind >= 0:
          color = colors[1 + kind]
          # Pixels have their middles at whole numbers.
          corner, sides = (x1 - 0.5, y1 - 0.5), (x2 - x1, y2 - y1)
          ax.add_patch(Rectangle(corner, *sides, fill=False, color=color))
          ax.text(*corner, classes[kind], fontsize=5, color='white')
  images_lib.save(figure, path)


def clip_png(
  path: str, frames: np.ndarray, objects: Mapping[str, np.ndarray]
) -> None:
  """Draws frames from left to right, with rows of object masks below.

  Args:
    path: of the picture.
    frames: in 0..1, f32[T, H, W, 1 or 3].
    objects: title -> objects u8[T, H, W], 0 for the background.
  """
  count = 1 + max(int(x.max()) for x in objects.values())
  colors = palette(count)
  strips = {'frames': frames}
  strips |= {name: colored(frames, x, colors) for name, x in objects.items()}
  figure, axes = images_lib.grid(list(strips.values()), gap=0.2, margin=0)
  for ax, name in zip(axes[:, 0], strips):
    ax.set_title(name, fontsize=9, color=images_lib.INK)
  images_lib.save(figure, path)


def colored(
  images: np.ndarray, labels: np.ndarray, colors: np.ndarray
) -> np.ndarray:
  """Tints images f32[..., 1 or 3] in the colours of their classes u8[...]."""
  grey = np.broadcast_to(images.mean(-1, keepdims=True), (*labels.shape, 3))
  known = (labels < len(colors))[..., None]
  tint = colors[np.minimum(labels, len(colors) - 1)]
  return np.where(known, 0.4 * grey + 0.6 * tint, 0.5 + 0.5 * grey)


def palette(count: int) -> np.ndarray:
  """Colours f32[count, 3]; the first, of the background, is dark."""
  from matplotlib.colors import hsv_to_rgb

  # Multiples of the golden angle: consecutive classes get distant hues.
  hue = np.arange(count) * 0.381966 % 1
  light = np.where(np.arange(count) % 2, 0.95, 0.75)
  colors = hsv_to_rgb(np.stack([hue, np.full(count, 0.75), light], -1))
  colors[0] = 0.15
  return colors.astype(np.float32)
