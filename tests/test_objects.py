"""Objects through the data path: boxes, classes and masks."""

import json

import numpy as np
import pytest
from PIL import Image

from esvit_jax import data
from esvit_jax.data import decode, objects
from esvit_jax.errors import UserError


def scenes(count=6, split='train', **config):
  source = data.open_source({'source': 'scenes', 'objects': 8} | config, split)
  return data.subset(source, range(count), 'few')


def box(each):
  x, y, *far = map(float, each)
  return [x, y, far[0] - x, far[1] - y]


def code(mask):
  """Column-wise lengths of runs, uncompressed."""
  flat = mask.T.ravel().astype(int)
  edges = np.flatnonzero(np.diff(flat)) + 1
  runs = np.diff([0, *edges, flat.size]).tolist()
  return {'size': list(mask.shape), 'counts': [0] * flat[0] + runs}


def write(root, source, split='train2017', change=None):
  """A `coco:` folder of the images and objects of a source."""
  (root / 'annotations').mkdir(parents=True, exist_ok=True)
  (root / split).mkdir(exist_ok=True)
  known = source.objects
  images, annotations = [], []
  for i in range(len(source)):
    image, _ = source.read(i)
    name = f'{i:03d}.png'
    Image.fromarray(image[..., 0]).save(root / split / name)
    h, w, _ = image.shape
    images.append({'id': 10 + i, 'file_name': name, 'height': h, 'width': w})
    for each in zip(*known.read(i)):
      annotations.append(
        {
          'id': len(annotations) + 1,
          'image_id': 10 + i,
          'category_id': 2 * int(each[1]) + 1,  # with holes, as COCO's
          'bbox': box(each[0]),
          'area': float(each[4]),
          'iscrowd': int(each[3]),
          'segmentation': code(each[2]),
        }
      )
  content = {
    'images': images,
    'annotations': annotations,
    'categories': [
      {'id': 2 * k + 1, 'name': name} for k, name in enumerate(known.classes)
    ],
  }
  if change:
    change(content)
  file = root / 'annotations' / f'instances_{split}.json'
  file.write_text(json.dumps(content))


def opened(root, **config):
  return data.open_source(
    {'source': f'coco:{root}', 'channels': 1, 'canvas': 96, 'objects': 8}
    | config
  )


def refused(root, **config):
  with pytest.raises(UserError) as e:
    opened(root, **config)
  assert '\n' not in str(e.value)
  return str(e.value)


def test_objects_of_scenes_are_what_their_pixels_say():
  source = scenes(20)
  for i in range(20):
    example, instances = source[i], source.objects.read(i)
    assert len(example['boxes']) == len(instances.masks) <= 5
    union = np.zeros((96, 96), int)
    for (x1, y1, x2, y2), class_, mask in zip(
      example['boxes'].astype(int), example['classes'], instances.masks
    ):
      assert mask[y1:y2, x1:x2].sum() == mask.sum()
      assert mask[y1].any() and mask[y2 - 1].any()
      assert mask[:, x1].any() and mask[:, x2 - 1].any()
      union[mask] += 1
      assert set(example['segmentation'][mask]) == {class_ + 1}
    assert union.max() <= 1
    known = (example['segmentation'] > 0) & (example['segmentation'] < 255)
    np.testing.assert_array_equal(union > 0, known)
    # An image is of the classes of its objects.
    assert set(np.flatnonzero(example['label'] == 1)) == set(example['classes'])


def test_a_shape_is_the_mask_in_its_box():
  source = scenes(4)
  example, masks = source[0], source.objects.read(0).masks
  for (x1, y1, x2, y2), shape, mask in zip(
    example['boxes'].astype(int), example['shapes'], masks
  ):
    back = Image.fromarray(shape).resize(
      (x2 - x1, y2 - y1), Image.Resampling.BILINEAR
    )
    wrong = (np.asarray(back) >= 128) != mask[y1:y2, x1:x2]
    assert wrong.mean() < 0.03


def test_a_coco_folder_of_scenes_is_the_scenes(tmp_path):
  source = scenes()
  write(tmp_path, source)
  folder = opened(tmp_path)
  assert list(folder.objects.classes) == list(source.objects.classes)
  assert folder.objects.ids[:3] == [1, 3, 5]
  assert folder.objects.image_id(2) == 12
  batches = [data.Pipeline(x, 0, 6)[3] for x in (source, folder)]
  for name in ('image', 'size', 'index', 'boxes', 'classes', 'shapes'):
    np.testing.assert_array_equal(*(b[name] for b in batches), err_msg=name)
  assert batches[0]['boxes'].shape == (6, 8, 4)
  assert (batches[0]['classes'][:, -1] == -1).all()


def test_without_objects_asked_for_none_are_read():
  source = data.open_source({'source': 'scenes'})
  assert source.objects is None and 'boxes' not in source[0]


