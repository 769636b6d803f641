"""Files of any format, depth and number of bands, and their orientation."""

import io

import imagecodecs
import numpy as np
import pillow_heif
import pytest
import tifffile
from PIL import Image, ImageOps

from esvit_jax import data
from esvit_jax.data import __main__ as command
from esvit_jax.data import decode, depth, formats, headers
from esvit_jax.data.statistics import statistics
from esvit_jax.errors import UserError

CANVAS = (64, 64)
RAMP = np.add(*np.mgrid[:32, :32]) / 62  # 0 to 1


def write(folder, name, image, **options):
  folder.mkdir(parents=True, exist_ok=True)
  path = folder / name
  if path.suffix == '.tif':
    tifffile.imwrite(path, image, **options)
  elif image.dtype == np.uint16 and image.ndim == 3:
    path.write_bytes(imagecodecs.png_encode(image))
  else:
    Image.fromarray(image).save(path, **options)
  return folder


def first(folder, channels=1, **config):
  source = data.open_source(
    {'source': f'folder:{folder}', 'channels': channels, **config}
  )
  return source, source[0]['image'].astype(int)


@pytest.mark.parametrize('ending', ['png', 'tif'])
@pytest.mark.parametrize('bits', [8, 10, 12, 14, 16])
def test_any_depth_keeps_its_contrast(tmp_path, bits, ending):
  most = 2**bits - 1
  image = np.round(RAMP * most).astype(np.uint16)
  source, found = first(write(tmp_path, f'a.{ending}', image))
  assert np.abs(found[..., 0] - 255 * RAMP).max() <= 1
  assert source.scale.assumed == {'uint16': (0, most)}
  assert f'{most:g} white' in source.notes[0]


def test_a_deep_image_outside_the_sample_is_said(capsys):
  """It keeps its contrast, and a line says by which rule, once a type."""
  depth._say_own_values.cache_clear()
  image = np.round(RAMP * 4095).astype(np.uint16)
  for _ in range(2):
    assert np.abs(depth.to_bytes(image) - 255 * RAMP).max() <= 1
  assert capsys.readouterr().err.count('images of uint16 were not among') == 1
  depth.to_bytes(image, depth.Scale(given=(0, 4095)))
  depth.to_bytes(image, depth.Scale(assumed={'uint16': (0, 4095)}))
  assert not capsys.readouterr().err


@pytest.mark.parametrize('ending', ['png', 'tif'])
def test_deep_colour(tmp_path, ending):
  """PIL would keep the upper 8 bits, which are 4 of these 12."""
  image = np.round(np.stack([RAMP, 1 - RAMP, RAMP / 2], -1) * 4095)
  options = {'photometric': 'rgb'} if ending == 'tif' else {}
  write(tmp_path, f'a.{ending}', image.astype(np.uint16), **options)
  _, found = first(tmp_path, 3)
  assert np.abs(found - image * 255 / 4095).max() <= 1


@pytest.mark.parametrize('bands', [1, 3])
@pytest.mark.parametrize('bits', [8, 12, 16])
def test_deep_jpeg_2000(tmp_path, bands, bits):
  image = np.round(np.stack([RAMP] * bands, -1) * (2**bits - 1))
  image = image.astype(np.uint8 if bits == 8 else np.uint16).squeeze()
  record = imagecodecs.jpeg2k_encode(
    image, level=0, bitspersample=bits, codecformat='jp2'
  )
  (tmp_path / 'a.jp2').write_bytes(record)
  source, found = first(tmp_path, bands)
  assert np.abs(found - 255 * RAMP[..., None]).max() <= 1
  assert bool(source.notes) == (bits > 8)


@pytest.mark.parametrize(
  ('low', 'high', 'limits'),
  [
    (0, 1, (0, 1)),
    (0, 255, (0, 255)),
    (0, 4000, (0, 4095)),
    (-5, 3, (-5, 3)),
    (0, 1.02, (0, 1.02)),
  ],
)
def test_floats(tmp_path, low, high, limits):
  image = (low + RAMP * (high - low)).astype(np.float32)
  source, found = first(write(tmp_path, 'a.tif', image))
  assert source.scale.assumed['float32'] == pytest.approx(limits)
  expected = 255 * (image - limits[0]) / (limits[1] - limits[0])
  assert np.abs(found[..., 0] - expected).max() <= 1


def test_one_rule_for_all_images_and_both_splits(tmp_path):
  """A dark image stays dark; a field sets other limits."""
  for split in ('train', 'val'):
    for name, most in (('a', 500), ('b', 4095 if split == 'train' else 700)):
      image = np.full((8, 8), most, np.uint16)
      write(tmp_path / split, f'{name}.png', image)
  config = {'source': f'folder:{tmp_path}', 'channels': 1, 'test_split': 'auto'}
  train, test = data.open_pair(config)
  grey = [int(x[i]['image'][0, 0, 0]) for x in (train, test) for i in (0, 1)]
  assert grey == [31, 255, 31, 44]
  other, _ = data.open_pair(config | {'value_range': (0, 500)})
  assert other[0]['image'].max() == 255
  with pytest.raises(UserError, match=r'data\.value_range is'):
    data.open_pair(config | {'value_range': (5, 5)})


