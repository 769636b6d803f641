"""Laws of the tfds source, on tiny sets written here without TensorFlow."""

import io
import os
import pathlib
import shutil
import struct
import subprocess
import sys
import threading
import time

import numpy as np
import pytest
import tensorflow_datasets as tfds
from array_record.python import array_record_module
from PIL import Image

from esvit_jax import data
from esvit_jax.data.tfrecord import TFRecords
from esvit_jax.errors import UserError

SHARDS = {'train': (7, 5, 8), 'test': (4,)}
FORMATS = ('tfrecord', 'array_record')
CLASSES = ['ant', 'bee', 'cat']


def _picture(i):
  return np.full((20, 30, 3), i, np.uint8)


def _png(image):
  file = io.BytesIO()
  Image.fromarray(image).save(file, 'PNG')
  return file.getvalue()


def _write_tfrecord(path, records):
  with open(path, 'wb') as file:
    for record in records:
      # length, its crc, the bytes, their crc; nobody reads the two crcs
      head = struct.pack('<Q', len(record)) + bytes(4)
      file.write(head + record + bytes(4))


def _write_array_record(path, records):
  writer = array_record_module.ArrayRecordWriter(str(path), 'group_size:1')
  for record in records:
    writer.write(record)
  writer.close()


def _write_set(folder, file_format, features, examples):
  """Writes `examples(i)` for each image of SHARDS as a prepared tfds set."""
  folder.mkdir(parents=True)
  write = {
    'tfrecord': _write_tfrecord,
    'array_record': _write_array_record,
  }[file_format]
  infos = []
  for split, shards in SHARDS.items():
    serial = map(features.serialize_example, map(examples, range(100)))
    for k, n in enumerate(shards):
      name = f'tiny-{split}.{file_format}-{k:05d}-of-{len(shards):05d}'
      write(folder / name, [next(serial) for _ in range(n)])
    template = tfds.core.ShardedFileTemplate(
      data_dir=folder,
      dataset_name='tiny',
      split=split,
      filetype_suffix=file_format,
    )
    infos.append(
      tfds.core.SplitInfo(
        name=split,
        shard_lengths=list(shards),
        num_bytes=0,
        filename_template=template,
      )
    )
  tfds.folder_dataset.write_metadata(
    data_dir=folder, features=features, split_infos=infos, check_data=False
  )


@pytest.fixture(scope='module')
def sets(tmp_path_factory):
  """A folder per format, each a data_dir that holds the set `tiny`."""
  features = tfds.features.FeaturesDict(
    {
      'image': tfds.features.Image(shape=(None, None, 3)),
      'label': tfds.features.ClassLabel(names=CLASSES),
      'file_name': tfds.features.Text(),
    }
  )
  top = tmp_path_factory.mktemp('sets')
  for file_format in FORMATS:
    _write_set(
      top / file_format / 'tiny' / '1.0.0',
      file_format,
      features,
      lambda i: {'image': _png(_picture(i)), 'label': i % 3, 'file_name': 'x'},
    )
  return top


def _open(data_dir, split='train', place='tiny', **config):
  config = {'source': f'tfds:{place}', 'data_dir': str(data_dir), **config}
  return data.open_source(config, split)


