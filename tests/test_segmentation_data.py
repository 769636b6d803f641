"""Classes of pixels through the data path."""

import dataclasses

import numpy as np
import pytest
from PIL import Image

from esvit_jax import data
from esvit_jax.data import decode
from esvit_jax.data.segmentation import VOID
from esvit_jax.errors import UserError


def scenes(count=6, **config):
  train, _ = data.open_pair({'source': 'scenes', 'test_split': ''} | config)
  return data.subset(train, range(count), 'few')


def write(root, source, split='train', ending='png'):
  """A `masks:` folder of the images and masks of a source."""
  for kind in ('images', 'masks'):
    (root / kind / split).mkdir(parents=True, exist_ok=True)
  for i in range(len(source)):
    image, _ = source.read(i)
    name = f'{i:03d}'
    Image.fromarray(image[..., 0]).save(
      root / 'images' / split / f'{name}.{ending}'
    )
    mask = Image.fromarray(source.segmentation.read(i))
    mask.save(root / 'masks' / split / f'{name}.png')
  names = '\n'.join(source.segmentation.classes)
  (root / 'classes.txt').write_text(names)


def opened(root, **config):
  return data.open_source(
    {'source': f'masks:{root}', 'channels': 1, 'canvas': 96} | config
  )


def refused(root, **config) -> str:
  with pytest.raises(UserError) as e:
    data.survey(opened(root, **config))
  text = str(e.value)
  assert '\n' not in text
  return text


def test_scenes_are_a_function_of_seed_split_and_index():
  (one, same), other = (scenes() for _ in range(2)), scenes(source='scenes:1')
  for i in (3, 0, 3):
    np.testing.assert_array_equal(one[i]['image'], same[i]['image'])
    np.testing.assert_array_equal(
      one[i]['segmentation'], same[i]['segmentation']
    )
  assert (one[0]['image'] != other[0]['image']).any()
  test = data.open_source({'source': 'scenes'}, 'test')
  assert (one[0]['image'] != test[0]['image']).any()
  large = scenes(canvas=(128, 160))
  assert large[0]['image'].shape == (128, 160, 1)
  assert large[0]['segmentation'].shape == (128, 160)


def test_scenes_show_every_class_and_mostly_ground():
  source = scenes(200)
  survey = data.survey(source)
  share = survey.counts / survey.counts.sum()
  assert 0.78 < share[0] < 0.88 and (share[1:] > 0.005).all()
  assert survey.void < 0.01
  # A garment is lighter than its ground nearly everywhere.
  example = source[0]
  inside = (example['segmentation'] > 0) & (example['segmentation'] != VOID)
  assert example['image'][inside].mean() > example['image'][~inside].mean() + 30


def test_a_folder_of_scenes_is_the_scenes(tmp_path):
  source = scenes()
  write(tmp_path, source)
  folder = opened(tmp_path)
  batches = [
    next(iter(data.epoch(s, 4, reading=data.Reading(2))))
    for s in (source, folder)
  ]
  for name in ('image', 'size', 'segmentation', 'mask'):
    np.testing.assert_array_equal(*(b[name] for b in batches), err_msg=name)
  pipelines = [data.Pipeline(s, 0, 4)[3] for s in (source, folder)]
  np.testing.assert_array_equal(*(p['segmentation'] for p in pipelines))
  assert folder.segmentation.classes == list(source.segmentation.classes)
  surveys = [data.survey(s) for s in (source, folder)]
  np.testing.assert_array_equal(surveys[0].counts, surveys[1].counts)
  assert '6 images with masks' in surveys[1].line(folder)


def test_padding_is_void(tmp_path):
  write(tmp_path, scenes(2))
  batch = next(iter(data.epoch(opened(tmp_path, canvas=(96, 128)), 3)))
  assert (batch['segmentation'][:2, :, 96:] == VOID).all()
  assert (batch['segmentation'][2] == VOID).all()
  assert (batch['segmentation'][:2, :, :96] != VOID).mean() > 0.9


