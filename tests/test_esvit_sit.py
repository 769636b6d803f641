"""EsViT's and SiT's losses summed."""

import functools

import contrast_runs
import jax
import jax.numpy as jnp
import numpy as np

from configs import esvit_sit as configs
from esvit_jax import state
from esvit_jax.methods import esvit, esvit_sit, sit

KEY = jax.random.key(0)
HORIZON = state.Horizon(10, 5)


def config(**changes):
  c = configs.get_config('cvt_tiny,debug')
  c.batch_size = 8
  c.model.drop_path = 0.0
  c.model.update({'dims': (8, 16), 'depths': (1, 1), 'heads': (1, 2)})
  c.update_from_flattened_dict(changes)
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
def losses():
  """The loss, its gradient, and those of both parts on the same state."""
  c = config(**{'sit.weight': 0.5})
  method = build(c)
  whole, _ = contrast_runs.start(method)
  views = views_of(images())
  run = state.Run(HORIZON)

  def value_and_grad(method, known, key):
    value, grads = jax.jit(
      jax.value_and_grad(lambda p: method.loss(p, known, views, key).value)
    )(known.params)
    return float(value), grads

  return (
    value_and_grad(method, whole, KEY),
    value_and_grad(esvit.build(c, run), esvit_sit.esvit_state(whole), KEY),
    value_and_grad(
      sit.build(esvit_sit.with_global_views(c), run),
      esvit_sit.sit_state(whole),
      jax.random.fold_in(KEY, 5),
    ),
  )


def test_loss_and_gradients_are_sums():
  (value, grads), (a, of_esvit), (b, of_sit) = losses()
  np.testing.assert_allclose(value, a + 0.5 * b, rtol=1e-5)
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
  c = config()
  method = build(c)
  whole, tx = contrast_runs.start(method)
  step = jax.jit(state.make_train_step(method, tx))
  after, metrics = step(whole, images(), KEY)
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