@pytest.mark.parametrize('file_format', FORMATS)
class TestBothFormats:
  def test_every_example_in_order(self, sets, file_format):
    source = _open(sets / file_format)
    assert len(source) == 20
    assert list(source.classes) == CLASSES
    assert (source.canvas, source.channels) == ((32, 32), 3)
    for i in range(20):
      assert np.array_equal(source[i]['image'], _picture(i))
      assert source[i]['label'] == i % 3

  def test_samples_are_of_all_classes_alike(self, sets, file_format):
    source = _open(sets / file_format)
    drawn = data.sample(source, 6)
    assert np.bincount(drawn.labels).tolist() == [2, 2, 2]
    assert not drawn.notes
    assert 0 < source.label_bytes < 10**6

  @pytest.mark.parametrize(
    'split, expected',
    [
      ('train[10%:50%]', range(2, 10)),
      ('train[6:13]', range(6, 13)),
      ('train[-3:]', range(17, 20)),
      ('test', range(4)),
      ('test+train', [*range(4), *range(20)]),
    ],
  )
  def test_parts_of_splits(self, sets, file_format, split, expected):
    source = _open(sets / file_format, split)
    seen = [int(source[i]['image'][0, 0, 0]) for i in range(len(source))]
    assert seen == [*expected]

  def test_where_names_the_record(self, sets, file_format):
    source = _open(sets / file_format, 'train[6:13]')
    found = [pathlib.Path(source.where(i)).name for i in (0, 1, 5, 6)]
    assert [f.split('-', 2)[2] for f in found] == [
      '00000-of-00003#6',
      '00001-of-00003#0',
      '00001-of-00003#4',
      '00002-of-00003#0',
    ]

  def test_many_threads_read_at_once(self, sets, file_format):
    source = _open(sets / file_format)
    wrong = []

    def read(seed):
      for i in np.random.default_rng(seed).integers(20, size=100).tolist():
        if source[i]['image'][0, 0, 0] != i:
          wrong.append(i)

    threads = [threading.Thread(target=read, args=(s,)) for s in range(8)]
    for thread in threads:
      thread.start()
    for thread in threads:
      thread.join()
    assert not wrong

  def test_batches(self, sets, file_format):
    pipeline = data.Pipeline(_open(sets / file_format, channels=1), 0, 10)
    batches = [pipeline[0], pipeline[1]]
    assert batches[0]['image'].shape == (10, 32, 32, 1)
    indices = np.concatenate([b['index'] for b in batches])
    assert sorted(indices) == list(range(20))

  def test_tensorflow_is_never_imported(self, sets, file_format, tmp_path):
    # One that is installed, but fails: who imports it is found out.
    fake = tmp_path / 'tensorflow'
    fake.mkdir()
    (fake / '__init__.py').write_text("raise SystemExit('imported')")
    root = sets / file_format
    program = (
      'import sys, esvit_jax.data as data\n'
      f"source = {{'source': 'tfds:tiny', 'data_dir': '{root}'}}\n"
      "source = data.open_source(source, 'train[10%:50%]')\n"
      'data.Pipeline(source, 0, 4)[0]\n'
      "assert 'tensorflow' not in sys.modules\n"
    )
    path = os.pathsep.join([str(tmp_path), os.getcwd()])
    subprocess.run(
      [sys.executable, '-c', program],
      check=True,
      env={**os.environ, 'PYTHONPATH': path},
    )


class TestFeatures:
  def test_grey_images_without_labels(self, tmp_path):
    features = tfds.features.FeaturesDict(
      {'image': tfds.features.Image(shape=(28, 28, 1))}
    )
    _write_set(
      tmp_path / 'tiny' / '1.0.0',
      'tfrecord',
      features,
      lambda i: {'image': _png(np.full((28, 28), i, np.uint8))},
    )
    source = _open(tmp_path)
    assert (source.channels, source.classes) == (1, None)
    assert source[3]['label'] == -1
    assert source[3]['image'].shape == (28, 28, 1)

  def test_set_without_images(self, tmp_path):
    features = tfds.features.FeaturesDict({'text': tfds.features.Text()})
    _write_set(
      tmp_path / 'tiny' / '1.0.0', 'tfrecord', features, lambda i: {'text': 'x'}
    )
    with pytest.raises(UserError, match=r"no feature 'image'.*has: text"):
      _open(tmp_path)


@pytest.fixture
def copied(sets, tmp_path):
  """A data_dir of one's own, to spoil; and the folder of the set in it."""
  shutil.copytree(sets / 'tfrecord', tmp_path / 'own')
  return tmp_path / 'own', tmp_path / 'own' / 'tiny' / '1.0.0'