def test_an_image_that_was_not_sampled_is_not_clipped(tmp_path, monkeypatch):
  """Neither cut off, nor left with 4 of its bits."""
  monkeypatch.setattr(headers, 'SAMPLED', 1)
  for name, most in (('a', 4095), ('b', 65535), ('c', 255), ('d', 1023)):
    write(tmp_path, f'{name}.png', np.round(RAMP * most).astype(np.uint16))
  source, _ = first(tmp_path)
  assert source.scale.assumed == {'uint16': (0, 4095)}
  assert 'images that reach beyond' in source.notes[0]
  for i, factor in enumerate((1, 1, 1, 1023 / 4095)):
    image = source[i]['image'][..., 0].astype(float)
    assert np.abs(image - 255 * factor * RAMP).max() <= 1
  given, _ = first(tmp_path, value_range=(0, 4095))
  assert (given[1]['image'] == 255).mean() > 0.9
  assert 'values beyond are clipped' in given.notes[0]


def test_types_of_numbers_are_scaled_apart(tmp_path):
  """Floats in 0..1 among 16-bit images would be black."""
  write(tmp_path, 'a.tif', RAMP.astype(np.float32))
  write(tmp_path, 'b.png', np.round(RAMP * 65535).astype(np.uint16))
  write(tmp_path, 'c.png', np.round(RAMP * 4095).astype(np.uint16))
  source, _ = first(tmp_path)
  for i in range(3):
    image = source[i]['image'][..., 0]
    assert np.abs(image - 255 * RAMP).max() <= 1
  assert 'float32 from 0 to 1' in source.notes[0]
  assert 'uint16 from 0 to 65535' in source.notes[0]


@pytest.mark.parametrize('ending', ['png', 'tif'])
@pytest.mark.parametrize('channels', [1, 3])
def test_alpha_tells_nothing_of_the_colours(tmp_path, ending, channels):
  colours = np.round(np.stack([RAMP] * channels, -1) * 4095)
  image = np.concatenate([colours, np.full((32, 32, 1), 65535)], -1)
  image = image.astype(np.uint16)
  if ending == 'tif':
    photometric = 'rgb' if channels == 3 else 'minisblack'
    options = {'photometric': photometric, 'extrasamples': ['unassalpha']}
    write(tmp_path, 'a.tif', image, **options)
  else:
    (tmp_path / 'a.png').write_bytes(imagecodecs.png_encode(image))
  source, found = first(tmp_path, 3)
  assert np.abs(found - 255 * RAMP[..., None]).max() <= 1
  assert 'it is left out' in source.notes[1]


def test_deep_white_is_zero_and_inks(tmp_path):
  image = np.round(RAMP * 4095).astype(np.uint16)
  write(tmp_path / 'white', 'a.tif', image, photometric='miniswhite')
  _, found = first(tmp_path / 'white')
  assert np.abs(found[..., 0] - 255 * (1 - RAMP)).max() <= 1
  inks = np.stack([image] * 4, -1)
  write(tmp_path / 'inks', 'a.tif', inks, photometric='separated')
  source = data.open_source({'source': f'folder:{tmp_path}/inks'})
  with pytest.raises(data.Unreadable, match='SEPARATED of more than 8 bits'):
    source[0]


@pytest.mark.parametrize('dtype', [np.uint8, np.uint16])
def test_pages_that_are_not_read_are_said(tmp_path, dtype):
  pages = np.stack([RAMP, 1 - RAMP, RAMP]) * np.iinfo(dtype).max
  options = {'photometric': 'minisblack', 'metadata': None}
  write(tmp_path / 'pages', 'a.tif', pages.astype(dtype), **options)
  source, found = first(tmp_path / 'pages', 3)
  assert np.abs(found - 255 * RAMP[..., None]).max() <= 1
  assert 'the 3 of' in source.notes[-1]
  frames = [Image.new('L', (8, 8), grey) for grey in (0, 99, 200)]
  (tmp_path / 'film').mkdir()
  frames[0].save(
    tmp_path / 'film' / 'a.gif', save_all=True, append_images=frames[1:]
  )
  assert 'several pages or frames' in first(tmp_path / 'film')[0].notes[-1]


def test_a_composite_of_channels_is_colour(tmp_path):
  """As microscopes and ImageJ write it, one page a channel."""
  image = np.stack([RAMP, 1 - RAMP, RAMP / 2]) * 4095
  options = {'imagej': True, 'metadata': {'axes': 'CYX'}}
  write(tmp_path, 'a.tif', image.astype(np.uint16), **options)
  source, found = first(tmp_path, 3)
  assert np.abs(found - np.moveaxis(image, 0, -1) / 4095 * 255).max() <= 1
  assert len(source.notes) == 1


