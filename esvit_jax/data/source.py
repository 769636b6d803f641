"""What every set of images looks like to the rest of the program."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from esvit_jax.data import decode, depth, formats
from esvit_jax.data import objects as objects_lib
from esvit_jax.data import segmentation as segmentation_lib
from esvit_jax.data.unreadable import Unreadable


class Request(NamedTuple):
  """What a config asks of a source.

  Attributes:
    place: what stands after the colon of 'folder:/path'.
    split: name of the split.
    data_dir: where tfds keeps its sets; None means $TFDS_DATA_DIR or
      ~/tensorflow_datasets.
    canvas: (height, width) in pixels; None fits the images.
    channels: of the images; None takes what the source has.
  """

  place: str = ''
  split: str = 'train'
  data_dir: str | None = None
  canvas: tuple[int, int] | None = None
  channels: int | None = None


@dataclasses.dataclass(frozen=True)
class Source:
  """A random-access list of images, each of which fits the canvas.

  Attributes:
    name: for people.
    split: the split it is.
    count: number of images.
    classes: the label's names, or None when there are no labels.
    read: index -> (encoded bytes or u8[h,w,c], label or -1). Thread-safe.
    where: index -> path or other name by which a person finds the image.
    canvas: (height, width) in pixels that no image exceeds; None until
      `headers.fit` has chosen it.
    channels: 1 (grey), 3 (RGB) or the number of bands.
    labels: of all images, i32[count], where known without reading them.
    label_bytes: how many are to be read for the labels that are not known.
    shorter: pixels of the shorter side, for `crops.center_cropped`; 0: images
      are shrunk to fit the canvas.
    multi_label: an image may be of several classes; `read` then gives, for each
      class, 1 (yes), 0 (no) or -1 (not to be counted), i32[classes].
    segmentation: classes of pixels, or None where they are not known.
    objects: of images, or None where they are not known.
    scale: of images deeper than 8 bits.
    upright: whether the orientation that files tell (EXIF) is applied.
    notes: what a person should know of it, a line each.
    part: of a mixture, which of its sources an image is of, i32[count].
    shares: of a mixture, the share of each source in what is trained on.
  """

  name: str
  split: str
  count: int
  classes: Sequence[str] | None
  read: Callable[[int], tuple[bytes | np.ndarray, int]]
  where: Callable[[int], str]
  canvas: tuple[int, int] | None = None
  channels: int = 3
  multi_label: bool = False
  labels: np.ndarray | None = None
  label_bytes: int = 0
  shorter: int = 0
  segmentation: segmentation_lib.Segmentation | None = None
  objects: objects_lib.Objects | None = None
  scale: depth.Scale = depth.OPEN
  upright: bool = False
  notes: tuple[str, ...] = ()
  part: np.ndarray | None = None
  shares: tuple[float, ...] = ()

  @property
  def label_shape(self) -> tuple[int, ...]:
    return (len(self.classes),) if self.multi_label else ()

  def arrays(self) -> dict[str, tuple[tuple[int, ...], type, int]]:
    """Name -> shape, dtype and padding of what an image has in a batch."""
    arrays = {
      'image': ((*self.canvas, self.channels), np.uint8, 0),
      'size': ((2,), np.int32, 0),
      'label': (self.label_shape, np.int32, -1),
      'index': ((), np.int32, -1),
    }
    if self.segmentation:
      void = segmentation_lib.VOID
      arrays['segmentation'] = (tuple(self.canvas), np.uint8, void)
    if self.objects:
      arrays |= self.objects.arrays()
    return arrays

  def __len__(self) -> int:
    return self.count

  def __getitem__(self, i: int) -> dict[str, Any]:
    """Image `i` as {'image': u8[h,w,C], 'label': int, 'index': i}.

    Where pixels have classes, they are 'segmentation' u8[h,w]. Where objects
    are known, they are 'boxes', 'classes' and 'shapes'; see `objects.fit`.

    Raises:
      Unreadable: its bytes are no image, or are not there.
      UserError: its mask does not fit the image or the classes.
    """
    if not 0 <= i < self.count:
      raise IndexError(f'{self.name} has {self.count} images, not {i + 1}')
    try:
      record, label = self.read(i)
    except OSError as error:
      raise Unreadable(error) from error
    if self.shorter:
      size = self.canvas[0]
      image = decode.center_crop(
        record, self.channels, size, self.shorter, self.scale, self.upright
      )
    else:
      image = decode.decode(
        record, self.channels, self.canvas, self.scale, self.upright
      )
    example = {'image': image, 'label': label, 'index': i}
    if self.segmentation:
      labels = segmentation_lib.checked(
        self.segmentation, i, record, self.where(i)
      )
      example['segmentation'] = decode.fit_labels(
        labels, image.shape[:2], self.canvas
      )
    if self.objects:
      instances = self.objects.read(i)
      size = formats.header(record).size
      if len(instances.masks):
        segmentation_lib.require_same_size(
          instances.masks.shape[1:], record, self.where(i)
        )
      example |= objects_lib.fit(
        instances, size, image.shape[:2], self.canvas, self.objects.most
      )
    return example

  def examples(self, n: int = 3) -> list[str]:
    """Where `n` images, spread evenly over the source, are to be found."""
    return [self.where(i) for i in spread(self.count, n)]


def spread(count: int, n: int) -> list[int]:
  """At most `n` distinct indices, spread evenly over range(count)."""
  return [k * count // n for k in range(n)] if n < count else [*range(count)]


def tolerable(count: int, share: float) -> int:
  """How many of `count` images may be bad without stopping.

  A handful is no reason to stop, however small the set; half of it is.
  """
  handful = min(5, count // 4) if share else 0
  return max(min(max(int(share * count), handful), count - 1), 0)
