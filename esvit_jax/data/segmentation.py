"""Which class each pixel of an image is of."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from esvit_jax.data import formats
from esvit_jax.errors import UserError

VOID = 255  # a pixel that counts nowhere


class Segmentation(NamedTuple):
  """What a source knows of the pixels of its images.

  Attributes:
    classes: their names, at most 255.
    read: index -> classes from 0 of the image as it is stored, u8[h,w] with
      VOID, or numbers beyond the classes, which are refused. Thread-safe.
  """

  classes: Sequence[str]
  read: Callable[[int], np.ndarray]


def checked(
  segmentation: Segmentation, i: int, record: bytes | np.ndarray, where: str
) -> np.ndarray:
  """Mask `i`, u8[h, w] as it is stored.

  Args:
    segmentation: of the source.
    i: index.
    record: the image, as it is stored.
    where: it is found.

  Raises:
    UserError: the mask is not of the image's size, or has classes that no name
      stands for.
  """
  labels = segmentation.read(i)
  require_same_size(labels.shape, record, where)
  classes = len(segmentation.classes)
  largest = labels[labels != VOID].max(initial=0)
  if largest >= classes:
    raise UserError(
      f'the mask of {where} holds class {largest}, and there are {classes} '
      f'classes, 0 to {classes - 1}, and {VOID} for void: name all classes in '
      'classes.txt, and set --config.data.zero=void if 0 is no class'
    )
  return labels.astype(np.uint8)


def require_same_size(
  shape: tuple[int, int], record: bytes | np.ndarray, where: str
) -> None:
  """Raises UserError unless a mask of `shape` is of its image's size."""
  size = formats.header(record).size
  if shape == size:
    return
  why = 'every pixel needs its own class'
  if formats.orientation(record) >= 5 and shape == size[::-1]:
    why = (
      'the image carries an orientation tag (EXIF), which is not applied: '
      'turn its pixels and drop the tag'
    )
  raise UserError(
    f'{where} has {_size(size)} pixels and its mask {_size(shape)}: {why}'
  )


def zero_is_void(segmentation: Segmentation) -> Segmentation:
  """Masks in which 0 counts nowhere and classes begin with 1."""

  def read(i):
    labels = segmentation.read(i).astype(np.int32)
    return np.where((labels == 0) | (labels == VOID), VOID, labels - 1)

  return segmentation._replace(read=read)


def _size(shape) -> str:
  return f'{shape[1]} x {shape[0]}'
