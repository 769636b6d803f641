"""Image files of any format, depth and number of bands -> arrays."""

import importlib.util
import io
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

# Endings that PIL reads; AVIF where it was built with it.
ENDINGS = (
  *('avif', 'bmp', 'dib', 'gif', 'j2k', 'jfif', 'jp2', 'jpe', 'jpeg', 'jpg'),
  *('pbm', 'pgm', 'png', 'pnm', 'ppm', 'tga', 'tif', 'tiff', 'webp'),
)
HEIF = ('heic', 'heif')  # with pillow-heif
PNG = b'\x89PNG\r\n\x1a\n'
TIFF = (b'II*\0', b'MM\0*', b'II+\0', b'MM\0+')
BITS = (8, 10, 12, 14, 16)
EXIF_ORIENTATION = 0x0112
EXIF_MARKS = (b'Exif\0\0', b'eXIf', b'EXIF')


class Unreadable(Exception):  # noqa: N818 - says what it is of an image
  """An image cannot be read; the text is the cause, on one line."""

  def __init__(self, cause: Exception | str):
    if isinstance(cause, Exception):
      cause = f'{type(cause).__name__}: {cause}'
    super().__init__(' '.join(cause.split()))


class Header(NamedTuple):
  """What is known of an image before it is decoded.

  Attributes:
    size: height and width, pixels.
    bands: number of channels of the file.
    range: least and largest value of an image deeper than 8 bits, or None.
  """

  size: tuple[int, int]
  bands: int
  range: tuple[float, float] | None


def endings() -> tuple[str, ...]:
  """Lower-case endings of the files that are read here."""
  return ENDINGS + (HEIF if _has_heif() else ())


def _has_heif() -> bool:
  return importlib.util.find_spec('pillow_heif') is not None


def open_image(record: bytes):
  """A PIL image, as a context manager."""
  from PIL import Image

  if record[4:8] == b'ftyp' and _has_heif():
    import pillow_heif

    pillow_heif.register_heif_opener()
  return Image.open(io.BytesIO(record))


def header(record: bytes | np.ndarray, channels: int = 3) -> Header:
  """Size, bands and, of deep images, the range of values.

  Raises:
    Unreadable: with the decoder's reason.
  """
  image = record
  if not isinstance(record, np.ndarray):
    image = deep(record, channels)
  if image is not None:
    bands = image.shape[2] if image.ndim == 3 else 1
    wide = image.dtype != np.uint8
    return Header(image.shape[:2], bands, value_range(image) if wide else None)
  try:
    with open_image(record) as image:
      size = (image.height, image.width)
      return Header(size, len(image.getbands()), None)
  except Exception as error:
    raise Unreadable(error) from error


def deep(record: bytes, channels: int) -> np.ndarray | None:
  """An image that is no 8-bit image of PIL's, as it is; None for all others.

  PIL cuts 16-bit colour to its upper 8 bits, and knows few numbers of bands.

  Args:
    record: an encoded file.
    channels: wanted. Pages of a TIFF are its bands unless they are 1 or 3.

  Returns:
    [h, w] or [h, w, bands] of any type.

  Raises:
    Unreadable: with the decoder's reason.
  """
  try:
    if record[:8] == PNG:
      if record[24] <= 8:
        return None
      import imagecodecs

      return imagecodecs.png_decode(record)
    if record[:4] in TIFF:
      return _tiff(record, channels)
    if record[:2] == b'\xff\xd8':
      return None
    with open_image(record) as image:
      if image.mode.startswith('I') or image.mode == 'F':
        return np.asarray(image)
  except Exception as error:  # decoders raise whatever they like
    raise Unreadable(error) from error
  return None


def _tiff(record: bytes, channels: int) -> np.ndarray | None:
  import tifffile

  with tifffile.TiffFile(io.BytesIO(record)) as file:
    page, series = file.pages[0], file.series[0]
    if channels not in (1, 3) and len(series.shape) == 3:
      image, axes = series.asarray(), series.axes
    elif page.bitspersample <= 8 and page.samplesperpixel <= 4:
      return None
    else:
      image, axes = page.asarray(), page.axes
  # Y and X are the axes of the image; the third, if any, is that of bands.
  if image.ndim == 3:
    image = np.moveaxis(image, [axes.index('Y'), axes.index('X')], [0, 1])
  return image


def value_range(image: np.ndarray) -> tuple[float, float]:
  """Least and largest finite value."""
  finite = image[np.isfinite(image)]
  if not finite.size:
    raise Unreadable('no value of it is finite')
  return float(finite.min()), float(finite.max())


def assumed_range(low: float, high: float) -> tuple[float, float]:
  """What becomes black and white in images with values from low to high.

  0 to 1 where no value is larger; else 0 to the most that 8, 10, 12, 14 or 16
  bits hold, whichever are the first that are enough. With negative or larger
  values, low to high.
  """
  if low >= 0:
    for most in (1, *(2**bits - 1 for bits in BITS)):
      if high <= most:
        return 0.0, float(most)
  return low, high


def to_bytes(image: np.ndarray, limits=None) -> np.ndarray:
  """Values of any type -> u8: limits become 0 and 255, rounded and clipped.

  Args:
    image: u8, which stays as it is, or of any other type.
    limits: least and largest value; None: `assumed_range` of the image.
  """
  if image.dtype == np.uint8:
    return image
  if image.dtype == bool:
    return image.astype(np.uint8) * 255
  low, high = limits or assumed_range(*value_range(image))
  scaled = (np.nan_to_num(image, nan=low) - low) / max(high - low, 1e-30)
  return np.floor(np.clip(scaled, 0, 1) * 255 + 0.5).astype(np.uint8)


def orientation(record: bytes | np.ndarray) -> int:
  """The EXIF orientation of an encoded image, 1 to 8; 1 is upright."""
  if isinstance(record, np.ndarray):
    return 1
  start = record[: 2**16]
  if record[:4] not in TIFF and not any(mark in start for mark in EXIF_MARKS):
    return 1
  try:
    with open_image(record) as image:
      return image.getexif().get(EXIF_ORIENTATION, 1)
  except Exception:  # damaged: the pixels may be sound
    return 1


# How to turn an image [h, w, ...] of each EXIF orientation upright.
UPRIGHT: dict[int, Callable] = {
  2: lambda x: x[:, ::-1],
  3: lambda x: x[::-1, ::-1],
  4: lambda x: x[::-1],
  5: lambda x: x.swapaxes(0, 1),
  6: lambda x: np.rot90(x, -1),
  7: lambda x: x[::-1, ::-1].swapaxes(0, 1),
  8: lambda x: np.rot90(x),
}
