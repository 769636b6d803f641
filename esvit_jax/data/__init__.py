"""Images on disk -> one numpy batch per (seed, step). Never imports jax.

Opening and naming a source:

  source = open_source({'source': 'folder:/data/birds'}, 'train')
  Pipeline(source, seed=0, batch_size=64)[step]
"""

import dataclasses
import difflib
import os
from collections.abc import Mapping
from types import ModuleType
from typing import Any

from esvit_jax.data import (
  coco,
  depth,
  embedded,
  filelist,
  folder,
  guard,
  headers,
  masks,
  mixture,
  parquet,
  placed,
  scenes,
  splits,
  tars,
  tfds,
  webdataset,
  zips,
)
from esvit_jax.data.crops import MARGIN, center_cropped, enlarged
from esvit_jax.data.fewshot import balanced
from esvit_jax.data.pipeline import Feed, Pipeline, epoch
from esvit_jax.data.reader import UNREADABLE, Reading, reading
from esvit_jax.data.segmentation import zero_is_void
from esvit_jax.data.source import Request, Source, spread
from esvit_jax.data.subset import (
  hold_out,
  labelled,
  labels,
  sample,
  subsample,
  subset,
)
from esvit_jax.data.survey import survey
from esvit_jax.data.unreadable import Unreadable
from esvit_jax.data.videos import Video, open_videos
from esvit_jax.errors import UserError, require_local

# Each has split_names(place, data_dir), where `place` is what stands after the
# colon of 'folder:/path', and open_split(request).
SOURCES = {
  'coco': coco,
  'embedded': embedded,
  'folder': folder,
  'hf': parquet,
  'list': filelist,
  'masks': masks,
  'placed': placed,
  'scenes': scenes,
  'tar': tars,
  'tfds': tfds,
  'wds': webdataset,
  'zip': zips,
}

KNOWN = (
  "'embedded', 'placed', 'scenes', 'folder:/path', 'zip:/path.zip', "
  "'tar:/path.tar', 'wds:/path/{000..146}.tar', 'hf:/path', 'list:/path', "
  "'masks:/path', 'coco:/path' or 'tfds:name'"
)

__all__ = [
  'KNOWN',
  'MARGIN',
  'SOURCES',
  'UNREADABLE',
  'Feed',
  'Pipeline',
  'Reading',
  'Request',
  'Source',
  'Unreadable',
  'Video',
  'balanced',
  'center_cropped',
  'enlarged',
  'epoch',
  'hold_out',
  'labelled',
  'labels',
  'open_pair',
  'open_source',
  'open_videos',
  'reading',
  'sample',
  'split_names',
  'spread',
  'subsample',
  'subset',
  'survey',
]


def open_source(
  config: Mapping[str, Any],
  split: str | None = None,
  scale: depth.Scale | None = None,
) -> Source:
  """Opens one split of the images that a config names.

  Args:
    config: `source` (see `KNOWN`, or several of them by weight as in
      'folder:/a*0.7+zip:/b.zip*0.3') and, each optional (None means the
      default): `split` ('train'), `data_dir` (where tfds keeps its sets),
      `canvas` (pixels, one number or (height, width)), `channels` (1, 3, or
      the number of bands),
      `zero` (of masks: 'class', or 'void' where classes begin with 1),
      `max_pixels` (height x width that a file may declare, `guard.check`),
      `objects` (how many of an image are read; 0: none, and none are known),
      `value_range` (of deep images, see `depth.Scale`) and `exif_orientation`
      (True), which is applied to folders and lists of files.
    split: used instead of the config's.
    scale: of deep images, used instead of the config's.

  Raises:
    UserError: the source or the split does not exist, or holds no images.
  """
  module, place = _parse(config['source'])
  channels = config.get('channels') or None
  if channels is not None and channels < 1:
    raise UserError(
      f'data.channels is {channels}: use 1 (grey), 3 (RGB) or the number of '
      'bands'
    )
  zero = config.get('zero') or 'class'
  if zero not in ('class', 'void'):
    raise UserError(f"data.zero is {zero!r}: use 'class' or 'void'")
  canvas = _canvas(config.get('canvas'))
  data_dir = require_local(config.get('data_dir') or '', 'data.data_dir')
  split = split or config.get('split') or 'train'
  source = module.open_split(
    Request(place, split, data_dir or None, canvas, channels)
  )
  if zero == 'void' and source.segmentation:
    segmentation = zero_is_void(source.segmentation)
    source = dataclasses.replace(source, segmentation=segmentation)
  most, objects = config.get('objects') or 0, source.objects
  objects = objects._replace(most=most) if objects and most else None
  source = dataclasses.replace(source, objects=objects)
  if config.get('exif_orientation') is False:
    source = dataclasses.replace(source, upright=False)
  return headers.fit(
    guard.guarded(source, config.get('max_pixels')),
    canvas,
    scale or depth.parse(config.get('value_range')),
  )


