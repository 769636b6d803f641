"""Infers the architecture of published arrays from their keys and shapes.

What these do not determine is asked for, never guessed.
"""

import dataclasses
import itertools
from collections.abc import Mapping

import numpy as np

from esvit_jax import models
from esvit_jax.errors import UserError
from esvit_jax.models.positions import mae_table, moco_table
from esvit_jax.models.windows import stage_window
from esvit_jax.weights.published.families import (
  KEYS,
  NAMES,
  OpenError,
  ask,
  of_keys,
)

# Parts of keys that identify files of other libraries.
_FOREIGN = {
  'Hugging Face': ('encoder.layer.', 'embeddings.', 'embedder.'),
  'torchvision': ('encoder.layers.encoder_layer_', 'features.0.', 'conv_proj.'),
}
_TABLES = {'mae': (mae_table, 'mean'), 'moco': (moco_table, 'cls')}


def infer(backbone: Mapping[str, np.ndarray], fields: Mapping) -> dict:
  """The config of a backbone, for models.build.

  Args:
    backbone: arrays by published key, without prefixes.
    fields: known from elsewhere; the others follow from the shapes.

  Raises:
    UserError: the architecture is unknown, or leaves a choice.
  """
  name = of_keys(backbone)
  if 'name' in fields:
    return _as_named(backbone, fields, name)
  if name is None:
    raise UserError(_unknown(list(backbone)))
  infer_family = {
    'swin': _swin,
    'vil': _vil,
    'vit': _vit,
    'cvt': _cvt,
    'resnet': _resnet,
  }[name]
  try:
    return infer_family(backbone, fields)
  except UserError:
    raise
  except KeyError as e:
    raise UserError(f'looks like {name}, but lacks {e.args[0]}') from None
  except (IndexError, ValueError, TypeError) as e:
    raise UserError(f'looks like {name}, but with other shapes ({e})') from None


def _as_named(backbone: Mapping, fields: Mapping, family: str | None) -> dict:
  """Infers the fields that the name in `fields` leaves open."""
  module, defaults = models.BACKBONES.get(fields['name'], (None, {}))
  if family is None or NAMES.get(module) != family:
    return dict(fields)
  others = {k: v for k, v in fields.items() if k != 'name'}
  try:
    config = infer(backbone, {**defaults, **others})
  except OpenError:
    raise
  except UserError:  # a list of what is missing will say more
    return dict(fields)
  config = {**models.BACKBONES[config['name']][1], **config}
  config = {k: v for k, v in config.items() if defaults.get(k, ...) != v}
  return config | {'name': fields['name']}


def _unknown(keys: list[str]) -> str:
  text = f'its {len(keys)} arrays, such as {", ".join(keys[:3])}, '
  for library, marks in _FOREIGN.items():
    if any(mark in key for key in keys for mark in marks):
      return (
        f'{text}have the names that {library} gives them: read are those of '
        'EsViT, DINO, MoCo, MAE, SiT and timm; take the file as its authors '
        'published it'
      )
  return f'{text}are of no backbone known ({", ".join(KEYS)})'