@pytest.mark.parametrize('shape', [(120, 90), (40, 300), (97, 201)])
def test_masks_move_as_their_images(shape):
  """A picture of its own mask still is one when both were shrunk or cut."""
  y, x = np.mgrid[: shape[0], : shape[1]]
  labels = ((y // 20 + x // 20) % 2).astype(np.uint8)
  image = decode.decode(200 * labels, 1, (64, 64))
  moved = decode.fit_labels(labels, image.shape[:2], (64, 64))
  assert moved.shape == image.shape[:2]
  assert ((image[..., 0] > 100) == moved).mean() > 0.93


def test_nearest_takes_the_first_of_two():
  labels = np.arange(16, dtype=np.uint8).reshape(4, 4)
  found = decode.fit_labels(labels, (2, 2), (2, 2))
  np.testing.assert_array_equal(found, [[0, 2], [8, 10]])


def test_palettes_and_sixteen_bits_are_numbers(tmp_path):
  source = scenes(1)
  write(tmp_path, source)
  path = tmp_path / 'masks' / 'train' / '000.png'
  truth = opened(tmp_path)[0]['segmentation']
  indexed = Image.fromarray(truth)
  indexed.putpalette(np.random.default_rng(0).integers(256, size=768).tolist())
  indexed.save(path)
  np.testing.assert_array_equal(opened(tmp_path)[0]['segmentation'], truth)
  Image.fromarray(truth.astype(np.uint16)).save(path)
  np.testing.assert_array_equal(opened(tmp_path)[0]['segmentation'], truth)
  Image.fromarray(truth).convert('RGB').save(path)
  assert 'holds colours (RGB)' in refused(tmp_path)
  path.write_bytes(b'no image')
  assert f'the mask {path} is no image' in refused(tmp_path)


def test_zero_may_be_void(tmp_path):
  source = scenes(2)
  write(tmp_path, source)
  both = np.stack([source.segmentation.read(i) for i in range(2)])
  truth, largest = both[1], both[both != VOID].max()
  (tmp_path / 'classes.txt').write_text('\n'.join(map(str, range(largest))))
  assert f'holds class {largest}, and there are' in refused(tmp_path)
  found = opened(tmp_path, zero='void')[1]['segmentation']
  assert (found[truth == 0] == VOID).all()
  kept = (truth > 0) & (truth != VOID)
  np.testing.assert_array_equal(found[kept], truth[kept] - 1)
  with pytest.raises(UserError, match="use 'class' or 'void'"):
    opened(tmp_path, zero='none')


def test_without_names_the_numbers_are_the_classes(tmp_path):
  write(tmp_path, scenes(4))
  (tmp_path / 'classes.txt').unlink()
  largest = max(
    x[x != VOID].max() for x in map(scenes().segmentation.read, range(4))
  )
  classes = opened(tmp_path).segmentation.classes
  assert classes == [str(k) for k in range(largest + 1)]


def test_what_is_wrong_with_a_folder_is_said(tmp_path):
  with pytest.raises(UserError, match='there is no folder'):
    opened(tmp_path)
  write(tmp_path, scenes(3))
  with pytest.raises(UserError, match="no split 'val'"):
    opened(tmp_path, split='val')
  masks = tmp_path / 'masks' / 'train'
  (masks / '001.png').unlink()
  assert '1 images without a mask left out' in opened(tmp_path).name
  Image.fromarray(np.zeros((96, 90), np.uint8)).save(masks / '002.png')
  said = refused(tmp_path)
  assert '002.png has 96 x 96 pixels and its mask 90 x 96' in said
  with pytest.raises(UserError, match='90 x 96'):
    next(iter(data.epoch(opened(tmp_path), 2)))
  for path in masks.iterdir():
    path.unlink()
  with pytest.raises(UserError, match='none of 3 images has a mask'):
    opened(tmp_path)


def test_an_orientation_tag_is_named(tmp_path):
  for kind in ('images', 'masks'):
    (tmp_path / kind).mkdir()
  exif = Image.Exif()
  exif[0x0112] = 6
  Image.new('RGB', (60, 40)).save(tmp_path / 'images' / 'a.jpg', exif=exif)
  Image.new('L', (40, 60)).save(tmp_path / 'masks' / 'a.png')
  (tmp_path / 'classes.txt').write_text('all')
  assert 'orientation tag (EXIF)' in refused(tmp_path)


def test_unreadable_images_are_the_pipelines(tmp_path):
  write(tmp_path, scenes(3))
  path = tmp_path / 'images' / 'train' / '001.png'
  path.write_bytes(b'no image')
  source = opened(tmp_path)
  assert data.survey(source).counts.sum() > 2 * 90**2
  with data.epoch(source, 3, reading=data.Reading(max_unreadable=0.5)) as feed:
    batch = next(feed)
  np.testing.assert_array_equal(batch['mask'], [True, False, True])
  assert (batch['segmentation'][1] == VOID).all()


def test_names_that_share_a_mask_and_masks_of_nothing(tmp_path):
  write(tmp_path, scenes(2))
  for path in (tmp_path / 'masks' / 'train').iterdir():
    Image.new('L', (96, 96), VOID).save(path)
  assert 'all pixels of all masks are void' in refused(tmp_path)
  copy = tmp_path / 'images' / 'train' / '000.jpg'
  Image.new('L', (96, 96)).save(copy)
  with pytest.raises(UserError, match='would have one mask'):
    opened(tmp_path)


def test_a_source_without_masks_says_so():
  source = data.open_source({'source': 'embedded'})
  with pytest.raises(UserError, match='has no masks'):
    data.survey(source)


def test_scenes_say_what_they_cannot_be():
  for config, said in (
    ({'source': 'scenes:x'}, 'give a seed'),
    ({'source': 'scenes', 'canvas': 40}, 'at least 50 pixels'),
    ({'source': 'scenes', 'split': 'val'}, "no split 'val'"),
  ):
    with pytest.raises(UserError, match=said):
      data.open_source(config)


def test_parts_keep_their_masks():
  source = scenes(10)
  rest, held = data.hold_out(source, 0.2)
  part = data.subset(held, [1], 'one')
  i = int(held.where(1).strip('train[]'))
  np.testing.assert_array_equal(
    part[0]['segmentation'], source[i]['segmentation']
  )
  assert len(rest) == 8 and dataclasses.is_dataclass(part)
