"""Views against PIL, the laws of the draws, and independence of the batch."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image, ImageEnhance, ImageFilter, ImageOps

from esvit_jax.augment import crops, photometric
from esvit_jax.augment import views as augment
from esvit_jax.errors import UserError

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
COLOR = {'brightness': 0.4, 'contrast': 0.4, 'saturation': 0.2, 'hue': 0.1}
RECIPE = {  # EsViT's, small
  'globals': {
    'size': 32,
    'count': 2,
    'scale': (0.4, 1.0),
    'jitter': 0.8,
    'gray': 0.2,
    'blur': (1.0, 0.1),
    'solarize': (0.0, 0.2),
    **COLOR,
  },
  'locals': {
    'size': 16,
    'count': 3,
    'scale': (0.05, 0.4),
    'jitter': 0.8,
    'gray': 0.2,
    'blur': 0.5,
    **COLOR,
  },
}
ON, OFF = np.bool_(True), np.bool_(False)


def picture(kind, height, width, seed=0):
  """u8[height, width, 3]: soft blobs, or noise of full contrast."""
  random = np.random.default_rng(seed)
  if kind == 'noisy':
    return random.integers(0, 256, (height, width, 3), dtype=np.uint8)
  blobs = random.integers(0, 256, (height // 8, width // 8, 3), dtype=np.uint8)
  return np.array(Image.fromarray(blobs).resize((width, height)))


def planes(image):
  return jnp.asarray(image.transpose(2, 0, 1), jnp.float32)


def gap(planes, image):
  """Grey levels between planes f32[C, h, w] and a PIL image."""
  ours = np.asarray(planes).transpose(1, 2, 0)
  assert np.array_equal(ours, np.round(ours))
  assert ours.min() >= 0 and ours.max() <= 255
  return np.abs(ours - np.asarray(image, np.float32))


def pil_crop(image, box, size, flip=False, bilinear=False):
  h, w = size
  top, left, height, width = (int(v) for v in box)
  method = Image.Resampling.BILINEAR if bilinear else Image.Resampling.BICUBIC
  image = image.crop((left, top, left + width, top + height))
  # Width first by hand: new versions of PIL begin with the height at times.
  image = image.resize((w, height), method).resize((w, h), method)
  return ImageOps.mirror(image) if flip else image


def pil_hue(image, shift):
  hue, saturation, value = image.convert('HSV').split()
  turned = (np.asarray(hue, np.int32) + int(shift)) % 256
  hue = Image.fromarray(turned.astype(np.uint8))
  return Image.merge('HSV', (hue, saturation, value)).convert('RGB')


def pil_jitter(image, factors, shift, order):
  enhance = (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color)
  for operation in order:
    if operation == 3:
      image = pil_hue(image, shift)
    else:
      image = enhance[operation](image).enhance(float(factors[operation]))
  return image


@functools.partial(jax.jit, static_argnames='out')
def crop(image, box, out, flip, bilinear):
  return crops.crop_resize(image, box, out, flip=flip, bilinear=bilinear)


draw = jax.jit(jax.vmap(augment.draw, (0, None, None)))
grayscale = jax.jit(photometric.grayscale)
shift_hue = jax.jit(photometric.shift_hue)
solarize = jax.jit(photometric.solarize)
jitter = jax.jit(photometric.color_jitter)
blurred = jax.jit(functools.partial(photometric.blur, max_sigma=2.0))
multi_crop = jax.jit(
  augment.multi_crop,
  static_argnames=('groups', 'mean', 'std'),
  # Compilation is most of this file's time.
  compiler_options={'xla_backend_optimization_level': 0},
)


@pytest.mark.parametrize('kind', ['smooth', 'noisy'])
@pytest.mark.parametrize('out', [(24, 24), (72, 40)])
def test_crop_is_pil_within_two_grey_levels(kind, out):
  image = picture(kind, 60, 80)
  canvas = planes(np.pad(image, ((0, 4), (0, 16), (0, 0))))
  boxes = [(0, 0, 60, 80), (7, 11, 52, 30), (31, 2, 24, 72), (40, 60, 9, 13)]
  for n, box in enumerate(boxes):
    for bilinear in (False, True):
      flip = (n + bilinear) % 2 == 0
      ours = crop(canvas, jnp.asarray(box), out, flip, bilinear)
      theirs = pil_crop(Image.fromarray(image), box, out, flip, bilinear)
      assert gap(ours, theirs).max() <= 2


@pytest.mark.parametrize('kind', ['smooth', 'noisy'])
def test_each_operation_is_pils(kind):
  image = picture(kind, 48, 48)
  ours, theirs = planes(image), Image.fromarray(image)
  grey = theirs.convert('L').convert('RGB')
  assert gap(grayscale(ours, ON), grey).max() == 0
  assert gap(grayscale(ours, OFF), theirs).max() == 0
  for threshold in (128, 200):
    inverted = ImageOps.solarize(theirs, threshold)
    assert gap(solarize(ours, ON, threshold), inverted).max() == 0
  assert gap(solarize(ours, OFF), theirs).max() == 0
  for shift in (-128, -25, 0, 9, 127):
    levels = gap(shift_hue(ours, shift), pil_hue(theirs, shift))
    # A byte of hue, 6 levels, where 255 h is a whole number but for rounding.
    assert levels.max() <= 6 and (levels > 1).mean() < 0.003
  for operation in range(3):
    for factor in (0.6, 1.37):
      factors = np.ones(3, np.float32)
      factors[operation] = factor
      enhanced = jitter(ours, factors, 0.0, OFF, jnp.arange(4))
      assert (
        gap(enhanced, pil_jitter(theirs, factors, 0, [operation])).max() <= 1
      )
  nothing = jitter(ours, jnp.ones(3), 0.0, OFF, jnp.arange(4))
  assert gap(nothing, theirs).max() == 0


@pytest.mark.parametrize('kind', ['smooth', 'noisy'])
def test_blur_is_pils_within_two_grey_levels(kind):
  image = picture(kind, 40, 40)
  for sigma in (0.1, 0.4, 0.8, 1.3, 2.0):
    theirs = Image.fromarray(image).filter(ImageFilter.GaussianBlur(sigma))
    assert gap(blurred(planes(image), sigma), theirs).max() <= 2
  untouched = blurred(planes(image), 0.0)
  assert gap(untouched, image).max() == 0


def test_blur_reaches_as_far_as_its_bound():
  image = picture('noisy', 40, 40)
  theirs = Image.fromarray(image).filter(ImageFilter.GaussianBlur(5))
  ours = jax.jit(photometric.blur, static_argnums=2)(planes(image), 5.0, 6.0)
  assert gap(ours, theirs).max() <= 2


def test_jitter_in_every_order_is_pils():
  image = picture('smooth', 32, 32)
  random = np.random.default_rng(0)
  for _ in range(24):
    factors = random.uniform(0.5, 1.5, 3).astype(np.float32)
    shift, order = float(random.integers(-25, 26)), random.permutation(4)
    ours = jitter(planes(image), factors, shift, ON, order)
    theirs = pil_jitter(Image.fromarray(image), factors, shift, order)
    levels = gap(ours, theirs)
    assert (levels > 1).mean() < 0.005
    assert levels.max() <= 12


def test_flip_and_greyscale_may_come_later():
  image = planes(picture('noisy', 32, 32))
  blur = functools.partial(blurred, sigma=1.2)
  gray = functools.partial(grayscale, apply=ON)
  assert jnp.array_equal(blur(image[..., ::-1]), blur(image)[..., ::-1])
  assert jnp.max(jnp.abs(blur(gray(image)) - gray(blur(image)))) <= 2


def test_view_is_pils_view():
  """The whole pipeline on its own draws."""
  locals_ = {**RECIPE['locals'], 'size': (16, 24)}  # need not be square
  groups = augment.view_groups(RECIPE | {'locals': locals_})
  images = np.stack([picture('smooth', 48, 64, seed) for seed in range(4)])
  sizes, keys = (
    np.full((4, 2), (48, 64)),
    jax.random.split(jax.random.key(1), 4),
  )
  views = multi_crop(images, sizes, keys, groups, MEAN, STD)
  number = 0
  for group in groups:
    assert views[group.name].shape == (4, group.count, *group.size, 3)
    for v, settings in enumerate(group.views):
      view_keys = jax.vmap(jax.random.fold_in, (0, None))(keys, number)
      drawn = jax.tree.map(np.asarray, draw(view_keys, sizes[0], settings))
      for n in range(4):
        d = jax.tree.map(lambda x, n=n: x[n], drawn)
        image = pil_crop(Image.fromarray(images[n]), d.box, group.size, d.flip)
        if d.shifts:
          image = pil_jitter(image, d.factors, d.shift, d.order)
        if d.gray:
          image = image.convert('L').convert('RGB')
        image = image.filter(ImageFilter.GaussianBlur(float(d.sigma)))
        if d.solarize:
          image = ImageOps.solarize(image)
        theirs = (np.asarray(image) / 255 - MEAN) / STD
        levels = np.abs(views[group.name][n, v] - theirs) * 255 * np.array(STD)
        assert levels.mean() < 0.7
      number += 1


@functools.cache
def draws(size=(90, 120), **settings):
  """4000 draws of one view of an image."""
  (group,) = augment.view_groups({'g': {'size': 32, **settings}})
  keys = jax.random.split(jax.random.key(3), 4000)
  drawn = draw(keys, jnp.asarray(size), group.views[0])
  return jax.tree.map(np.asarray, drawn)


def dino_draws():
  return draws(
    scale=(0.1, 0.4), jitter=0.8, gray=0.2, blur=0.5, solarize=0.3, **COLOR
  )


def test_boxes_follow_the_law_of_torchvision():
  top, left, height, width = dino_draws().box.T
  assert (top >= 0).all() and (top + height <= 90).all()
  assert (left >= 0).all() and (left + width <= 120).all()
  share = height * width / (90 * 120)
  # Sides are whole pixels: about 28 at least, so 2 % each way.
  assert 0.096 < share.min() < 0.11 and 0.39 < share.max() < 0.416
  assert np.allclose(
    np.quantile(share, [0.25, 0.5, 0.75]), [0.175, 0.25, 0.325], atol=0.01
  )
  log_ratio = np.log(width / height) / math.log(4 / 3)
  assert np.abs(log_ratio).max() < 1.07
  assert abs(log_ratio.mean()) < 0.05
  assert np.allclose(log_ratio.std(), 1 / math.sqrt(3), atol=0.03)
  for start, length, side in ((top, height, 90), (left, width, 120)):
    place = start / (side - length)
    assert place.min() == 0 and place.max() == 1
    assert abs(place.mean() - 0.5) < 0.02


def test_boxes_are_tried_again_before_falling_back():
  box = draws((60, 120), scale=(0.4, 0.6)).box  # half of the tries are too high
  share = box[:, 2] * box[:, 3] / (60 * 120)
  assert (share < 0.61).mean() > 0.99  # the centre would be two thirds
  assert len(np.unique(box[:, 1])) > 40


def test_boxes_fall_back_to_the_centre():
  wide = draws((20, 200), scale=(1.0, 1.0)).box
  assert (wide == [0, (200 - 27) // 2, 20, 27]).all()
  tall = draws((200, 20), scale=(1.0, 1.0)).box
  assert (tall == [(200 - 27) // 2, 0, 27, 20]).all()
  whole = draws((21, 20), scale=(1.0, 1.0), ratio=(0.9, 1.1)).box
  assert ((whole[:, 2] <= 21) & (whole[:, 3] <= 20)).all()
  assert (whole == [0, 0, 21, 20]).all(axis=1).mean() > 0.5


def test_a_tiny_image_has_a_box():
  for box in draws((1, 1)).box[:50]:
    assert (box == [0, 0, 1, 1]).all()


def test_probabilities_and_strengths():
  d = dino_draws()
  for happens, p in (
    (d.flip, 0.5),
    (d.bilinear, 0.0),
    (d.shifts, 0.8),
    (d.gray, 0.2),
    (d.sigma > 0, 0.5),
    (d.solarize, 0.3),
  ):
    assert abs(happens.mean() - p) < 0.03
  assert ((d.factors != 1).all(axis=1) == d.shifts).all()
  for factor, strength in zip(d.factors[d.shifts].T, (0.4, 0.4, 0.2)):
    assert abs(factor.min() - (1 - strength)) < 0.01
    assert abs(factor.max() - (1 + strength)) < 0.01
  assert d.shift.min() == -25 and d.shift.max() == 25
  assert 0.1 <= d.sigma[d.sigma > 0].min() < 0.11
  assert 1.98 < d.sigma.max() <= 2.0
  orders, times = np.unique(d.order, axis=0, return_counts=True)
  assert len(orders) == 24 and times.min() > 100


def test_nothing_beyond_the_valid_size_leaks_in():
  groups = augment.view_groups(RECIPE)
  images = np.stack([picture('noisy', 48, 64, seed) for seed in range(4)])
  sizes = np.array([[48, 64], [30, 64], [48, 20], [9, 7]])
  keys = jax.random.split(jax.random.key(0), 4)
  clean, dirty = images.copy(), images.copy()
  for n, (height, width) in enumerate(sizes):
    for canvas, garbage in ((clean, 0), (dirty, 255)):
      canvas[n, height:], canvas[n, :, width:] = garbage, garbage
  clean, dirty = (
    multi_crop(x, sizes, keys, groups, MEAN, STD) for x in (clean, dirty)
  )
  jax.tree.map(np.testing.assert_array_equal, clean, dirty)


def test_a_view_depends_on_its_image_and_key_only():
  groups = augment.view_groups({'globals': RECIPE['globals']})
  images = np.stack([picture('smooth', 24, 32, seed) for seed in range(8)])
  sizes = np.random.default_rng(0).integers(12, 25, (8, 2))
  keys = jax.random.split(jax.random.key(0), 8)

  def render(images, sizes, keys):
    views = multi_crop(images, sizes, keys, groups, MEAN, STD)
    return views['globals']

  def same(ours, theirs):
    # One grey level (1/57 here) where a sum of floats sits on an edge.
    apart = np.abs(np.asarray(ours) - np.asarray(theirs))
    return ours.shape == theirs.shape and (apart > 1e-4).mean() < 1e-3

  views = render(images, sizes, keys)
  order = np.array([3, 0, 7, 5, 1, 2, 6, 4])
  moved = render(images[order], sizes[order], keys[order])
  assert same(moved, views[order])

  # One image to a device: alone as well as spread.
  mesh = jax.make_mesh((8,), ('data',), (jax.sharding.AxisType.Auto,))
  split = jax.NamedSharding(mesh, jax.sharding.PartitionSpec('data'))
  spread = render(*jax.device_put((images, sizes, keys), split))
  assert len(spread.sharding.device_set) == 8
  assert same(spread, views)

  other = render(images, sizes, jax.random.split(jax.random.key(1), 8))
  assert not same(other, views)
  assert not same(views[:, 0], views[:, 1])


def test_one_compilation_for_all_sizes():
  groups = augment.view_groups(RECIPE)
  images, keys = np.zeros((4, 48, 64, 3), np.uint8), jax.random.key(0)
  counts = []
  for side in (7, 12, 48):
    sizes = np.full((4, 2), side)
    multi_crop(images, sizes, jax.random.split(keys, 4), groups, MEAN, STD)
    counts.append(multi_crop._cache_size())
  assert counts[0] == counts[-1]


@pytest.mark.parametrize('channels', [1, 4])
def test_other_channels_keep_what_has_no_colour(channels):
  image = picture('smooth', 32, 32)[..., :1].repeat(channels, axis=2)
  factors = np.array([1.2, 0.7, 0.3], np.float32)
  ours = jitter(planes(image), factors, 20.0, ON, np.array([3, 0, 2, 1]))
  theirs = Image.fromarray(image[..., 0])
  theirs = ImageEnhance.Brightness(theirs).enhance(1.2)
  theirs = np.asarray(ImageEnhance.Contrast(theirs).enhance(0.7))
  assert gap(ours, theirs[..., None].repeat(channels, axis=2)).max() <= 1

  uneven = planes(np.dstack([picture('noisy', 32, 32, n) for n in (0, 1)]))
  order, plain = np.array([3, 0, 2, 1]), np.array([1.2, 0.7, 1], np.float32)
  assert jnp.array_equal(
    jitter(uneven[:channels], factors, 20.0, ON, order),
    jitter(uneven[:channels], plain, 20.0, OFF, order),
  )

  groups = augment.view_groups({'g': {'size': 8, 'jitter': 1, 'gray': 1}})
  batch = image[None], np.array([[32, 32]]), jax.random.key(0)[None]
  numbers = (0.5,) * channels, (0.25,) * channels
  views = multi_crop(*batch, groups, *numbers)
  assert views['g'].shape == (1, 1, 8, 8, channels)
  assert -2 <= views['g'].min() < views['g'].max() <= 2


def test_settings_hold_for_all_views_or_each():
  config = {'size': 8, 'count': 2, 'blur': (1.0, 0.1), 'flip': 0.25}
  config |= {'scale': [0.2, 1], 'ratio': ((1, 1), (0.5, 2)), 'gray': (0.2,)}
  (group,) = augment.view_groups({'globals': config})
  first, second = group.views
  assert (first.blur, second.blur) == (1.0, 0.1)
  assert first.flip == second.flip == 0.25
  assert first.gray == second.gray == 0.2
  assert first.scale == second.scale == (0.2, 1.0)
  assert (first.ratio, second.ratio) == ((1.0, 1.0), (0.5, 2.0))
  assert hash(group) is not None and group.count == 2


@pytest.mark.parametrize(
  ('settings', 'line'),
  [
    ({'size': 8, 'solarise': 0.2}, "no field 'solarise': .*'solarize'"),
    ({'size': 8, 'count': 3, 'blur': (1.0, 0.1)}, '2 values for 3 views'),
    ({'size': 8, 'flip': 1.5}, 'g.flip is 1.5; .* at most 1$'),
    ({'size': 8, 'hue': 0.6}, 'at most 0.5'),
    ({'size': 8, 'gray': 'often'}, "'often'"),
    ({'size': 8, 'scale': (0.5, 0.2)}, 'g.scale .* least <= largest'),
    ({'size': 8, 'scale': 0.5}, 'g.scale is 0.5; give two numbers'),
    ({'count': 2}, 'g.size is None'),
    ({'size': (8, 8, 8)}, r'g.size is \(8, 8, 8\).* or height,width'),
    ({'size': (8, 0)}, r'g.size is \(8, 0\)'),
    ({'size': 8, 'count': -1}, 'g.count is -1'),
  ],
)
def test_a_wrong_setting_is_named(settings, line):
  with pytest.raises(UserError, match=line):
    augment.view_groups({'g': settings})


def test_no_views_and_wrong_channels_are_named():
  with pytest.raises(UserError, match='no groups'):
    augment.view_groups({})
  groups = augment.view_groups({'g': {'size': 8}})
  images, keys = np.zeros((1, 8, 8, 1), np.uint8), jax.random.key(0)[None]
  with pytest.raises(UserError, match='1 channels'):
    augment.multi_crop(images, np.array([[8, 8]]), keys, groups, MEAN, STD)


def test_a_group_of_no_views_is_left_out():
  config = {'globals': {'size': 8, 'count': 2}, 'locals': {'size': 4}}
  assert [g.name for g in augment.view_groups(config)] == ['globals', 'locals']
  config['locals']['count'] = 0
  assert [g.name for g in augment.view_groups(config)] == ['globals']
