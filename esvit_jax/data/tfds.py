"""Sets that TensorFlow Datasets has prepared, read without TensorFlow."""

import bisect
import itertools
import os
import pathlib
import re
from collections.abc import Sequence
from typing import Any

import numpy as np

from esvit_jax.data import splits
from esvit_jax.data.source import Request, Source
from esvit_jax.data.tfrecord import TFRecords
from esvit_jax.data.unreadable import Unreadable
from esvit_jax.errors import UserError

# What looks like something else, as people should know.
NOTES = {
  'scene_parse150': (
    'its annotations are the instances of the 2017 challenge, not the 150 '
    'classes of ADE20K: for those take ADEChallengeData2016 as a folder, '
    '--config.data.source=masks:PATH --config.data.zero=void',
  ),
}


def split_names(place: str, data_dir: str | None) -> tuple[str, ...]:
  """The splits there are. Raises UserError as `open_split`."""
  return tuple(_builder(place, data_dir).info.splits)


def open_split(request: Request) -> Source:
  """Opens a prepared set, in the formats tfrecord and array_record.

  Args:
    request: its place is 'name' or 'name/config', either with ':version'
      behind; by default the newest version of the only config that is
      prepared. Its split is any of tfds: 'train', 'train[10%:50%]',
      'train+validation'.

  Raises:
    UserError: the set is not prepared, damaged, or holds no images.
  """
  builder = _builder(request.place, request.data_dir)
  import tensorflow_datasets as tfds

  info = builder.info
  title = f'tfds set {request.place!r}'
  split = splits.match(request.split, tuple(info.splits)) or request.split
  instructions = _instructions(title, info, split)
  records = _records(title, builder, split, instructions)
  # Of the features only the two we want are parsed.
  wanted = _features(title, dict(info.features.items()))
  features = tfds.features.FeaturesDict(wanted)
  decoders = {'image': tfds.decode.SkipDecoding()}
  classes = getattr(wanted.get('label', wanted.get('labels')), 'names', None)
  ends = list(itertools.accumulate(each.take for each in instructions))

  def where(i: int) -> str:
    k = bisect.bisect_right(ends, i)
    each = instructions[k]
    return f'{each.filename}#{i - ends[k] + each.take + each.skip}'

  multi_label = 'labels' in wanted

  def label(example) -> int | np.ndarray:
    if not multi_label:
      return int(example.get('label', -1))
    present = np.zeros(len(classes), np.int32)
    present[example['labels']] = 1
    if 'labels_no_difficult' in wanted:
      # VOC counts images where a thing is hard to see neither way.
      sure = np.zeros_like(present)
      sure[example['labels_no_difficult']] = 1
      present[present > sure] = -1
    return present

  def read(i: int) -> tuple[bytes | np.ndarray, int]:
    try:
      example = features.deserialize_example_np(records[i], decoders=decoders)
      return example['image'], label(example)
    except Exception as error:  # protobuf and tfds each have their own
      raise Unreadable(error) from error

  return Source(
    name=f'tfds {info.full_name}',
    split=split,
    count=len(records),
    classes=classes,
    read=read,
    where=where,
    canvas=request.canvas,
    channels=request.channels or (1 if wanted['image'].shape[-1] == 1 else 3),
    multi_label=multi_label,
    notes=NOTES.get(info.name, ()),
    label_bytes=_bytes(instructions),
  )


def _builder(place: str, data_dir: str | None) -> Any:
  folder = _prepared(place, data_dir)
  import tensorflow_datasets as tfds

  try:
    return tfds.builder_from_directory(folder)
  except Exception as error:  # whatever a damaged json makes tfds raise
    reason = str(error).partition('\n')[0]
    raise UserError(
      f'cannot read the tfds set in {str(folder)!r}: {reason}'
    ) from error


