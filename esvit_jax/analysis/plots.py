"""Pictures of a run: what the network sees, and how its numbers went.

matplotlib is imported where it is used, without its global state.
"""

from collections.abc import Mapping, Sequence

import numpy as np

# Okabe and Ito's colours, told apart with every kind of colour vision.
BLUE, ORANGE, GREEN = '#0072B2', '#E69F00', '#009E73'
INK, FAINT = '#333333', '#999999'

# One panel each: title, axis (from zero, logarithmic or what fits), its lines.
PANELS = (
  (
    'loss',
    'zero',
    {
      'train/loss': 'loss',
      'train/view_loss': 'views',
      'train/region_loss': 'regions',
    },
  ),
  (
    'k-NN top-1, %',
    'fit',
    {'knn/teacher': 'teacher', 'knn/student': 'student'},
  ),
  (
    'teacher, nats',
    'zero',
    {
      'train/teacher_entropy': 'entropy',
      'train/teacher_kl_uniform': 'KL of mean to uniform',
    },
  ),
  (
    'features and matches, 0 to 1',
    'zero',
    {
      'train/feature_spread': 'feature spread',
      'train/distinct_matches': 'distinct matches',
    },
  ),
  ('effective rank', 'zero', {'train/feature_rank': 'features'}),
  ('learning rate', 'zero', {'train/lr': 'learning rate'}),
  ('weight decay', 'zero', {'train/weight_decay': 'weight decay'}),
  ('momentum of the teacher', 'fit', {'train/momentum': 'momentum'}),
  ('temperature of the teacher', 'fit', {'train/teacher_temp': 'temperature'}),
  ('gradient norm', 'log', {'train/grad_norm': 'gradient norm'}),
  ('images per second', 'zero', {'train/images_per_s': 'images/s'}),
  ('share of time waiting for data', 'zero', {'train/data_wait': 'waiting'}),
)
# Drawn across a panel: measured once, before training.
BASELINES = {
  'knn/teacher': {
    'knn/random_init': 'random network',
    'knn/raw_pixels': 'raw pixels',
  }
}


def pixels(
  images: np.ndarray, mean: Sequence[float], std: Sequence[float]
) -> np.ndarray:
  """Normalised f32[..., C] -> 0..1 with one or three channels, to look at.

  Of other channel counts it takes the mean.
  """
  x = np.asarray(images, np.float32) * np.asarray(std, np.float32)
  x = np.clip(x + np.asarray(mean, np.float32), 0, 1)
  return x if x.shape[-1] in (1, 3) else x.mean(-1, keepdims=True)


