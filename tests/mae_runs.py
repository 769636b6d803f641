"""Masked auto-encoders for tests: published ones, and tiny ones."""

import functools

import golden_mae_sit
import golden_weights
import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from configs import common
from esvit_jax import models
from esvit_jax.models.mae import MAE
from esvit_jax.models.positions import mae_table
from esvit_jax.weights import tables


def published(keys, prefix: str = '') -> dict:
  """A golden's weights whose keys have `prefix`, without it, tables too."""
  fixed = {
    key: mae_table(shape[-1], round((shape[1] - 1) ** 0.5))
    for key, shape, kind in keys
    if kind == 'fixed_sincos'
  }
  return {
    key.removeprefix(prefix): value
    for key, value in (golden_mae_sit.weights(keys) | fixed).items()
    if key.startswith(prefix)
  }


def image(name: str, batch: int = 2) -> jax.Array:
  """A named input f[B, 224, 224, 3]."""
  x = golden_mae_sit.normal(name, (batch, 3, 224, 224))
  return jnp.asarray(x.transpose(0, 2, 3, 1))


def golden_order() -> jax.Array:
  """The order of patches that the goldens' noise gives."""
  return jnp.argsort(golden_mae_sit.uniform('mae_noise', (2, 196)), 1)


def variables(module: MAE, state: dict, table: str) -> dict:
  """Converted weights of a published network."""
  like = jax.eval_shape(
    lambda key: module.init(key, image('mae_img'), golden_order(), 49),
    jax.random.key(0),
  )
  return tables.from_published(state, table, like)


def config(**mae) -> ConfigDict:
  """The published recipe of MAE-Lite's ViT-Tiny."""
  c = common.base()
  c.method = 'mae'
  c.batch_size = 2
  c.views.globals = {'size': common.either(224), 'count': 1}
  c.model = ConfigDict({'name': 'mae_tiny'})
  c.mae = ConfigDict(
    {
      'mask_ratio': 0.75,
      'norm_pix': True,
      'decoder_dim': 96,
      'decoder_depth': 1,
      'decoder_heads': 3,
      'decode_at': 0,
    }
  )
  c.distill = ConfigDict(
    {
      'checkpoint': '',
      'weight': 1.0,
      'layer': 12,
      'hidden': (),
      'hidden_weight': 1.0,
      'decoupled': False,
    }
  )
  c.mae.update(mae)
  return c


def tiny(**distill) -> ConfigDict:
  """A network of 16 patches."""
  c = config(decoder_dim=16, decoder_heads=2)
  c.batch_size = 8
  c.data.channels, c.data.mean, c.data.std = 1, (0.5,), (0.25,)
  c.views.globals.size = 16
  c.model = ConfigDict(
    {
      'name': 'vit',
      'dim': 16,
      'depth': 3,
      'heads': 4,
      'patch': 4,
      'image_size': 16,
      'positions': 'mae',
      'init_scale': 'mae',
      'pool': 'mean',
      'drop_path': 0.3,
    }
  )
  c.distill.layer = 3
  c.distill.update(distill)
  return c


@functools.cache
def tiny_teacher() -> tuple:
  """A frozen ViT for `tiny` and its variables."""
  module = models.build(
    {**tiny().model, 'dim': 24, 'heads': 2, 'drop_path': 0.0}
  )
  shapes = models.abstract_variables(module, 1)
  return module, golden_weights.random_variables(shapes)