def _prepared(place: str, data_dir: str | None) -> pathlib.Path:
  """The folder .../name[/config]/version that holds the set."""
  place = place.rstrip('/')
  root = pathlib.Path(
    data_dir or os.environ.get('TFDS_DATA_DIR') or '~/tensorflow_datasets'
  ).expanduser()
  name, _, version = place.partition(':')
  top = root / name
  infos = itertools.chain.from_iterable(
    top.glob(f'{depth}dataset_info.json') for depth in ('', '*/', '*/*/')
  )
  versions = [info.parent for info in infos]
  if version:
    versions = [folder for folder in versions if folder.name == version]
  if not name or not versions:
    raise UserError(_not_prepared(place, root))
  configs = sorted({os.path.relpath(folder.parent, top) for folder in versions})
  if len(configs) > 1:
    raise UserError(
      f'tfds set {place!r} is prepared in several configs in {str(root)!r} '
      f'({", ".join(configs)}): name one, as in tfds:{name}/{configs[0]}'
    )
  return max(
    versions, key=lambda f: [int(n) for n in re.findall(r'\d+', f.name)]
  )


def _not_prepared(place: str, root: pathlib.Path) -> str:
  name = place.partition(':')[0] or 'NAME'
  if root.is_dir():
    names = sorted(f.name for f in root.iterdir() if f.is_dir())
    state = f'which holds: {", ".join(names[:8]) or "nothing"}'
  else:
    state = 'which does not exist'
  return (
    f'tfds set {place!r} is not prepared in {str(root)!r}, {state}. Set '
    'data.data_dir, or prepare it once, with TensorFlow installed, in Python: '
    f"import tensorflow_datasets as tfds; tfds.builder('{name}', "
    f"data_dir='{root}').download_and_prepare()"
  )


def _instructions(title: str, info: Any, split: str) -> Sequence[Any]:
  """Which records of which files make up the split."""
  names = ', '.join(info.splits)
  try:
    chosen = info.splits[split]
  except (ValueError, KeyError) as error:
    raise UserError(
      f'{title} has no split {split!r}: use one of {names}, or a part such '
      "as 'train[10%:50%]'"
    ) from error
  if chosen.num_examples < 1:
    raise UserError(f'split {split!r} of {title} is empty (it has: {names})')
  for each in chosen.file_instructions:
    if not os.path.exists(each.filename):
      raise UserError(
        f'{title} lacks {each.filename!r}: copy or prepare the set again'
      )
  return chosen.file_instructions


def _records(
  title: str, builder: Any, split: str, instructions: Sequence[Any]
) -> Any:
  """The split's records as undecoded bytes, by index."""
  import tensorflow_datasets as tfds

  formats = tfds.core.FileFormat
  kind = builder.info.file_format
  if kind is formats.TFRECORD:
    return TFRecords(instructions)
  if kind is formats.ARRAY_RECORD:
    raw = tfds.decode.DeserializeMethod.RAW_BYTES
    return builder.as_data_source(split, deserialize_method=raw)
  # tfds' own reader of parquet returns the whole split for any part of it.
  raise UserError(
    f'{title} is stored as {kind.value}, which is not read here: prepare it '
    'with --file_format=array_record'
  )


def _bytes(instructions: Sequence[Any]) -> int:
  """Of the records of a split, about."""
  return sum(
    os.path.getsize(each.filename) * each.take // each.examples_in_shard
    for each in instructions
  )


def _features(title: str, features: dict[str, Any]) -> dict[str, Any]:
  """The features to parse: the image, and its label or labels if it has any.

  Several labels are a sequence of classes, such as VOC's.
  """
  image = features.get('image')
  if image is None or image.np_dtype not in (np.uint8, np.uint16):
    raise UserError(
      f"{title} has no feature 'image' of whole numbers; it has: "
      f'{", ".join(features)}'
    )
  label = features.get('label')
  sequences = {
    name: features[name]
    for name in ('labels', 'labels_no_difficult')
    if getattr(getattr(features.get(name), 'feature', None), 'names', None)
  }
  if label is None and 'labels' in sequences:
    return {'image': image, **sequences}
  if label is None or label.shape != ():
    return {'image': image}
  return {'image': image, 'label': label}