class TestWhichFolder:
  def test_newest_version_unless_one_is_named(self, copied):
    root, folder = copied
    for version in ('1.10.0', '1.9.0'):
      shutil.copytree(folder, folder.parent / version)
    assert '/1.10.0/' in _open(root).where(0)
    assert '/1.9.0/' in _open(root, place='tiny:1.9.0').where(0)

  def test_only_config_or_the_one_named(self, copied):
    root, folder = copied
    shutil.move(folder, root / 'tiny' / 'big' / '1.0.0')
    assert len(_open(root)) == 20
    shutil.copytree(root / 'tiny' / 'big', root / 'tiny' / 'small')
    with pytest.raises(UserError, match=r'\(big, small\).* tfds:tiny/big'):
      _open(root)
    assert '/small/' in _open(root, place='tiny/small').where(0)

  def test_a_path_may_stand_for_the_name(self, copied):
    assert len(_open(None, place=str(copied[1]))) == 20

  def test_environment_names_the_data_dir(self, copied, monkeypatch):
    monkeypatch.setenv('TFDS_DATA_DIR', str(copied[0]))
    assert len(data.open_source({'source': 'tfds:tiny'})) == 20


class TestErrors:
  def _line(self, data_dir, split='train', place='tiny'):
    start = time.monotonic()
    with pytest.raises(UserError) as caught:
      _open(data_dir, split, place)
    assert time.monotonic() - start < 5
    assert '\n' not in str(caught.value)
    return str(caught.value)

  def test_not_prepared_gives_the_command(self, copied):
    root, _ = copied
    line = self._line(root, place='imagenette')
    assert f"tfds.builder('imagenette', data_dir='{root}')" in line
    assert 'which holds: tiny' in line
    assert 'does not exist' in self._line(root / 'nowhere')
    assert 'is not prepared' in self._line(root, place='tiny:3.0.0')

  def test_split(self, copied):
    assert 'train, test' in self._line(copied[0], 'validation')
    assert 'train, test' in self._line(copied[0], 'train[10%')
    assert 'is empty' in self._line(copied[0], 'train[3:3]')

  def test_damaged_files(self, copied):
    root, folder = copied
    shard = folder / 'tiny-train.tfrecord-00001-of-00003'
    whole = shard.read_bytes()
    shard.write_bytes(whole[:-30])
    line = self._line(root)
    assert str(shard) in line
    assert '4 whole records of the 5' in line
    shard.write_bytes(whole + bytes(16))
    assert '6 whole records of the 5' in self._line(root)
    (folder / 'dataset_info.json').write_text('{')
    assert 'cannot read the tfds set' in self._line(root)

  @pytest.mark.parametrize('file_format', FORMATS)
  def test_missing_files(self, sets, tmp_path, file_format):
    root = tmp_path / 'own'
    shutil.copytree(sets / file_format, root)
    (lost,) = root.glob(f'*/*/tiny-train.{file_format}-00001*')
    lost.unlink()
    assert f'lacks {str(lost)!r}' in self._line(root)
    assert len(_open(root, 'test')) == 4  # the others stay readable

  def test_corrupt_record_is_replaced_and_counted(self, copied):
    root, folder = copied
    source = _open(root)
    shard = folder / 'tiny-train.tfrecord-00000-of-00003'
    raw = bytearray(shard.read_bytes())
    raw[12:40] = b'\xff' * 28
    shard.write_bytes(raw)
    log = root / 'unreadable.txt'
    pipeline = data.Pipeline(source, 0, 20, reading=data.Reading(log=log))
    assert sorted(pipeline[0]['index']) == [1, *range(1, 20)]
    assert len(log.read_text().splitlines()) == 1


def test_index_walks_100_000_records_a_second(tmp_path):
  path = tmp_path / 'x.tfrecord-00000-of-00001'
  _write_tfrecord(path, [bytes(8)] * 20_000)
  instruction = tfds.core.utils.shard_utils.FileInstruction(
    filename=str(path), skip=5, take=-1, examples_in_shard=20_000
  )
  times = []
  for _ in range(3):
    start = time.perf_counter()
    assert len(TFRecords([instruction])) == 19_995
    times.append(time.perf_counter() - start)
  assert min(times) < 0.2
