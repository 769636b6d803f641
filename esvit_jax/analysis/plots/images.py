"""Pictures of images, and what all pictures share.

They are transparent, with ink that can be read on white and on black: a page
shows them in its light and its dark colours. matplotlib is imported where it
is used, without its global state.
"""

from collections.abc import Mapping, Sequence

import numpy as np

# Okabe and Ito's colours, told apart with every kind of colour vision.
BLUE, ORANGE = '#0072B2', '#E69F00'
INK, FAINT = '#7A7F87', '#999999'
HEAD, GAP = 30, 8  # pixels above the images, and between them


def pixels(
  images: np.ndarray, mean: Sequence[float], std: Sequence[float]
) -> np.ndarray:
  """Normalised f32[..., C] -> 0..1 with one or three channels, to look at.

  Of other channel counts it takes the mean.
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
  """An empty figure of a size in inches; `pad` between its axes, if given."""
  from matplotlib.figure import Figure

  figure = Figure(figsize=(width, height), dpi=120, layout='constrained')
  if pad is not None:
    engine = figure.get_layout_engine()
    engine.set(w_pad=pad, h_pad=pad, wspace=0, hspace=0)
  return figure


def save(figure, path: str) -> None:
  """Writes a figure without its background."""
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


def label_ticks(ax) -> None:
  """The style of tick labels."""
  ax.tick_params(labelsize=9, color=FAINT, labelcolor=INK)


def title(figure, text: str) -> None:
  """A line above all of a figure, from its left edge."""
  figure.suptitle(text, fontsize=10, x=0.01, ha='left', color=INK)


def views_png(
  path: str,
  views: Mapping[str, np.ndarray],
  mean: Sequence[float],
  std: Sequence[float],
  rows: int = 4,
) -> None:
  """Draws all views of some images, in their own proportions.

  A row for each image; columns of views, small ones one below another.

  Args:
    path: of the picture.
    views: group -> normalised views f32[B, V, h, w, C].
    mean: per channel, of pixels in 0..1.
    std: per channel.
    rows: at most this many images.
  """
  groups = {name: pixels(x[:rows], mean, std) for name, x in views.items()}
  largest = max(x.shape[2] for x in groups.values())
  zoom = max(1, round(128 / largest))  # whole, so that pixels stay pixels
  cell = largest * zoom
  left, titles, places = GAP, [], []  # pixels from the top left
  for name, x in groups.items():
    size = x.shape[2]
    side = size * zoom
    # Small views stand one below another.
    fit = min(max(1, (cell + GAP) // (side + GAP)), x.shape[1])
    margin = (cell - fit * (side + GAP) + GAP) // 2
    titles.append((left, f'{name}, {size} px'))
    for v in range(x.shape[1]):
      top = HEAD + margin + v % fit * (side + GAP)
      for row, image in enumerate(x[:, v]):
        corner = (left + v // fit * (side + GAP), top + row * (cell + GAP))
        places.append((image, *corner, side))
    left += -(-x.shape[1] // fit) * (side + GAP) + GAP
  count = max(len(x) for x in groups.values())
  _mosaic(path, left, HEAD + count * (cell + GAP), titles, places)


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
  side = max(96, images.shape[2])
  left = [GAP + column * (side + GAP) for column in range(len(titles))]
  places = [
    (image, left[column], HEAD + row * (side + GAP), side)
    for row, line in enumerate(pixels(images, mean, std))
    for column, image in enumerate(line)
  ]
  width, height = left[-1] + side + GAP, HEAD + len(images) * (side + GAP)
  _mosaic(path, width, height, list(zip(left, titles)), places)


def _mosaic(
  path: str,
  width: int,
  height: int,
  titles: Sequence[tuple[int, str]],
  places: Sequence[tuple[np.ndarray, int, int, int]],
) -> None:
  """Draws square images at their places, to the pixel.

  Args:
    path: of the picture.
    width, height: in pixels.
    titles: (left, text) of columns.
    places: (image in 0..1, left, top, side).
  """
  from matplotlib.figure import Figure

  figure = Figure(figsize=(width / 100, height / 100), dpi=100)
  for left, text in titles:
    y = 1 - HEAD / 2 / height
    figure.text(left / width, y, text, va='center', fontsize=10, color=INK)
  for image, left, top, side in places:
    box = (left, height - top - side, side, side)
    ax = figure.add_axes(np.divide(box, (width, height, width, height)))
    draw(ax, image)
  save(figure, path)
