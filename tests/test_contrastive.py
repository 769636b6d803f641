"""The contrastive loss: published numbers, and what it means."""

import math

import contrast_runs
import golden_mae_sit
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from esvit_jax import sharding
from esvit_jax.errors import UserError
from esvit_jax.losses import collapse, contrastive


def vectors(*names, rows=16):
  return [golden_mae_sit.normal(name, (rows, 256)) for name in names]


def test_published_loss_and_gradient():
  golden, _ = golden_mae_sit.load('moco')
  q, k = vectors('moco_q', 'moco_k')
  for temp, name in ((0.2, 'qk_loss_T02'), (1.0, 'qk_loss_T1')):
    value, _ = contrastive.loss(q, k, temp)
    np.testing.assert_allclose(value, golden[name], rtol=1e-6)
  grad = jax.grad(lambda q: contrastive.loss(q, k, 0.2)[0])(q)
  np.testing.assert_allclose(grad, golden['qk_grad'], rtol=1e-4, atol=1e-8)


def test_published_loss_of_sit():
  golden, _ = golden_mae_sit.load('sit_contrastive')
  q, k, q2, k2 = vectors('sit_q', 'sit_k', 'sit_q2', 'sit_k2')
  one, _ = contrastive.loss(q, k, 0.2)
  both, _ = contrastive.symmetric(
    np.stack([q, q2], 1), np.stack([k, k2], 1), 0.2
  )
  np.testing.assert_allclose(both, golden['both'], rtol=1e-6)
  np.testing.assert_allclose(one, golden['one'], rtol=1e-6)


def test_loss_is_the_formula():
  rng = np.random.default_rng(0)
  q, k = rng.normal(size=(2, 5, 3))
  u = q / np.linalg.norm(q, axis=1, keepdims=True)
  w = k / np.linalg.norm(k, axis=1, keepdims=True)
  logits = u @ w.T / 0.5
  p = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
  value, right = contrastive.loss(q, k, 0.5)
  np.testing.assert_allclose(value, -np.log(np.diag(p)).mean(), rtol=1e-5)
  assert right == np.mean(p.argmax(1) == np.arange(5))


def test_lengths_do_not_matter_nor_do_keys_learn():
  q, k = vectors('moco_q', 'moco_k')
  lengths = np.arange(1, 17, dtype=np.float32)[:, None]
  found = contrastive.loss(lengths * q, 3 * k, 0.2)[0]
  np.testing.assert_allclose(found, contrastive.loss(q, k, 0.2)[0], rtol=1e-6)
  grad = jax.grad(lambda k: contrastive.loss(q, k, 0.2)[0])(jnp.asarray(k))
  assert not grad.any()


def test_nothing_known_is_chance_and_all_known_is_right():
  (q,) = vectors('moco_q')
  alike = np.ones((16, 2, 4), np.float32)
  value, _ = contrastive.symmetric(alike, alike, 0.2)
  np.testing.assert_allclose(value, contrastive.chance(16, 0.2), rtol=1e-5)
  value, right = contrastive.loss(q, q, 0.2)
  assert right == 1 and value < contrastive.chance(16, 0.2) / 2
  _, right = contrastive.loss(q, np.roll(q, 1, 0), 0.2)
  assert right == 0


def test_a_dead_row_is_no_nan():
  q, k = vectors('moco_q', 'moco_k')
  q[3] = k[5] = 0
  value, grad = jax.value_and_grad(lambda q: contrastive.loss(q, k, 0.2)[0])(q)
  assert np.isfinite(value) and np.isfinite(grad).all()


def test_negatives_are_those_of_all_devices():
  q, k = vectors('moco_q', 'moco_k')
  run = jax.jit(jax.value_and_grad(lambda q, k: contrastive.loss(q, k, 0.2)[0]))
  alone = run(q, k)
  data = sharding.data(sharding.mesh())
  split = run(jax.device_put(q, data), jax.device_put(k, data))
  np.testing.assert_allclose(alone[0], split[0], rtol=1e-6)
  np.testing.assert_allclose(alone[1], split[1], atol=1e-7)


@pytest.mark.parametrize('sign', [1, -1])
def test_spread(sign):
  x = np.ones((4, 2, 3), np.float32)
  x[:, 1] *= sign
  found = collapse.feature_spread(x)
  np.testing.assert_allclose(found, 0 if sign > 0 else 1, atol=1e-3)


def test_spread_of_a_point_of_the_sphere_and_between():
  rng = np.random.default_rng(0)
  x = rng.standard_normal((2000, 16)).astype(np.float32)
  assert collapse.feature_spread(x[:, None]) == pytest.approx(1, abs=0.01)
  point = np.outer(np.arange(1, 9), x[0]).astype(np.float32)
  assert collapse.feature_spread(point[:, None]) == pytest.approx(0, abs=1e-3)
  # Halfway: mean cosine c to the common direction leaves sqrt(1 - c^2).
  cone = np.concatenate([np.eye(4), np.full((4, 1), 1.0)], 1, dtype=np.float32)
  mean = (cone / math.sqrt(2)).mean(0)
  assert collapse.feature_spread(cone[:, None]) == pytest.approx(
    math.sqrt(1 - mean @ mean)
  )


@pytest.mark.parametrize('method', ['moco', 'sit'])
def test_one_image_at_a_time_has_no_negatives(method):
  """The loss would be 0 and the accuracy 1 whatever is learned."""
  c = contrast_runs.tiny(method)
  c.accumulate = c.batch_size
  with pytest.raises(
    UserError, match='batch_size=16 or more, or accumulate=4 or less'
  ):
    contrast_runs.build(c)
  c.batch_size, c.accumulate = 1, 1
  with pytest.raises(UserError, match=r'use batch_size=2 or more$'):
    contrast_runs.build(c)
  c.batch_size, c.accumulate = 16, 8
  assert contrast_runs.build(c)


def test_simclr_as_published():
  """NT-Xent of 2021 and, the same thing, of June 2022."""
  golden, _ = golden_mae_sit.load('misc')
  z = np.stack(
    [golden_mae_sit.normal(f'l21_z{i}', (8, 512)) for i in (1, 2)], 1
  )
  value, right = contrastive.nt_xent(z, 0.5)
  np.testing.assert_allclose(value, golden['contrastive21'], rtol=1e-6)
  np.testing.assert_allclose(value, golden['nce22'], rtol=1e-6)
  assert 0 <= right <= 1
  same = np.stack([z[:, 0], 2 * z[:, 0]], 1)
  value, right = contrastive.nt_xent(same, 0.05)
  assert right == 1 and value < 1e-3
  assert np.isfinite(
    jax.grad(lambda z: contrastive.nt_xent(z, 0.5)[0])(z)
  ).all()
