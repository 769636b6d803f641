"""What evaluations see of an image: torchvision's pixels, from the file."""

import io

import numpy as np
import pytest
from PIL import Image

from esvit_jax import data
from esvit_jax.data import decode

RNG = np.random.default_rng(0)


def torchvision_crop(image, size, shorter):
  """Resize and CenterCrop with PIL, as torchvision computes them."""
  h, w = image.shape[:2]
  short = min(h, w)
  h, w = shorter * h // short, shorter * w // short
  image = Image.fromarray(image).resize((w, h), Image.Resampling.BICUBIC)
  top, left = round((h - size) / 2), round((w - size) / 2)
  return np.asarray(image)[top : top + size, left : left + size]


@pytest.mark.parametrize(
  'h, w, size, shorter',
  [
    (80, 96, 56, 64),
    (27, 21, 56, 56),
    (22, 28, 56, 64),
    (64, 99, 56, 64),
    (43, 1000, 32, 37),
  ],
)
def test_center_crops_are_pils(h, w, size, shorter):
  image = RNG.integers(0, 256, (h, w, 3), np.uint8)
  ours = decode.center_crop(image, 3, size, shorter)
  expected = torchvision_crop(image, size, shorter)
  np.testing.assert_array_equal(ours, expected)
  grey = decode.center_crop(image[..., :1], 1, size, shorter)
  np.testing.assert_array_equal(
    grey[..., 0], torchvision_crop(image[..., 0], size, shorter)
  )


def folder(path, sizes, ending='png'):
  """A folder of striped images: every other pair of columns is white."""
  path.mkdir()
  for k, (h, w) in enumerate(sizes):
    stripes = np.where(np.arange(w) // 2 % 2, 255, 0).astype(np.uint8)
    image = Image.fromarray(np.tile(stripes, (h, 1)))
    image.save(path / f'{k}.{ending}', quality=95)
  return path


@pytest.mark.parametrize('size, ending', [(384, 'png'), (896, 'jpg')])
def test_stripes_keep_the_contrast_of_the_file(tmp_path, size, ending):
  """Whatever the canvas that training had."""
  place = folder(tmp_path / 'a', [(1200, 1400)], ending)
  source = data.open_source({'source': f'folder:{place}', 'canvas': 512})
  crops = data.center_cropped(source, size)
  assert crops.canvas == (size, size)
  shorter = round(256 / 224 * size)
  whole = np.asarray(Image.open(place / f'0.{ending}').convert('RGB'))
  expected = torchvision_crop(whole, size, shorter)
  ours = crops[0]['image']
  assert np.abs(ours.astype(int) - expected).max() <= 1
  assert ours.std() == pytest.approx(expected.std(), rel=1e-3)
  assert data.enlarged(crops) == ''


def test_small_images_are_not_cut_and_enlarging_is_said(tmp_path):
  place = folder(tmp_path / 'a', [(20, 30), (40, 50), (90, 70)])
  source = data.open_source({'source': f'folder:{place}', 'canvas': 32})
  # A margin where the set has images that are large enough for one.
  assert data.center_cropped(source, 56).shorter == 64
  assert data.enlarged(data.center_cropped(source, 56)).startswith('2 of 3 ')
  crops = data.center_cropped(source, 84)
  assert crops.shorter == 84 and crops[0]['image'].shape == (84, 84, 3)
  assert '84 px' in data.enlarged(crops)
  with data.epoch(crops, 4) as feed:
    batch = next(feed)
  assert batch['image'].shape == (4, 84, 84, 3)
  np.testing.assert_array_equal(batch['size'][:3], 84)


def test_embedded_images_are_what_they_are():
  source = data.open_source({'source': 'embedded'}, 'test')
  crops = data.center_cropped(source, 28)
  np.testing.assert_array_equal(crops[5]['image'], source[5]['image'])
  assert data.enlarged(crops) == ''


def test_an_image_that_is_none_is_unreadable():
  with pytest.raises(decode.Unreadable):
    decode.center_crop(b'no image', 3, 8, 8)
  file = io.BytesIO()
  Image.new('L', (9, 9)).save(file, 'PNG')
  assert decode.center_crop(file.getvalue(), 3, 8, 9).shape == (8, 8, 3)
