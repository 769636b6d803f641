"""Backbones: one file each, and one line here for each name."""

import dataclasses
import difflib
from collections.abc import Mapping

import jax
import jax.numpy as jnp
from flax import linen as nn

from esvit_jax.errors import UserError
from esvit_jax.models.cvt import CvT
from esvit_jax.models.resnet import ResNet
from esvit_jax.models.swin import Swin
from esvit_jax.models.vil import ViL
from esvit_jax.models.vit import ViT

# name -> (module, fields); every field can be overridden in the config
BACKBONES = {
  'swin': (Swin, {}),
  'swin_tiny': (
    Swin,
    {
      'dims': (96, 192, 384, 768),
      'depths': (2, 2, 6, 2),
      'heads': (3, 6, 12, 24),
      'drop_path': 0.1,
    },
  ),
  'swin_small': (
    Swin,
    {
      'dims': (96, 192, 384, 768),
      'depths': (2, 2, 18, 2),
      'heads': (3, 6, 12, 24),
      'drop_path': 0.2,
    },
  ),
  'swin_base': (
    Swin,
    {
      'dims': (128, 256, 512, 1024),
      'depths': (2, 2, 18, 2),
      'heads': (4, 8, 16, 32),
      'drop_path': 0.2,
    },
  ),
  'swin_large': (
    Swin,
    {
      'dims': (192, 384, 768, 1536),
      'depths': (2, 2, 18, 2),
      'heads': (6, 12, 24, 48),
      'drop_path': 0.2,
    },
  ),
  'cvt': (CvT, {}),
  'cvt_tiny': (
    CvT,
    {
      'dims': (64, 192, 384, 768),
      'depths': (2, 2, 6, 2),
      'heads': (1, 3, 6, 12),
      'drop_path': 0.1,
    },
  ),
  'resnet': (ResNet, {}),
  'resnet50': (ResNet, {'depths': (3, 4, 6, 3)}),
  'vil': (ViL, {}),
  'vil_2262': (
    ViL,
    {
      'dims': (96, 192, 384, 768),
      'depths': (2, 2, 6, 2),
      'heads': (3, 6, 12, 24),
      'sparse': (True, True, False, False),
      'global_tokens': (1, 1, 1, 0),
      'patches': (4, 2, 2, 2),
      'drop_path': 0.1,
    },
  ),
  'vit': (ViT, {}),
  'vit_tiny': (ViT, {'dim': 192, 'depth': 12, 'heads': 3, 'drop_path': 0.1}),
  'vit_small': (ViT, {'dim': 384, 'depth': 12, 'heads': 6, 'drop_path': 0.1}),
  'vit_base': (ViT, {'dim': 768, 'depth': 12, 'heads': 12, 'drop_path': 0.1}),
}
# As MAE has them: more heads, fixed positions, features that are means.
_MAE = {'positions': 'mae', 'init_scale': 'mae', 'pool': 'mean'}
_SIZES = {
  'tiny': {'dim': 192, 'depth': 12, 'heads': 12},
  'small': {'dim': 384, 'depth': 12, 'heads': 12},
  'base': {'dim': 768, 'depth': 12, 'heads': 12},
  'large': {'dim': 1024, 'depth': 24, 'heads': 16},
  'huge': {'dim': 1280, 'depth': 32, 'heads': 16, 'patch': 14},
}
BACKBONES |= {f'mae_{k}': (ViT, {**v, **_MAE}) for k, v in _SIZES.items()}
# As MAE-Lite compares MoCo-v3.
_MOCO = {'positions': 'moco', 'init_scale': 'moco'}
BACKBONES['moco_tiny'] = (ViT, {**_SIZES['tiny'], **_MOCO})
BACKBONES['moco_small'] = (ViT, {**_SIZES['small'], **_MOCO})
BACKBONES['moco_base'] = (ViT, {**_SIZES['base'], **_MOCO})
BACKBONES['deit_tiny'] = BACKBONES['vit_tiny']
BACKBONES['deit_small'] = BACKBONES['vit_small']


def build(config: Mapping) -> nn.Module:
  """Makes a backbone.

  Args:
    config: `name`, a key of BACKBONES, and any fields of that backbone to set
      otherwise, such as window, image_size, drop_path, dtype.

  Raises:
    UserError: an unknown name or field, a missing field, a bad value.
  """
  fields = dict(config)
  name = fields.pop('name', None)
  if name not in BACKBONES:
    raise UserError(f"no backbone '{name}'{_suggest(str(name), BACKBONES)}")
  module, defaults = BACKBONES[name]
  known = {
    f.name: f.default
    for f in dataclasses.fields(module)
    if f.name not in ('parent', 'name')
  }
  for key in fields:
    if key not in known:
      raise UserError(f"{name} has no field '{key}'{_suggest(key, known)}")
  fields = {**defaults, **fields}
  for key, default in known.items():
    if default is dataclasses.MISSING and key not in fields:
      raise UserError(f"{name} needs the field '{key}': set model.{key}")
  for key in ('window', 'patch', 'image_size'):
    if fields.get(key, 1) < 1:
      raise UserError(f'{key} of {name} is {fields[key]}: use 1 or more')
  if not 0 <= fields.get('drop_path', 0) < 1:
    raise UserError(
      f'drop_path of {name} is {fields["drop_path"]}: use 0 up to below 1'
    )
  if 'dtype' in fields:
    fields['dtype'] = _dtype(fields['dtype'])
  return module(**{k: _frozen(v) for k, v in fields.items()})


def num_features(backbone: nn.Module) -> int:
  """Width D of a backbone's view and region features."""
  return backbone.num_features


def abstract_variables(backbone: nn.Module, channels: int = 3) -> dict:
  """Shapes and dtypes of a backbone's variables; computes nothing."""
  side = backbone.image_size
  image = jax.ShapeDtypeStruct((1, 1, side, side, channels), jnp.float32)
  return jax.eval_shape(backbone.init, jax.random.key(0), (image,))


def _frozen(value):
  """Lists from configs as tuples, which modules can hash."""
  return tuple(value) if isinstance(value, list) else value


def _dtype(value):
  try:
    dtype = jnp.dtype(value)
  except TypeError:
    dtype = None
  if dtype not in (jnp.float32, jnp.bfloat16):
    raise UserError(f"dtype is '{value}': use 'float32' or 'bfloat16'")
  return dtype


def _suggest(word: str, choices) -> str:
  close = difflib.get_close_matches(word, choices, 1)
  if close:
    return f": did you mean '{close[0]}'?"
  return f': choose from {", ".join(choices)}'
