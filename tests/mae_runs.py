"""Masked auto-encoders for tests: published ones, and tiny ones."""

import functools

import golden_mae_sit
import golden_weights
import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from configs import common
from esvit_jax import models, optim, state
from esvit_jax.methods import mae as method
from esvit_jax.models.mae import MAE
from esvit_jax.models.patches import patchify
from esvit_jax.models.positions import mae_table
from esvit_jax.models.vit import ViT
from esvit_jax.weights import tables

KEY = jax.random.key(0)
RUN = state.Run(state.Horizon(100, 10))
CLOSE = {'rtol': 1e-4, 'atol': 1e-5}
VISIBLE = 49  # of 196 patches


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


def golden_step(network, c, order, targets=None):
  """params -> (loss, metrics), the published image and order given."""
  images = image('mae_img')
  patches = patchify(images, 16)

  def loss(params, targets=targets):
    out = network.apply({'params': params}, images, order, VISIBLE)
    value, metrics = method.objective(out, patches, order, VISIBLE, targets, c)
    return value, (metrics, out)

  return loss


def check_gradients(golden, names, grads, table, key='grad_norm'):
  theirs = tables.to_published({'params': grads}, table)
  for name, norm in zip(names, golden[key], strict=True):
    found = theirs[name]
    np.testing.assert_allclose(
      np.linalg.norm(found), norm, rtol=1e-3, err_msg=name
    )


def small_vit(**overrides) -> ViT:
  fields = dict(tiny().model) | {'drop_path': 0.0} | overrides
  return models.build(fields)


def random_images(height=16, width=16, channels=1):
  return jax.random.normal(KEY, (2, height, width, channels))


def random_variables(network):
  shapes = jax.eval_shape(
    lambda key: network.init(
      key, random_images(), method.patch_order(KEY, 2, 16), 5
    ),
    KEY,
  )
  return golden_weights.random_variables(shapes)


def start(built):
  """A first state, the optimiser and a batch for a tiny method."""
  shapes, teacher, extra = jax.eval_shape(built.init, KEY)
  params = golden_weights.random_variables(shapes)
  if teacher is not None:
    teacher = {'encoder': tiny_teacher()[1]['params']}
  tx = optim.build(
    {'b2': 0.95, 'frozen': {'pos_embed': None}},
    params,
    lambda step: 1e-3,
    lambda step: 0.05,
  )
  opt_state = jax.jit(tx.init)(params)
  whole = state.TrainState(jnp.int32(0), params, teacher, extra, opt_state)
  rng = np.random.default_rng(0)
  batch = {
    'image': rng.integers(0, 256, (8, 24, 24, 1), np.uint8),
    'size': np.full((8, 2), 24, np.int32),
    'label': np.full((8,), -1, np.int32),
    'index': np.arange(8, dtype=np.int32),
  }
  return whole, tx, batch
