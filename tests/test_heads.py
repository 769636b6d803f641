"""DINO's head against the published one, and its laws."""

import golden_weights
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from esvit_jax.errors import UserError
from esvit_jax.models.heads import DINOHead
from esvit_jax.weights import tables

KEY = jax.random.key(0)


def published(use_bn: bool):
  """A golden head: module, variables, input, golden arrays."""
  golden, entry = golden_weights.load('dino_head')
  keys = {
    k: (s, 'int64' if k.endswith('tracked') else 'float32')
    for k, s in entry['keys_bn' if use_bn else 'keys'].items()
  }
  x = jnp.asarray(golden_weights.normal('head_x', (5, entry['in_dim'])))
  head = DINOHead(entry['out_dim'], norm_last_layer=False, use_bn=use_bn)
  variables = tables.from_published(
    golden_weights.weights(keys),
    'dino_head_bn' if use_bn else 'dino_head',
    jax.eval_shape(head.init, KEY, x),
  )
  return head, variables, x, golden


def test_published_head():
  head, variables, x, golden = published(use_bn=False)
  u, prototypes = head.apply(variables, x)
  assert golden_weights.error(u @ prototypes.T, golden['out']) < 2e-5


def test_published_head_with_batch_norm():
  head, variables, x, golden = published(use_bn=True)
  (u, prototypes), new = head.apply(
    variables, x, train=True, mutable=['batch_stats']
  )
  error = golden_weights.error
  assert error(u @ prototypes.T, golden['out_bn_train']) < 2e-5
  stats = new['batch_stats']['norm0']
  assert error(stats['mean'], golden['bn_running_mean']) < 2e-5
  assert error(stats['var'], golden['bn_running_var']) < 2e-5


def small(**fields):
  head = DINOHead(6, hidden=16, bottleneck=8, init_scale='fan_in', **fields)
  x = jax.random.normal(KEY, (2, 3, 5))
  return head, jax.jit(head.init)(KEY, x), x


def test_outputs_are_unit_vectors_and_unit_prototypes():
  for dtype in (jnp.float32, jnp.bfloat16):
    head, variables, x = small(dtype=dtype)
    u, prototypes = jax.jit(head.apply)(variables, x)
    assert u.shape == (2, 3, 8) and prototypes.shape == (6, 8)
    assert u.dtype == prototypes.dtype == jnp.float32
    np.testing.assert_allclose(jnp.linalg.norm(u, axis=-1), 1, rtol=1e-5)
    np.testing.assert_allclose(
      jnp.linalg.norm(prototypes, axis=-1), 1, rtol=1e-5
    )


def test_norm_last_layer_stops_the_lengths_alone():
  for fixed in (True, False):
    head, variables, x = small(norm_last_layer=fixed)

    def logits(variables, head=head, x=x):
      u, prototypes = head.apply(variables, x)
      return ((u @ prototypes.T) ** 3).sum()

    grads = jax.jit(jax.grad(logits))(variables)['params']
    assert (jnp.abs(grads['last_layer']['g']).max() == 0) == fixed
    assert jnp.abs(grads['last_layer']['v']).max() > 0
    assert jnp.abs(grads['fc0']['kernel']).max() > 0


def test_gradient_is_finite_where_the_mlp_gives_zero():
  head, variables, x = small()
  zero = jax.tree.map(jnp.zeros_like, variables)
  zero['params']['last_layer'] = variables['params']['last_layer']
  grads = jax.jit(jax.grad(lambda v: head.apply(v, x)[0].sum()))(zero)
  assert all(jnp.isfinite(g).all() for g in jax.tree.leaves(grads))


def test_one_layer_is_refused():
  with pytest.raises(UserError, match='2 or more'):
    DINOHead(6, layers=1)
