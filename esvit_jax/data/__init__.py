"""Images on disk -> one numpy batch per (seed, step). Never imports jax.

Opening and naming a source:

  source = open_source({'source': 'folder:/data/birds'}, 'train')
  Pipeline(source, seed=0, batch_size=64)[step]
"""

import contextlib
import dataclasses
import difflib
from collections.abc import Mapping
from typing import Any

from esvit_jax.data import embedded, filelist, folder, masks, scenes, tfds
from esvit_jax.data.crops import MARGIN, center_cropped, enlarged
from esvit_jax.data.fewshot import balanced
from esvit_jax.data.pipeline import Feed, Pipeline, epoch
from esvit_jax.data.segmentation import zero_is_void
from esvit_jax.data.source import Source, spread
from esvit_jax.data.subset import hold_out, labels, sample, subsample, subset
from esvit_jax.data.survey import survey
from esvit_jax.data.videos import Video, open_videos
from esvit_jax.errors import UserError

# Each builder takes (place, split, data_dir, canvas, channels), where `place`
# is what stands after the colon of 'folder:/path' or 'tfds:name'.
SOURCES = {
  'embedded': embedded.open_split,
  'folder': folder.open_split,
  'list': filelist.open_split,
  'masks': masks.open_split,
  'scenes': scenes.open_split,
  'tfds': tfds.open_split,
}

# Of sets that have both, such as ImageNet, the test labels are not public.
TEST_SPLITS = ('validation', 'val', 'test')

__all__ = [
  'MARGIN',
  'SOURCES',
  'Feed',
  'Pipeline',
  'Source',
  'Video',
  'balanced',
  'center_cropped',
  'enlarged',
  'epoch',
  'hold_out',
  'labels',
  'open_pair',
  'open_source',
  'open_videos',
  'sample',
  'spread',
  'subsample',
  'subset',
  'survey',
]


def open_source(config: Mapping[str, Any], split: str | None = None) -> Source:
  """Opens one split of the images that a config names.

  Args:
    config: `source` ('embedded', 'scenes', 'folder:/path', 'list:/path',
      'masks:/path' or 'tfds:name') and, each optional (None means the
      default): `split` ('train'), `data_dir` (where tfds keeps its sets),
      `canvas` (pixels, one number or (height, width)), `channels` (1 or 3),
      `zero` (of masks: 'class', or 'void' where classes begin with 1).
    split: used instead of the config's.

  Raises:
    UserError: the source or the split does not exist, or holds no images.
  """
  kind, _, place = config['source'].partition(':')
  if kind not in SOURCES:
    near = difflib.get_close_matches(kind, SOURCES, 1)
    hint = f' (did you mean {near[0]!r}?)' if near else ''
    raise UserError(
      f'data.source {config["source"]!r} is unknown{hint}: use '
      "'embedded', 'scenes', 'folder:/path', 'list:/path', 'masks:/path' or "
      "'tfds:name'"
    )
  channels = config.get('channels') or None
  if channels not in (None, 1, 3):
    raise UserError(f'data.channels is {channels}: use 1 (grey) or 3 (RGB)')
  zero = config.get('zero') or 'class'
  if zero not in ('class', 'void'):
    raise UserError(f"data.zero is {zero!r}: use 'class' or 'void'")
  source = SOURCES[kind](
    place,
    split=split or config.get('split') or 'train',
    data_dir=config.get('data_dir') or None,
    canvas=_canvas(config.get('canvas')),
    channels=channels,
  )
  if zero == 'void' and source.segmentation:
    segmentation = zero_is_void(source.segmentation)
    source = dataclasses.replace(source, segmentation=segmentation)
  return source


def open_pair(config: Mapping[str, Any]) -> tuple[Source, Source | None]:
  """Opens the images to train on, and those to judge on, on one canvas.

  Args:
    config: as for `open_source`, with `test_split`: a name, '' for none,
      'held_out' for a tenth of the training images, or 'auto' for the first
      of TEST_SPLITS that is there.

  Raises:
    UserError: as `open_source`, or too few images to hold some out.
  """
  train = open_source(config)
  split = config['test_split']
  if split == 'held_out':
    return hold_out(train)
  config = {**config, 'canvas': train.canvas}
  if split != 'auto':
    return train, open_source(config, split) if split else None
  for split in TEST_SPLITS:
    with contextlib.suppress(UserError):
      return train, open_source(config, split)
  return train, None


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
