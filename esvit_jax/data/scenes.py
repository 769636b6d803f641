"""Scenes of embedded garments before uneven ground, of which all is known.

A scene is a pure function of (seed, split, index). Each garment lies over the
earlier ones; one of which too little shows is left out, its pixels void.
"""

import functools
import re
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy import ndimage

from esvit_jax.data import embedded, splits
from esvit_jax.data.objects import Instances, Objects, tight
from esvit_jax.data.segmentation import VOID, Segmentation
from esvit_jax.data.source import Request, Source
from esvit_jax.errors import UserError

SIDE = 96  # pixels, unless data.canvas asks for another
COUNTS = {'train': 4000, 'test': 500}
GARMENTS = (2, 5)  # least and most
FACTOR = (0.6, 1.8)  # of 28 px, log-uniform
# A garment must show a quarter of itself, and as many pixels.
LEAST_SHARE, LEAST_PIXELS = 0.25, 24
GROUND = 'ground'


class Garment(NamedTuple):
  """A garment at some size.

  Attributes:
    image: u8[h, w].
    mask: where it is, bool[h, w].
    label: class from 0.
  """

  image: np.ndarray
  mask: np.ndarray
  label: int


class Scene(NamedTuple):
  """An image, and all that is in it.

  Attributes:
    image: u8[H, W, 1].
    classes: of each pixel u8[H, W].
    labels: which garments it shows i32[10]: 1 (yes), 0 (no) or -1 (left out).
    owner: the number of the garment each pixel is of i64[H, W], 0 the ground.
  """

  image: np.ndarray
  classes: np.ndarray
  labels: np.ndarray
  owner: np.ndarray

  def instances(self) -> Instances:
    """The garments that are not left out, the farthest first."""
    shown = np.unique(self.owner[(self.classes > 0) & (self.classes != VOID)])
    masks = self.owner[None] == shown[:, None, None]
    classes = [self.classes[mask][0] - 1 for mask in masks]
    n = len(shown)
    return Instances(
      tight(masks),
      np.array(classes, np.int32).reshape(n),
      masks,
      np.zeros(n, bool),
      masks.sum((1, 2)).astype(np.float64),
    )


def split_names(place: str, data_dir: str | None) -> tuple[str, ...]:
  """The splits there are."""
  return tuple(COUNTS)


def open_split(request: Request) -> Source:
  """Opens 'train' (4,000 scenes) or 'test' (500, of other garments).

  Of pixels class 0 is the ground, 1 to 10 are the garments. An image is of the
  garments it shows; one that is only left out is not counted.

  Args:
    request: its place is a seed, by default 0, its split 'train' or 'test', or
      the first few of them, such as 'train[:8]', its canvas the size of the
      scenes, by default 96 x 96.

  Raises:
    UserError: no such split, the seed is no number, the canvas is too small.
  """
  place, split = request.place, request.split
  part = re.fullmatch(r'(\w+)\[:(\d+)\]', split)
  name, count = part.groups() if part else (split, 0)
  name = splits.require('scenes', name, split_names(place, request.data_dir))
  count = min(int(count), COUNTS[name]) or COUNTS[name]
  seed = checked_seed(place)
  size = request.canvas or (SIDE, SIDE)
  largest = round(28 * FACTOR[1])
  if min(size) < largest:
    raise UserError(
      f'data.canvas {size}: scenes take at least {largest} pixels a side'
    )
  garments = embedded.open_split(Request(split=name, channels=1))
  number = tuple(COUNTS).index(name)

  @functools.lru_cache(maxsize=64)
  def scene(i):
    rng = np.random.default_rng([seed, number, i])
    return compose(rng, garments, size)

  classes = garments.classes

  return Source(
    name=f'scenes{f":{place}" if place else ""}, {split}',
    split=split,
    count=count,
    classes=classes,
    read=lambda i: (scene(i).image, scene(i).labels),
    where=lambda i: f'{split}[{i}]',
    canvas=size,
    channels=request.channels or 1,
    multi_label=True,
    segmentation=Segmentation((GROUND, *classes), lambda i: scene(i).classes),
    objects=Objects(
      classes,
      GARMENTS[1],
      lambda i: scene(i).instances(),
      tuple(range(1, len(classes) + 1)),
      lambda i: i + 1,
    ),
  )


def checked_seed(place: str, source: str = 'scenes') -> int:
  """The seed of 'scenes:SEED', 0 of 'scenes'."""
  if place and not place.isdigit():
    raise UserError(f"{source}:{place}: give a seed, such as '{source}:1'")
  return int(place or 0)


