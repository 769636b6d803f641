"""MoCo-v3 and SiT for tests: the published settings, and tiny networks."""

import functools

import golden_mae_sit
import golden_weights
import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from configs import common
from configs import sit as sit_recipe
from esvit_jax import optim, sharding, state
from esvit_jax.methods import moco, sit
from esvit_jax.models.positions import moco_table
from esvit_jax.weights import tables

KEY = jax.random.key(0)
HORIZON = state.Horizon(1000, 100)


def published_moco() -> ConfigDict:
  """MoCo-v3's ViT-Tiny, as MAE-Lite trains it."""
  c = _config(0.99)
  c.method = 'moco'
  c.model = ConfigDict(
    {'name': 'mae_tiny', 'positions': 'moco', 'init_scale': 'moco'}
  )
  c.model.pool, c.model.dtype = 'cls', 'float32'
  return c


def published_sit() -> ConfigDict:
  """SiT's ViT-S, without drop path, as its golden."""
  c = _config(0.996)
  c.method = 'sit'
  c.model = ConfigDict({'name': 'vit_small', 'drop_path': 0.0})
  c.model.dtype = 'float32'
  c.gmml = ConfigDict()
  c.sit = sit_recipe.get_config().sit
  return c


def _config(momentum: float) -> ConfigDict:
  c = common.base()
  c.batch_size = 4
  c.views.globals = {'size': common.either(224), 'count': 2}
  c.ema = ConfigDict({'start': momentum, 'end': 1.0})
  c.contrast = ConfigDict({'temp': 0.2, 'hidden': 4096, 'dim': 256})
  return c


def tiny(method: str, **model) -> ConfigDict:
  """A network of 16 patches, with drop path."""
  c = {'moco': published_moco, 'sit': published_sit}[method]()
  c.batch_size = 8
  c.data.channels, c.data.mean, c.data.std = 1, (0.5,), (0.25,)
  c.views.globals.size = 16
  c.contrast.hidden, c.contrast.dim = 24, 8
  vit = {
    'name': 'vit',
    'dim': 16,
    'depth': 1,
    'heads': 2,
    'patch': 4,
    'image_size': 16,
    'drop_path': 0.3,
    'init_scale': 'fan_in',
    'dtype': 'float32',
  }
  c.model = ConfigDict(model if 'name' in model else vit | model)
  return c


def build(config, shards: int = 1):
  """The method, without its augmentation."""
  builder = {'moco': moco.build, 'sit': sit.build}[config.method]
  method = builder(config, state.Run(HORIZON, shards))
  return method._replace(views=lambda batch, keys: views(batch))


def views(batch) -> dict:
  return {'globals': jnp.asarray(batch['image'])}


def load(method, table: str, state_dict: dict) -> dict:
  """{'params', 'batch_stats'} of a published network.

  Args:
    method: whose shapes they must have.
    table: of `convert`.
    state_dict: of the student, complete but for buffers.
  """
  params, _, extra = jax.eval_shape(method.init, KEY)
  like = {'params': params, 'batch_stats': extra['student']}
  buffers = {
    key: _buffer(key, shape) for key, shape in _buffers(like, table).items()
  }
  return tables.from_published(buffers | state_dict, table, like)


def _buffers(like, table) -> dict:
  zeros = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), like)
  arrays = tables.to_published(zeros, table)
  return {k: v.shape for k, v in arrays.items() if 'running_' in k}


def _buffer(key: str, shape) -> np.ndarray:
  fill = np.ones if key.endswith('running_var') else np.zeros
  return fill(shape, np.float32)


def filled(entry, prefix: str = '', tables: str = '') -> dict:
  """A golden's weights, those with `prefix` of a key, without it."""
  weights = golden_mae_sit.weights(entry['keys'], tables)
  weights |= {
    key: moco_table(shape[-1], 14)
    for key, shape, kind in entry['keys']
    if kind == 'fixed_sincos'
  }
  return {
    k.removeprefix(prefix): v
    for k, v in weights.items()
    if k.startswith(prefix)
  }


