"""Frozen segmentation and label propagation of a tiny run."""

import io
import json

import numpy as np
import pytest
from davis import write_davis
from PIL import Image

from configs.eval import propagation, segmentation
from esvit_jax import data, evaluate
from esvit_jax.errors import UserError


def config_of(tiny_run, **data):
  c = segmentation.get_config()
  c.checkpoint = tiny_run
  c.batch_size = 8
  c.data.workers = 2
  c.data.update(data)
  c.segmentation.train_images, c.segmentation.test_images = 20, 8
  c.segmentation.memory = 1000
  return c


@pytest.fixture(scope='module')
def two_greys(tmp_path_factory):
  """Images of which every pixel's class is its brightness."""
  root = tmp_path_factory.mktemp('greys')
  rng = np.random.default_rng(0)
  for split, count in (('train', 24), ('val', 8)):
    for kind in ('images', 'masks'):
      (root / kind / split).mkdir(parents=True)
    for i in range(count):
      labels = np.kron(rng.integers(2, size=(3, 4)), np.ones((16, 16)))
      noise = rng.uniform(-30, 30, labels.shape)
      image = np.uint8(60 + 120 * labels + noise)
      Image.fromarray(image).save(root / 'images' / split / f'{i}.png')
      labels[:4] = 255
      mask = Image.fromarray(labels.astype(np.uint8))
      mask.save(root / 'masks' / split / f'{i}.png')
  (root / 'classes.txt').write_text('dark\nlight\n')
  return root


@pytest.mark.slow
def test_every_pixel_is_told_where_its_brightness_tells(
  tiny_run, two_greys, tmp_path
):
  out = io.StringIO()
  config = config_of(tiny_run, source=f'masks:{two_greys}')
  config.size = 64
  figures = evaluate.run(config, str(tmp_path), out)
  raw = next(r for r in figures['table'] if r['network'] == 'raw patches')
  for readout in ('linear', 'balanced', 'in_context'):
    assert raw[f'{readout}_miou'] > 90, raw
    assert raw[f'{readout}_pixel_accuracy'] > 95
  assert [r['class'] for r in figures['iou_of_classes']] == ['dark', 'light']
  assert figures['void_percent'] == pytest.approx(100 * 4 / 48)
  said = out.getvalue()
  assert '20 images with masks, 2 of 2 classes, 8.3 % void' in said
  assert 'pre-trained' in said and 'DINOv2 S/14' in said
  assert (tmp_path / 'pictures' / 'segmentation.png').exists()
  written = json.loads((tmp_path / 'eval' / 'segmentation.json').read_text())
  assert written['figures'] == figures
  assert {r['features'] for r in figures['table']} == {'4 px', '8 px', 'all'}


def test_views_that_do_not_divide_are_refused(tiny_run, tmp_path):
  config = config_of(tiny_run)
  config.size = 92  # 23 tokens, then 12: the last one is half
  with pytest.raises(UserError, match='multiple of the coarsest stride'):
    evaluate.run(config, str(tmp_path), io.StringIO())


def test_it_takes_masks_and_a_test_split(tiny_run, tmp_path):
  config = config_of(tiny_run, source='embedded')
  with pytest.raises(UserError, match='has no masks'):
    evaluate.run(config, str(tmp_path), io.StringIO())
  config = config_of(tiny_run, test_split='')
  with pytest.raises(UserError, match='no test split'):
    evaluate.run(config, str(tmp_path), io.StringIO())


def squares() -> data.Video:
  """Two striped squares that cross dark ground by whole tokens."""
  frames = np.full((6, 64, 96, 1), 20, np.uint8)
  stripes = np.where(np.arange(16) % 4 < 2, 240, 20)[:, None] * np.ones(16)
  objects = np.zeros((6, 64, 96), np.uint8)
  for t in range(6):
    for k, (top, look) in enumerate(((8, stripes), (40, stripes.T)), 1):
      rows, columns = slice(top, top + 16), slice(8 + 8 * t, 24 + 8 * t)
      frames[t, rows, columns, 0], objects[t, rows, columns] = look, k
  noise = np.random.default_rng(0).integers(0, 12, frames.shape)
  return data.Video('squares', frames + noise.astype(np.uint8), objects)


def test_what_looks_alike_is_followed(tiny_run, tmp_path):
  out = io.StringIO()
  write_davis(tmp_path / 'davis', [squares()])
  config = propagation.get_config('davis')
  config.checkpoint = tiny_run
  config.data.source = f'davis:{tmp_path / "davis"}'
  config.size, config.propagation.multiple = 64, 32
  figures = evaluate.run(config, str(tmp_path / 'x'), out)
  raw = {
    r['features']: r for r in figures['table'] if r['network'] == 'raw patches'
  }
  assert set(raw) == {'4 px', '8 px', 'all'}
  assert raw['4 px']['J'] > 80 and raw['4 px']['F'] > 80
  assert figures['videos'] == 1 and figures['objects'] == 2
  assert figures['JF'] == (figures['J'] + figures['F']) / 2
  assert 'DAVIS 2017 val, 1 of 1' in out.getvalue()
  assert 'DINO B/8' in out.getvalue()
  assert (tmp_path / 'x' / 'pictures' / 'propagation.png').exists()
  written = json.loads((tmp_path / 'x/eval/propagation.json').read_text())
  assert written['figures'] == figures
