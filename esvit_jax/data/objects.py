"""Objects in images: boxes, classes and masks."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from esvit_jax.data import decode

SIDE = 56  # of a mask in its own box
NONE = -1  # class of padding


class Instances(NamedTuple):
  """The objects of an image as it is stored.

  Attributes:
    boxes: x1 y1 x2 y2 in pixels f32[n, 4], perhaps beyond the image.
    classes: i32[n].
    masks: bool[n, h, w].
    crowd: which are many objects at once, not to be learned, bool[n].
    area: of the masks as their makers give it f64[n], pixels.
  """

  boxes: np.ndarray
  classes: np.ndarray
  masks: np.ndarray
  crowd: np.ndarray
  area: np.ndarray


class Objects(NamedTuple):
  """What a source knows of the objects of its images.

  Attributes:
    classes: their names.
    most: objects of an image that are learned from, the largest if there are
      more.
    read: index -> Instances. Thread-safe.
    ids: official numbers of the classes, for results that others read.
    image_id: index -> official number of an image.
  """

  classes: Sequence[str]
  most: int
  read: Callable[[int], Instances]
  ids: Sequence[int]
  image_id: Callable[[int], int]

  def arrays(self) -> dict[str, tuple[tuple[int, ...], type, int]]:
    """Name -> shape, dtype and padding of what an image has in a batch."""
    M = self.most
    return {
      'boxes': ((M, 4), np.float32, 0),
      'classes': ((M,), np.int32, NONE),
      'shapes': ((M, SIDE, SIDE), np.uint8, 0),
    }


def fit(
  instances: Instances,
  size: tuple[int, int],
  shape: tuple[int, int],
  canvas: tuple[int, int],
  most: int,
) -> dict[str, np.ndarray]:
  """Objects moved as `decode` moves the image, at most `most` of n.

  Boxes are cut to the image; objects of which nothing is left go, and crowds.

  Args:
    instances: of the image as it is stored.
    size: its height and width as stored.
    shape: of the decoded image.
    canvas: that it was decoded for.
    most: of equals the first stay.

  Returns:
    boxes in pixels of the canvas f32[n, 4], classes i32[n], and shapes
    u8[n, SIDE, SIDE]: masks in their boxes, 0 to 255.
  """
  (top, kept_h), (left, kept_w) = decode.kept(size, canvas)
  first = np.array([left, top] * 2)
  factor = np.array([shape[1] / kept_w, shape[0] / kept_h] * 2)
  limit = np.array([shape[1], shape[0]] * 2)
  boxes = np.clip((instances.boxes - first) * factor, 0, limit)
  seen = np.clip(boxes / factor + first, 0, np.array([size[1], size[0]] * 2))
  there = ~instances.crowd & (boxes[:, 2:] > boxes[:, :2]).all(1)
  shapes = np.zeros((len(boxes), SIDE, SIDE), np.uint8)
  for k in np.flatnonzero(there):
    shapes[k] = in_box(instances.masks[k], seen[k])
    there[k] = shapes[k].any()
  rows = np.flatnonzero(there)
  if len(rows) > most:
    largest = np.argsort(-instances.area[rows], kind='stable')[:most]
    rows = rows[np.sort(largest)]
  return {
    'boxes': boxes[rows].astype(np.float32),
    'classes': instances.classes[rows].astype(np.int32),
    'shapes': shapes[rows],
  }


def in_box(mask: np.ndarray, box: np.ndarray) -> np.ndarray:
  """A mask bool[h, w] seen through a box, u8[SIDE, SIDE] from 0 to 255."""
  from PIL import Image

  image = Image.fromarray(np.uint8(255 * mask))
  shape = image.resize((SIDE, SIDE), Image.Resampling.BILINEAR, tuple(box))
  return np.asarray(shape)


def tight(masks: np.ndarray) -> np.ndarray:
  """The boxes of masks bool[n, h, w] with a pixel each, f32[n, 4]."""
  boxes = np.zeros((len(masks), 4), np.float32)
  for k, mask in enumerate(masks):
    y, x = (np.flatnonzero(mask.any(axis)) for axis in (1, 0))
    boxes[k] = x[0], y[0], x[-1] + 1, y[-1] + 1
  return boxes
