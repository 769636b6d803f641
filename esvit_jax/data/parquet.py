"""Parquet files as Hugging Face `datasets` writes them."""

import contextlib
import json
import os
import shutil
from collections.abc import Iterator
from typing import Any

import numpy as np

from esvit_jax.data import cache, guard, shards, splits
from esvit_jax.data.progress import Progress
from esvit_jax.data.source import Request, Source
from esvit_jax.data.unreadable import Unreadable
from esvit_jax.errors import UserError

_ENDINGS = ('.parquet',)
_IMAGES = ('image', 'img', 'picture')  # where no column says it is one
_LABELS = ('label', 'labels', 'class', 'fine_label')


def split_names(place: str, data_dir: str | None) -> tuple[str, ...]:
  """The splits that names of files tell, see `shards.by_split`."""
  return tuple(shards.by_split(shards.expand(place, _ENDINGS)))


def open_split(request: Request) -> Source:
  """Opens the rows of parquet files, in order.

  A column of images holds bytes, or {bytes, path} where one may be missing;
  paths are relative to the folder. A parquet file gives a row only with all
  others of its group, so the images are once copied to the cache
  (`cache.directory`), from where each is read alone.

  Args:
    request: its place is a file, a folder, or a pattern, see `shards.expand`;
      names of files tell splits, see `shards.by_split`.

  Raises:
    UserError: a file is missing or no parquet, there is no such split, no
      column of images, or too little space for the copy.
  """
  by_split = shards.by_split(shards.expand(request.place, _ENDINGS))
  split = splits.require(f'hf:{request.place}', request.split, tuple(by_split))
  schemas = {
    path: cache.kept(path, 'columns', lambda path=path: _columns(path))
    for paths in by_split.values()
    for path in paths
  }
  names_of = {path: cache.apart(x['classes']) for path, x in schemas.items()}
  # Files tell names of classes in one order, or each those of its own labels.
  lists = list(names_of.values())
  classes = lists[0]
  if any(names != classes for names in lists):
    classes = sorted(set().union(*lists))
  paths = by_split[split]
  progress = Progress(
    f'copying {len(paths):,} parquet files to {cache.directory()}',
    sum(os.path.getsize(path) for path in paths),
  )
  each = [
    cache.kept(
      path, 'rows', lambda path=path: _build(path, schemas[path], progress)
    )
    for path in paths
  ]
  labels = np.concatenate(
    [_numbered(x['labels'], names_of[p], classes) for p, x in zip(paths, each)]
  )
  if not classes and labels.max(initial=-1) >= 0:
    classes = [str(k) for k in range(labels.max() + 1)]
  spans = np.concatenate([x['spans'] for x in each])
  names = [name for x in each for name in cache.apart(x['names'])]
  copies = [cache.apart(x['copy'])[0] for x in each]
  changed = [int(x['changed']) for x in each]
  sizes = [len(x['spans']) for x in each]
  file, row = np.repeat(np.arange(len(each)), sizes), np.arange(sum(sizes))
  row -= np.repeat(np.cumsum(sizes) - sizes, sizes)

  def read(i: int) -> tuple[bytes, int]:
    (offset, size), k = spans[i].tolist(), file[i]
    if size:
      record = shards.read_span(copies[k], offset, size, changed[k])
      return record, int(labels[i])
    if not names[i]:
      raise Unreadable('its row holds neither bytes nor a path')
    image = guard.read_file(_beside(paths[k], names[i]))
    return image, int(labels[i])

  return Source(
    name=f'hf {request.place}',
    split=split,
    count=len(spans),
    classes=classes or None,
    read=read,
    where=lambda i: f'{paths[file[i]]}#{row[i]}',
    canvas=request.canvas,
    channels=request.channels or 3,
    labels=labels,
    upright=True,
  )


def _numbered(labels: np.ndarray, names: list, classes: list) -> np.ndarray:
  """Labels by the names of one file -> by the names of all, i32[n]."""
  if names == classes:
    return labels.astype(np.int32)
  number = {name: k for k, name in enumerate(classes)}
  order = np.array([*(number[name] for name in names), -1], np.int32)
  return order[labels]


def _beside(path: str, name: str) -> str:
  """A path in a row, relative to the folder of the parquet file or above it.

  Raises:
    Unreadable: it leads outside, or is absolute.
  """
  if os.path.isabs(name) or '..' in name.split('/'):
    raise Unreadable(f'its path {name!r} leads outside the folder of the set')
  folder = os.path.dirname(path)
  inner = os.path.join(folder, name)
  return inner if os.path.exists(inner) else os.path.join(folder, '..', name)


