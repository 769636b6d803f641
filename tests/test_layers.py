"""Packing, drop path, batch norm, patches and resizing."""

import golden_weights
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from esvit_jax.errors import UserError
from esvit_jax.models import layers, patches, resize
from esvit_jax.models.positions import resize_positions

KEY = jax.random.key(0)


def test_unpack_undoes_pack():
  a = jax.random.normal(KEY, (2, 3, 4, 5, 6))
  b = jax.random.normal(KEY, (2, 1, 7, 2, 6))
  tokens = layers.pack([a, b])
  assert tokens.shape == (2, 3 * 4 * 5 + 14, 6)
  for x, y in zip(layers.unpack(tokens, [(3, 4, 5), (1, 7, 2)]), [a, b]):
    np.testing.assert_array_equal(x, y)


def test_drop_path_takes_whole_views_and_keeps_the_mean():
  shapes = ((2, 3, 3), (4, 2, 1))
  ones = jnp.ones((400, 2 * 9 + 4 * 2, 1))
  module = layers.DropPath(0.25)
  out = module.apply({}, ones, shapes, True, rngs={'drop_path': KEY})
  views = []
  for x in layers.unpack(out, shapes):
    assert np.ptp(x, axis=(2, 3)).max() == 0  # one draw per view
    views.append(x[:, :, 0, 0, 0])
  views = np.concatenate(views, 1)  # B V
  np.testing.assert_allclose(np.unique(views), [0, 4 / 3], rtol=1e-6)
  np.testing.assert_allclose(views.mean(0), 1, atol=0.15)
  assert np.unique(views, axis=0).shape[0] > 30  # views draw for themselves
  np.testing.assert_array_equal(module.apply({}, ones, shapes, False), ones)


def test_patches_are_a_strided_convolution():
  x = jax.random.normal(KEY, (2, 3, 8, 12, 5))
  module = patches.PatchEmbed(7, 4)
  variables = module.init(KEY, (x,))
  tokens, shapes = module.apply(variables, (x,))
  assert shapes == ((3, 2, 3),)
  expected = jax.lax.conv_general_dilated(
    x.reshape(6, 8, 12, 5),
    variables['params']['kernel'],
    (4, 4),
    'VALID',
    dimension_numbers=('NHWC', 'HWIO', 'NHWC'),
  ).reshape(2, 18, 7)
  expected += variables['params']['bias'][None, None]
  np.testing.assert_allclose(tokens, expected, atol=1e-5)


@pytest.mark.parametrize(
  ('shape', 'words'),
  [
    ((1, 1, 10, 8, 3), '10x8 px do not split into patches of 4 px'),
    ((1, 1, 8, 8, 1), '1 channels, the network was made for 3'),
    ((1, 8, 8, 3), 'batch, views, height'),
  ],
)
def test_images_that_do_not_fit(shape, words):
  module = patches.PatchEmbed(7, 4)
  variables = module.init(KEY, (jnp.zeros((1, 1, 8, 8, 3)),))
  with pytest.raises(UserError, match=words):
    module.apply(variables, (jnp.zeros(shape),))


def test_groups_must_agree_on_channels():
  groups = (jnp.zeros((1, 1, 8, 8, 3)), jnp.zeros((1, 1, 4, 4, 1)))
  with pytest.raises(UserError, match='3 and 1 channels'):
    patches.PatchEmbed(7, 4).init(KEY, groups)


def test_batch_norm_normalises_then_remembers():
  x = 3 + 2 * jax.random.normal(KEY, (4, 5, 6))
  module = layers.BatchNorm()
  variables = module.init(KEY, x, True)
  np.testing.assert_array_equal(variables['batch_stats']['mean'], np.zeros(6))
  y, new = module.apply(variables, x, True, mutable=['batch_stats'])
  rows = np.asarray(x).reshape(20, 6)
  np.testing.assert_allclose(y.mean((0, 1)), 0, atol=1e-5)
  np.testing.assert_allclose(y.var((0, 1)), 1, atol=1e-4)
  stats = new['batch_stats']
  np.testing.assert_allclose(stats['mean'], 0.1 * rows.mean(0), rtol=1e-5)
  np.testing.assert_allclose(
    stats['var'], 0.9 + 0.1 * rows.var(0, ddof=1), rtol=1e-5
  )
  frozen = module.apply(variables, x, False)
  np.testing.assert_allclose(frozen, x / np.sqrt(1 + 1e-5), rtol=1e-5)


def test_bicubic_is_the_published_resize():
  golden, entry = golden_weights.load('interp')
  given = {
    name: golden_weights.normal(name, shape)
    for name, shape in entry['inputs'].items()
  }
  for side in (6, 14, 7, 24):
    resized = resize_positions(jnp.asarray(given['pe']), (side, side))
    expected = golden[f'vit_196_to_{side**2}']
    assert golden_weights.error(resized, expected) < 2e-5
  for name, before, after in (('vilb196', 196, 36), ('vilb49', 49, 9)):
    resized = resize.resize_bicubic(
      given[name], (after, after), (after / before,) * 2
    )
    expected = golden[f'vil_bias_{before}_to_{after}']
    assert golden_weights.error(resized, expected) < 2e-5


def test_positions_resized_to_a_little_more():
  """SiT's 0.1 moves samples towards the upper left, by less and less."""
  line = jnp.arange(14.0)
  pe = jnp.broadcast_to(line[None, None, :, None], (1, 14, 14, 1))
  pe = jnp.concatenate([jnp.zeros((1, 1, 1)), pe.reshape(1, -1, 1)], 1)
  plain, more = (
    resize_positions(pe, (6, 6), extra)[0, 1:].reshape(6, 6)
    for extra in (0.0, 0.1)
  )
  centres = (np.arange(6) + 0.5) * 14
  # Away from the borders a cubic convolution keeps lines, bar the sharpness
  # of a = -0.75, which is the same at a place and its mirror image.
  shift = np.asarray(plain - more)[0]
  expected = centres / 6 - centres / 6.1
  np.testing.assert_allclose(shift[1:5], expected[1:5], atol=0.15)
  assert (np.diff(shift[1:5]) > 0).all()
  same = resize_positions(pe, (14, 14), 0.1)
  np.testing.assert_array_equal(same, pe)


def test_bicubic_keeps_constants_and_size():
  for before, after in ((5, 9), (9, 4), (7, 7), (1, 3)):
    matrix = resize.bicubic_matrix(before, after)
    np.testing.assert_allclose(matrix.sum(1), 1)
  np.testing.assert_array_equal(resize.bicubic_matrix(7, 7), np.eye(7))


def test_init_scale_is_named():
  with pytest.raises(UserError, match="'published' or 'fan_in'"):
    layers.linear_init('big')
