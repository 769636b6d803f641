"""Laws of the data room: sources, decoding, batches, unreadable images."""

import io
import itertools
import os
import pathlib
import subprocess
import sys
import time

import numpy as np
import pytest
import simplejpeg
from PIL import Image

from esvit_jax import data
from esvit_jax.data import decode
from esvit_jax.errors import UserError


def _picture(i, h=20, w=30):
  """A smooth colour picture that differs for each i."""
  y, x = np.mgrid[:h, :w]
  planes = [x * 255 // w, y * 255 // h, np.full((h, w), (37 * i) % 256)]
  return np.stack(planes, -1).astype(np.uint8)


def _encoded(image, kind='PNG', **options):
  file = io.BytesIO()
  Image.fromarray(image).save(file, kind, **options)
  return file.getvalue()


def _write_images(folder, names, **size):
  for i, name in enumerate(names):
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    ending = path.suffix[1:].upper().replace('JPG', 'JPEG')
    path.write_bytes(_encoded(_picture(i, **size), ending))


def _open(folder, split='train', **config):
  return data.open_source({'source': f'folder:{folder}', **config}, split)


def _same(a, b):
  return a.keys() == b.keys() and all(
    a[k].dtype == b[k].dtype and np.array_equal(a[k], b[k]) for k in a
  )


@pytest.fixture(scope='module')
def embedded():
  return data.open_source({'source': 'embedded'})


@pytest.fixture
def hundred(tmp_path):
  """A folder of 100 small JPEGs."""
  _write_images(tmp_path, [f'{i:03d}.jpg' for i in range(100)])
  return tmp_path


class TestEmbedded:
  def test_holds_what_it_promises(self, embedded):
    test = data.open_source({'source': 'embedded'}, 'test')
    assert (len(embedded), len(test)) == (10_000, 2_000)
    assert embedded.canvas == (28, 28)
    assert embedded.channels == 1
    assert len(embedded.classes) == 10
    example = embedded[9_999]
    assert example['image'].shape == (28, 28, 1)
    assert example['image'].dtype == np.uint8
    assert example['index'] == 9_999
    assert {test[i]['label'] for i in range(100)} == set(range(10))
    with pytest.raises(IndexError):
      embedded[10_000]

  def test_is_small_and_carries_its_licence(self):
    folder = pathlib.Path(data.__file__).parent
    assert (folder / 'fashion_mnist.npz').stat().st_size <= 6e6
    notice = (folder / 'FASHION_MNIST_NOTICE').read_text()
    assert 'Zalando' in notice and 'MIT License' in notice

  def test_repeats_grey_for_three_channels(self, embedded):
    colour = data.open_source({'source': 'embedded', 'channels': 3})
    grey = embedded[7]['image']
    assert np.array_equal(colour[7]['image'], np.repeat(grey, 3, -1))

  def test_three_examples_tell_where_they_are(self, embedded):
    assert embedded.examples() == ['train[0]', 'train[3333]', 'train[6666]']

  def test_batch_of_64_costs_under_3_ms(self, embedded):
    pipeline = data.Pipeline(embedded, 0, 64)
    times = []
    for step in range(20):
      start = time.thread_time()
      pipeline[step]
      times.append(time.thread_time() - start)
    assert min(times) < 3e-3


class TestPipeline:
  def test_batch_is_a_pure_function_of_seed_and_step(self, embedded):
    one = data.Pipeline(embedded, 3, 32)
    other = data.Pipeline(embedded, 3, 32)
    far = one[123_456]  # reached without the steps before
    assert _same(far, other[123_456])
    assert not _same(far, one[123_457])
    assert not _same(far, data.Pipeline(embedded, 4, 32)[123_456])

  def test_batch_has_the_promised_types(self, embedded):
    batch = data.Pipeline(embedded, 0, 8)[0]
    kinds = {k: (v.shape, v.dtype.name) for k, v in batch.items()}
    assert kinds == {
      'image': ((8, 28, 28, 1), 'uint8'),
      'size': ((8, 2), 'int32'),
      'label': ((8,), 'int32'),
      'index': ((8,), 'int32'),
    }
    for row, i in enumerate(batch['index'].tolist()):
      assert np.array_equal(batch['image'][row], embedded[i]['image'])
      assert batch['label'][row] == embedded[i]['label']

  def test_threads_give_the_same_batches_in_order(self, embedded):
    pipeline = data.Pipeline(embedded, 1, 48, reading=data.Reading(3))
    with pipeline.iterate(70) as feed:
      for step, batch in enumerate(itertools.islice(feed, 8), 70):
        assert _same(batch, pipeline[step])
      assert feed.waited > 0

  def test_every_image_once_per_epoch(self, hundred):
    pipeline = data.Pipeline(_open(hundred), 0, 8)
    stream = np.concatenate([pipeline[s]['index'] for s in range(25)])
    first, second = stream[:100], stream[100:]
    assert sorted(first) == sorted(second) == list(range(100))
    assert not np.array_equal(first, second)

  @pytest.mark.parametrize('n', [2, 4])
  def test_processes_share_the_batch_of_one(self, embedded, n):
    whole = data.Pipeline(embedded, 5, 16)[9]
    parts = [data.Pipeline(embedded, 5, 16, rank, n)[9] for rank in range(n)]
    joined = {k: np.concatenate([p[k] for p in parts]) for k in whole}
    assert _same(joined, whole)

  def test_refuses_a_batch_that_processes_cannot_share(self, embedded):
    with pytest.raises(UserError, match=r'10 .* 4 processes'):
      data.Pipeline(embedded, 0, 10, 0, 4)

  def test_closing_stops_the_threads(self, embedded):
    feed = data.Pipeline(embedded, 0, 16).iterate()
    next(feed)
    feed.close()
    with pytest.raises(StopIteration):
      next(feed)

  @pytest.mark.parametrize('n', [1, 2])
  def test_epoch_covers_each_image_once_in_order(self, hundred, n):
    source = _open(hundred)
    feeds = [list(data.epoch(source, 16, rank, n)) for rank in range(n)]
    assert all(len(feed) == 7 for feed in feeds)
    rows = {
      k: np.concatenate([b[k] for step in zip(*feeds) for b in step])
      for k in ('index', 'mask', 'size')
    }
    assert rows['index'][rows['mask']].tolist() == list(range(100))
    assert (rows['index'][~rows['mask']] == -1).all()
    assert (rows['size'][rows['mask']] == (20, 30)).all()


class TestFolder:
  def test_flat_without_labels_in_sorted_order(self, tmp_path):
    _write_images(tmp_path, ['b.png', 'a.JPG', 'c.bmp', 'sub.d/e.gif'])
    (tmp_path / 'notes.txt').write_text('no image')
    (tmp_path / '.hidden.png').write_text('no image')
    source = _open(tmp_path)
    names = [os.path.relpath(source.where(i), tmp_path) for i in range(4)]
    assert len(source) == 4
    assert names == ['a.JPG', 'b.png', 'c.bmp', 'sub.d/e.gif']
    assert source.classes is None
    assert source[0]['label'] == -1

  def test_labels_are_the_sub_folders_however_deep(self, tmp_path):
    _write_images(tmp_path, ['dog/1.png', 'cat/x/y/2.png', 'cat/3.webp'])
    source = _open(tmp_path)
    assert source.classes == ['cat', 'dog']
    assert [source[i]['label'] for i in range(3)] == [0, 0, 1]

  def test_splits_share_their_label_numbers(self, tmp_path):
    names = ['train/a/1.png', 'train/b/2.png', 'val/b/3.png', 'test/4.png']
    _write_images(tmp_path, names)
    assert _open(tmp_path, 'val')[0]['label'] == 1
    assert _open(tmp_path).classes == ['a', 'b']
    assert len(_open(tmp_path)) == 2
    assert _open(tmp_path, 'test')[0]['label'] == -1
    assert _open(tmp_path, 'validation').split == 'val'
    with pytest.raises(UserError, match='test, train, val'):
      _open(tmp_path, 'held')

  def test_links_are_followed_but_not_in_circles(self, tmp_path):
    _write_images(tmp_path / 'a', ['1.png'])
    _write_images(tmp_path / 'elsewhere', ['2.png'])
    (tmp_path / 'a' / 'loop').symlink_to(tmp_path / 'a')
    (tmp_path / 'a' / 'link').symlink_to(tmp_path / 'elsewhere')
    assert len(_open(tmp_path / 'a')) == 2

  def test_canvas_fits_thumbnails_and_is_bounded_for_photographs(
    self, tmp_path
  ):
    _write_images(tmp_path / 'small', ['1.png'], h=40, w=60)
    _write_images(tmp_path / 'large', ['1.png'], h=900, w=1200)
    assert _open(tmp_path / 'small').canvas == (64, 64)
    large = _open(tmp_path / 'large')
    assert large.canvas == (512, 512)
    assert large[0]['image'].shape == (384, 512, 3)


def _line(config, split=None):
  start = time.monotonic()
  with pytest.raises(UserError) as caught:
    data.open_source(config, split)
  assert time.monotonic() - start < 5
  assert '\n' not in str(caught.value)
  return str(caught.value)


class TestErrors:
  def test_missing_folder_names_the_closest_that_exists(self, tmp_path):
    (tmp_path / 'birds').mkdir()
    line = _line({'source': f'folder:{tmp_path}/brids/train'})
    assert f"closest that does is '{tmp_path}'" in line and 'birds' in line

  def test_no_images_says_what_was_found(self, tmp_path):
    for i in range(3):
      (tmp_path / f'{i}.txt').write_text('x')
    assert 'only 3 .txt' in _line({'source': f'folder:{tmp_path}'})

  def test_empty_folder_and_file(self, tmp_path):
    assert 'no files at all' in _line({'source': f'folder:{tmp_path}'})
    (tmp_path / 'x.png').write_bytes(b'')
    assert 'is a file' in _line({'source': f'folder:{tmp_path}/x.png'})

  def test_unknown_source_and_split_and_values(self, hundred):
    assert "did you mean 'embedded'" in _line({'source': 'embeded'})
    assert 'train, test' in _line({'source': 'embedded'}, 'val')
    assert "no split 'test'" in _line({'source': f'folder:{hundred}'}, 'test')
    assert 'channels is 4' in _line({'source': 'embedded', 'channels': 4})
    assert 'canvas is' in _line({'source': 'embedded', 'canvas': (1, 2, 3)})


CANVAS = (64, 64)


class TestDecode:
  def test_jpeg_equals_its_decoder(self):
    raw = _encoded(_picture(1), 'JPEG')
    expected = simplejpeg.decode_jpeg(raw, 'RGB')
    assert np.array_equal(decode.decode(raw, 3, CANVAS), expected)

  @pytest.mark.parametrize('channels', [1, 3])
  @pytest.mark.parametrize(
    'mode', ['L', 'P', 'CMYK', 'RGBA', 'LA', '1', 'I;16', 'YCbCr', 'palette-a']
  )
  def test_every_mode_becomes_the_wanted_channels(self, mode, channels):
    colour = Image.fromarray(_picture(3))
    grey = np.asarray(colour.convert('L'))
    file = io.BytesIO()
    tolerance = 3
    if mode == 'I;16':
      deep = grey.astype(np.uint16) * 257
      Image.fromarray(deep).save(file, 'PNG')
    elif mode == 'palette-a':
      colour.quantize(256).save(file, 'PNG', transparency=bytes([0] * 256))
      tolerance = 60
    else:
      kind = 'JPEG' if mode in ('CMYK', 'YCbCr') else 'PNG'
      colour.convert(mode).save(file, kind, **_quality(kind))
      tolerance = {'P': 60, '1': 255, 'CMYK': 8, 'YCbCr': 8}.get(mode, 3)
    image = decode.decode(file.getvalue(), channels, CANVAS)
    assert image.shape == (20, 30, channels)
    assert image.dtype == np.uint8
    colourless = mode in ('L', 'LA', '1', 'I;16')
    wanted = grey[..., None] if colourless or channels == 1 else colour
    error = np.abs(image.astype(int) - np.asarray(wanted, int))
    assert error.max() <= tolerance
    assert error.mean() <= max(1, tolerance / 2)

  def test_arrays_turn_grey_as_pil_does(self):
    picture = _picture(5)
    expected = np.asarray(Image.fromarray(picture).convert('L'))
    grey = decode.decode(picture, 1, CANVAS)[..., 0]
    assert np.array_equal(grey, expected)
    assert decode.decode(picture[..., 0], 3, CANVAS).shape == (20, 30, 3)

  @pytest.mark.parametrize('kind', ['JPEG', 'PNG'])
  @pytest.mark.parametrize(
    'size, kept',
    [
      ((64, 64), (64, 64)),  # fits: as it is
      ((10, 7), (10, 7)),  # never enlarged
      ((300, 400), (48, 64)),
      ((400, 300), (64, 48)),
      ((90, 180), (32, 64)),
      ((100, 800), (32, 64)),  # a panorama keeps half the canvas's side
      ((800, 100), (64, 32)),
      ((8, 100), (8, 64)),  # only cut
    ],
  )
  def test_what_is_larger_than_the_canvas(self, kind, size, kept):
    raw = _encoded(_picture(0, *size), kind)
    image = decode.decode(raw, 3, CANVAS)
    assert image.shape[:2] == kept
    # The picture's ramps: still in place, the ends cut off equally.
    y_range = image[..., 1].mean(1)
    x_range = image[..., 0].mean(0)
    assert abs(y_range[0] + y_range[-1] - 255) < 40
    assert abs(x_range[0] + x_range[-1] - 255) < 40

  def test_wide_canvas_keeps_wide_images_whole(self):
    image = decode.decode(_picture(0, 100, 330), 3, (64, 256))
    assert image.shape == (64, 211, 3)
    assert image[0, 0, 0] < 5 and image[0, -1, 0] > 250

  def test_shrinking_equals_pil(self):
    picture = _picture(2, 96, 120)
    expected = Image.fromarray(picture).resize(
      (64, 51), Image.Resampling.BICUBIC
    )
    assert np.array_equal(decode.decode(picture, 3, CANVAS), expected)

  @pytest.mark.parametrize(
    'raw',
    [b'', b'no image', _encoded(_picture(1), 'JPEG')[:-200]],
    ids=['empty', 'text', 'cut short'],
  )
  def test_what_is_no_image_is_unreadable(self, raw):
    with pytest.raises(decode.Unreadable):
      decode.decode(raw, 3, CANVAS)

  def test_batch_is_zero_outside_the_image(self, tmp_path):
    _write_images(tmp_path, ['1.png', '2.png'], h=20, w=30)
    source = _open(tmp_path, canvas=(24, 40))
    batch = data.Pipeline(source, 0, 2)[0]
    assert batch['image'].shape == (2, 24, 40, 3)
    assert (batch['size'] == (20, 30)).all()
    assert not batch['image'][:, 20:].any()
    assert not batch['image'][:, :, 30:].any()
    assert batch['image'][:, :20, :30].any()


def _quality(kind):
  return {'quality': 98, 'subsampling': 0} if kind == 'JPEG' else {}


class TestCorrupt:
  def _spoil(self, folder, indices):
    for i in indices:
      path = folder / f'{i:03d}.jpg'
      path.write_bytes(path.read_bytes()[:60])

  def test_three_among_a_hundred_train_on(self, hundred, tmp_path):
    self._spoil(hundred, [7, 8, 50])
    log = tmp_path / 'run' / 'unreadable.txt'
    reading = data.Reading(log=log)
    pipeline = data.Pipeline(_open(hundred), 0, 20, reading=reading)
    with pipeline.iterate() as feed:
      batches = list(itertools.islice(feed, 10))
    indices = np.concatenate([b['index'] for b in batches])
    # The next readable image stands in, with its own label and index.
    assert np.bincount(indices, minlength=100)[[7, 8, 9, 50, 51]].tolist() == [
      *(0, 0, 6, 0, 4)
    ]
    assert all((b['size'] == (20, 30)).all() for b in batches)
    assert len(log.read_text().splitlines()) == 3
    # A fresh run finds the same batches and names no image twice.
    again = data.Pipeline(_open(hundred), 0, 20, reading=reading)
    assert all(_same(again[s], batches[s]) for s in range(10))
    lines = log.read_text().splitlines()
    named = sorted(line.partition('\t')[0] for line in lines)
    assert named == [str(hundred / f'{i:03d}.jpg') for i in (7, 8, 50)]

  def test_half_stops_with_one_line(self, hundred, tmp_path):
    self._spoil(hundred, range(0, 100, 2))
    log = tmp_path / 'unreadable.txt'
    pipeline = data.Pipeline(
      _open(hundred), 0, 20, reading=data.Reading(log=log)
    )
    with (
      pytest.raises(UserError, match='more than the 5 ') as caught,
      pipeline.iterate() as feed,
    ):
      list(itertools.islice(feed, 10))
    assert '\n' not in str(caught.value)
    assert str(log) in str(caught.value)
    assert str(hundred) in str(caught.value)

  def test_share_is_the_users_to_set(self, hundred):
    self._spoil(hundred, range(10))
    source = _open(hundred)
    lenient = data.Pipeline(
      source, 0, 100, reading=data.Reading(max_unreadable=0.1)
    )
    assert (lenient[0]['index'] >= 10).all()
    strict = data.Reading(max_unreadable=0.0)
    with pytest.raises(UserError, match='more than the 0 '):
      data.Pipeline(source, 0, 100, reading=strict)[0]

  def test_file_that_vanishes_counts_as_unreadable(self, hundred, tmp_path):
    source = _open(hundred)
    (hundred / '042.jpg').unlink()
    log = tmp_path / 'unreadable.txt'
    pipeline = data.Pipeline(source, 0, 100, reading=data.Reading(log=log))
    assert 42 not in pipeline[0]['index']
    assert str(hundred / '042.jpg') in log.read_text()

  def test_evaluation_masks_it_out(self, hundred):
    self._spoil(hundred, [5])
    batches = list(data.epoch(_open(hundred), 50))
    mask = np.concatenate([b['mask'] for b in batches])
    assert np.flatnonzero(~mask).tolist() == [5]
    assert batches[0]['index'][5] == 5


def _run(program, **env):
  return subprocess.run(
    [sys.executable, '-c', program],
    check=True,
    env={**os.environ, **env},
  )


class TestImports:
  def test_the_room_is_light_and_free_of_jax(self):
    _run(
      'import sys, esvit_jax.data as data\n'
      "data.open_source({'source': 'embedded'})[0]\n"
      "heavy = {'jax', 'grain', 'PIL', 'simplejpeg', 'tensorflow_datasets'}\n"
      'assert not heavy & sys.modules.keys(), heavy & sys.modules.keys()\n'
    )

  def test_tensorflow_is_never_imported(self, hundred, tmp_path):
    # One that is installed, but fails: who imports it is found out.
    fake = tmp_path / 'path' / 'tensorflow'
    fake.mkdir(parents=True)
    (fake / '__init__.py').write_text("raise SystemExit('imported')")
    _run(
      'import sys, esvit_jax.data as data\n'
      f"for place in ('embedded', 'folder:{hundred}'):\n"
      "  data.Pipeline(data.open_source({'source': place}), 0, 4)[0]\n"
      "assert 'tensorflow' not in sys.modules\n",
      PYTHONPATH=os.pathsep.join([str(fake.parent), os.getcwd()]),
    )


def test_one_row_a_step_and_a_process():
  source = data.open_source({'source': 'embedded'})
  whole = data.Pipeline(source, 0, 8)
  for step in (0, 3):
    parts = [data.Pipeline(source, 0, 8, k, 8)[step]['index'] for k in range(8)]
    np.testing.assert_array_equal(np.concatenate(parts), whole[step]['index'])
  alone = data.Pipeline(source, 0, 1)
  assert [alone[k]['index'][0] for k in range(8)] == list(whole[0]['index'])
