"""Bytes of an image file -> u8[h, w, C] that fits a canvas."""

import io
import math

import numpy as np


class Unreadable(Exception):  # noqa: N818 - says what it is of an image
  """An image cannot be read; the text is the cause, on one line."""

  def __init__(self, cause: Exception):
    super().__init__(' '.join(f'{type(cause).__name__}: {cause}'.split()))


def decode(
  record: bytes | np.ndarray, channels: int, canvas: tuple[int, int]
) -> np.ndarray:
  """Decodes one image, whatever its mode, and shrinks it to fit the canvas.

  An image that fits is left as it is; nothing is ever enlarged. A larger one
  is shrunk, keeping its aspect, until it fits, but never so far that its
  shorter side falls under half the canvas's: the ends that then stand over
  are cut off equally. So up to 2:1 all is kept, and a panorama does not end
  as a strip of a few pixels that every crop has to enlarge; a wide canvas
  keeps such images whole. Orientation tags (EXIF) and alpha are dropped, as
  torchvision's default loader does.

  Args:
    record: an encoded file, or u8[h,w,c] that is decoded already.
    channels: 1 (grey) or 3 (RGB).
    canvas: (height, width) in pixels.

  Returns:
    u8[h, w, channels].

  Raises:
    Unreadable: with the decoder's reason.
  """
  return _fit(_pixels(record, channels, canvas), canvas)