def _build(path: str, schema: cache.Arrays, progress: Progress) -> cache.Arrays:
  """Copies the images of one file; returns where each lies, and its label."""
  image, label = cache.apart(schema['columns'])
  number = {name: k for k, name in enumerate(cache.apart(schema['classes']))}
  with _opened(path) as file:
    _require_space(path, file, image)
    copy = _fresh_copy(path)
    partial = f'{copy}.{os.getpid()}'
    spans, names, labels, end = [], [], [], 0
    size, rows = os.path.getsize(path), max(file.metadata.num_rows, 1)
    try:
      with open(partial, 'wb') as out:
        columns = [name for name in (image, label) if name]
        for batch in file.iter_batches(64, columns=columns):
          for row in batch.to_pylist():
            record, name = _record(row[image])
            out.write(record)
            spans.append((end, len(record)))
            end += len(record)
            names.append(name.replace('\0', ''))
            value = row.get(label)
            labels.append(number.get(value, -1 if value is None else value))
          progress.add(size * batch.num_rows / rows)
      os.replace(partial, copy)
    finally:
      if os.path.exists(partial):
        os.unlink(partial)
  return {
    'spans': np.array(spans, np.int64).reshape(-1, 2),
    'names': cache.joined(names),
    'labels': np.array(labels, np.int64),
    'copy': cache.joined([copy]),
    'changed': np.int64(os.stat(copy).st_mtime_ns),
  }


def _fresh_copy(path: str) -> str:
  """Where the images of a file go; copies of what it was before are removed."""
  kept = cache.place(path, 'rows')
  for old in kept.parent.glob(f'{kept.stem}-*.images'):
    old.unlink()
  return str(kept.with_name(f'{kept.stem}-{cache.stamp(path)[2]}.images'))


@contextlib.contextmanager
def _opened(path: str) -> Iterator[Any]:
  """A parquet file.

  Raises:
    UserError: it is none, or cannot be read.
  """
  try:
    from pyarrow import parquet
  except ImportError:
    raise UserError(
      'reading parquet needs pyarrow: pip install "esvit_jax[parquet]"'
    ) from None
  try:
    with parquet.ParquetFile(path) as file:
      yield file
  except UserError:
    raise
  except (OSError, ValueError) as error:  # pyarrow's errors are of these
    reason = ' '.join(str(error).split())
    raise UserError(
      f'{path!r} is no parquet file, or is cut off ({reason}): copy it again'
    ) from None


def _record(value: Any) -> tuple[bytes, str]:
  """(bytes, path) of what an image's column holds; empty where missing."""
  if isinstance(value, bytes):
    return value, ''
  if isinstance(value, str):
    return b'', value
  value = value or {}
  return value.get('bytes') or b'', value.get('path') or ''


def _columns(path: str) -> cache.Arrays:
  """The columns of images and of labels ('' for none), and names of classes."""
  with _opened(path) as file:
    schema = file.schema_arrow
    metadata = json.loads((schema.metadata or {}).get(b'huggingface', b'{}'))
    features = metadata.get('info', {}).get('features', {})
    image = _column(schema, features, 'Image', _IMAGES, _may_hold_images)
    if not image:
      raise UserError(
        f'{path!r} has no column of images, such as image; it has: '
        f'{", ".join(schema.names)}'
      )
    label = _column(schema, features, 'ClassLabel', _LABELS, _may_hold_labels)
    classes = features.get(label, {}).get('names') or []
    if label and not classes and _is_text(schema.field(label)):
      values = file.read(columns=[label])[label].unique().to_pylist()
      classes = sorted(x for x in values if x)
  return {
    'columns': cache.joined([image, label]),
    'classes': cache.joined(classes),
  }


def _column(schema, features: dict, kind: str, usual: tuple, fits) -> str:
  """The first column that is said to be of a kind, or is called as usual."""
  said = (
    name
    for name in schema.names
    if isinstance(features.get(name), dict)
    and features[name].get('_type') == kind
  )
  names = (*said, *(name for name in usual if name in schema.names))
  return next((name for name in names if fits(schema.field(name))), '')


def _is_text(field) -> bool:
  return str(field.type).endswith('string')


def _may_hold_images(field) -> bool:
  kind = str(field.type)
  return kind.startswith('struct') or kind.endswith(('binary', 'string'))


def _may_hold_labels(field) -> bool:
  kind = str(field.type)
  return kind.startswith(('int', 'uint')) or _is_text(field)


def _require_space(path: str, file, image: str) -> None:
  cache.directory().mkdir(parents=True, exist_ok=True)
  needed = sum(
    file.metadata.row_group(k).column(c).total_uncompressed_size
    for k in range(file.metadata.num_row_groups)
    for c in range(file.metadata.num_columns)
    if file.metadata.row_group(k).column(c).path_in_schema.startswith(image)
  )
  free = shutil.disk_usage(cache.directory()).free
  if needed > free:
    raise UserError(
      f'{path!r} needs {needed / 1e9:.1f} GB in {cache.directory()}, where '
      f'{free / 1e9:.1f} GB are free: set the variable ESVIT_JAX_CACHE to a '
      'folder with more space'
    )