def views_png(
  path: str,
  views: Mapping[str, np.ndarray],
  mean: Sequence[float],
  std: Sequence[float],
  rows: int = 6,
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
  from matplotlib.figure import Figure

  groups = {name: pixels(x[:rows], mean, std) for name, x in views.items()}
  largest = max(x.shape[2] for x in groups.values())
  zoom = max(1, round(128 / largest))  # whole, so that pixels stay pixels
  cell, gap, head = largest * zoom, 8, 28
  count = min(rows, *(len(x) for x in groups.values()))
  height = head + count * (cell + gap)

  left, titles, places = gap, [], []  # pixels from the top left
  for name, x in groups.items():
    size = x.shape[2]
    side = size * zoom
    fit = max(1, (cell + gap) // (side + gap))  # small views one below another
    fit = min(fit, x.shape[1])
    margin = (cell - fit * (side + gap) + gap) // 2
    titles.append((left, f'{name}, {size} px'))
    for v in range(x.shape[1]):
      top = head + margin + v % fit * (side + gap)
      for row in range(count):
        box = (left + v // fit * (side + gap), top + row * (cell + gap))
        places.append((x[row, v], *box, side))
    left += -(-x.shape[1] // fit) * (side + gap) + gap

  width = left
  figure = Figure(figsize=(width / 100, height / 100), dpi=100)
  for x, title in titles:
    y = 1 - head / 2 / height
    figure.text(x / width, y, title, va='center', fontsize=9, color=INK)
  for image, x, y, side in places:
    box = (x / width, 1 - (y + side) / height, side / width, side / height)
    draw(figure.add_axes(box), image)
  figure.savefig(path)


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
  from matplotlib.figure import Figure

  rows = pixels(images, mean, std)
  side, gap, head = max(96, images.shape[2]), 8, 28
  width = gap + len(titles) * (side + gap)
  height = head + len(rows) * (side + gap)
  figure = Figure(figsize=(width / 100, height / 100), dpi=100)
  for column, title in enumerate(titles):
    x = gap + column * (side + gap)
    y = 1 - head / 2 / height
    figure.text(x / width, y, title, va='center', fontsize=9, color=INK)
    for row, image in enumerate(rows[:, column]):
      y = 1 - (head + row * (side + gap) + side) / height
      draw(figure.add_axes((x / width, y, side / width, side / height)), image)
  figure.savefig(path)


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


def curves_png(
  path: str, lines: Sequence[Mapping], chance: float | None = None
) -> None:
  """Draws the metrics of a run over its steps, one small panel each.

  Args:
    path: of the picture.
    lines: of metrics.jsonl; panels where nothing changes are left out.
    chance: the loss of a network that knows nothing, to be marked.
  """
  from matplotlib import ticker
  from matplotlib.figure import Figure

  panels = [
    panel
    for panel in PANELS
    if any(_is_curve(_series(lines, name)[1]) for name in panel[2])
  ]
  across = min(3, max(len(panels), 1))
  down = max(-(-len(panels) // across), 1)
  figure = Figure(
    figsize=(4 * across, 2.5 * down), dpi=120, layout='constrained'
  )
  axes = figure.subplots(down, across, squeeze=False, sharex=True)
  axes = axes.flatten()
  for ax, (title, axis, names) in zip(axes, panels):
    for color, (name, label) in zip((BLUE, ORANGE, GREEN), names.items()):
      steps, values = _series(lines, name)
      if not len(steps):
        continue
      marker = 'o' if len(steps) < 20 else None
      ax.plot(
        steps, values, color=color, lw=1.4, ms=3, marker=marker, label=label
      )
      for baseline, text in BASELINES.get(name, {}).items():
        _, values = _series(lines, baseline)
        if len(values):
          _rule(ax, values[0], text)
    if chance is not None and 'train/loss' in names:
      _rule(ax, chance, 'chance')
    ax.set_title(title, fontsize=9, loc='left', color=INK)
    if axis == 'zero':
      ax.set_ylim(bottom=0)
    elif axis == 'log':
      ax.set_yscale('log')
      ax.yaxis.set_major_locator(ticker.LogLocator(subs=(1, 2, 5)))
      ax.yaxis.set_major_formatter('{x:g}')
      ax.yaxis.set_minor_locator(ticker.NullLocator())
    if len(names) > 1:
      ax.legend(fontsize=7, frameon=False)
    ax.spines[['top', 'right']].set_visible(False)
    ax.spines[['left', 'bottom']].set_color(FAINT)
    ax.tick_params(labelsize=7, color=FAINT, labelcolor=INK)
    ax.grid(axis='y', color=FAINT, alpha=0.25, lw=0.6)
  for ax in axes[len(panels) :]:
    ax.set_visible(False)
  for ax in axes[: len(panels)][-across:]:  # the lowest of each column
    ax.tick_params(labelbottom=True)
    ax.set_xlabel('step', fontsize=7, color=INK)
  figure.savefig(path)


def _rule(ax, y: float, label: str) -> None:
  ax.axhline(y, color=FAINT, lw=1, ls='--')
  ax.annotate(
    label,
    (1, y),
    xycoords=('axes fraction', 'data'),
    xytext=(0, 1),
    textcoords='offset points',
    ha='right',
    va='bottom',
    fontsize=7,
    color=INK,
  )


def _is_curve(values: np.ndarray) -> bool:
  return len(values) == 1 or len(np.unique(values)) > 1


def _series(lines, name: str) -> tuple[np.ndarray, np.ndarray]:
  """Steps and values of a metric, where it has some."""
  points = [(x['step'], x[name]) for x in lines if x.get(name) is not None]
  steps, values = np.array(points, float).reshape(-1, 2).T
  return steps, values