def test_not_a_number_is_black_and_all_of_them_are_unreadable():
  image = np.float32([[0, 1], [np.nan, 0.5]])
  assert depth.to_bytes(image).tolist() == [[0, 255], [0, 128]]
  with pytest.raises(data.Unreadable, match='finite'):
    depth.to_bytes(np.full((2, 2), np.nan))


@pytest.mark.parametrize('bands', [2, 4, 5])
@pytest.mark.parametrize('dtype', [np.uint8, np.uint16])
@pytest.mark.parametrize('planar', ['contig', 'separate'])
def test_any_number_of_bands(tmp_path, bands, dtype, planar):
  most = np.iinfo(dtype).max
  image = np.stack([RAMP * most / (i + 1) for i in range(bands)], -1)
  stored = image.astype(dtype)
  if planar == 'separate':
    stored = np.moveaxis(stored, -1, 0)
  options = {'photometric': 'minisblack', 'planarconfig': planar}
  folder = write(tmp_path, 'a.tif', stored, **options)
  _, found = first(folder, bands)
  assert found.shape == (32, 32, bands)
  assert np.abs(found - image / most * 255).max() <= 1
  config = {'source': f'folder:{folder}', 'channels': bands, 'canvas': 16}
  assert data.open_source(config)[0]['image'].shape == (16, 16, bands)
  if bands == 5:
    with pytest.raises(UserError, match=r'set data\.channels=5'):
      first(folder, 3)
  values = statistics(data.open_source(config))
  assert values.shape == (2, bands)
  np.testing.assert_allclose(
    values[0], 0.5 / np.arange(1, bands + 1), atol=0.01
  )


def test_alpha_is_a_band_where_four_are_asked_for(tmp_path):
  image = np.zeros((8, 8, 4), np.uint8) + np.uint8([10, 20, 30, 40])
  write(tmp_path, 'a.png', image)
  assert first(tmp_path, 4)[1][0, 0].tolist() == [10, 20, 30, 40]
  assert first(tmp_path, 3)[1][0, 0].tolist() == [10, 20, 30]
  with pytest.raises(UserError, match=r'set data\.channels=4'):
    first(tmp_path, 5)


@pytest.mark.parametrize(
  ('ending', 'kind'),
  [
    *(('jfif', 'JPEG'), ('jpe', 'JPEG'), ('jp2', 'JPEG2000'), ('avif', 'AVIF')),
    *(('JPG', 'JPEG'), ('tga', 'TGA'), ('pgm', 'PPM')),
  ],
)
def test_endings_that_are_read(tmp_path, ending, kind):
  Image.fromarray(np.full((16, 16), 200, np.uint8)).save(
    tmp_path / f'a.{ending}', kind
  )
  _, found = first(tmp_path)
  assert np.abs(found - 200).max() <= 3


def test_heic_is_read_with_pillow_heif(tmp_path):
  image = Image.fromarray(np.full((64, 64, 3), 200, np.uint8))
  pillow_heif.from_pillow(image).save(tmp_path / 'a.heic')
  assert np.abs(first(tmp_path, 3)[1] - 200).max() <= 4


@pytest.mark.parametrize('orientation', range(1, 9))
@pytest.mark.parametrize('kind', ['JPEG', 'PNG', 'TIFF', 'WEBP', 'AVIF'])
def test_photographs_stand_upright(tmp_path, orientation, kind):
  """Against PIL's own; a field leaves them as they are stored."""
  image = np.zeros((16, 24, 3), np.uint8)
  image[:8, :8], image[8:, 16:] = 255, 120
  image = Image.fromarray(image)
  exif = Image.Exif()
  exif[formats.EXIF_ORIENTATION] = orientation
  image.save(tmp_path / 'a.jpg', kind, exif=exif)
  plain = np.asarray(image)
  with Image.open(tmp_path / 'a.jpg') as stored:
    expected = np.asarray(ImageOps.exif_transpose(stored))
  _, found = first(tmp_path, 3)
  assert found.shape == expected.shape
  assert np.abs(found - expected).max() <= 2
  _, found = first(tmp_path, 3, exif_orientation=False)
  assert found.shape == plain.shape and np.abs(found - plain).mean() < 6
  record = (tmp_path / 'a.jpg').read_bytes()
  small = decode.decode(record, 3, (8, 12), upright=True)
  assert max(small.shape[:2]) <= 12


def test_statistics_as_fields(capsys):
  assert command.main(['stats', 'embedded', '--channels=1']) == 0
  assert '--config.data.mean=0.287' in capsys.readouterr().out
  assert command.main(['stats', 'folder:']) == 2


def test_files_of_16_bits_without_a_rule_keep_their_own():
  file = io.BytesIO()
  Image.fromarray(np.uint16([[0, 1000]])).save(file, 'PNG')
  assert decode.decode(file.getvalue(), 1, CANVAS)[0, 1, 0] == 249  # of 10 bits