def image(name: str, batch: int = 4) -> np.ndarray:
  """A named input f32[B, 224, 224, 3]."""
  return golden_mae_sit.normal(name, (batch, 3, 224, 224)).transpose(0, 2, 3, 1)


def batch(images: int = 8) -> dict:
  """Views of 16 px instead of images; `build` has them taken as they are."""
  rng = np.random.default_rng(0)
  x = rng.standard_normal((images, 2, 16, 16, 1)).astype(np.float32)
  return {'image': x}


def start(method, frozen=()) -> tuple:
  """A first state and its optimiser; teacher and student differ."""
  shapes, teacher, extra = jax.eval_shape(method.init, KEY)
  params = golden_weights.random_variables(shapes)
  teacher = golden_weights.random_variables(teacher, seed=1)
  extra = jax.tree.map_with_path(
    lambda path, x: _buffer(f'running_{path[-1].key}', x.shape), extra
  )
  tx = optim.build(
    {'frozen': dict.fromkeys(frozen)},
    params,
    lambda step: 1e-3,
    lambda step: 0.05,
  )
  whole = state.TrainState(
    jnp.int32(0), params, teacher, extra, jax.jit(tx.init)(params)
  )
  return whole, tx


def on_devices(config, frozen=(), steps: int = 3) -> list:
  """[(losses, state)] of one device and of eight; compiled once each."""
  runs = []
  for devices in (jax.devices()[:1], jax.devices()):
    mesh = sharding.mesh(devices)
    method = build(config, mesh.size)
    whole, tx = start(method, frozen)
    step = jax.jit(state.make_train_step(method, tx), donate_argnums=0)
    images = jax.device_put(batch(), sharding.data(mesh))
    whole = jax.device_put(whole, sharding.replicated(mesh))
    metrics = []
    for _ in range(steps):
      whole, m = step(whole, images, KEY)
      metrics.append({k: float(v) for k, v in m.items()})
    assert step._cache_size() == 1
    runs.append((metrics, whole))
  return runs


def assert_same_metrics(one, eight) -> None:
  """Metrics of all steps equal to 1e-5, and no step skipped."""
  for a, b in zip(one, eight):
    assert a['skipped'] == 0
    for name, x in a.items():
      # Adam makes steps of full length from gradients that are but rounding.
      rtol = 1e-3 if name == 'update_norm' else 1e-5
      np.testing.assert_allclose(x, b[name], rtol, atol=1e-5, err_msg=name)


def check_gradients(golden, names, theirs: dict, spared) -> None:
  """Norms of all, and first entries, but of what is zero in exact sums."""
  for name, norm, first in zip(
    names, golden['grad_norm'], golden['grad_first8'], strict=True
  ):
    g = theirs[name]
    if name in spared:
      assert length(g) < 1e-3, name
      continue
    close = functools.partial(np.testing.assert_allclose, err_msg=name)
    g = without_keys(name, g)
    if 'qkv.bias' not in name:
      close(length(g), norm, rtol=1e-3)
    flat = g.reshape(-1)[: min(8, g.size)]
    scale = np.abs(first).max()
    close(flat, first[: len(flat)], rtol=1e-3, atol=1e-3 * scale)


def length(x) -> float:
  """The norm of up to millions of numbers, which float32 cannot add up."""
  return np.linalg.norm(np.asarray(x, np.float64))


def without_keys(name: str, x: np.ndarray) -> np.ndarray:
  """Biases of keys have no gradient but rounding."""
  if not name.endswith('qkv.bias'):
    return x
  return np.delete(x.reshape(3, -1), 1, 0).reshape(-1)


def assert_near(a, b) -> None:
  """States equal to 1e-5."""
  for (path, x), y in zip(
    jax.tree.leaves_with_path((a.params, a.teacher, a.extra)),
    jax.tree.leaves((b.params, b.teacher, b.extra)),
  ):
    name = jax.tree_util.keystr(path, simple=True, separator='/')
    if name.endswith(('qkv/bias', 'qkv_bias')):
      # Keys' biases have no gradient but rounding, which Adam blows up.
      x, y = (np.delete(v.reshape(3, -1), 1, 0) for v in (x, y))
    np.testing.assert_allclose(x, y, atol=1e-5, err_msg=name)
