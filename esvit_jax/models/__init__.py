"""Backbones: a file for each family, and a line here for each size.

`backbone.Backbone` is their contract.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp

from esvit_jax.errors import UserError, suggestion
from esvit_jax.models import cvt, resnet, swin, vil, vit, vitdet
from esvit_jax.models.backbone import IMAGE_SIZE, Backbone
from esvit_jax.models.cvt import CvT
from esvit_jax.models.resnet import ResNet
from esvit_jax.models.swin import Swin
from esvit_jax.models.vil import ViL
from esvit_jax.models.vit import ViT
from esvit_jax.models.vitdet import ViTDet

FAMILIES = {
  'swin': (Swin, swin.SIZES),
  'cvt': (CvT, cvt.SIZES),
  'resnet': (ResNet, resnet.SIZES),
  'vil': (ViL, vil.SIZES),
  'vit': (ViT, vit.SIZES),
  'vitdet': (ViTDet, vitdet.SIZES),
}
# name -> (module, fields). Configs can override every field; the name of a
# family has none, so that the config gives all sizes.
BACKBONES = {
  name: (module, fields)
  for family, (module, sizes) in FAMILIES.items()
  for name, fields in {family: {}, **sizes}.items()
}


def build(config: Mapping) -> Backbone:
  """Makes a backbone.

  Args:
    config: `name`, a key of BACKBONES; any fields of the backbone, such as
      window, drop_path, dtype; and `debug`, whether to use its debug size.

  Raises:
    UserError: an unknown name or field, a missing field, a bad value.
  """
  fields = dict(config)
  name, debug = fields.pop('name', None), fields.pop('debug', False)
  if name not in BACKBONES:
    raise UserError(f"no backbone '{name}': {suggestion(name, BACKBONES)}")
  module, size = BACKBONES[name]
  known = {
    f.name: f.default
    for f in dataclasses.fields(module)
    if f.name not in ('parent', 'name')
  }
  for key in fields:
    if key not in known:
      raise UserError(f"{name} has no field '{key}': {suggestion(key, known)}")
  fields = {**size, **(module.DEBUG if debug else {}), **fields}
  for key, default in known.items():
    if default is dataclasses.MISSING and key not in fields:
      raise UserError(f"{name} needs the field '{key}': set model.{key}")
  for key in ('window', 'patch', 'image_size', 'heads'):
    value = fields.get(key)
    if value is None or (key == 'heads' and isinstance(value, list | tuple)):
      continue  # one number of heads a stage is the stages' matter
    if not isinstance(value, int) or value < 1:
      raise UserError(
        f'{key} of {name} is {value}: use a whole number of 1 or more'
      )
  if not 0 <= fields.get('drop_path', 0) < 1:
    raise UserError(
      f'drop_path of {name} is {fields["drop_path"]}: use 0 up to below 1'
    )
  if 'dtype' in fields:
    fields['dtype'] = _dtype(fields['dtype'])
  return module(**{k: _frozen(v) for k, v in fields.items()})


def abstract_variables(backbone: Backbone, channels: int = 3) -> dict:
  """Shapes and dtypes of a backbone's variables."""
  return jax.eval_shape(initial(backbone, channels), jax.random.key(0))


@functools.lru_cache(maxsize=32)
def initial(backbone: Backbone, channels: int = 3) -> Callable:
  """Random key -> first variables; each network is traced once."""
  side = backbone.image_size or IMAGE_SIZE
  image = (1, 1, side, side, channels)
  return jax.jit(lambda key: backbone.init(key, (jnp.zeros(image),)))


def _frozen(value):
  """Makes lists from configs tuples, which are hashable."""
  return tuple(value) if isinstance(value, list) else value


def _dtype(value):
  try:
    dtype = jnp.dtype(value)
  except TypeError:
    dtype = None
  if dtype not in (jnp.float32, jnp.bfloat16):
    raise UserError(f"dtype is '{value}': use 'float32' or 'bfloat16'")
  return dtype
