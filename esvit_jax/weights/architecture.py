"""Which architecture an array file is of, told by its keys and shapes."""

import dataclasses
from collections.abc import Callable, Mapping

import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from esvit_jax import models
from esvit_jax.errors import UserError
from esvit_jax.models.heads import DINOHead
from esvit_jax.models.positions import mae_table, moco_table
from esvit_jax.models.swin import stage_window
from esvit_jax.weights import tables

# A key that only this family has, and the weight of its first convolution.
FAMILIES = {
  'swin': (
    'layers.0.blocks.0.attn.relative_position_bias_table',
    'patch_embed.proj.weight',
  ),
  'vit': ('blocks.0.attn.qkv.weight', 'patch_embed.proj.weight'),
  'cvt': ('stage0.1.layers.0.0.fn.qkv.dw.weight', 'stage0.0.proj.weight'),
  'vil': ('layer1.0.norm_embed.weight', 'layer1.0.proj.weight'),
  'resnet': ('layer1.0.conv1.weight', 'conv1.weight'),
}
_POOLS = {'mae': 'mean', 'moco': 'cls'}
HEAD_FIELDS = ('out_dim', 'hidden', 'bottleneck', 'layers', 'use_bn')
# Larger than any published value; larger ones ask for hours or terabytes.
_LIMITS = {'window': 64, 'patch': 256, 'image_size': 2048}


def infer(backbone: Mapping[str, np.ndarray], fields: Mapping) -> dict:
  """The config of a backbone, for models.build.

  Args:
    backbone: arrays by published key, without prefixes.
    fields: what the user says of it; the rest is read off the shapes.

  Raises:
    UserError: the keys are of no architecture known, or of several.
  """
  families = [name for name, (key, _) in FAMILIES.items() if key in backbone]
  if len(families) != 1:
    raise UserError(
      f'cannot tell the architecture from {len(backbone)} keys such as '
      f'{", ".join(list(backbone)[:3])}: name it with --arch='
    )
  (name,) = families
  try:
    if name == 'swin':
      return _swin(backbone, fields)
    if name == 'vil':
      return _vil(backbone, fields)
    if name == 'vit':
      return _vit(backbone, fields)
    if name == 'cvt':
      return _cvt(backbone, fields)
    if name == 'resnet':
      return _resnet(backbone, fields)
  except UserError:
    raise
  except KeyError as e:
    raise UserError(
      f'looks like {name}, but lacks {e.args[0]}: name it with --arch='
    ) from None
  except (IndexError, ValueError, TypeError) as e:
    raise UserError(
      f'looks like {name}, but with other shapes ({e}): name it with --arch='
    ) from None
  return _by_trial(name, backbone, fields)


def build(config: Mapping, backbone: Mapping) -> nn.Module:
  """models.build, after a check that sizes are sane for these arrays.

  Raises:
    UserError: as models.build, or sizes that no such file can have.
  """
  defaults = models.BACKBONES.get(config.get('name'), (None, {}))[1]
  for key, value in {**defaults, **config}.items():
    values = value if isinstance(value, (list, tuple)) else [value]
    numbers = [v for v in values if type(v) in (int, float)]
    limit = _LIMITS.get(key, 1 << 20)
    if key in ('depth', 'depths'):
      numbers, limit = [sum(numbers), *numbers], 64 + len(backbone)
    if any(not -1 <= v <= limit for v in numbers):
      raise UserError(f'{key} of the model is {value}: no such file has that')
  try:
    return models.build(config)
  except (TypeError, ZeroDivisionError) as e:
    raise UserError(f'the model cannot be built: {e}') from None


def resolved(config: Mapping, module: nn.Module) -> dict:
  """`config` with every field of the built module, for JSON."""
  fields = {
    f.name: getattr(module, f.name)
    for f in dataclasses.fields(module)
    if f.name not in ('parent', 'name')
  }
  fields['dtype'] = jnp.dtype(fields['dtype']).name
  fields = {
    k: list(v) if isinstance(v, tuple) else v for k, v in fields.items()
  }
  return {'name': config['name'], **fields}


def family(module: nn.Module) -> str:
  """The name of its table in `convert`."""
  return type(module).__name__.lower()


