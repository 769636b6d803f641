"""RandAugment against PIL, operation by operation, and the laws of its draw."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image, ImageEnhance, ImageOps

from esvit_jax import augment
from esvit_jax.augment import randaugment
from esvit_jax.augment import views as views_lib
from esvit_jax.errors import UserError

MEAN = (0.485, 0.456, 0.406)
FILL = (124, 116, 104)
operate = jax.jit(randaugment.operate)


def picture(kind, side=48, seed=0):
  """u8[side, side, 3]: soft blobs, noise of full contrast, or a dull corner."""
  random = np.random.default_rng(seed)
  if kind == 'noisy':
    return random.integers(0, 256, (side, side, 3), dtype=np.uint8)
  blobs = random.integers(0, 256, (side // 8, side // 8, 3), dtype=np.uint8)
  soft = np.array(Image.fromarray(blobs).resize((side, side)))
  return soft if kind == 'smooth' else soft // 3 + 40


def ours(name, image, level, sign=1.0):
  planes = jnp.asarray(image.transpose(2, 0, 1), jnp.float32)
  index = randaugment.OPERATIONS.index(name)
  new = operate(planes, index, level, sign, jnp.asarray(FILL, jnp.float32))
  new = np.asarray(new).transpose(1, 2, 0)
  assert np.array_equal(new, np.round(new))
  assert new.min() >= 0 and new.max() <= 255
  return new


def affine(*matrix):
  def move(image):
    return image.transform(
      image.size,
      Image.Transform.AFFINE,
      matrix,
      resample=Image.Resampling.BICUBIC,
      fillcolor=FILL,
    )

  return move


def pil(name, image, magnitude, sign=1.0):
  """timm's operation: `magnitude` is 0 to 10."""
  v = magnitude / 10
  factor = 1 + sign * 0.9 * v
  add = int(110 * v)
  lifted = [min(255, i + add) if i < 128 else i for i in range(256)]
  operations = {
    'auto_contrast': ImageOps.autocontrast,
    'equalize': ImageOps.equalize,
    'invert': ImageOps.invert,
    # New versions of PIL refuse to keep no bits; old ones gave black.
    'posterize': lambda im: im.point(lambda i: i & (-16 << int(4 * v))),
    'solarize': lambda im: ImageOps.solarize(im, 256 - int(256 * v)),
    'solarize_add': lambda im: im.point(lifted * 3),
    'color': lambda im: ImageEnhance.Color(im).enhance(factor),
    'contrast': lambda im: ImageEnhance.Contrast(im).enhance(factor),
    'brightness': lambda im: ImageEnhance.Brightness(im).enhance(factor),
    'sharpness': lambda im: ImageEnhance.Sharpness(im).enhance(factor),
    'rotate': lambda im: im.rotate(
      sign * 30 * v, resample=Image.Resampling.BICUBIC, fillcolor=FILL
    ),
    'shear_x': affine(1, sign * 0.3 * v, 0, 0, 1, 0),
    'shear_y': affine(1, 0, 0, sign * 0.3 * v, 1, 0),
    'translate_x': affine(1, 0, sign * 0.45 * v * image.shape[1], 0, 1, 0),
    'translate_y': affine(1, 0, 0, 0, 1, sign * 0.45 * v * image.shape[0]),
  }
  assert operations.keys() == set(randaugment.OPERATIONS)
  return np.asarray(operations[name](Image.fromarray(image)), np.float32)


def gaps(name, magnitudes, kinds=('smooth', 'noisy', 'dull')):
  for kind in kinds:
    for magnitude in magnitudes:
      for sign in (1.0, -1.0):
        image = picture(kind)
        yield np.abs(
          ours(name, image, magnitude / 10, sign)
          - pil(name, image, magnitude, sign)
        )


@pytest.mark.parametrize(
  'name', ['equalize', 'invert', 'posterize', 'solarize', 'solarize_add']
)
def test_tables_are_pils(name):
  for gap in gaps(name, (0, 2.6, 5.1, 9.7, 10)):
    assert gap.max() == 0


def test_auto_contrast_is_pils_but_for_its_rounding():
  """PIL can fall one level short of a quotient that is whole."""
  for seed in range(4):
    image = picture('dull', seed=seed)
    low, high = image.min((0, 1)), image.max((0, 1)).astype(int)
    whole = 255 * (image - low).astype(int) % (high - low) == 0
    short = ours('auto_contrast', image, 0.5) - pil('auto_contrast', image, 5)
    assert set(np.unique(short)) <= {0, 1}
    assert np.all(whole | (short == 0))
  flat = np.full((48, 48, 3), 77, np.uint8)
  for name in ('auto_contrast', 'equalize'):
    np.testing.assert_array_equal(ours(name, flat, 0.5), flat)


@pytest.mark.parametrize('name', ['color', 'contrast', 'brightness'])
def test_enhancements_are_pils_within_a_level(name):
  for gap in gaps(name, (0, 3.3, 9, 10)):
    assert gap.max() <= 1


def test_sharpness_is_pils_within_a_level():
  for gap in gaps('sharpness', (0, 3.3, 9, 10)):
    assert gap.max() <= 1


@pytest.mark.parametrize(
  'name', ['rotate', 'shear_x', 'shear_y', 'translate_x', 'translate_y']
)
def test_warps_are_pils_within_a_level(name):
  for gap in gaps(name, (0, 1.7, 9, 10)):
    # A pixel on the very edge may be filled in one and not in the other.
    assert (gap.max(-1) > 1).sum() <= 2
    assert np.median(gap) == 0


