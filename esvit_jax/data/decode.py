"""Bytes of an image file -> u8[h, w, C] that fits a canvas."""

import math
from collections.abc import Callable

import numpy as np

from esvit_jax.data import depth, formats
from esvit_jax.data.depth import OPEN, Scale
from esvit_jax.data.unreadable import Unreadable


def decode(
  record: bytes | np.ndarray,
  channels: int,
  canvas: tuple[int, int],
  scale: Scale = OPEN,
  upright: bool = False,
) -> np.ndarray:
  """Decodes one image, whatever its mode, and shrinks it to fit the canvas.

  An image that fits is left as it is; nothing is ever enlarged. A larger one
  is shrunk, keeping its aspect, until it fits, but never so far that its
  shorter side falls under half the canvas's: the ends that then stand over
  are cut off equally. So up to 2:1 all is kept, and a panorama does not end
  as a strip of a few pixels that every crop has to enlarge; a wide canvas
  keeps such images whole.

  Args:
    record: an encoded file, or [h,w,c] that is decoded already.
    channels: 1 (grey), 3 (RGB) or the number of bands. Alpha is dropped where
      1 or 3 are asked for.
    canvas: (height, width) in pixels.
    scale: of images deeper than 8 bits.
    upright: whether to apply the orientation (EXIF) of a file, which
      torchvision's default loader does not.

  Returns:
    u8[h, w, channels].

  Raises:
    Unreadable: with the decoder's reason.
  """
  image = _pixels(record, channels, scale, upright, canvas)
  return _fit(image, canvas)