def _swin(arrays: Mapping, fields: Mapping) -> dict:
  count = _count(arrays, 'layers.{}.blocks.0.norm1.weight')
  stages = [f'layers.{i}.blocks' for i in range(count)]
  table = '0.attn.relative_position_bias_table'
  tables = [arrays[f'{x}.{table}'].shape for x in stages]
  windows = [(round(rows**0.5) + 1) // 2 for rows, _ in tables]
  config = {
    'dims': tuple(arrays[f'{x}.0.norm1.weight'].shape[0] for x in stages),
    'depths': tuple(_count(arrays, f'{x}.{{}}.norm1.weight') for x in stages),
    'heads': tuple(heads for _, heads in tables),
    'patch': arrays['patch_embed.proj.weight'].shape[2],
    'window': max(windows),
    **fields,
  }
  if 'image_size' not in config:
    config['image_size'] = _swin_image_size(config, windows)
  elif (built := _windows(config, config['image_size'])) != windows:
    raise UserError(
      f'its windows are {windows}, not {built} as of '
      f'{config["image_size"]} px images'
    )
  return _named('swin', config)


def _windows(config: Mapping, image_size: int) -> list[int]:
  """The window of each stage, in tokens."""
  patch, window = config['patch'], config['window']
  return [
    stage_window(image_size, patch, window, i)[0]
    for i in range(len(config['depths']))
  ]


def _swin_image_size(config: Mapping, windows: list[int]) -> int:
  """224, as in all of EsViT's Swins, if that gives these windows."""
  if _windows(config, 224) == windows:
    return 224
  sizes = [
    size
    for size in range(config['patch'], 2049, config['patch'])
    if _windows(config, size) == windows
  ]
  if not sizes:
    raise UserError(
      f'its windows are {windows}, which no image size gives here: maps of odd '
      'sides are rounded up, as they are when images are seen'
    )
  raise ask(
    f'its windows are {windows}, not those of 224 px images; it was made for '
    f'{sizes[0]} px or more, up to {sizes[-1]}',
    'image_size',
    sizes[0],
  )


def _vil(arrays: Mapping, fields: Mapping) -> dict:
  count = _count(arrays, 'layer{}.0.proj.weight', 1)
  stages = [f'layer{i + 1}' for i in range(count)]
  kernels = [arrays[f'{x}.0.proj.weight'].shape for x in stages]
  table = '1.attn.local_relative_position_bias_table'
  tables = [arrays[f'{x}.{table}'].shape for x in stages]
  tokens = [arrays.get(f'{x}.0.cls_token', np.zeros((1, 0))) for x in stages]
  # Blocks of attention and of MLPs alternate.
  blocks = [_count(arrays, f'{x}.{{}}.norm.weight', 1) for x in stages]
  config = {
    'dims': tuple(shape[0] for shape in kernels),
    'depths': tuple(-(-n // 2) for n in blocks),
    'heads': tuple(heads for _, heads in tables),
    'sparse': tuple(f'{x}.1.attn.query.weight' in arrays for x in stages),
    'global_tokens': tuple(x.shape[1] for x in tokens),
    'patches': tuple(shape[2] for shape in kernels),
  }
  windows, sizes, stride = set(), [], 1
  for (rows, _), patch, sparse in zip(
    tables, config['patches'], config['sparse']
  ):
    stride *= patch
    side = round(rows**0.5) + 1
    if sparse:
      windows.add(side // 4)
    else:
      sizes.append(stride * (side // 2))
  if len(windows) > 1:
    raise UserError(f'its stages have chunks of {sorted(windows)} tokens')
  if windows:
    config['window'] = windows.pop()
  if sizes:
    config['image_size'] = max(sizes)  # the least that gives these maps
  return _named('vil', {**config, **fields})


def _vit(arrays: Mapping, fields: Mapping) -> dict:
  _, tokens, dim = arrays['pos_embed'].shape
  patch = arrays['patch_embed.proj.weight'].shape[2]
  side = round((tokens - 1) ** 0.5)
  config = {
    'dim': dim,
    'depth': _count(arrays, 'blocks.{}.norm1.weight'),
    'patch': patch,
    'image_size': side * patch,
    'positions': 'learned',
    **_vit_options(arrays),
  }
  for kind, (table, pool) in _TABLES.items():
    # Fixed position tables identify networks of MAE and MoCo-v3.
    if np.allclose(arrays['pos_embed'], table(dim, side), atol=1e-6):
      config |= {'positions': kind, 'pool': pool}
  config |= fields
  if 'heads' not in config:
    config['heads'] = _vit_heads(config)
  return _named('vit', config)


def _vit_options(arrays: Mapping) -> dict:
  """Fields in which fine-tuned ViTs may differ."""
  options = {}
  table = arrays.get('blocks.0.attn.relative_position_bias_table')
  if table is not None:
    options |= {'rel_pos': True, 'heads': table.shape[1]}
  if 'blocks.0.gamma_1' in arrays:
    options['layer_scale'] = 0.1
  if 'blocks.0.attn.q_bias' in arrays:
    options['qkv_bias'] = 'qv'
  if 'norm.weight' not in arrays:
    options['final_norm'] = False
  return options


def _vit_heads(config: Mapping) -> int:
  """The number of heads of published ViTs of this size, if they agree.

  Trained positions may have been initialised in any of the ways.
  """
  names = {}
  for name, (module, defaults) in models.BACKBONES.items():
    positions = defaults.get('positions', 'learned')
    if (
      module is models.ViT
      and all(defaults.get(k) == config[k] for k in ('dim', 'depth'))
      and config['positions'] in ('learned', positions)
    ):
      names.setdefault(defaults['heads'], []).append(name)
  if len(names) == 1:
    return next(iter(names))
  fact = f'a ViT of {config["depth"]} blocks of {config["dim"]} channels'
  if not names:
    # Heads of 64 channels as everywhere, or MAE-Lite's 12.
    dim = config['dim']
    usual = sorted({n for n in (dim // 64, 12) if n and dim % n == 0})
    raise ask(
      f'{fact}: its shapes do not say how many heads it has',
      'heads',
      '|'.join(map(str, usual)),
    )
  choices = ' or '.join(f'{n} ({", ".join(x)})' for n, x in names.items())
  raise ask(
    f'{fact} has {choices} heads, and its arrays do not say which',
    'heads',
    '|'.join(map(str, names)),
  )


def _cvt(arrays: Mapping, fields: Mapping) -> dict:
  count = _count(arrays, 'stage{}.0.proj.weight')
  stages = [f'stage{i}' for i in range(count)]
  sizes = {
    'dims': tuple(arrays[f'{x}.0.proj.weight'].shape[0] for x in stages),
    'depths': tuple(
      _count(arrays, f'{x}.1.layers.{{}}.0.norm.weight') for x in stages
    ),
  }
  config = _named('cvt', {**sizes, **fields})
  if config['name'] == 'cvt' and 'heads' not in config:
    raise ask(
      f'a CvT of {list(sizes["depths"])} blocks of {list(sizes["dims"])} '
      'channels: its shapes do not say how many heads it has',
      'heads',
      ','.join('1' * count),
    )
  return config


def _resnet(arrays: Mapping, fields: Mapping) -> dict:
  if 'layer1.0.conv3.weight' not in arrays:
    raise UserError(
      'a ResNet of blocks of two convolutions, such as ResNet-18: only those '
      'of bottlenecks, such as resnet50, are known'
    )
  stages = range(1, 1 + _count(arrays, 'layer{}.0.conv1.weight', 1))
  depths = tuple(_count(arrays, f'layer{i}.{{}}.conv1.weight') for i in stages)
  width = arrays['conv1.weight'].shape[0]
  return _named('resnet', {'depths': depths, 'width': width, **fields})


def _count(arrays: Mapping, template: str, first: int = 0) -> int:
  """The number of consecutive keys that `template` gives from `first` on."""
  numbers = itertools.count(first)
  return next(i for i in numbers if template.format(i) not in arrays) - first


def _named(family: str, config: Mapping) -> dict:
  """`config`, shortened to a name of BACKBONES and what differs from it."""
  for name, (module, defaults) in models.BACKBONES.items():
    if NAMES.get(module) != family or name == family:
      continue
    known = {f.name: f.default for f in dataclasses.fields(module)} | defaults
    sizes = ('dims', 'depths', 'heads', 'dim', 'depth', 'positions')
    defaults = known | defaults if family == 'vit' else defaults
    if all(config.get(k, v) == v for k, v in defaults.items() if k in sizes):
      return {
        'name': name,
        **{k: v for k, v in config.items() if known.get(k, ...) != v},
      }
  return {'name': family, **config}
