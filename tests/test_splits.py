"""Folders of many shapes: splits, classes, and what is said of them."""

import numpy as np
import pytest
from PIL import Image

from esvit_jax import data
from esvit_jax.data import splits
from esvit_jax.errors import UserError


def tree(root, *names, images=3):
  """Images 0.png, 1.png, ... in each folder, or one file of a name."""
  for name in names:
    path = root / name
    stem = [path] if path.suffix else [path / f'{i}.png' for i in range(images)]
    for file in stem:
      file.parent.mkdir(parents=True, exist_ok=True)
      if file.suffix == '.png':
        Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(file)
      else:
        file.write_bytes(b'?')
  return root


def pair(root, **config):
  return data.open_pair(
    {'source': f'folder:{root}', 'test_split': 'auto', **config}
  )


@pytest.mark.parametrize(
  ('folders', 'train', 'test'),
  [
    # folders, (images, classes) of train, (split, images) to judge on
    (('train/a', 'train/b', 'val/a'), (6, ['a', 'b']), ('val', 3)),
    (('train/a', 'train/b', 'valid/a'), (6, ['a', 'b']), ('valid', 3)),
    (
      ('Training/a', 'Training/b', 'Testing/b'),
      (6, ['a', 'b']),
      ('Testing', 3),
    ),
    (('TRAIN/a', 'TRAIN/b', 'dev/a', 'test/a'), (6, ['a', 'b']), ('dev', 3)),
    (('train', 'test'), (3, None), ('test', 3)),
    (('bus', 'car', 'train'), (9, ['bus', 'car', 'train']), None),
    (('x/train/a', 'x/train/b', 'x/test/a'), (6, ['a', 'b']), ('test', 3)),
    (('x/y/train/a', 'x/y/train/b'), (6, ['a', 'b']), None),
    # archives of one split each, annotations beside, images without a label
    (
      ('train/train/a', 'train/train/b', 'test/test/a'),
      (6, ['a', 'b']),
      ('test', 3),
    ),
    (
      ('images/train/a', 'images/train/b', 'images/val/a', 'labels/t.txt'),
      (6, ['a', 'b']),
      ('val', 3),
    ),
    (('train/a', 'train/b', 'unlabelled'), (6, ['a', 'b']), None),
    (('trainval/a', 'trainval/b', 'test/a'), (6, ['a', 'b']), ('test', 3)),
    (('train/x/a', 'car/x/a', 'bus/x/a'), (9, ['bus', 'car', 'train']), None),
    (('x/a', 'x/b'), (6, None), None),
    (('a', 'b'), (6, ['a', 'b']), None),
  ],
)
def test_splits_and_classes(tmp_path, folders, train, test):
  source, judged = pair(tree(tmp_path, *folders))
  assert (len(source), source.classes) == train
  assert (judged and (judged.split, len(judged))) == test


def test_a_folder_without_images_is_no_class(tmp_path):
  tree(tmp_path, 'train/a', 'train/b', 'train/notes/x.txt', 'docs/y.md')
  source, _ = pair(tmp_path)
  assert source.classes == ['a', 'b']
  assert source.notes == ('not read, by their ending: 1 .txt',)


def test_what_is_left_over_is_said(tmp_path):
  tree(tmp_path, 'train/a', 'train/b', 'test/a', 'test/c', 'extra')
  tree(tmp_path, 'train/loose.png', 'train/x.heix', 'train/z.txt')
  source, _ = pair(tmp_path)
  skipped, left_out, unlabelled, odd = source.notes
  assert '1 .heix' in skipped and '1 .txt' in skipped
  assert left_out == (
    f'beside the splits {tmp_path} has images in extra, which are left out'
  )
  assert unlabelled.startswith('1 images lie beside the class folders')
  assert len(data.labelled(source)) == len(source) - 1
  assert data.labelled(source).labels.min() == 0
  assert 'loose.png' in unlabelled
  assert odd.startswith('1 classes of other splits are not in') and 'c' in odd


def test_a_class_with_the_name_of_a_split_is_said(tmp_path):
  (note,) = pair(tree(tmp_path, 'bus', 'train'))[0].notes
  assert note.startswith('train: read as a class')


def test_folders_that_look_like_splits_or_double_them_are_said(tmp_path):
  train, _ = pair(tree(tmp_path / 'a', 'train2017', 'val2017'))
  assert train.classes == ['train2017', 'val2017']
  assert 'if they are splits' in train.notes[0]
  train, _ = pair(tree(tmp_path / 'b', 'train/a', 'train/b', 'Train/a'))
  assert 'there is Train, which is another split' in train.notes[0]
  root = tree(tmp_path / 'c', 'train/a', 'train/b')
  _, test = pair(root, test_split='Training')
  assert 'judged on the images that it trains on' in test.notes[-1]


def test_a_split_that_may_be_several_is_asked_for(tmp_path):
  tree(tmp_path, 'train', 'val', 'dev')
  with pytest.raises(UserError, match=r"'validation' may be any of dev, val"):
    pair(tmp_path)
  assert pair(tmp_path, test_split='dev')[1].split == 'dev'


def test_only_a_test_split(tmp_path):
  tree(tmp_path, 'val/a', 'val/b')
  with pytest.raises(UserError, match="no split 'train': use one of val"):
    pair(tmp_path)
  assert data.open_source({'source': f'folder:{tmp_path}'}, 'val').classes


def test_an_empty_test_split_does_not_pass_for_none(tmp_path):
  tree(tmp_path, 'train')
  (tmp_path / 'val').mkdir()
  with pytest.raises(UserError, match=r"data\.test_split='' trains without"):
    pair(tmp_path)


def test_all_sources_know_the_names(tmp_path):
  tree(tmp_path, 'images')
  for name in ('Training', 'validation'):
    (tmp_path / f'{name}.txt').write_text('0\n1\n')
  train, test = data.open_pair(
    {'source': f'list:{tmp_path}', 'test_split': 'auto'}
  )
  assert (train.split, test.split) == ('train', 'validation')
  assert splits.match('val', ('train', 'validation')) == 'validation'
  assert data.open_source({'source': 'embedded'}, 'training').split == 'train'


@pytest.mark.parametrize(
  ('source', 'words'),
  [
    ('folder:', 'is a variable of your shell not set'),
    ('list: ', 'is a variable of your shell not set'),
    ('/data/x', "is a path: write 'folder:/data/x'"),
    ('gs://bucket/x', 'buckets and other URLs are not opened'),
    ('folder:s3://bucket/x', 'buckets and other URLs are not opened'),
  ],
)
def test_sources_that_name_no_folder(source, words):
  with pytest.raises(UserError, match=words):
    data.open_source({'source': source})


def test_a_bucket_of_tfds_is_refused():
  config = {'source': 'tfds:x', 'data_dir': 'gs://bucket'}
  with pytest.raises(UserError, match=r'data\.data_dir is gs://bucket'):
    data.open_source(config)
