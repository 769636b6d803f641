"""Labels of the first frame carried through a video (DAVIS 2017, as DINO).

Nothing is learned: a token takes the labels of the tokens most like it in the
frames before. Each map of the network is judged alone and all together; a
radius in tokens reaches farther on a coarser map.
"""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from esvit_jax import augment, data
from esvit_jax.analysis.plots import overlays
from esvit_jax.dense import propagation, resize, tracks
from esvit_jax.errors import UserError
from esvit_jax.protocols import maps as maps_lib
from esvit_jax.protocols.setup import Result, Setup, without_images
from esvit_jax.workdir import terminal

OBJECTS = 10  # of a video, beside the ground; DAVIS 2017 has no more
FIGURES = ('JF', 'J', 'F', 'J_recall', 'J_decay', 'F_recall', 'F_decay')
SHOWN = 6  # frames in the picture
# J&F, J and F on DAVIS 2017 val: DINO (2104.14294), table 5.
PUBLISHED = {
  'DINO S/16': (61.8, 60.2, 63.4),
  'DINO B/16': (62.3, 60.7, 63.9),
  'DINO S/8': (69.9, 66.6, 73.1),
  'DINO B/8': (71.4, 67.9, 74.9),
}


class Tracker(NamedTuple):
  """What follows objects, for frames of one size.

  Attributes:
    start: (variables, frame, labels u8[H, W]) -> contexts of the maps.
    step: (variables, contexts, frame, number of the frame) -> contexts, and
      the object at each pixel, map -> u8[H, W].
  """

  start: Callable
  step: Callable


def run(config, directory: str, out) -> Result:
  """J&F, J, F, recall and decay in percent of each map and network.

  Raises:
    UserError: the network or the videos cannot be used.
  """
  setup = without_images(config, directory)
  c = setup.config
  videos = data.open_videos(
    c.data.source, c.data.split, setup.weights.about['channels']
  )
  count = min(c.propagation.videos or videos.count, videos.count)
  print(f'videos   {videos.name}, {count} of {videos.count}', file=out)
  # One network for each size of view, which is one for most sets.
  of_size = functools.cache(lambda size: maps_lib.networks(setup, size))
  followed, objects = {}, 0
  trackers = {}
  for i in terminal.counted(range(count), count, 'videos', out):
    video = videos.read(i)
    objects += _count(video)
    size = view_size(video.frames.shape[1:3], c.size, c.propagation.multiple)
    for name, network in of_size(size).items():
      shape = name, size, video.frames.shape[1:3]
      if shape not in trackers:
        trackers[shape] = _tracker(setup, network, size, shape[2])
      predictions = _follow(trackers[shape], network, video)
      for features, found in predictions.items():
        statistics = followed.setdefault((name, features), [])
        statistics += _judge(video.objects, found)
      if i == 0 and name == maps_lib.PRE_TRAINED:
        _draw(setup, video, found)
  rows = [
    {'network': name, 'features': features, **_means(statistics)}
    for (name, features), statistics in followed.items()
  ]
  print(_tables(rows), file=out)
  own = [row for row in rows if row['network'] == maps_lib.PRE_TRAINED]
  best = max(own, key=lambda row: row['JF'])
  return setup.result(
    {
      **{name: best[name] for name in FIGURES},
      'features': best['features'],
      'videos': count,
      'objects': objects,
      'maps': maps_lib.by_network(rows),
      'table': rows,
    }
  )


