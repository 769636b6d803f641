"""What a file asks for, looked at before a decoder grants it.

A few bytes can declare an image of gigabytes. Declared sizes are read from the
headers alone, of every format, and refused above a limit.
"""

import dataclasses
import io
import math
import os
import stat
import struct

import numpy as np

from esvit_jax.data import formats
from esvit_jax.data.formats import Unreadable
from esvit_jax.data.source import Source
from esvit_jax.errors import printable

MAX_PIXELS = 2**26  # 8192 x 8192, data.max_pixels
MAX_FILE = 2**30  # bytes
# Of a TIFF, whose pixels may be of any number of bands and bits. 8-bit RGB has
# 3 bytes, 16-bit RGBA 8.
BYTES_PER_PIXEL = 8
# Progressive JPEGs have about ten. Each costs a pass over all pixels.
MAX_SCANS = 100
_SCAN = b'\xff\xda'


def guarded(source: Source, max_pixels: int | None = None) -> Source:
  """A source whose records are checked, and whose names can be shown.

  Args:
    source: as it was opened.
    max_pixels: height x width that an image may declare.
  """

  def read(i):
    record, label = source.read(i)
    check(record, max_pixels or MAX_PIXELS)
    return record, label

  return dataclasses.replace(
    source,
    read=read,
    where=lambda i: printable(source.where(i)),
    name=printable(source.name),
    classes=source.classes and [printable(str(x)) for x in source.classes],
    notes=tuple(map(printable, source.notes)),
  )


def read_file(path: str | os.PathLike) -> bytes:
  """The bytes of an image file.

  Raises:
    OSError: it cannot be read.
    Unreadable: it is a pipe or a device, or larger than an image is.
  """
  try:
    status = os.stat(path)
    if not stat.S_ISREG(status.st_mode):
      raise Unreadable('it is no file, but a folder, a pipe or a device')
    check_bytes(status.st_size)
    with open(path, 'rb') as file:
      return file.read()
  except ValueError as error:  # a name with a zero in it
    raise Unreadable(error) from error


def check_bytes(size: int) -> None:
  """Raises Unreadable where a file is larger than an image is."""
  if size > MAX_FILE:
    raise Unreadable(
      f'it is of {size / 2**30:.1f} GiB, more than the {MAX_FILE / 2**30:g} '
      'that an image file may have'
    )


def check(record: bytes | np.ndarray, max_pixels: int = MAX_PIXELS) -> None:
  """Raises Unreadable where an image declares more than it may.

  Args:
    record: an encoded file, or an array that is decoded already.
    max_pixels: height x width.
  """
  if isinstance(record, np.ndarray):
    return
  if record[:4] in formats.TIFF:
    _check_tiff(record, max_pixels)
    return
  size = _png_size(record) or _jpeg_size(record)
  if size is None:
    try:
      with formats.open_image(record) as image:
        size = image.height, image.width
    except Exception as error:  # PIL's readers raise whatever they like
      raise Unreadable(error) from error
  _check_size(*size, max_pixels)


def _check_size(height: int, width: int, max_pixels: int) -> None:
  if height * width > max_pixels:
    raise Unreadable(
      f'it declares {width} x {height} pixels, more than the {max_pixels} of '
      'data.max_pixels'
    )


def _png_size(record: bytes) -> tuple[int, int] | None:
  if record[:8] != formats.PNG or record[12:16] != b'IHDR':
    return None
  width, height = struct.unpack('>II', record[16:24].ljust(8, b'\0'))
  return height, width


def _jpeg_size(record: bytes) -> tuple[int, int] | None:
  if record[:2] != b'\xff\xd8':
    return None
  import simplejpeg

  if record.count(_SCAN) > MAX_SCANS:
    raise Unreadable(f'it has more than {MAX_SCANS} scans')
  try:
    return simplejpeg.decode_jpeg_header(record)[:2]
  except ValueError:  # damaged or merely odd: PIL decides which
    return None


def _check_tiff(record: bytes, max_pixels: int) -> None:
  """Pages, all bands of them, and the tiles that they are decoded by."""
  import tifffile

  try:
    with tifffile.TiffFile(io.BytesIO(record)) as file:
      page = file.pages[0]
      bits = page.bitspersample
      shapes = [page.shape, file.series[0].shape]
      if page.is_tiled:
        shapes.append((page.tilelength, page.tilewidth, page.tiledepth))
      size = page.imagelength, page.imagewidth
  except Exception as error:  # its readers raise whatever they like
    raise Unreadable(error) from error
  _check_size(*size, max_pixels)
  bits = max(bits) if isinstance(bits, tuple) else bits
  most = max(math.prod(map(int, shape)) for shape in shapes)
  if most * -(-bits // 8) > BYTES_PER_PIXEL * max_pixels:
    raise Unreadable(
      f'it declares {most} values of {bits} bits, more than {BYTES_PER_PIXEL} '
      f'bytes for each of the {max_pixels} pixels of data.max_pixels'
    )
