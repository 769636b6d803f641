"""Mixup and CutMix: shares, boxes and targets agree with one another."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from esvit_jax.augment import mixing

B, SIDE, CLASSES = 6, 16, 5
LABELS = jnp.asarray([0, 3, 2, 2, 4, 1])
NONE = mixing.Mix(jnp.float32(1), jnp.bool_(False), jnp.zeros(4, jnp.int32))


def views(seed=0):
  x = np.random.default_rng(seed).standard_normal((B, 2, SIDE, SIDE, 3))
  return jnp.asarray(x, jnp.float32)


def draws(n=2000, size=(SIDE, SIDE), mixup=0.0, cutmix=0.0, switch=0.5):
  draw = functools.partial(
    mixing.draw, size=size, mixup=mixup, cutmix=cutmix, switch=switch
  )
  drawn = jax.jit(jax.vmap(draw))(jax.random.split(jax.random.key(0), n))
  return jax.tree.map(np.asarray, drawn)


def test_mixup_blends_with_the_batch_turned_round():
  x, share = views(), 0.3
  mixed = mixing.mix_views(x, NONE._replace(share=jnp.float32(share)))
  np.testing.assert_allclose(mixed, 0.3 * x + 0.7 * x[::-1], atol=1e-6)
  targets = mixing.targets(
    LABELS, CLASSES, 0.0, NONE._replace(share=jnp.float32(share))
  )
  np.testing.assert_allclose(targets[0, 0], 0.3)
  np.testing.assert_allclose(targets[0, 1], 0.7)  # the label of the last
  # Both of the middle pair have label 2.
  np.testing.assert_allclose(targets[2], np.eye(CLASSES)[2], atol=1e-7)


def test_cutmix_exchanges_the_box_and_nothing_else():
  x = views()
  box = jnp.asarray([2, 9, 4, 16])
  mixed = mixing.mix_views(x, mixing.Mix(jnp.float32(0), jnp.bool_(True), box))
  expected = np.array(x)
  expected[:, :, 2:9, 4:16] = x[::-1, :, 2:9, 4:16]
  np.testing.assert_array_equal(mixed, expected)


def test_shares_follow_beta():
  share = draws(mixup=0.8).share
  np.testing.assert_allclose(share.mean(), 0.5, atol=0.03)
  # The variance of Beta(a, a) is 1 / (4 (2a + 1)).
  np.testing.assert_allclose(share.var(), 1 / (4 * 2.6), atol=0.01)
  assert share.var() < draws(mixup=0.2).share.var()


def test_cutmix_shares_are_those_of_the_clipped_box():
  height, width = 224, 160
  drawn = draws(cutmix=1.0, size=(height, width))
  assert np.all(drawn.cut)
  top, bottom, left, right = drawn.box.T
  assert drawn.box.min() >= 0
  assert bottom.max() == height and right.max() == width
  area = (bottom - top) * (right - left) / (height * width)
  np.testing.assert_allclose(drawn.share, 1 - area, atol=1e-6)
  # Half the uniform area before clipping; about a third is clipped away.
  assert 0.28 < area.mean() < 0.42


def test_switching():
  both = draws(mixup=0.8, cutmix=1.0, switch=0.3)
  np.testing.assert_allclose(both.cut.mean(), 0.3, atol=0.03)
  assert not np.any(draws(mixup=0.8).cut)
  assert np.all(draws(n=10).share == 1)


@pytest.mark.parametrize('smoothing', [0.0, 0.1])
def test_targets_are_timms(smoothing):
  """on = 1 - s + s / K, off = s / K, mixed by the share."""
  mix = NONE._replace(share=jnp.float32(0.7))
  targets = np.asarray(mixing.targets(LABELS, CLASSES, smoothing, mix))
  own = np.full((B, CLASSES), smoothing / CLASSES)
  own[np.arange(B), LABELS] = 1 - smoothing + smoothing / CLASSES
  np.testing.assert_allclose(targets, 0.7 * own + 0.3 * own[::-1], atol=1e-6)
  np.testing.assert_allclose(targets.sum(-1), 1, rtol=1e-6)
