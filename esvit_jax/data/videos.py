"""Videos whose objects are known: DAVIS folders, and composed clips."""

import pathlib
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from esvit_jax.data import decode, embedded, guard, masks, scenes
from esvit_jax.data.source import Request
from esvit_jax.errors import UserError

CLIPS = 40
FRAMES = 12
OBJECTS = (2, 3)  # least and most of a clip
SPEED = 2.5  # at most, pixels a frame
GROWTH = 0.02  # at most, of the size, a frame
LEAST_FRAMES = 3  # the first is given, the last is not judged


class Video(NamedTuple):
  """A video in memory.

  Attributes:
    name: for people.
    frames: u8[T, H, W, C].
    objects: of each pixel u8[T, H, W]: 0 the ground, k the k-th object.
  """

  name: str
  frames: np.ndarray
  objects: np.ndarray


class Videos(NamedTuple):
  """A list of videos.

  Attributes:
    name: for people.
    count: how many there are.
    read: index -> Video.
  """

  name: str
  count: int
  read: Callable[[int], Video]


def open_videos(
  source: str, split: str = 'val', channels: int | None = None
) -> Videos:
  """Opens 'scenes' (or 'scenes:SEED'), or 'davis:/path'.

  Args:
    source: which.
    split: of DAVIS, a list ImageSets/2017/SPLIT.txt.
    channels: 1 or 3; None means 1 of scenes and 3 of DAVIS.

  Raises:
    UserError: they are not there.
  """
  kind, _, place = source.partition(':')
  if kind == 'scenes':
    return clips(scenes.checked_seed(place), channels or 1)
  if kind == 'davis':
    return davis(pathlib.Path(place).expanduser(), split, channels or 3)
  raise UserError(
    f"data.source {source!r} holds no videos: use 'scenes' or 'davis:/path'"
  )


def clips(seed: int, channels: int) -> Videos:
  """Clips of garments of the test split that move, grow and shrink.

  A clip is a pure function of (seed, index): 12 frames of 96 x 96 px, motion
  along straight lines, over drifting grain, cut at the border.
  """
  garments = embedded.open_split(Request(split='test', channels=1))

  def read(i):
    rng = np.random.default_rng([seed, i])
    frames, objects = _moving(rng, garments, (scenes.SIDE, scenes.SIDE))
    frames = np.stack([decode.with_channels(x, channels) for x in frames])
    return Video(f'clip {i}', frames, objects)

  return Videos('clips of scenes', CLIPS, read)


def davis(root: pathlib.Path, split: str, channels: int) -> Videos:
  """DAVIS 2017 at 480p, of the videos that ImageSets/2017/SPLIT.txt names.

  Raises:
    UserError: the list is not there or empty; in reading, frames lack their
      annotations, cannot be read, are of other sizes, or fewer than three.
  """
  listing = root / 'ImageSets' / '2017' / f'{split}.txt'
  if not listing.exists():
    raise UserError(
      f'davis:{root}: there is no {str(listing)!r}; it names the videos of the '
      'split, one a line'
    )
  names = listing.read_text('utf-8', 'surrogateescape').split()
  if not names:
    raise UserError(f'davis:{root}: {str(listing)!r} names no videos')

  def read(i):
    return _davis_video(root, names[i], channels)

  return Videos(f'DAVIS 2017 {split}', len(names), read)


def _davis_video(root: pathlib.Path, name: str, channels: int) -> Video:
  folder = root / 'JPEGImages' / '480p' / name
  paths = sorted(folder.glob('*.jpg'))
  if len(paths) < LEAST_FRAMES:
    raise UserError(
      f'{str(folder)!r} holds {len(paths)} frames: labels are carried from the '
      f'first and the last is not judged, so it takes {LEAST_FRAMES}'
    )
  frames, objects = [], []
  for path in paths:
    try:
      record = guard.read_file(path)
      guard.check(record)
      frame = decode.decode(record, channels, (2**16, 2**16))
    except (OSError, decode.Unreadable) as error:
      raise UserError(
        f'cannot read the frame {str(path)!r}: {error}'
      ) from error
    mask = root / 'Annotations' / '480p' / name / f'{path.stem}.png'
    if not mask.exists():
      raise UserError(f'{str(path)!r} has no annotation {str(mask)!r}')
    numbers = masks.read_mask(mask)
    shape = frames[0].shape if frames else frame.shape
    if frame.shape != shape or numbers.shape != shape[:2]:
      raise UserError(f'{str(mask)!r} is not of the size of its video')
    frames.append(frame)
    objects.append(numbers.astype(np.uint8))
  return Video(name, np.stack(frames), np.stack(objects))


def _moving(rng, garments, size) -> tuple[np.ndarray, np.ndarray]:
  """Frames u8[T, H, W, 1] and objects u8[T, H, W]; all show at first."""
  ramp, texture = scenes.ground(rng, size), scenes.grain(rng, size)
  drift = rng.uniform(-SPEED, SPEED, 2)
  while True:
    movers = [
      _Mover.drawn(rng, garments, size)
      for _ in range(rng.integers(OBJECTS[0], OBJECTS[1] + 1))
    ]
    frames, objects = [], []
    for t in range(FRAMES):
      shift = tuple(np.round(drift * t).astype(int))
      ground = ramp + np.roll(texture, shift, (0, 1))
      placed = [mover.at(t) for mover in movers]
      frame, owner = scenes.overlaid(ground, *zip(*placed))
      frames.append(frame[..., None])
      objects.append(owner.astype(np.uint8))
    first = [garment for garment, _ in (mover.at(0) for mover in movers)]
    if (scenes.classes_of(objects[0], first) != scenes.VOID).all():
      return np.stack(frames), np.stack(objects)


class _Mover(NamedTuple):
  """A garment on its way.

  Attributes:
    cutout: the garment.
    factor: of its size in the first frame.
    growth: of the factor from frame to frame.
    centre: in the first frame, pixels f64[2].
    velocity: pixels a frame f64[2].
  """

  cutout: scenes.Cutout
  factor: float
  growth: float
  centre: np.ndarray
  velocity: np.ndarray

  @classmethod
  def drawn(cls, rng, garments, size) -> '_Mover':
    angle = rng.uniform(0, 2 * np.pi)
    direction = np.array([np.sin(angle), np.cos(angle)])
    return cls(
      scenes.drawn(rng, garments),
      np.exp(rng.uniform(*np.log(scenes.FACTOR))),
      1 + rng.uniform(-GROWTH, GROWTH),
      rng.uniform(0.2, 0.8, 2) * size,
      rng.uniform(0, SPEED) * direction,
    )

  def at(self, t: int) -> tuple[scenes.Garment, np.ndarray]:
    """As it is in frame t, and its corner."""
    garment = self.cutout.at(self.factor * self.growth**t)
    middle = self.centre + t * self.velocity
    corner = np.round(middle - np.array(garment.mask.shape) / 2)
    return garment, corner.astype(int)
