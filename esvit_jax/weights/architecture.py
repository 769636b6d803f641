"""The network of published arrays: built, described, initialised."""

import dataclasses
import math
from collections.abc import Callable, Mapping

import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from flax import traverse_util

from esvit_jax import models
from esvit_jax.errors import UserError, in_one_line
from esvit_jax.models.heads import DINOHead
from esvit_jax.weights import accounting
from esvit_jax.weights.published import families

HEAD_FIELDS = ('out_dim', 'hidden', 'bottleneck', 'layers', 'use_bn')
# Above any published value. Values above these would take hours or terabytes.
_LIMITS = {'window': 32, 'patch': 256, 'image_size': 2048}
_BLOCKS, _TOKENS, _TABLE, _WIDTH = 128, 2**16, 2**22, 4096
_MOST_CHANNELS = 1024


def build(config: Mapping, arrays: Mapping) -> nn.Module:
  """`models.build`, after a check that the sizes suit these arrays.

  Args:
    config: as somebody's file describes it.
    arrays: of the file, by key.

  Raises:
    UserError: as `models.build`, or sizes that no such file can have.
  """
  try:
    _check_sizes(config, arrays)
    module = models.build(config)
    hash(module)  # which programs are compiled for
    return module
  except UserError:
    raise
  except Exception as e:  # fields of any type fail in any way
    raise UserError(f'the model cannot be built: {in_one_line(e)}') from None


def _check_sizes(config: Mapping, arrays: Mapping) -> None:
  """Raises UserError for sizes that would cost hours or terabytes."""
  defaults = models.BACKBONES.get(config.get('name'), (None, {}))[1]
  fields = {**defaults, **config}
  shapes = [np.shape(x) for x in arrays.values()]
  widest = max((max(s) for s in shapes if s and math.prod(s)), default=0)
  for key, value in fields.items():
    if value == defaults.get(key):
      continue  # a size of ours
    numbers = _numbers(value)
    limit = _LIMITS.get(key, 1 << 20)
    if key in ('depth', 'depths'):
      # Every block has arrays of its own.
      numbers, limit = [*numbers, sum(numbers)], min(len(arrays), _BLOCKS)
    elif key in ('dim', 'dims', 'width'):
      limit = max(widest, _WIDTH)
    if any(not -1 <= x <= limit for x in numbers) or len(numbers) > _BLOCKS:
      text = str(value)[:80]
      raise UserError(f'{key} of the model is {text}: no such file has that')
  sides = _numbers(fields.get('image_size', 0))
  patch = max([1, *_numbers(fields.get('patch', 1))])
  tokens = max([0, *sides]) ** 2 / patch**2
  if (
    tokens > _TOKENS
    or tokens * max([0, *_numbers(fields.get('dim', 0))]) > _TABLE
  ):
    raise UserError(
      f'the model is for images of {fields["image_size"]} px in patches of '
      f'{patch} px: no such file has that'
    )


def check_channels(count) -> int:
  """The number of channels of images. Raises UserError where it is none."""
  if type(count) is not int or not 0 < count <= _MOST_CHANNELS:
    raise UserError(f'its images have {str(count)[:80]} channels')
  return count


def _numbers(value) -> list:
  values = value if isinstance(value, (list, tuple)) else [value]
  return [x for x in values if type(x) in (int, float)]


def resolved(config: Mapping, module: nn.Module) -> dict:
  """`config` with all fields of the built module, as plain JSON."""
  fields = {
    f.name: getattr(module, f.name)
    for f in dataclasses.fields(module)
    if f.name not in ('parent', 'name')
  }
  if 'dtype' in fields:
    fields['dtype'] = jnp.dtype(fields['dtype']).name
  fields = {
    k: list(v) if isinstance(v, tuple) else v for k, v in fields.items()
  }
  return {'name': config['name'], **fields}


def channels(module: nn.Module, backbone: Mapping) -> int:
  """Channels of a backbone's images, read off its first kernel; else 3."""
  _, stem = families.KEYS.get(families.NAMES.get(type(module)), ('', ''))
  shape = np.shape(backbone.get(stem))
  return shape[1] if len(shape) == 4 and 0 < shape[1] < 1024 else 3


def head(arrays: Mapping[str, np.ndarray]) -> dict:
  """The fields of a DINOHead, read off its published arrays.

  Raises:
    UserError: the shapes are not those of DINO's head.
  """
  try:
    widths = [
      arrays[key].shape[0]
      for key in sorted(arrays, key=_number)
      if key.startswith('mlp.') and arrays[key].ndim == 2
    ]
    out_dim, bottleneck = arrays['last_layer.weight_v'].shape
    return {
      'out_dim': out_dim,
      'hidden': widths[0],
      'bottleneck': bottleneck,
      'layers': len(widths),
      'use_bn': 'mlp.1.running_mean' in arrays,
    }
  except (KeyError, IndexError, ValueError):
    raise UserError("the shapes of its head are not those of DINO's") from None


def differences(
  variables: Mapping, module: nn.Module, channels: int
) -> list[str]:
  """Paths of arrays that a backbone lacks, or has in excess.

  Args:
    variables: {'params', 'batch_stats'}.
    module: the backbone.
    channels: of its images.
  """
  init = models.initial(module, channels)
  like = accounting.shapes('backbone', init)
  expected, given = (
    {k: x.shape for k, x in traverse_util.flatten_dict(tree, sep='/').items()}
    for tree in (like, variables)
  )
  paths = expected.keys() | given.keys()
  return sorted(k for k in paths if expected.get(k) != given.get(k))


def head_init(fields: Mapping, in_dim: int) -> Callable:
  """Random key -> initial variables of a head."""
  module = DINOHead(**fields)
  return lambda key: module.init(key, jnp.zeros((2, in_dim)))


def head_layout(fields: Mapping) -> str:
  """The layout of a head of DINO."""
  return 'dino_head_bn' if fields['use_bn'] else 'dino_head'


def _number(key: str) -> int:
  part = key.split('.')[1]
  return int(part) if part.isdigit() else -1
