"""A source written as a set of tfds: array_record shards, smaller images."""

import concurrent.futures
import io
import json
import os
import pathlib
import re
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from esvit_jax.data import decode, formats
from esvit_jax.data.progress import Progress
from esvit_jax.data.source import Source, tolerable
from esvit_jax.data.unreadable import Unreadable
from esvit_jax.errors import UserError

VERSION = '1.0.0'
_NOTES = 'packing.json'  # what was asked for, while it is being made
_AHEAD = 64  # images in memory


class Options(NamedTuple):
  """How images are stored.

  Attributes:
    short_side: pixels; longer ones are shrunk to it, 0 leaves all as they are.
    quality: of the JPEGs made, 1 to 100.
    shard: images a file.
    max_unreadable: share of a split that may be left out.
  """

  short_side: int = 0
  quality: int = 95
  shard: int = 4096
  max_unreadable: float = 0.01


class Packed(NamedTuple):
  """What was packed of a split: shard lengths, and who was left out."""

  name: str
  lengths: list[int]
  unreadable: list[str]


def pack(
  sources: Mapping[str, Source], place: str, options: Options, workers: int
) -> list[Packed]:
  """Writes splits as the prepared set PLACE/1.0.0 of tfds.

  Images that stay as they are keep their bytes (JPEG and PNG) or become PNG;
  shrunk or turned ones (EXIF) become JPEG. Those deeper than 8 bits keep their
  bytes. The same command goes on where it was interrupted.

  Args:
    sources: split -> source.
    place: folder to write, whose name is that of the set.
    options: how.
    workers: threads.

  Raises:
    UserError: the set is there already, or was begun with other options; a
      source has masks, several labels an image, or other than 1 or 3 channels;
      or too many of its images are unreadable.
  """
  folder = _begin(sources, place, options)
  features = _features(sources)
  each = []
  for split, source in sources.items():
    each.append(_pack_split(source, split, folder, features, options, workers))
  _finish(folder, features, each)
  return each


def _begin(sources, place: str, options: Options) -> pathlib.Path:
  """The folder to write into, empty or of the same set unfinished."""
  place = pathlib.Path(place).expanduser()
  if not re.fullmatch('[a-z][a-z0-9_]*', place.name):
    raise UserError(
      f'{str(place)!r}: the last part is the name of the set: use small '
      'letters, digits and _'
    )
  _check(options)
  folder = place / VERSION
  if (folder / 'dataset_info.json').exists():
    raise UserError(f'{str(folder)!r} is packed already: name another folder')
  asked = {
    **options._asdict(),
    **{name: [source.name, len(source)] for name, source in sources.items()},
  }
  notes = folder / _NOTES
  if notes.exists():
    try:
      begun = json.loads(notes.read_text(encoding='utf-8'))
      begun.keys()
    except (OSError, ValueError, RecursionError, AttributeError) as e:
      raise UserError(
        f'cannot read {notes} ({e}): delete {folder}, or name another folder'
      ) from e
    other = [name for name in asked if begun.get(name) != asked[name]]
    if other or begun.keys() != asked.keys():
      raise UserError(
        f'{str(folder)!r} was begun with other images or options '
        f'({", ".join(other) or "splits"}): delete it, or name another folder'
      )
  elif folder.exists() and any(folder.iterdir()):
    raise UserError(f'{str(folder)!r} holds other files: name another folder')
  else:
    folder.mkdir(parents=True, exist_ok=True)
    notes.write_text(json.dumps(asked), encoding='utf-8')
  return folder


def _check(options: Options) -> None:
  if options.short_side < 0 or options.shard < 1:
    raise UserError('--short_side is at least 0, and --shard at least 1')
  if not 1 <= options.quality <= 100:
    raise UserError(f'--quality is {options.quality}: use 1 to 100')


def _features(sources: Mapping[str, Source]) -> Any:
  """What tfds calls the parts of an example."""
  import tensorflow_datasets as tfds

  first = next(iter(sources.values()))
  for source in sources.values():
    if source.multi_label or source.segmentation:
      raise UserError(
        f'{source.name} has masks, or several labels an image: pack takes '
        'images with one label or none'
      )
  if first.channels not in (1, 3):
    raise UserError(
      f'{first.name} has {first.channels} channels: pack takes 1 or 3'
    )
  features = {
    'image': tfds.features.Image(shape=(None, None, first.channels)),
    'file_name': tfds.features.Text(),
  }
  if first.classes:
    features['label'] = tfds.features.ClassLabel(names=list(first.classes))
  return tfds.features.FeaturesDict(features)