def view_size(
  shape: tuple[int, int], shorter: int, multiple: int
) -> tuple[int, int]:
  """Height and width of a view: the shorter side becomes `shorter`, the longer
  is cut down to a multiple after that, which changes the aspect slightly."""
  scale = shorter / min(shape)
  longer = max(multiple, int(max(shape) * scale) // multiple * multiple)
  return (longer, shorter) if shape[0] > shape[1] else (shorter, longer)


def _tracker(setup: Setup, network, size, shape) -> Tracker:
  """Jitted functions for frames of `shape` seen at `size`."""
  c = setup.config

  def look(variables, frame):
    frame = resize.bilinear(frame.astype(jnp.float32), size)
    view = augment.normalize(frame[None], c.data.mean, c.data.std)
    maps = maps_lib.named(network.maps(variables, view), size[0])
    return {name: maps_lib.unit(x)[0] for name, x in maps.items()}

  @maps_lib.replicated_by(setup)
  def start(variables, frame, labels):
    return {
      name: propagation.start(
        x,
        jax.nn.one_hot(resize.nearest(labels, x.shape[:2]), OBJECTS + 1),
        c.propagation.recent,
      )
      for name, x in look(variables, frame).items()
    }

  @maps_lib.replicated_by(setup)
  def step(variables, contexts, frame, t):
    result, objects = {}, {}
    for name, x in look(variables, frame).items():
      labels = propagation.propagate(
        contexts[name],
        x,
        c.propagation.radius,
        c.propagation.nearest,
        c.propagation.temperature,
      )
      result[name] = propagation.remember(contexts[name], x, labels, t)
      found = propagation.objects(labels, size).astype(jnp.uint8)
      objects[name] = resize.nearest(found, shape)
    return result, objects

  return Tracker(start, step)


def _follow(tracker, network, video) -> dict[str, np.ndarray]:
  """map -> objects u8[T, H, W]; those of the first frame are given."""
  variables, first = network.variables, video.objects[0]
  contexts = tracker.start(variables, video.frames[0], first)
  frames = []
  for t in range(1, len(video.frames)):
    contexts, objects = tracker.step(
      variables, contexts, video.frames[t], np.int32(t)
    )
    frames.append(objects)
  frames = jax.device_get(frames)
  return {
    name: np.stack([first, *(x[name] for x in frames)]) for name in contexts
  }


def _count(video: data.Video) -> int:
  """How many objects the first frame shows.

  Raises:
    UserError: none, or more than OBJECTS.
  """
  count = int(video.objects[0].max())
  if not 0 < count <= OBJECTS:
    raise UserError(
      f'the first frame of {video.name} shows objects up to number {count}: '
      f'1 to {OBJECTS} can be followed'
    )
  return count


def _judge(truth: np.ndarray, found: np.ndarray) -> list[tuple]:
  """(statistics of J, of F) of each object, but for the first and last frame"""
  pairs = [
    (truth[1:-1] == k, found[1:-1] == k) for k in range(1, truth[0].max() + 1)
  ]
  return [
    (
      tracks.statistics(tracks.region_similarity(*pair)),
      tracks.statistics(tracks.contour_accuracy(*pair)),
    )
    for pair in pairs
  ]


def _means(statistics) -> dict[str, float]:
  """Percent, in the mean over objects."""
  (J, J_recall, J_decay), (F, F_recall, F_decay) = (
    100 * np.mean(statistics, axis=0)
  ).tolist()
  values = (J + F) / 2, J, F, J_recall, J_decay, F_recall, F_decay
  return dict(zip(FIGURES, values))


def _draw(setup: Setup, video: data.Video, found: np.ndarray) -> None:
  rows = data.spread(len(video.frames), SHOWN)
  overlays.clip_png(
    setup.picture('propagation'),
    video.frames[rows] / np.float32(255),
    {'target': video.objects[rows], 'propagated': found[rows]},
  )


def _tables(rows) -> str:
  columns = ('network', 'features', 'J&F', 'J', 'F', 'J recall', 'J decay')
  cells = [
    (row['network'], row['features'], *(f'{row[k]:.1f}' for k in FIGURES[:5]))
    for row in rows
  ]
  published = [(k, *map(str, x)) for k, x in PUBLISHED.items()]
  return '\n'.join(
    [
      terminal.table('label propagation, percent', columns, cells),
      terminal.table(
        'published, DAVIS 2017 val (2104.14294, table 5)',
        ('network', 'J&F', 'J', 'F'),
        published,
      ),
    ]
  )