def test_boxes_follow_the_canvas(tmp_path):
  """A large image is shrunk and cut; its boxes and shapes with it."""
  rng = np.random.default_rng(0)
  image = rng.integers(0, 99, (80, 400, 1), np.uint8)
  image[20:60, 150:210] = 255
  masks = np.zeros((2, 80, 400), bool)
  masks[0, 20:60, 150:210] = True
  masks[1, :, :20] = True  # is cut off
  instances = objects.Instances(
    objects.tight(masks),
    np.array([3, 4]),
    masks,
    np.zeros(2, bool),
    np.array([1.0, 1]),
  )
  small = decode.decode(image, 1, (64, 64))
  found = objects.fit(instances, (80, 400), small.shape[:2], (64, 64), 8)
  assert found['classes'].tolist() == [3]
  x1, y1, x2, y2 = found['boxes'][0]
  y, x = np.nonzero(small[..., 0] > 200)
  assert abs(x.min() - x1) <= 1 and abs(x.max() + 1 - x2) <= 1
  assert abs(y.min() - y1) <= 1 and abs(y.max() + 1 - y2) <= 1
  assert (found['shapes'] > 200).all()


def test_the_largest_of_too_many_stay():
  masks = np.zeros((4, 9, 9), bool)
  for k, side in enumerate((2, 5, 3, 4)):
    masks[k, :side, :side] = True
  instances = objects.Instances(
    objects.tight(masks),
    np.arange(4),
    masks,
    np.array([False, True, False, False]),
    masks.sum((1, 2)),
  )
  found = objects.fit(instances, (9, 9), (9, 9), (9, 9), 2)
  assert found['classes'].tolist() == [2, 3]  # 1 is a crowd


def polygon(content, image, points):
  content['annotations'].append(
    {
      'id': 900 + len(content['annotations']),
      'image_id': image,
      'category_id': 1,
      'bbox': [4, 4, 10, 10],
      'area': 100.0,
      'iscrowd': 0,
      'segmentation': [points],
    }
  )


def test_odd_annotations_are_left_out_and_said(tmp_path):
  def change(content):
    every = content['annotations']
    content['annotations'] = [x for x in every if x['image_id'] != 12]
    first = content['annotations'][0]
    content['annotations'] += [
      first | {'id': 901, 'bbox': [50, 50, -10, 10]},
      first | {'id': 902, 'bbox': [96, 5, 10, 10]},
      first | {'id': 903, 'iscrowd': 1},
      first | {'id': 904, 'image_id': 77},
    ]
    polygon(content, 11, [1, 1, 5, 5])
    polygon(content, 12, [4, 4, 14, 4, 14, 14, 4, 14])
    content['images'].append(
      {'id': 50, 'file_name': 'gone.png', 'height': 9, 'width': 9}
    )
    content['annotations'] = [
      x for x in content['annotations'] if x['image_id'] != 13
    ]

  source = scenes()
  write(tmp_path, source, change=change)
  folder = opened(tmp_path)
  assert len(folder) == 6
  notes = '\n'.join(folder.notes)
  for words in (
    '1 of them crowds',
    '1 images without objects',
    '1 images of the json are not there',
    '1 objects with boxes of no width',
    '1 objects with boxes outside',
    '1 objects with masks of fewer than three points',
    '1 objects of images that are not listed',
  ):
    assert words in notes, words
  batch = next(iter(data.epoch(folder, 6)))
  assert (batch['classes'][3] == -1).all()
  np.testing.assert_array_equal(batch['boxes'][2, 0], [4, 4, 14, 14])
  assert (batch['shapes'][2, 0] >= 128).mean() > 0.99
  alike = source[0]['classes']
  np.testing.assert_array_equal(batch['classes'][0, : len(alike)], alike)
  assert batch['classes'][0, len(alike)] == -1  # the crowd is no object
  assert folder.objects.read(0).crowd.sum() == 1


@pytest.mark.parametrize(
  ('change', 'words'),
  [
    (
      lambda c: c['annotations'][0]['segmentation'].update(size=[9, 9]),
      'has 9 x 9 pixels',
    ),
    (lambda c: c.update(annotations=[]), 'has no annotations'),
    (
      lambda c: c['annotations'][0].update(category_id=4),
      'is not among the categories',
    ),
    (
      lambda c: [x.update(file_name='x.png') for x in c['images']],
      'none of its 6 images is there',
    ),
    (
      lambda c: [x.update(bbox=[1, 1, 0, 5]) for x in c['annotations']],
      'no image has an object',
    ),
  ],
)
def test_wrong_annotations_are_refused(tmp_path, change, words):
  write(tmp_path, scenes(), change=change)
  assert words in refused(tmp_path)


def test_folders_that_are_no_coco_folder(tmp_path):
  assert 'there is no json' in refused(tmp_path)
  write(tmp_path, scenes(2))
  assert "has no split 'val'" in refused(tmp_path, split='val')
  (tmp_path / 'annotations' / 'instances_val.json').write_text('{')
  assert 'cannot read' in refused(tmp_path, split='val')


def test_an_image_of_another_size_than_its_json_says(tmp_path):
  def change(content):
    for image in content['images']:
      image['width'] += 4
    for each in content['annotations']:
      each['segmentation'] = [[4, 4, 14, 4, 14, 14]]

  write(tmp_path, scenes(2), change=change)
  with pytest.raises(UserError, match='96 x 96 pixels and its mask 100 x 96'):
    opened(tmp_path)[0]
