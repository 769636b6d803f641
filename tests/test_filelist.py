"""Images named by lists."""

import pathlib

import pytest
from PIL import Image

from esvit_jax import data
from esvit_jax.errors import UserError


def make(root: pathlib.Path, lists: dict[str, str]):
  """Four grey images below images/, and lists of them."""
  (root / 'images').mkdir()
  for k in range(4):
    Image.new('L', (5, 4), 10 * k).save(root / 'images' / f'{k}.png')
  for name, text in lists.items():
    (root / f'{name}.txt').write_text(text)
  return lambda split: data.open_source({'source': f'list:{root}'}, split)


def test_paths_without_endings_and_labels_with_spaces(tmp_path):
  """As FGVC-Aircraft's lists are: '0481847 Cessna 172'."""
  split = make(
    tmp_path,
    {
      'train': '0 Boeing 707\n1 An-12\n\n',
      'val': '2 Boeing 707',
      'test': '3 A',
    },
  )
  train = split('train')
  assert train.classes == ['A', 'An-12', 'Boeing 707']
  assert [train[i]['label'] for i in range(2)] == [2, 1]
  assert train[1]['image'].max() == 10
  assert train.where(0) == str(tmp_path / 'images' / '0.png')
  both = split('train+val')
  assert [both[i]['label'] for i in range(3)] == [2, 1, 2]


def test_paths_with_spaces(tmp_path):
  """And the mark that some editors put before the first line."""
  text = '\ufeffmy cat 0.PNG tabby cat\nb.png\t1 dog\nno ending\n'
  split = make(tmp_path, {'train': text})
  Image.new('L', (5, 4), 99).save(tmp_path / 'my cat 0.PNG')
  train = split('train')
  assert train.classes == ['1 dog', 'ending', 'tabby cat']
  assert train[0]['image'].max() == 99


def test_numbers_are_sorted_as_numbers(tmp_path):
  split = make(tmp_path, {'train': '0.png 10\n1.png 9\n2.png 1'})
  assert split('train').classes == ['1', '9', '10']


def test_lists_without_labels(tmp_path):
  source = make(tmp_path, {'train': '0\n1\n'})('train')
  assert source.classes is None
  assert source[0]['label'] == -1


@pytest.mark.parametrize(
  ('lists', 'split', 'words'),
  [
    ({'train': '0 a'}, 'test', "no split 'test'; there is train"),
    ({}, 'train', 'there is no .txt file'),
    ({'train': '0 a\n1\n'}, 'train', 'without a label'),
    ({'train': '\n'}, 'train', 'lists no images'),
  ],
)
def test_bad_lists_are_told(tmp_path, lists, split, words):
  with pytest.raises(UserError, match=words):
    make(tmp_path, lists)(split)