def center_crop(
  record: bytes | np.ndarray,
  channels: int,
  size: int,
  shorter: int,
  scale: Scale = OPEN,
  upright: bool = False,
) -> np.ndarray:
  """Decodes one image and cuts its central square, as torchvision does.

  Resize(shorter, bicubic) and CenterCrop(size), by PIL from all pixels of the
  file: smaller images are enlarged.

  Args:
    record, channels, scale, upright: see `decode`.
    size: side of the square, pixels.
    shorter: the shorter side of the image before it is cut, at least `size`.

  Returns:
    u8[size, size, channels].

  Raises:
    Unreadable: with the decoder's reason.
  """
  image = _pixels(record, channels, scale, upright)
  h, w, _ = image.shape
  # The longer side in whole pixels, as torchvision cuts it.
  height, width = (shorter * n // min(h, w) for n in (h, w))
  top, left = round((height - size) / 2), round((width - size) / 2)
  if (height, width) != (h, w):
    image = _resize(image, height, width)
  return image[top : top + size, left : left + size]


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
  rows, columns = (
    _nearest(n, first, length, made)
    for n, (first, length), made in zip(
      labels.shape, kept(labels.shape, canvas), shape
    )
  )
  return labels[rows[:, None], columns[None]]


def kept(
  size: tuple[int, int], canvas: tuple[int, int]
) -> list[tuple[float, float]]:
  """What `decode` keeps of each side of an image: (first, how many) pixels.

  Args:
    size: of the image as it is stored.
    canvas: that it is decoded for.
  """
  scale = _scale(*size, canvas)
  lengths = [
    n * min(1, side / max(1, round(n * scale))) for n, side in zip(size, canvas)
  ]
  return [((n - k) // 2, k) for n, k in zip(size, lengths)]


def with_channels(image: np.ndarray, channels: int) -> np.ndarray:
  """u8[h,w] or u8[h,w,c] -> u8[h,w,channels].

  Raises:
    Unreadable: it has other bands.
  """
  if image.ndim == 2:
    image = image[..., None]
  image = formats.without_alpha(image, channels)
  bands = image.shape[-1]
  if bands == channels:
    return image
  if (bands, channels) == (1, 3):
    return np.repeat(image, 3, axis=-1)
  if (bands, channels) != (3, 1):
    raise Unreadable(f'it has {bands} bands, not the {channels} of the others')
  red, green, blue = np.moveaxis(image.astype(np.uint32), -1, 0)
  # PIL's integer form of the ITU-R 601 luma
  grey = (19595 * red + 38470 * green + 7471 * blue + 0x8000) >> 16
  return grey.astype(np.uint8)[..., None]


def _pixels(
  record: bytes | np.ndarray,
  channels: int,
  scale: Scale,
  upright: bool,
  canvas: tuple[int, int] | None = None,
) -> np.ndarray:
  """u8[h, w, channels]; large enough for `canvas`, or as large as it is."""
  if isinstance(record, np.ndarray):
    return _as_bytes(record, channels, scale)
  turn = formats.UPRIGHT.get(formats.orientation(record)) if upright else None
  if turn and canvas:
    canvas = (max(canvas), max(canvas))  # height and width may change places
  image = _jpeg(record, channels, canvas)
  if image is None:
    image = formats.deep(record, channels)
    if image is None:
      image = _any_format(record, channels)
    image = _as_bytes(image, channels, scale)
  return image if turn is None else np.ascontiguousarray(turn(image))


def _as_bytes(image: np.ndarray, channels: int, scale: Scale) -> np.ndarray:
  # Alpha first: it is always white, whatever the range of the colours.
  image = formats.without_alpha(image, channels)
  return with_channels(depth.to_bytes(image, scale), channels)


def _jpeg(
  record: bytes, channels: int, canvas: tuple[int, int] | None
) -> np.ndarray | None:
  """The fast way for a sound grey or colour JPEG; None for all the rest."""
  if record[:2] != formats.JPEG or channels not in (1, 3):
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
  """u8[h, w, bands] of what PIL reads, as it is stored."""
  try:
    with formats.open_image(record) as image:
      back = _turned_back(image)
      if 'transparency' in image.info:  # else PIL warns of a palette's alpha
        image = image.convert('RGBA')
      if channels in (1, 3):
        image = image.convert('L' if channels == 1 else 'RGB')
      elif image.mode in ('1', 'P', 'CMYK', 'YCbCr', 'LAB', 'HSV'):
        image = image.convert('L' if image.mode == '1' else 'RGB')
      return back(np.asarray(image))
  except Exception as error:  # PIL's decoders raise whatever they like
    raise Unreadable(error) from error


def _turned_back(image) -> Callable:
  """What undoes the turn that PIL gives TIFFs, and them alone, on loading."""
  if image.format != 'TIFF':
    return lambda x: x
  stored = image.getexif().get(formats.EXIF_ORIENTATION, 1)
  image.load()
  if image.getexif().get(formats.EXIF_ORIENTATION, 1) == stored:
    return lambda x: x
  return formats.UPRIGHT.get({6: 8, 8: 6}.get(stored, stored), lambda x: x)


def _scale(h: int, w: int, canvas: tuple[int, int]) -> float:
  """The factor (at most 1) by which an h x w image is shrunk."""
  fits = min(canvas[0] / h, canvas[1] / w)
  floor = min(canvas) / 2 / min(h, w)
  return min(1.0, max(fits, floor))


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


def _nearest(n: int, first: float, length: float, made: int) -> np.ndarray:
  """Which of n pixels stand for `length` of them, from `first`, made `made`."""
  middles = first + (np.arange(made) + 0.5) * length / made
  # Halfway between two pixels the first is taken.
  return np.clip(np.ceil(middles - 1), 0, n - 1).astype(int)


def _resize(image, height: int, width: int, box=None, **how) -> np.ndarray:
  """An image or its part `box` (left, top, right, bottom), bicubic."""
  from PIL import Image

  def resized(plane):
    return np.asarray(
      Image.fromarray(plane).resize(
        (width, height), Image.Resampling.BICUBIC, box, **how
      )
    )

  if image.shape[-1] == 3:
    return resized(image)
  planes = [resized(image[..., i]) for i in range(image.shape[-1])]
  return np.stack(planes, -1)
