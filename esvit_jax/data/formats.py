"""Image files of any format, depth and number of bands -> arrays."""

import functools
import importlib.util
import io
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from esvit_jax.data import depth
from esvit_jax.data.unreadable import Unreadable

# Endings that PIL reads; AVIF where it was built with it.
ENDINGS = (
  *('avif', 'bmp', 'dib', 'gif', 'j2k', 'jfif', 'jp2', 'jpe', 'jpeg', 'jpg'),
  *('pbm', 'pgm', 'png', 'pnm', 'ppm', 'tga', 'tif', 'tiff', 'webp'),
)
# PIL's names of them.
OPENED = (
  *('AVIF', 'BMP', 'DIB', 'GIF', 'JPEG', 'JPEG2000', 'PNG', 'PPM'),
  *('TGA', 'TIFF', 'WEBP'),
)
HEIF = ('heic', 'heif')  # with pillow-heif
JPEG = b'\xff\xd8'
# Start of a codestream, and of the segment that tells its size and depth.
JPEG2000 = b'\xff\x4f\xff\x51'
PNG = b'\x89PNG\r\n\x1a\n'
TIFF = (b'II*\0', b'MM\0*', b'II+\0', b'MM\0+')
# Of TIFFs: no grey and no red, green and blue.
_OTHER_COLOURS = ('SEPARATED', 'CIELAB', 'ICCLAB', 'YCBCR', 'PALETTE')
EXIF_ORIENTATION = 0x0112
EXIF_MARKS = (b'Exif\0\0', b'eXIf', b'EXIF')


class Header(NamedTuple):
  """What is known of an image before it is decoded.

  Attributes:
    size: height and width, pixels.
    bands: number of channels, alpha included.
    pages: pages of a TIFF or frames of an animation; the first is read.
    dtype: of the values of an image deeper than 8 bits, such as 'uint16'.
    range: their least and largest.
  """

  size: tuple[int, int]
  bands: int
  pages: int = 1
  dtype: str = ''
  range: tuple[float, float] | None = None


@functools.cache
def endings() -> tuple[str, ...]:
  """Lower-case endings of the files that are read here."""
  return ENDINGS + (HEIF if _has_heif() else ())


@functools.cache
def _has_heif() -> bool:
  return importlib.util.find_spec('pillow_heif') is not None


def open_image(record: bytes):
  """A PIL image, as a context manager.

  Whatever a file is called, only OPENED formats are tried: PIL knows others
  that run programs, such as Ghostscript.
  """
  from PIL import Image

  Image.MAX_IMAGE_PIXELS = None  # guard.check has looked, by our own limit
  Image.init()
  opened = [name for name in OPENED if name in Image.OPEN]
  if record[4:8] == b'ftyp' and _has_heif():
    import pillow_heif

    pillow_heif.register_heif_opener()
    opened.append('HEIF')
  return Image.open(io.BytesIO(record), formats=opened)


def header(record: bytes | np.ndarray, channels: int = 3) -> Header:
  """Size, bands and, of deep images, the range of values.

  Raises:
    Unreadable: with the decoder's reason.
  """
  image, pages = record, 1
  if not isinstance(record, np.ndarray):
    image, pages = deep(record, channels), _pages(record, channels)
  if image is not None:
    bands = image.shape[2] if image.ndim == 3 else 1
    header = Header(image.shape[:2], bands, pages)
    if image.dtype == np.uint8:
      return header
    values = depth.value_range(without_alpha(image, channels))
    return header._replace(dtype=image.dtype.name, range=values)
  try:
    with open_image(record) as image:
      size = (image.height, image.width)
      if image.format == 'TIFF' and orientation(record) >= 5:
        size = size[::-1]  # PIL gives that of the image turned upright
      return Header(size, _bands(image), pages)
  except Exception as error:
    raise Unreadable(error) from error


def _bands(image) -> int:
  """How many `decode` makes of an image of PIL's."""
  if 'transparency' in image.info:
    return 4
  return 3 if image.mode == 'CMYK' else len(image.getbands())


def without_alpha(image: np.ndarray, channels: int) -> np.ndarray:
  """An image [h, w] or [h, w, bands] without its alpha, the last of 2 or 4.

  Where other than 1 or 3 channels are wanted, it stays.
  """
  alpha = image.ndim == 3 and image.shape[-1] in (2, 4) and channels in (1, 3)
  return image[..., :-1] if alpha and image.shape[-1] != channels else image


def _pages(record: bytes, channels: int) -> int:
  """Pages or frames of a file of which the first alone is read."""
  import tifffile

  try:
    if record[:4] in TIFF:
      with tifffile.TiffFile(io.BytesIO(record)) as file:
        return 1 if _stack(file, channels) else len(file.pages)
    if record[:2] == JPEG:  # what telephones hide behind a photograph
      return 1
    with open_image(record) as image:
      return getattr(image, 'n_frames', 1)
  except Exception:  # damaged: who decodes it says so
    return 1


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
    if _jpeg2000_bits(record) > 8:
      import imagecodecs

      return imagecodecs.jpeg2k_decode(record)
    if record[:2] == JPEG:
      return None
    with open_image(record) as image:
      if image.mode.startswith('I') or image.mode == 'F':
        return np.asarray(image)
  except Exception as error:  # decoders raise whatever they like
    raise Unreadable(error) from error
  return None


def _jpeg2000_bits(record: bytes) -> int:
  """Bits of the first band; 0 where it is no JPEG 2000."""
  start = record[:1024].find(JPEG2000)
  bits = record[start + 42 : start + 43]
  return (bits[0] & 127) + 1 if start >= 0 and bits else 0


def _tiff(record: bytes, channels: int) -> np.ndarray | None:
  import tifffile

  with tifffile.TiffFile(io.BytesIO(record)) as file:
    page = file.pages[0]
    if stack := _stack(file, channels):
      image, axes = stack.asarray(), stack.axes
    elif page.bitspersample <= 8 and page.samplesperpixel <= 4:
      return None
    else:
      image, axes = _page(page, channels), page.axes
  # Y and X are the axes of the image; the third, if any, is that of bands.
  if image.ndim == 3:
    image = np.moveaxis(image, [axes.index('Y'), axes.index('X')], [0, 1])
  return image


def _stack(file, channels: int):
  """The series whose pages are the bands wanted, or None."""
  series = file.series[0]
  if len(series.shape) != 3:
    return None
  coloured = series.axes == 'CYX' and series.shape[0] == channels
  return series if coloured or channels not in (1, 3) else None


def _page(page, channels: int) -> np.ndarray:
  """The values of a page, black being the least.

  Raises:
    Unreadable: its values are no grey and no red, green and blue.
  """
  image, meaning = page.asarray(), getattr(page.photometric, 'name', '')
  if meaning == 'MINISWHITE' and image.dtype.kind == 'u':
    _, white = depth.assumed_range(*depth.value_range(image), image.dtype)
    return (white - image).astype(image.dtype)
  if channels in (1, 3) and meaning in _OTHER_COLOURS:
    raise Unreadable(f'its colours are {meaning} of more than 8 bits')
  return image


def orientation(record: bytes | np.ndarray) -> int:
  """The EXIF orientation of an encoded image, 1 to 8; 1 is upright."""
  if isinstance(record, np.ndarray):
    return 1
  start = record[: 2**16]
  # TIFF has tags, AVIF and HEIF have boxes of their own.
  marked = record[:4] in TIFF or record[4:8] == b'ftyp'
  if not marked and not any(mark in start for mark in EXIF_MARKS):
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