def center_crop(
  record: bytes | np.ndarray, channels: int, size: int, shorter: int
) -> np.ndarray:
  """Decodes one image and cuts its central square, as torchvision does.

  Resize(shorter, bicubic) and CenterCrop(size), by PIL from all pixels of the
  file: smaller images are enlarged.

  Args:
    record: an encoded file, or u8[h,w,c] that is decoded already.
    channels: 1 (grey) or 3 (RGB).
    size: side of the square, pixels.
    shorter: the shorter side of the image before it is cut, at least `size`.

  Returns:
    u8[size, size, channels].

  Raises:
    Unreadable: with the decoder's reason.
  """
  image = _pixels(record, channels)
  h, w, _ = image.shape
  # The longer side in whole pixels, as torchvision cuts it.
  height, width = (shorter * n // min(h, w) for n in (h, w))
  top, left = round((height - size) / 2), round((width - size) / 2)
  if (height, width) != (h, w):
    image = _resize(image, height, width)
  return image[top : top + size, left : left + size]


def size(record: bytes | np.ndarray) -> tuple[int, int]:
  """(height, width) in pixels of an encoded image, from its header."""
  if isinstance(record, np.ndarray):
    return record.shape[:2]
  from PIL import Image

  try:
    with Image.open(io.BytesIO(record)) as image:
      return image.height, image.width
  except Exception as error:
    raise Unreadable(error) from error


def turned_size(record: bytes | np.ndarray) -> tuple[int, int]:
  """`size` as the image's orientation tag (EXIF), if it has one, turns it."""
  h, w = size(record)
  if isinstance(record, np.ndarray):
    return h, w
  from PIL import ExifTags, Image

  with Image.open(io.BytesIO(record)) as image:
    turn = image.getexif().get(ExifTags.Base.Orientation, 1)
  return (w, h) if turn >= 5 else (h, w)


def fit_labels(
  labels: np.ndarray, shape: tuple[int, int], canvas: tuple[int, int]
) -> np.ndarray:
  """Classes of pixels, moved as `decode` moves the image: nearest.

  Args:
    labels: of the image as it is stored, u8[h, w].
    shape: height and width of the decoded image.
    canvas: that it was decoded for.

  Returns:
    u8[*shape]
  """
  if labels.shape == shape:
    return labels
  scale = _scale(*labels.shape, canvas)
  rows, columns = (
    _nearest(n, n * min(1, side / max(1, round(n * scale))), made)
    for n, side, made in zip(labels.shape, canvas, shape)
  )
  return labels[rows[:, None], columns[None]]


def with_channels(image: np.ndarray, channels: int) -> np.ndarray:
  """u8[h,w] or u8[h,w,c] -> u8[h,w,channels]; alpha is dropped."""
  if image.ndim == 2:
    image = image[..., None]
  if image.shape[-1] in (2, 4):
    image = image[..., :-1]
  if image.shape[-1] == channels:
    return image
  if channels == 3:
    return np.repeat(image, 3, axis=-1)
  red, green, blue = np.moveaxis(image.astype(np.uint32), -1, 0)
  # PIL's integer form of the ITU-R 601 luma
  grey = (19595 * red + 38470 * green + 7471 * blue + 0x8000) >> 16
  return grey.astype(np.uint8)[..., None]


def _pixels(
  record: bytes | np.ndarray,
  channels: int,
  canvas: tuple[int, int] | None = None,
) -> np.ndarray:
  """u8[h, w, channels]; large enough for `canvas`, or as large as it is."""
  if isinstance(record, np.ndarray):
    return with_channels(record, channels)
  image = _jpeg(record, channels, canvas)
  return _any_format(record, channels) if image is None else image


def _jpeg(
  record: bytes, channels: int, canvas: tuple[int, int] | None
) -> np.ndarray | None:
  """The fast way for a sound grey or colour JPEG; None for all the rest."""
  if record[:2] != b'\xff\xd8':
    return None
  import simplejpeg

  try:
    h, w, space, _ = simplejpeg.decode_jpeg_header(record)
    if space not in ('Gray', 'YCbCr', 'RGB'):
      return None
    # The decoder shrinks by eighths, and saves time so; _fit does the rest.
    scale = _scale(h, w, canvas) if canvas else 1.0
    return simplejpeg.decode_jpeg(
      record,
      'GRAY' if channels == 1 else 'RGB',
      min_height=math.ceil(h * scale),
      min_width=math.ceil(w * scale),
    )
  except ValueError:  # damaged or merely odd: PIL decides which
    return None


def _any_format(record: bytes, channels: int) -> np.ndarray:
  from PIL import Image

  try:
    with Image.open(io.BytesIO(record)) as image:
      if image.mode.startswith('I'):  # PIL would clip 16 bits, not scale them
        wide = np.asarray(image).astype(np.int64) >> 8
        return with_channels(wide.clip(0, 255).astype(np.uint8), channels)
      if 'transparency' in image.info:  # else PIL warns of a palette's alpha
        image = image.convert('RGBA')
      return with_channels(
        np.asarray(image.convert('L' if channels == 1 else 'RGB')), channels
      )
  except Exception as error:  # PIL's decoders raise whatever they like
    raise Unreadable(error) from error


def _scale(h: int, w: int, canvas: tuple[int, int]) -> float:
  """The factor (at most 1) by which an h x w image is shrunk."""
  fits = min(canvas[0] / h, canvas[1] / w)
  floor = min(canvas) / 2 / min(h, w)
  return min(1.0, max(fits, floor))


def _nearest(n: int, kept: float, made: int) -> np.ndarray:
  """Which of n pixels stand for the middle `kept` of them made `made`."""
  first = (n - kept) // 2
  middles = first + (np.arange(made) + 0.5) * kept / made
  # Halfway between two pixels the first is taken.
  return np.clip(np.ceil(middles - 1), 0, n - 1).astype(int)


def _fit(image: np.ndarray, canvas: tuple[int, int]) -> np.ndarray:
  h, w, _ = image.shape
  if h <= canvas[0] and w <= canvas[1]:
    return image
  scale = _scale(h, w, canvas)
  whole_h, whole_w = max(1, round(h * scale)), max(1, round(w * scale))
  new_h, new_w = min(canvas[0], whole_h), min(canvas[1], whole_w)
  kept_h = h * new_h / whole_h
  kept_w = w * new_w / whole_w
  top, left = (h - kept_h) // 2, (w - kept_w) // 2
  box = (left, top, left + kept_w, top + kept_h)
  return _resize(image, new_h, new_w, box, reducing_gap=2.0)


def _resize(image, height: int, width: int, box=None, **how) -> np.ndarray:
  """An image or its part `box` (left, top, right, bottom), bicubic."""
  from PIL import Image

  channels = image.shape[-1]
  resized = Image.fromarray(image[..., 0] if channels == 1 else image).resize(
    (width, height), Image.Resampling.BICUBIC, box, **how
  )
  return np.asarray(resized).reshape(height, width, channels)