def _pack_split(
  source: Source, split: str, folder, features, options: Options, workers: int
) -> Packed:
  from array_record.python import array_record_module as array_record

  starts = range(0, len(source), options.shard)
  progress = Progress(f'packing {split}', len(source))
  allowed = tolerable(len(source), options.max_unreadable)
  lengths, unreadable = [], []
  with concurrent.futures.ThreadPoolExecutor(workers) as pool:
    for k, start in enumerate(starts):
      rows = range(start, min(start + options.shard, len(source)))
      path = folder / _shard_name(folder, split, k, len(starts))
      left_out = path.with_suffix(f'{path.suffix}.unreadable')
      if not path.exists():
        records = _records(source, rows, features, options, pool, progress)
        _write(path, left_out, records)
      else:
        progress.add(len(rows))
      unreadable += left_out.read_text(encoding='utf-8').splitlines()
      if len(unreadable) > allowed:
        raise UserError(
          f'{source.name}: {len(unreadable)} of {len(source)} images are '
          f'unreadable, more than the {allowed} that --max_unreadable='
          f'{options.max_unreadable:g} allows, such as {unreadable[-1]}'
        )
      reader = array_record.ArrayRecordReader(str(path))
      lengths.append(reader.num_records())
      reader.close()
  return Packed(split, lengths, unreadable)


def _shard_name(folder: pathlib.Path, split: str, k: int, count: int) -> str:
  name = folder.parent.name
  return f'{name}-{split}.array_record-{k:05d}-of-{count:05d}'


def _records(source, rows, features, options, pool, progress):
  """(serialized example, '') or (None, why it is unreadable) of each row."""

  def record(i: int):
    try:
      image, label = _image(source, i, options)
    except (OSError, Unreadable) as error:
      return None, f'{source.where(i)}\t{error}'
    example = {'image': image, 'file_name': source.where(i)}
    if source.classes:
      example['label'] = label
    return features.serialize_example(features.encode_example(example)), ''

  for start in range(0, len(rows), _AHEAD):
    part = rows[start : start + _AHEAD]
    yield from pool.map(record, part)
    progress.add(len(part))


def _write(path: pathlib.Path, left_out: pathlib.Path, records) -> None:
  """A whole shard, or nothing under its name."""
  from array_record.python import array_record_module as array_record

  partial = path.with_name(f'partial-{path.name}')
  writer = array_record.ArrayRecordWriter(str(partial), 'group_size:1')
  problems = []
  try:
    for record, problem in records:
      if record is None:
        problems.append(f'{problem}\n')
      else:
        writer.write(record)
  finally:
    writer.close()
  left_out.write_text(''.join(problems), encoding='utf-8')
  os.replace(partial, path)


def _image(source: Source, i: int, options: Options) -> tuple[bytes, int]:
  """The encoded image to store, and its label. Raises Unreadable."""
  record, label = source.read(i)
  image = decode.decode(
    record, source.channels, (2**20, 2**20), source.scale, source.upright
  )
  is_file = isinstance(record, bytes)
  if is_file and formats.deep(record, source.channels) is not None:
    return record, label
  side = options.short_side
  if side and min(image.shape[:2]) > side:
    return _jpeg(_shrunk(image, side), options.quality), label
  if is_file and source.upright and formats.orientation(record) != 1:
    return _jpeg(image, options.quality), label
  if is_file and (record[:2] == b'\xff\xd8' or record[:8] == formats.PNG):
    return record, label
  return _encoded(image, 'PNG'), label


def _shrunk(image: np.ndarray, side: int) -> np.ndarray:
  from PIL import Image

  shape = image.shape[:2]
  height, width = (round(n * side / min(shape)) for n in shape)
  planes = image[..., 0] if image.shape[2] == 1 else image
  bicubic = Image.Resampling.BICUBIC
  small = Image.fromarray(planes).resize((width, height), bicubic)
  return np.asarray(small).reshape(height, width, -1)


def _jpeg(image: np.ndarray, quality: int) -> bytes:
  return _encoded(image, 'JPEG', quality=quality, subsampling=0)


def _encoded(image: np.ndarray, kind: str, **options) -> bytes:
  from PIL import Image

  file = io.BytesIO()
  planes = image[..., 0] if image.shape[2] == 1 else image
  Image.fromarray(planes).save(file, kind, **options)
  return file.getvalue()


def _finish(folder: pathlib.Path, features, each: list[Packed]) -> None:
  """Writes what makes it a set of tfds."""
  import tensorflow_datasets as tfds

  infos = []
  for packed in each:
    name = f'{folder.parent.name}-{packed.name}'
    shards = folder.glob(f'{name}.array_record-*-of-*[0-9]')
    template = tfds.core.ShardedFileTemplate(
      data_dir=folder,
      dataset_name=folder.parent.name,
      split=packed.name,
      filetype_suffix='array_record',
    )
    infos.append(
      tfds.core.SplitInfo(
        name=packed.name,
        shard_lengths=packed.lengths,
        num_bytes=sum(path.stat().st_size for path in shards),
        filename_template=template,
      )
    )
  tfds.folder_dataset.write_metadata(
    data_dir=folder, features=features, split_infos=infos, check_data=False
  )
  for pattern in ('*.unreadable', 'partial-*'):
    for path in folder.glob(pattern):
      path.unlink()
  (folder / _NOTES).unlink()
