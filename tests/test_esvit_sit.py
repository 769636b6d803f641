"""EsViT's and SiT's losses summed."""

import functools

import contrast_runs
import jax
import jax.numpy as jnp
import numpy as np
import optax
from ml_collections import ConfigDict
from runs import keep_gradients

from configs import esvit_sit as configs
from esvit_jax import state
from esvit_jax.methods import esvit, esvit_sit, sit

KEY = jax.random.key(0)
HORIZON = state.Horizon(10, 5)


def config():
  """A ResNet, whose batch statistics both systems move."""
  c = configs.get_config('cvt_tiny,debug')
  c.batch_size = 8
  c.sit.weight = 0.5
  c.model = ConfigDict({'name': 'resnet', 'depths': (1,), 'width': 8})
  c.model.dtype = 'float32'
  return c


def build(c):
  method = esvit_sit.build(c, state.Run(HORIZON))
  return method._replace(views=views_of)


def views_of(batch, keys=None):
  x = jnp.asarray(batch['image'])
  return {'globals': x, 'locals': x[:, :, :12, :12]}


def images():
  rng = np.random.default_rng(0)
  return {'image': rng.normal(size=(8, 2, 28, 28, 1)).astype(np.float32)}


@functools.cache
def one_step():
  """The state before and after a step, its metrics and gradients."""
  method = build(config())
  before, tx = contrast_runs.start(method)
  tx = optax.chain(keep_gradients(), tx)
  before = before._replace(opt_state=jax.jit(tx.init)(before.params))
  step = jax.jit(state.make_train_step(method, tx))
  after, metrics = step(before, images(), KEY)
  return before, after, metrics, after.opt_state[0]


def value_and_gradients(method, known, key):
  """Of the loss alone, on the same views."""

  def loss(params):
    return method.loss(params, known, views_of(images()), key).value

  return jax.jit(jax.value_and_grad(loss))(known.params)


def test_loss_and_gradients_are_sums():
  before, _, metrics, grads = one_step()
  c, run = config(), state.Run(HORIZON)
  _, key = jax.random.split(jax.random.fold_in(KEY, 0))
  a, of_esvit = value_and_gradients(
    esvit.build(c, run), esvit_sit.esvit_state(before), key
  )
  b, of_sit = value_and_gradients(
    sit.build(esvit_sit.with_global_views(c), run),
    esvit_sit.sit_state(before),
    jax.random.fold_in(key, 5),
  )
  np.testing.assert_allclose(metrics['loss'], a + 0.5 * b, rtol=1e-5)
  both = jax.tree.map(
    lambda x, y: x + 0.5 * y, of_esvit['backbone'], of_sit['backbone']
  )
  for x, y in zip(*map(jax.tree.leaves, (grads['backbone'], both))):
    np.testing.assert_allclose(x, y, rtol=1e-3, atol=1e-5)
  for name in ('head', 'head_recons'):
    parts = zip(*map(jax.tree.leaves, (grads['sit'][name], of_sit[name])))
    for x, y in parts:
      np.testing.assert_allclose(x, 0.5 * y, rtol=1e-3, atol=1e-5)


def test_one_step_keeps_every_tree_in_shape():
  whole, after, metrics, _ = one_step()
  assert jax.tree.structure(after) == jax.tree.structure(whole)
  assert metrics['skipped'] == 0
  for name in (
    'view_loss',
    'region_loss',
    'reconstruction_loss',
    'contrast_loss',
  ):
    assert np.isfinite(metrics[name])
  moved = jax.tree.map(
    lambda a, b: bool((a != b).any()), whole.params, after.params
  )
  assert all(
    any(jax.tree.leaves(moved[k])) for k in ('backbone', 'head', 'sit')
  )
  # Running statistics of both systems' batch norms follow.
  stats = after.extra['teacher']
  assert 'backbone' in stats and 'head' in stats['sit']
