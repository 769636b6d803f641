"""A folder in COCO's layout: images, and a json of their objects."""

import collections
import json
import pathlib
from typing import Any, NamedTuple

import numpy as np

from esvit_jax.data import guard, splits
from esvit_jax.data.objects import Instances, Objects
from esvit_jax.data.source import Request, Source
from esvit_jax.errors import UserError

_LAYOUT = (
  'annotations go to annotations/instances_SPLIT.json and images to SPLIT/ or '
  'images/'
)


class Annotations(NamedTuple):
  """A json, checked.

  Attributes:
    images: entries whose files are there.
    paths: of their files.
    objects: of each image, its annotations.
    ids: official numbers of the classes.
    classes: their names.
    notes: what was found odd, a line each.
  """

  images: list[dict]
  paths: list[pathlib.Path]
  objects: list[list[dict]]
  ids: list[int]
  classes: list[str]
  notes: tuple[str, ...]


def split_names(place: str, data_dir: str | None) -> tuple[str, ...]:
  """The splits that annotations are there for."""
  return tuple(sorted(_files(pathlib.Path(place).expanduser())))


def open_split(request: Request) -> Source:
  """Opens PATH/annotations/*_SPLIT*.json and the images it names.

  Images lie in PATH/SPLIT*/, PATH/images/SPLIT/ or PATH/images/. Those without
  objects stay: there is nothing to find in them. Crowds are read, and left out
  of what is learned. The labels of an image are the classes of its objects.

  Args:
    request: its place is PATH, its split 'train' or 'val', as the names of the
      files have it, its channels 1 or 3.

  Raises:
    UserError: the json is missing or damaged, a mask is of another size than
      its image, or no image has an object.
  """
  _require_pycocotools()
  place = request.place
  root = pathlib.Path(place).expanduser()
  title = f'coco:{place}'
  files = _files(root)
  if not files:
    raise UserError(
      f'{title}: there is no json in {str(root / "annotations")!r}; {_LAYOUT}'
    )
  split = splits.require(title, request.split, tuple(sorted(files)))
  known = read(root, split, files[split])
  number = {k: i for i, k in enumerate(known.ids)}

  def label(i):
    present = np.zeros(len(known.classes), np.int32)
    present[[number[x['category_id']] for x in known.objects[i]]] = 1
    return present

  return Source(
    name=f'coco {root}, {split}',
    split=split,
    count=len(known.images),
    classes=known.classes,
    read=lambda i: (guard.read_file(known.paths[i]), label(i)),
    where=lambda i: str(known.paths[i]),
    canvas=request.canvas,
    channels=request.channels or 3,
    multi_label=True,
    notes=known.notes,
    objects=Objects(
      known.classes,
      max(map(len, known.objects)),
      lambda i: instances(known.images[i], known.objects[i], number),
      known.ids,
      lambda i: known.images[i]['id'],
    ),
  )


def read(root: pathlib.Path, split: str, path: pathlib.Path) -> Annotations:
  """Reads a json and leaves out what no object can be made of.

  Raises:
    UserError: see `open_split`.
  """
  content = _json(path)
  categories = sorted(content['categories'], key=lambda x: x['id'])
  ids = [x['id'] for x in categories]
  by_image = collections.defaultdict(list)
  sizes = {x['id']: (x['height'], x['width']) for x in content['images']}
  odd = collections.Counter()
  for each in content['annotations']:
    if each['category_id'] not in ids:
      raise UserError(
        f'{path}: annotation {each.get("id")} is of class '
        f'{each["category_id"]}, which is not among the categories'
      )
    size = sizes.get(each['image_id'])
    why = _fault(each, size, path)
    if why:
      odd[why] += 1
    else:
      by_image[each['image_id']].append(each)
  images, paths, missing = [], [], 0
  for image in content['images']:
    file = _image(root, split, image['file_name'])
    if file is None:
      missing += 1
    else:
      images.append(image)
      paths.append(file)
  if not images:
    raise UserError(
      f'{path}: none of its {len(content["images"]):,} images is there, such '
      f'as {_first_name(content["images"])!r}; {_LAYOUT}'
    )
  objects = [by_image[x['id']] for x in images]
  if not any(objects):
    raise UserError(f'{path}: no image has an object')
  return Annotations(
    images,
    paths,
    objects,
    ids,
    [x['name'] for x in categories],
    _notes(objects, len(images), missing, odd),
  )