def test_warps_bring_in_the_fill():
  image = picture('smooth')
  moved = ours('translate_x', image, 1.0)
  gone = round(0.45 * 48)
  np.testing.assert_array_equal(
    moved[:, -gone + 1 :], np.broadcast_to(FILL, (48, gone - 1, 3))
  )


def test_grey_images_too():
  image = picture('smooth')[..., :1]
  planes = jnp.asarray(image.transpose(2, 0, 1), jnp.float32)
  theirs = Image.fromarray(image[..., 0])
  for name, expected in {
    'equalize': ImageOps.equalize(theirs),
    'contrast': ImageEnhance.Contrast(theirs).enhance(1.45),
    'color': theirs,
    'rotate': theirs.rotate(
      15, resample=Image.Resampling.BICUBIC, fillcolor=73
    ),
  }.items():
    index = randaugment.OPERATIONS.index(name)
    new = operate(planes, index, 0.5, 1.0, jnp.full(1, 73.0))
    assert np.abs(np.asarray(new)[0] - np.asarray(expected)).max() <= 1


def draws(n, count, magnitude, noise):
  return jax.vmap(
    functools.partial(
      randaugment.draw, count=count, magnitude=magnitude, noise=noise
    )
  )(jax.random.split(jax.random.key(0), n))


def test_draw_is_timms():
  drawn = draws(4000, 2, 9.0, 0.5)
  share = np.bincount(drawn.operation.ravel(), minlength=15) / 8000
  np.testing.assert_allclose(share, 1 / 15, atol=0.012)
  # With replacement: one pair in fifteen is twice the same.
  twice = drawn.operation[:, 0] == drawn.operation[:, 1]
  np.testing.assert_allclose(twice.mean(), 1 / 15, atol=0.012)
  np.testing.assert_allclose(drawn.happens.mean(), 0.5, atol=0.02)
  np.testing.assert_allclose(drawn.sign.mean(), 0, atol=0.04)
  assert set(np.unique(drawn.sign)) == {-1, 1}
  np.testing.assert_allclose(drawn.level.mean(), 0.9, atol=0.01)
  np.testing.assert_allclose(drawn.level.std(), 0.05, atol=0.01)
  assert drawn.level.max() == 1


def test_magnitude_ten_is_cut_half_of_the_time():
  level = draws(4000, 2, 10.0, 0.5).level
  np.testing.assert_allclose((level == 1).mean(), 0.5, atol=0.02)
  assert np.all(draws(10, 2, 7.0, 0.0).level == np.float32(0.7))


def test_operations_follow_one_another():
  image = picture('smooth')
  planes = jnp.asarray(image.transpose(2, 0, 1), jnp.float32)
  names = ('solarize', 'rotate', 'invert')
  drawn = randaugment.Draw(
    jnp.asarray([randaugment.OPERATIONS.index(name) for name in names]),
    jnp.asarray([True, True, False]),
    jnp.full(3, 0.5),
    jnp.ones(3),
  )
  new = randaugment.apply(planes, drawn, MEAN)
  expected = pil('solarize', image, 5)
  expected = pil('rotate', expected.astype(np.uint8), 5)
  gap = np.abs(np.asarray(new).transpose(1, 2, 0) - expected)
  assert (gap.max(-1) > 1).sum() <= 2


# --- as a part of views

VIEW = {'size': 24, 'scale': (0.4, 1.0), 'rand_magnitude': 10}


def views(**settings):
  groups = augment.view_groups({'globals': VIEW | settings})
  images = np.stack([picture('smooth', seed=seed) for seed in range(4)])
  found = jax.jit(augment.multi_crop, static_argnums=(3, 4, 5))(
    images,
    np.full((4, 2), 48),
    jax.random.split(jax.random.key(0), 4),
    groups,
    MEAN,
    (0.229, 0.224, 0.225),
  )
  return np.asarray(found['globals'])  # B V s s C


def test_views_without_it_are_as_they_were():
  plain = views(count=2)
  mixed = views(count=2, rand_ops=(0, 3))
  np.testing.assert_allclose(mixed[:, 0], plain[:, 0], atol=1e-5)
  # Three operations at a half each: hardly any view stays as it was.
  changed = np.abs(mixed[:, 1] - plain[:, 1]).max((1, 2, 3)) > 0.01
  assert changed.sum() >= 3


def test_it_comes_after_the_crop_and_the_flip():
  """Each view is the plain view, its operations carried out on grey levels."""
  groups = augment.view_groups({'globals': VIEW | {'rand_ops': 2}})
  plain, new = views()[:, 0], views(rand_ops=2)[:, 0]
  mean, std = np.asarray(MEAN), np.asarray((0.229, 0.224, 0.225))
  for b, key in enumerate(jax.random.split(jax.random.key(0), 4)):
    drawn = views_lib.draw(
      jax.random.fold_in(key, 0), jnp.full(2, 48), groups[0].views[0], 2
    )
    levels = np.round(255 * (plain[b] * std + mean)).transpose(2, 0, 1)
    expected = randaugment.apply(
      jnp.asarray(levels, jnp.float32), drawn.rand, MEAN
    )
    expected = np.asarray(expected).transpose(1, 2, 0)
    np.testing.assert_allclose(255 * (new[b] * std + mean), expected, atol=0.01)


@pytest.mark.parametrize(
  'field, value, message',
  [
    ('rand_ops', 1.5, 'a whole number of at least 0'),
    ('rand_magnitude', 11, 'at most 10'),
    ('rand_noise', -1, 'at least 0'),
  ],
)
def test_mistakes_are_named(field, value, message):
  with pytest.raises(UserError, match=f'{field} is .*{message}'):
    augment.view_groups({'globals': VIEW | {field: value}})
