"""Pictures of images, and the style that all pictures share.

Backgrounds are transparent and inks are legible on white and on black, since
report pages have a light and a dark theme. matplotlib is imported inside
functions, because it is slow to import; its global state is not used.
"""

import warnings
from collections.abc import Mapping, Sequence

import numpy as np

from esvit_jax import workdir

# From Okabe and Ito's palette, which is safe for colour-blind readers.
BLUE, ORANGE = '#0072B2', '#E69F00'
INK, FAINT = '#7A7F87', '#999999'
HEAD, GAP = 30, 8  # pixels above the images, and between them


def pixels(
  images: np.ndarray, mean: Sequence[float], std: Sequence[float]
) -> np.ndarray:
  """Undoes the normalisation of f32[..., C]; the result is in 0..1.

  It has one or three channels; other numbers of channels are averaged to one.
  """
  x = np.asarray(images, np.float32) * np.asarray(std, np.float32)
  x = np.clip(x + np.asarray(mean, np.float32), 0, 1)
  return x if x.shape[-1] in (1, 3) else x.mean(-1, keepdims=True)


def enlarge(x: np.ndarray, height: int, width: int) -> np.ndarray:
  """Repeats rows and columns: [h, w, ...] -> [height, width, ...]."""
  rows = np.arange(height) * x.shape[0] // height
  columns = np.arange(width) * x.shape[1] // width
  return x[rows][:, columns]


def figure(width: float, height: float, pad: float | None = None):
  """An empty figure; sizes and the padding between axes are in inches."""
  from matplotlib.figure import Figure

  figure = Figure(figsize=(width, height), dpi=120, layout='constrained')
  if pad is not None:
    engine = figure.get_layout_engine()
    engine.set(w_pad=pad, h_pad=pad, wspace=0, hspace=0)
  return figure


def save(figure, path: str) -> None:
  """Writes a figure without its background.

  Raises:
    UserError: it cannot be written.
  """
  from matplotlib.text import Text

  for text in figure.findobj(Text):  # names of classes may hold dollars
    text.set_parse_math(False)
  with workdir.writing(path), warnings.catch_warnings():
    # Of names in a script that the font lacks; boxes stand for them.
    warnings.filterwarnings('ignore', 'Glyph')
    figure.savefig(path, transparent=True)


def draw(ax, image: np.ndarray) -> None:
  """Shows f32[h, w, 1 or 3] in 0..1 on matplotlib axes, pixels as squares."""
  gray = image.shape[-1] == 1
  ax.imshow(
    image[..., 0] if gray else image,
    'gray',
    vmin=0,
    vmax=1,
    interpolation='nearest',
  )
  ax.axis('off')


def grid(
  cells: Sequence[Sequence[np.ndarray]],
  titles: Sequence[str] = (),
  side: float = 1.4,
  gap: float = 0.0,
  margin: float = 0.3,
):
  """A figure with a table of images of one size.

  Args:
    cells: rows of images in 0..1, f32[h, w, 1 or 3].
    titles: of the columns.
    side: width of an image in inches.
    gap: inches between rows.
    margin: inches above and below the table, for a title or a legend.

  Returns:
    The figure, and its axes [rows, columns].
  """
  height, width = cells[0][0].shape[:2]
  table = figure(
    side * len(cells[0]),
    (side * height / width + gap) * len(cells) + margin,
    pad=0.02,
  )
  axes = table.subplots(len(cells), len(cells[0]), squeeze=False)
  for row, images in zip(axes, cells):
    for ax, image in zip(row, images):
      draw(ax, image)
  for ax, text in zip(axes[0], titles):
    ax.set_title(text, fontsize=9, color=INK)
  return table, axes


def label_ticks(ax) -> None:
  """Sets the style of tick labels."""
  ax.tick_params(labelsize=9, color=FAINT, labelcolor=INK)


def title(figure, text: str) -> None:
  """Writes a title above a figure, aligned with its left edge."""
  figure.suptitle(text, fontsize=10, x=0.01, ha='left', color=INK)


def views_png(
  path: str,
  views: Mapping[str, np.ndarray],
  mean: Sequence[float],
  std: Sequence[float],
  rows: int = 4,
) -> None:
  """Draws all views of some images at one scale.

  A row for each image, a column for each view; small views are stacked.

  Args:
    path: of the picture.
    views: group -> normalised views f32[B, V, h, w, C].
    mean: per channel, of pixels in 0..1.
    std: per channel.
    rows: at most this many images.
  """
  groups = {
    f'{name}, {x.shape[2]} px': pixels(x[:rows], mean, std)
    for name, x in views.items()
  }
  largest = max(x.shape[2] for x in views.values())
  _mosaic(path, groups, max(1, round(128 / largest)))


def columns_png(
  path: str,
  titles: Sequence[str],
  images: np.ndarray,
  mean: Sequence[float],
  std: Sequence[float],
) -> None:
  """Draws a table of images, one row each.

  Args:
    path: of the picture.
    titles: of the columns.
    images: normalised f32[B, columns, h, w, C].
    mean: per channel, of pixels in 0..1.
    std: per channel.
  """
  shown = pixels(images, mean, std)
  groups = {title: shown[:, i : i + 1] for i, title in enumerate(titles)}
  _mosaic(path, groups, max(1, 96 / images.shape[2]))


def _mosaic(path: str, groups: Mapping[str, np.ndarray], zoom: float) -> None:
  """Draws groups of views side by side, aligned to whole pixels.

  Args:
    path: of the picture.
    groups: title -> views in 0..1, f32[B, V, h, w, C].
    zoom: pixels of the picture for a pixel of a view.
  """
  from matplotlib.figure import Figure

  cell = round(zoom * max(x.shape[2] for x in groups.values()))
  left, titles, places = GAP, [], []  # pixels from the top left
  for title, x in groups.items():
    side = round(zoom * x.shape[2])
    stacked = min(max(1, (cell + GAP) // (side + GAP)), x.shape[1])
    margin = (cell - stacked * (side + GAP) + GAP) // 2
    titles.append((left, title))
    for v in range(x.shape[1]):
      top = HEAD + margin + v % stacked * (side + GAP)
      for row, image in enumerate(x[:, v]):
        corner = left + v // stacked * (side + GAP), top + row * (cell + GAP)
        places.append((image, *corner, side))
    left += -(-x.shape[1] // stacked) * (side + GAP) + GAP
  rows = max(len(x) for x in groups.values())
  width, height = left, HEAD + rows * (cell + GAP)
  figure = Figure(figsize=(width / 100, height / 100), dpi=100)
  for left, text in titles:
    y = 1 - HEAD / 2 / height
    figure.text(left / width, y, text, va='center', fontsize=10, color=INK)
  for image, left, top, side in places:
    box = (left, height - top - side, side, side)
    ax = figure.add_axes(np.divide(box, (width, height, width, height)))
    draw(ax, image)
  save(figure, path)
