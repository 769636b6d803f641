"""Random erasing: boxes by timm's rule, noise inside, nothing outside."""

import jax
import jax.numpy as jnp
import numpy as np

from esvit_jax.augment import erasing

SIDE = 224
keys = jax.random.split(jax.random.key(0), 1000)


def boxes():
  return np.asarray(
    jax.jit(jax.vmap(lambda key: erasing.draw_box(key, SIDE, SIDE)))(keys)
  )


def test_boxes_have_the_published_sizes():
  top, bottom, left, right = boxes().T
  h, w = bottom - top, right - left
  assert np.all((top >= 0) & (left >= 0) & (bottom <= SIDE) & (right <= SIDE))
  assert np.all((h > 0) & (h < SIDE) & (w > 0) & (w < SIDE))
  area, ratio = h * w / SIDE**2, h / w
  assert area.min() > 0.019 and area.max() < 0.34
  assert ratio.min() > 0.28 and ratio.max() < 3.6
  # Few draws of so flat a range are turned down, so both stay near uniform.
  np.testing.assert_allclose(area.mean(), (0.02 + 1 / 3) / 2, atol=0.01)
  np.testing.assert_allclose(np.log(ratio).mean(), 0, atol=0.08)


def test_boxes_lie_anywhere():
  top, bottom, left, right = boxes().T
  for low, high in ((top, bottom), (left, right)):
    share = low / (SIDE - (high - low))
    np.testing.assert_allclose(share.mean(), 0.5, atol=0.03)
    assert share.min() == 0 and share.max() == 1


def test_a_view_no_box_fits_is_left_alone():
  for key in keys[:5]:
    top, bottom, left, right = erasing.draw_box(key, 1, 64)
    assert (bottom - top) * (right - left) == 0


def test_noise_inside_and_nothing_outside():
  view = jnp.full((32, 32, 3), 7.0)
  erase = jax.jit(jax.vmap(erasing.erase, (None, 0, None)), static_argnums=2)
  erased = np.asarray(erase(view, keys, 0.25))
  gone = (erased != 7).any(-1)
  happened = gone.any((1, 2))
  np.testing.assert_allclose(happened.mean(), 0.25, atol=0.04)
  # What is gone is a full box, in all channels, of new numbers everywhere.
  for mask in gone[happened][:20]:
    y, x = np.nonzero(mask)
    assert mask.sum() == (np.ptp(y) + 1) * (np.ptp(x) + 1)
  noise = erased[gone]
  np.testing.assert_allclose(noise.mean(), 0, atol=0.02)
  np.testing.assert_allclose(noise.std(), 1, atol=0.02)
  assert len(np.unique(noise)) > 0.99 * noise.size
  assert np.all(erase(view, keys[:20], 0.0) == 7)