def channels(module: nn.Module, backbone: Mapping) -> int:
  """Of the images a backbone takes; 3 where its first weight is no kernel."""
  stem = FAMILIES.get(family(module), ('', ''))[1]
  shape = np.shape(backbone.get(stem))
  return shape[1] if len(shape) == 4 and 0 < shape[1] < 1024 else 3


def head(arrays: Mapping[str, np.ndarray]) -> dict:
  """The fields of a DINOHead, read off its published arrays.

  Raises:
    UserError: it is none of DINO's.
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
    raise UserError('is no head of DINO: its shapes do not fit') from None


def backbone_init(module: nn.Module, channels: int) -> Callable:
  """key -> fresh variables."""
  side = getattr(module, 'image_size', 224)
  image = jnp.zeros((1, 1, side, side, channels))
  return lambda key: module.init(key, (image,))


def head_init(fields: Mapping, in_dim: int) -> Callable:
  """key -> fresh variables."""
  module = DINOHead(**fields)
  return lambda key: module.init(key, jnp.zeros((2, in_dim)))


def head_table(fields: Mapping) -> str:
  """The name of a head's table in `convert`."""
  return 'dino_head_bn' if fields['use_bn'] else 'dino_head'


def _number(key: str) -> int:
  part = key.split('.')[1]
  return int(part) if part.isdigit() else -1