def instances(image: dict, objects: list[dict], number: dict) -> Instances:
  """The objects of an image; `number` is official number -> class."""
  size = image['height'], image['width']
  n = len(objects)
  boxes = np.array([x['bbox'] for x in objects], np.float32).reshape(n, 4)
  boxes[:, 2:] += boxes[:, :2]
  masks = [_mask(x['segmentation'], size) for x in objects]
  masks = np.array(masks, bool).reshape(n, *size)
  return Instances(
    boxes,
    np.array([number[x['category_id']] for x in objects], np.int32),
    masks,
    np.array([bool(x.get('iscrowd', 0)) for x in objects], bool),
    np.array(
      [x.get('area', m.sum()) for x, m in zip(objects, masks)], np.float64
    ),
  )


def _mask(segmentation: Any, size: tuple[int, int]) -> np.ndarray:
  """Polygons, or a run-length code as numbers or as a string: bool[h, w]."""
  from pycocotools import mask as codes

  if isinstance(segmentation, list):
    polygons = [x for x in segmentation if len(x) >= 6]
    code = codes.merge(codes.frPyObjects(polygons, *size))
  elif isinstance(segmentation['counts'], list):
    code = codes.frPyObjects(segmentation, *size)
  else:
    code = segmentation
  return codes.decode(code).astype(bool)


def _fault(each: dict, size, path: pathlib.Path) -> str:
  """Why no object can be made of an annotation; '' if one can."""
  if size is None:
    return 'of images that are not listed'
  x, y, w, h = each['bbox']
  if w <= 0 or h <= 0:
    return 'with boxes of no width or height'
  if x >= size[1] or y >= size[0] or x + w <= 0 or y + h <= 0:
    return 'with boxes outside of their image'
  segmentation = each.get('segmentation')
  if isinstance(segmentation, dict):
    if tuple(segmentation['size']) != tuple(size):
      wrong, right = (f'{s[1]} x {s[0]}' for s in (segmentation['size'], size))
      raise UserError(
        f'{path}: the mask of annotation {each.get("id")} has {wrong} pixels '
        f'and image {each["image_id"]} {right}'
      )
    return ''
  if not segmentation or all(len(x) < 6 for x in segmentation):
    return 'with masks of fewer than three points'
  return ''


def _notes(objects, images: int, missing: int, odd) -> tuple[str, ...]:
  every = [x for some in objects for x in some]
  crowds = sum(bool(x.get('iscrowd', 0)) for x in every)
  empty = sum(not some for some in objects)
  notes = [
    f'{len(every):,} objects in {images:,} images, {crowds:,} of them crowds, '
    f'which are not learned; {empty:,} images without objects'
  ]
  if missing:
    notes.append(f'{missing:,} images of the json are not there: left out')
  notes += [f'{n:,} objects {why}: left out' for why, n in odd.items()]
  return tuple(notes)


def _files(root: pathlib.Path) -> dict[str, pathlib.Path]:
  """Split -> json; of several the first by name that says 'instances'."""
  found = {}
  paths = sorted((root / 'annotations').glob('*.json'))
  for path in sorted(paths, key=lambda x: not x.name.startswith('instances')):
    for word in path.stem.split('_')[1:]:
      name = word.rstrip('0123456789')
      if splits.kind(name):
        found.setdefault(name, path)
  return found


def _image(root: pathlib.Path, split: str, name: str) -> pathlib.Path | None:
  """Where an image lies, or None."""
  folders = [
    *sorted(x for x in root.glob(f'{split}*') if x.is_dir()),
    root / 'images' / split,
    root / 'images',
  ]
  return next((x / name for x in folders if (x / name).exists()), None)


def _json(path: pathlib.Path) -> dict:
  """Raises UserError unless it is a json of objects."""
  try:
    content = json.loads(path.read_text(encoding='utf-8'))
  except (OSError, ValueError, RecursionError) as error:
    raise UserError(f'cannot read {path}: {error}') from error
  for field in ('images', 'annotations', 'categories'):
    if not isinstance(content, dict) or not content.get(field):
      raise UserError(f'{path} has no {field}: it is no json of COCO instances')
  return content


def _first_name(images: list[dict]) -> str:
  return images[0]['file_name']


def _require_pycocotools() -> None:
  try:
    import pycocotools  # noqa: F401
  except ImportError as error:
    raise UserError(
      'masks of COCO need pycocotools: pip install "esvit_jax[detection]"'
    ) from error