def compose(
  rng: np.random.Generator, garments: Source, size: tuple[int, int]
) -> Scene:
  """Draws a scene.

  Args:
    rng: of all that is drawn.
    garments: the images to choose from.
    size: (height, width).
  """
  image = ground(rng, size) + grain(rng, size)
  chosen, corners = [], []
  for _ in range(rng.integers(GARMENTS[0], GARMENTS[1] + 1)):
    factor = np.exp(rng.uniform(*np.log(FACTOR)))
    garment = drawn(rng, garments).at(factor)
    room = np.subtract(size, garment.mask.shape)
    chosen.append(garment)
    corners.append(rng.integers(0, room + 1))
  image, owner = overlaid(image, chosen, corners)
  classes = classes_of(owner, chosen)
  labels = np.zeros(len(garments.classes), np.int32)
  labels[[garment.label for garment in chosen]] = -1
  labels[np.unique(classes[(classes > 0) & (classes != VOID)]) - 1] = 1
  return Scene(image[..., None], classes, labels, owner)


class Cutout(NamedTuple):
  """A garment cut out, before it is resized: 28 x 28 pixels."""

  image: np.ndarray
  mask: np.ndarray
  label: int

  def at(self, factor: float) -> Garment:
    """Resized by a factor, bilinear; never smaller than a pixel."""
    from PIL import Image

    h, w = (max(1, round(n * factor)) for n in self.mask.shape)
    image, mask = (
      np.asarray(Image.fromarray(x).resize((w, h), Image.Resampling.BILINEAR))
      for x in (self.image, np.uint8(255 * self.mask))
    )
    return Garment(image, mask > 127, self.label)


def drawn(rng: np.random.Generator, garments: Source) -> Cutout:
  """A garment at random, mirrored or not."""
  image, label = garments.read(int(rng.integers(len(garments))))
  turn = slice(None, None, -1 if rng.random() < 0.5 else None)
  return cut_out(image[:, turn, 0], label)


def cut_out(image: np.ndarray, label: int) -> Cutout:
  """A garment u8[h, w]: the largest piece that is not black, holes filled."""
  pieces, count = ndimage.label(image > 0)
  sizes = np.bincount(pieces.ravel())[1:]
  mask = pieces == 1 + sizes.argmax() if count else image > 0
  return Cutout(image, ndimage.binary_fill_holes(mask), label)


def ground(rng: np.random.Generator, size: tuple[int, int]) -> np.ndarray:
  """A ramp in any direction f64[H, W]: mean 10..90, up to 60 levels across."""
  angle = rng.uniform(0, 2 * np.pi)
  y, x = (np.linspace(-0.5, 0.5, n) for n in size)
  along = np.sin(angle) * y[:, None] + np.cos(angle) * x[None]
  return rng.uniform(10, 90) + rng.uniform(0, 60) * along


def grain(rng: np.random.Generator, size: tuple[int, int]) -> np.ndarray:
  """Blurred noise f64[H, W], mostly within 10 levels of 0."""
  noise = ndimage.gaussian_filter(rng.standard_normal(size), 1.0)
  return 5 * noise / noise.std()


def overlaid(
  image: np.ndarray,
  garments: Sequence[Garment],
  corners: Sequence[np.ndarray],
) -> tuple[np.ndarray, np.ndarray]:
  """Garments over a ground, later ones in front, cut at the border.

  Args:
    image: the ground f64[H, W].
    garments: the farthest first.
    corners: (top, left) of each, whole pixels.

  Returns:
    image u8[H, W], and whose pixel each is, i64[H, W]: 0 the ground's, k that
    of the k-th garment.
  """
  image, owner = image.copy(), np.zeros(image.shape, int)
  for k, (garment, corner) in enumerate(zip(garments, corners), 1):
    start = np.maximum(corner, 0)
    stop = np.minimum(corner + np.array(garment.mask.shape), image.shape)
    there = tuple(map(slice, start, np.maximum(stop, start)))
    here = tuple(map(slice, start - corner, np.maximum(stop, start) - corner))
    mask = garment.mask[here]
    image[there][mask] = garment.image[here][mask]
    owner[there][mask] = k
  return np.clip(image.round(), 0, 255).astype(np.uint8), owner


def classes_of(owner: np.ndarray, garments: Sequence[Garment]) -> np.ndarray:
  """Class of each pixel u8[H, W]; void where too little of a garment shows."""
  classes = np.zeros(len(garments) + 1, np.uint8)
  for k, garment in enumerate(garments, 1):
    shown = (owner == k).sum()
    least = max(LEAST_SHARE * garment.mask.sum(), LEAST_PIXELS)
    classes[k] = 1 + garment.label if shown >= least else VOID
  return classes[owner]