def _swin(state: Mapping, fields: Mapping) -> dict:
  found = {'dims': [], 'depths': [], 'heads': []}
  windows = []
  while f'layers.{len(windows)}.blocks.0.norm1.weight' in state:
    layer = f'layers.{len(windows)}.blocks'
    found['dims'].append(state[f'{layer}.0.norm1.weight'].shape[0])
    found['depths'].append(_count(state, layer))
    table = state[f'{layer}.0.attn.relative_position_bias_table'].shape
    found['heads'].append(table[1])
    windows.append((round(table[0] ** 0.5) + 1) // 2)
  found = {k: tuple(v) for k, v in found.items()}
  found['patch'] = state['patch_embed.proj.weight'].shape[2]
  found['window'] = max(windows)
  found = {**found, **fields}
  side = found.get('image_size', 224)
  told = [
    stage_window(side, found['patch'], found['window'], i)[0]
    for i in range(len(windows))
  ]
  if told != windows:
    raise UserError(
      f'its windows are {windows}, not {told} as of {side} px images: say what '
      'size it was made for with --model.image_size=, or --model.window='
    )
  return _named('swin', found)


def _vil(state: Mapping, fields: Mapping) -> dict:
  keys = ('dims', 'depths', 'heads', 'sparse', 'global_tokens', 'patches')
  found = {k: [] for k in keys}
  windows, sizes, scale, stage = set(), {}, 1, 1
  while f'layer{stage}.0.proj.weight' in state:
    layer = f'layer{stage}'
    dim, _, patch, _ = state[f'{layer}.0.proj.weight'].shape
    rows, heads = state[
      f'{layer}.1.attn.local_relative_position_bias_table'
    ].shape
    sparse = f'{layer}.1.attn.query.weight' in state
    tokens = state.get(f'{layer}.0.cls_token', np.zeros((1, 0, dim))).shape[1]
    depth = 0
    while f'{layer}.{2 * depth + 1}.norm.weight' in state:
      depth += 1
    for k, v in zip(keys, (dim, depth, heads, sparse, tokens, patch)):
      found[k].append(v)
    scale *= patch
    side = round(rows**0.5) + 1
    if sparse:
      windows.add(side // 4)
    else:
      sizes[scale] = side // 2
    stage += 1
  if len(windows) > 1:
    raise UserError(f'its stages have chunks of {sorted(windows)} tokens')
  found = {k: tuple(v) for k, v in found.items()}
  if windows:
    found['window'] = windows.pop()
  if sizes:
    # The least size that gives these maps, if there are others.
    found['image_size'] = max(s * side for s, side in sizes.items())
  return _named('vil', {**found, **fields})


def _vit(state: Mapping, fields: Mapping) -> dict:
  _, tokens, dim = state['pos_embed'].shape
  patch = state['patch_embed.proj.weight'].shape[2]
  side = round((tokens - 1) ** 0.5)
  found = {
    'dim': dim,
    'depth': _count(state, 'blocks'),
    'patch': patch,
    'image_size': side * patch,
    'positions': 'learned',
    **_vit_parts(state),
    **fields,
  }
  for kind, table in (('mae', mae_table), ('moco', moco_table)):
    # Tables that never trained tell whose network it is.
    if np.allclose(state['pos_embed'], table(dim, side), atol=1e-6):
      found |= {'positions': kind, 'pool': _POOLS[kind]}
  config = _named('vit', found)
  if config['name'] == 'vit' and 'heads' not in config:
    raise UserError(
      f'a ViT of {found["depth"]} blocks of {dim} channels: its shapes do not '
      'say how many heads it has; add --model.heads='
    )
  return config


def _vit_parts(state: Mapping) -> dict:
  """What fine-tuned ViTs may have, or lack."""
  found = {}
  table = state.get('blocks.0.attn.relative_position_bias_table')
  if table is not None:
    found |= {'rel_pos': True, 'heads': table.shape[1]}
  if 'blocks.0.gamma_1' in state:
    found['layer_scale'] = 0.1
  if 'blocks.0.attn.q_bias' in state:
    found['qkv_bias'] = 'qv'
  if 'norm.weight' not in state:
    found['final_norm'] = False
  return found


def _cvt(state: Mapping, fields: Mapping) -> dict:
  dims, depths = [], []
  while f'stage{len(dims)}.0.proj.weight' in state:
    stage = f'stage{len(dims)}'
    dims.append(state[f'{stage}.0.proj.weight'].shape[0])
    depths.append(_count(state, f'{stage}.1.layers', '0.norm.weight'))
  config = _named(
    'cvt', {'dims': tuple(dims), 'depths': tuple(depths), **fields}
  )
  if config['name'] == 'cvt' and 'heads' not in config:
    raise UserError(
      f'a CvT of {depths} blocks of {dims} channels: its shapes do not say how '
      'many heads it has; add --model.heads=, such as '
      f'--model.heads={",".join("1" * len(dims))}'
    )
  return config


def _resnet(state: Mapping, fields: Mapping) -> dict:
  if 'layer1.0.conv3.weight' not in state:
    raise UserError(
      'a ResNet of blocks of two convolutions, such as ResNet-18: only those '
      'of bottlenecks, such as resnet50, are known'
    )
  depths = []
  while f'layer{len(depths) + 1}.0.conv1.weight' in state:
    layer = f'layer{len(depths) + 1}'
    depths.append(_count(state, layer, 'conv1.weight'))
  width = state['conv1.weight'].shape[0]
  return _named('resnet', {'depths': tuple(depths), 'width': width, **fields})


def _count(state: Mapping, layer: str, key: str = 'norm1.weight') -> int:
  count = 0
  while f'{layer}.{count}.{key}' in state:
    count += 1
  return count


def _named(family: str, found: Mapping) -> dict:
  """`found` under the name that already says most of it."""
  for name, (module, defaults) in models.BACKBONES.items():
    if module.__name__.lower() != family or name == family:
      continue
    known = {f.name: f.default for f in dataclasses.fields(module)} | defaults
    sizes = ('dims', 'depths', 'heads', 'dim', 'depth', 'positions')
    defaults = known | defaults if family == 'vit' else defaults
    if all(found.get(k, v) == v for k, v in defaults.items() if k in sizes):
      return {
        'name': name,
        **{k: v for k, v in found.items() if known.get(k, ...) != v},
      }
  return {'name': family, **found}


def _by_trial(family: str, state: Mapping, fields: Mapping) -> dict:
  """The one named backbone of a family that the arrays fit."""
  names = [
    name
    for name, (module, defaults) in models.BACKBONES.items()
    if module.__name__.lower() == family and name != family
  ]
  fit = [name for name in names if _fits(name, state, fields)]
  if len(fit) == 1 or len(names) == 1:
    return {'name': (fit or names)[0], **fields}
  raise UserError(
    f'is of {family}, but fits {", ".join(fit) or "none"} of '
    f'{", ".join(names) or "no name"}: name it with --arch='
  )


def _fits(name: str, state: Mapping, fields: Mapping) -> bool:
  try:
    module = build({'name': name, **fields}, state)
    like = models.abstract_variables(module, channels(module, state))
    tables.from_published(state, family(module), like)
  except UserError:
    return False
  return True
