"""A folder of images and one of masks: PNGs of class numbers."""

import pathlib

import numpy as np

from esvit_jax.data import formats, guard, splits
from esvit_jax.data.segmentation import VOID, Segmentation
from esvit_jax.data.source import Request, Source
from esvit_jax.errors import UserError

_INDICES = ('1', 'L', 'P', 'I', 'I;16', 'I;16B', 'I;16L')  # PIL's modes


def split_names(place: str, data_dir: str | None) -> tuple[str, ...]:
  """The splits there are; 'train' where the folder has none."""
  images = pathlib.Path(place).expanduser() / 'images'
  names = (x.name for x in images.glob('*') if x.is_dir())
  return tuple(sorted(filter(splits.kind, names))) or ('train',)


def open_split(request: Request) -> Source:
  """Opens the pairs PATH/images/SPLIT/NAME.jpg and PATH/masks/SPLIT/NAME.png.

  Without a folder PATH/images/train all images are the split 'train'. Names of
  classes stand in PATH/classes.txt, one a line from class 0; without it the
  numbers in all masks are the classes. Class 255 is void. Images without a
  mask are left out, and the source's name says how many.

  Args:
    request: its place is PATH, its channels are 1 or 3.

  Raises:
    UserError: a folder or the split is missing, or no image has a mask.
  """
  place = request.place
  root = pathlib.Path(place).expanduser()
  for name in ('images', 'masks'):
    if not (root / name).is_dir():
      raise UserError(
        f'masks:{place}: there is no folder {str(root / name)!r}; images go to '
        'images/SPLIT/NAME.jpg and their masks to masks/SPLIT/NAME.png'
      )
  split = splits.require(
    f'masks:{place}',
    request.split,
    split_names(place, request.data_dir),
  )
  part = split if (root / 'images' / split).is_dir() else ''
  images, endings = {}, formats.endings()
  for path in sorted((root / 'images' / part).rglob('*')):
    if path.suffix.lower().removeprefix('.') in endings:
      name = path.relative_to(root / 'images').with_suffix('')
      if name in images:
        raise UserError(
          f'{str(images[name])!r} and {str(path)!r} would have one mask: give '
          'each image a name of its own'
        )
      images[name] = path
  masks = {name: root / 'masks' / f'{name}.png' for name in images}
  pairs = [
    (images[name], masks[name]) for name in images if masks[name].exists()
  ]
  if not pairs:
    raise UserError(
      f'masks:{place}, {split}: none of {len(images):,} images has a mask of '
      f'its name, such as {str(root / "masks" / part / "NAME.png")!r}'
    )
  missing = len(images) - len(pairs)
  note = f', {missing:,} images without a mask left out' if missing else ''

  def read(i):
    return guard.read_file(pairs[i][0]), -1

  return Source(
    name=f'masks {root}, {split}{note}',
    split=split,
    count=len(pairs),
    classes=None,
    read=read,
    where=lambda i: str(pairs[i][0]),
    canvas=request.canvas,
    channels=request.channels or 3,
    segmentation=Segmentation(_classes(root), lambda i: read_mask(pairs[i][1])),
  )


def read_mask(path: pathlib.Path) -> np.ndarray:
  """The class numbers of a PNG, palette or grey, i[h, w].

  Raises:
    UserError: it is no image, or its pixels are colours and not numbers.
  """
  try:
    record = guard.read_file(path)
    guard.check(record)
    with formats.open_image(record) as image:
      image.load()
  except Exception as error:  # PIL's decoders raise whatever they like
    raise UserError(f'the mask {path} is no image: {error}') from error
  if image.mode not in _INDICES:
    raise UserError(
      f'the mask {path} holds colours ({image.mode}): a mask is a PNG of class '
      'numbers, with a palette or grey'
    )
  return np.asarray(image).astype(np.int32)


def _classes(root: pathlib.Path) -> list[str]:
  """classes.txt, or the numbers up to the largest of all masks.

  Raises:
    UserError: there are more than 255.
  """
  names = root / 'classes.txt'
  if names.exists():
    text = names.read_text(encoding='utf-8', errors='surrogateescape')
    lines = text.splitlines()
    classes = [line.strip() for line in lines if line.strip()]
  else:
    largest = -1
    for path in (root / 'masks').rglob('*.png'):
      numbers = read_mask(path)
      largest = max(largest, numbers[numbers != VOID].max(initial=-1))
    classes = [str(k) for k in range(largest + 1)]
  if not 0 < len(classes) <= VOID:
    raise UserError(
      f'masks:{root} has {len(classes)} classes: 1 to {VOID} can be told apart'
    )
  return classes