def open_pair(config: Mapping[str, Any]) -> tuple[Source, Source | None]:
  """Opens the images to train on, and those to judge on, on one canvas.

  Args:
    config: as for `open_source`, with `test_split`: a name, '' for none,
      'held_out' for a tenth of the training images, or 'auto' for the split
      for validation, or else for testing, where there is one.

  Raises:
    UserError: as `open_source`, or too few images to hold some out.
  """
  train = open_source(config)
  split = config['test_split']
  if split == 'held_out':
    return hold_out(train)
  config = {**config, 'canvas': train.canvas}
  if split != 'auto':
    if not split:
      return train, None
    test = open_source(config, split, train.scale)
    if test.split == train.split:
      note = f'judged on the images that it trains on, split {test.split!r}'
      test = dataclasses.replace(test, notes=(*test.notes, note))
    return train, test
  module, place = _parse(config['source'])
  names = module.split_names(place, config.get('data_dir') or None)
  for kind in splits.JUDGED:
    name = splits.match(kind, names)
    if name and name != train.split:
      try:
        return train, open_source(config, name, train.scale)
      except UserError as e:
        raise UserError(f"{e}; data.test_split='' trains without it") from e
  return train, None


def split_names(source: str, data_dir: str | None = None) -> tuple[str, ...]:
  """The splits of a source.

  Raises:
    UserError: the source does not exist.
  """
  module, place = _parse(source)
  return module.split_names(place, data_dir or None)


def _parse(source: str) -> tuple[ModuleType | mixture.Mixture, str]:
  """The module that reads a source, and the place after the colon."""
  if parts := mixture.parts(source):
    return mixture.Mixture(
      [mixture.Part(*_parse(name), weight) for name, weight in parts]
    ), ''
  kind, _, place = source.partition(':')
  if kind not in SOURCES:
    require_local(source, 'data.source')
    if os.path.isdir(os.path.expanduser(source)) or '/' in kind:
      raise UserError(
        f"data.source {source!r} is a path: write 'folder:{source}'"
      )
    near = difflib.get_close_matches(kind, SOURCES, 1)
    hint = f' (did you mean {near[0]!r}?)' if near else ''
    raise UserError(f'data.source {source!r} is unknown{hint}: use {KNOWN}')
  if not place.strip() and kind not in ('embedded', 'placed', 'scenes'):
    raise UserError(
      f'data.source {source!r} names no place after the colon: is a variable '
      'of your shell not set?'
    )
  return SOURCES[kind], require_local(place, 'data.source')


def _canvas(value: Any) -> tuple[int, int] | None:
  """One number or a pair -> (height, width); 0 and None mean the default."""
  if not value:
    return None
  pair = (value, value) if isinstance(value, int) else tuple(value)
  if len(pair) != 2 or min(pair) < 1:
    raise UserError(
      f'data.canvas is {value}: use one side or (height, width), in pixels'
    )
  return pair
