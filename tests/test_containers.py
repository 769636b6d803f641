"""Zip, tar, WebDataset, parquet, tables and mixtures hold what folders hold."""

import io
import os
import sys
import tarfile
import zipfile

import containers
import numpy as np
import pytest
from PIL import Image

from esvit_jax import data
from esvit_jax.data import cache, formats, shards
from esvit_jax.errors import UserError


@pytest.fixture(scope='module')
def sources(tmp_path_factory):
  """Name of each container -> data.source."""
  root = tmp_path_factory.mktemp('containers')
  return {name: write(root) for name, write in containers.WRITERS.items()}


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory, monkeypatch):
  """Nothing is kept outside the test."""
  folder = tmp_path_factory.getbasetemp() / 'cache'
  monkeypatch.setenv('ESVIT_JAX_CACHE', str(folder))


def opened(source, split='train', **config):
  return data.open_source({'source': source, 'canvas': 16, **config}, split)


def batches(source, steps=(0, 3)):
  pipeline = data.Pipeline(source, seed=5, batch_size=8)
  return [pipeline[step] for step in steps]


def refusal(source, split='train', **config):
  with pytest.raises(UserError) as error:
    opened(source, split, **config)
  line = str(error.value)
  assert '\n' not in line
  return line


class TestEquality:
  @pytest.mark.parametrize('name', list(containers.WRITERS))
  def test_batches_are_byte_equal(self, sources, name):
    wanted = opened(sources['folder'])
    assert wanted.classes == list(containers.CLASSES)
    source = opened(sources[name])
    assert (len(source), source.classes) == (26, wanted.classes)
    assert np.array_equal(source.labels, wanted.labels)
    for batch, expected in zip(batches(source), batches(wanted)):
      assert batch.keys() == expected.keys()
      for key, value in batch.items():
        assert value.tobytes() == expected[key].tobytes(), key

  @pytest.mark.parametrize('name', list(containers.WRITERS))
  def test_splits_are_found(self, sources, name):
    train, test = data.open_pair(
      {'source': sources[name], 'test_split': 'auto', 'canvas': 16}
    )
    assert (len(train), len(test), test.split) == (26, 8, 'val')
    assert test.classes == train.classes

  @pytest.mark.parametrize('name', ['zip', 'tar', 'wds', 'hf'])
  def test_a_second_opening_says_the_same(self, sources, name):
    first, second = opened(sources[name]), opened(sources[name])
    for i in (0, 13, 25):
      assert first.read(i) == second.read(i)
      assert first.where(i) == second.where(i)


class TestCache:
  def test_an_index_is_kept_until_its_file_changes(self, tmp_path, monkeypatch):
    monkeypatch.setenv('ESVIT_JAX_CACHE', str(tmp_path / 'kept'))
    source = containers.as_tar(tmp_path)
    opened(source)
    kept = sorted((tmp_path / 'kept').glob('tar-*.npz'))
    before = [file.stat().st_mtime_ns for file in kept]
    opened(source)
    assert [file.stat().st_mtime_ns for file in kept] == before
    with tarfile.open(tmp_path / 'birds-01.tar', 'w') as tar:
      containers.add(tar, 'birds/train/bee/new.png', containers.picture(0))
    changed = opened(source)
    assert 'birds/train/bee/new.png' in changed.where(len(changed) - 1)
    after = [file.stat().st_mtime_ns for file in kept]
    assert sum(a != b for a, b in zip(after, before)) == 1

  def test_a_file_that_changes_under_a_run_is_not_misread(self, tmp_path):
    source = opened(containers.as_tar(tmp_path))
    os.utime(tmp_path / 'birds-01.tar', ns=(0, 12345))
    errors = []
    for i in range(len(source)):
      try:
        source[i]
      except data.Unreadable as error:
        errors.append(str(error))
    assert errors
    assert all('has changed since this run began' in x for x in errors)

  def test_a_damaged_index_is_built_again(self, tmp_path, monkeypatch):
    monkeypatch.setenv('ESVIT_JAX_CACHE', str(tmp_path / 'kept'))
    source = containers.as_tar(tmp_path)
    count = len(opened(source))
    for file in (tmp_path / 'kept').glob('*.npz'):
      file.write_bytes(b'PK damaged')
    assert len(opened(source)) == count

  def test_without_a_place_to_write_it_is_built_each_time(
    self, tmp_path, monkeypatch, capsys
  ):
    (tmp_path / 'file').write_text('')
    monkeypatch.setenv('ESVIT_JAX_CACHE', str(tmp_path / 'file' / 'below'))
    assert len(opened(containers.as_tar(tmp_path))) == 26
    assert 'note: nothing is kept' in capsys.readouterr().err

  def test_texts_come_back(self):
    for texts in ([], [''], ['a', '', 'ü\udcff/b'], ['x']):
      assert cache.apart(cache.joined(texts)) == texts


class TestUnsafeArchives:
  def test_names_and_links_that_lead_outside(self, tmp_path):
    path = tmp_path / 'inner' / 'evil.tar'
    path.parent.mkdir()
    with tarfile.open(path, 'w') as tar:
      for name in (
        '../evil.png',
        '/tmp/evil.png',
        'a/../../evil.png',
        'ok.png',
      ):
        containers.add(tar, name, containers.picture(2))
      for name, kind in (
        ('s.png', tarfile.SYMTYPE),
        ('h.png', tarfile.LNKTYPE),
      ):
        member = tarfile.TarInfo(name)
        member.type, member.linkname = kind, '/etc/passwd'
        tar.addfile(member)
    source = opened(f'tar:{path}')
    assert [source.where(i) for i in range(len(source))] == [f'{path}/ok.png']
    notes = '\n'.join(source.notes)
    assert '3 members, such as ../evil.png' in notes
    assert '2 links' in notes
    assert sorted(os.listdir(tmp_path)) == ['inner']

  def test_names_that_lead_out_of_a_zip(self, tmp_path):
    path = tmp_path / 'evil.zip'
    with zipfile.ZipFile(path, 'w') as file:
      for name in ('../evil.png', '/tmp/evil.png', 'ok.png'):
        file.writestr(name, containers.picture(2))
      link = zipfile.ZipInfo('link.png')
      link.external_attr = 0o120777 << 16
      file.writestr(link, '/etc/passwd')
    source = opened(f'zip:{path}')
    assert [source.where(i) for i in range(len(source))] == [f'{path}/ok.png']
    assert '2 members, such as ../evil.png' in source.notes[0]
    assert '1 links, such as link.png' in source.notes[1]

  def test_a_zip_bomb_is_one_unreadable_image(self, tmp_path, monkeypatch):
    monkeypatch.setattr(shards, 'LARGEST', 10_000)
    path = tmp_path / 'bomb.zip'
    with zipfile.ZipFile(path, 'w', zipfile.ZIP_DEFLATED) as file:
      file.writestr('a.png', bytes(1_000_000))
      for i in range(7):
        file.writestr(f'{i}.png', containers.picture(2 * i))
    source = opened(f'zip:{path}')
    assert len(source) == 8
    with pytest.raises(data.Unreadable, match='more than the 10,000'):
      source[7]
    batch = data.Pipeline(source, 0, 8)[0]
    assert 7 not in batch['index']

  def test_a_zip_that_lies_of_a_size(self, tmp_path):
    path = tmp_path / 'lie.zip'
    with zipfile.ZipFile(path, 'w', zipfile.ZIP_DEFLATED) as file:
      file.writestr('a.png', bytes(50_000_000))
      file.writestr('b.png', containers.picture(0))
    content = path.read_bytes()
    size = (50_000_000).to_bytes(4, 'little')
    path.write_bytes(content.replace(size, (100).to_bytes(4, 'little')))
    source = opened(f'zip:{path}')
    with pytest.raises(data.Unreadable):
      source[0]
    assert source[1]['image'].size

  def test_a_member_with_a_wrong_checksum(self, tmp_path):
    path = tmp_path / 'a.zip'
    record = containers.picture(0)
    with zipfile.ZipFile(path, 'w') as file:
      file.writestr('a.png', record)
    content = bytearray(path.read_bytes())
    content[content.index(record) + 60] ^= 255
    path.write_bytes(content)
    with pytest.raises(data.Unreadable, match='CRC'):
      opened(f'zip:{path}')[0]

  def test_what_is_no_archive_is_refused(self, tmp_path):
    for kind in ('zip', 'tar', 'wds', 'hf'):
      path = tmp_path / f'a.{kind}'
      assert 'a.' in refusal(f'{kind}:{path}')
      path.write_bytes(b'no archive at all' * 100)
      assert str(path) in refusal(f'{kind}:{path}')
      path.write_bytes(b'')
      assert str(path) in refusal(f'{kind}:{path}')

  def test_a_compressed_tar_is_refused(self, tmp_path):
    with tarfile.open(tmp_path / 'a.tar.gz', 'w:gz') as tar:
      containers.add(tar, 'a.png', containers.picture(0))
    assert 'gunzip' in refusal(f'tar:{tmp_path}/a.tar.gz')


class TestCutOff:
  @pytest.mark.parametrize('at_member', [True, False])
  def test_a_shard_cut_off_gives_what_is_whole(self, tmp_path, at_member):
    containers.as_wds(tmp_path)
    path = tmp_path / 'wds' / 'birds-train-0000.tar'
    with tarfile.open(path) as tar:
      last = [m for m in tar if m.name.endswith(('png', 'jpg'))][-1]
    cut = last.offset if at_member else last.offset_data + 50
    os.truncate(path, cut)
    source = opened(f'wds:{tmp_path}/wds/birds-train-*.tar')
    note = 'no end mark' if at_member else 'is cut off'
    assert note in '\n'.join(source.notes)
    assert 'copy it again' in '\n'.join(source.notes)
    assert len(source) == 25 if at_member else 26
    batches(source)
    if not at_member:
      with pytest.raises(data.Unreadable, match='ends after'):
        source[12]

  def test_a_missing_shard_is_refused(self, tmp_path):
    containers.as_tar(tmp_path)
    line = refusal(f'tar:{tmp_path}/birds-{{00..04}}.tar')
    assert '2 of 5 files do not exist' in line
    assert 'birds-03.tar' in line

  def test_a_zip_cut_off_is_refused(self, tmp_path):
    containers.as_zip(tmp_path)
    os.truncate(tmp_path / 'birds.zip', 2000)
    assert 'cut off' in refusal(f'zip:{tmp_path}/birds.zip')


class TestParquet:
  def write(self, tmp_path, **columns):
    import pyarrow as pa
    from pyarrow import parquet

    parquet.write_table(pa.table(columns), tmp_path / 'a.parquet')
    return f'hf:{tmp_path}/a.parquet'

  def test_without_images(self, tmp_path):
    line = refusal(self.write(tmp_path, text=['a'], image=[3]))
    assert 'no column of images' in line
    assert 'text, image' in line

  def test_labels_as_text_and_bytes_alone(self, tmp_path):
    pictures = [containers.picture(i) for i in range(4)]
    source = opened(
      self.write(tmp_path, image=pictures, label=['b', 'a', None, 'b'])
    )
    assert source.classes == ['a', 'b']
    assert source.labels.tolist() == [1, 0, -1, 1]
    assert source.read(3)[0] == pictures[3]
    assert source.where(3).endswith('a.parquet#3')

  def test_text_labels_are_numbered_over_all_splits(self, tmp_path):
    import pyarrow as pa
    from pyarrow import parquet

    for split, names in (('train', ['c', 'a']), ('test', ['b', 'c'])):
      pictures = [containers.picture(i) for i in range(2)]
      table = pa.table({'image': pictures, 'label': names})
      parquet.write_table(table, tmp_path / f'{split}.parquet')
    train, test = (opened(f'hf:{tmp_path}', x) for x in ('train', 'test'))
    assert train.classes == test.classes == ['a', 'b', 'c']
    assert (train.labels.tolist(), test.labels.tolist()) == ([2, 0], [1, 2])

  def test_rows_without_an_image_and_paths_outside(self, tmp_path):
    source = opened(
      self.write(tmp_path, image=['../a.png', '/etc/passwd', None, 'no.png'])
    )
    for i in range(4):
      with pytest.raises(data.Unreadable):
        source[i]

  def test_copies_of_files_that_changed_are_removed(
    self, tmp_path, monkeypatch
  ):
    monkeypatch.setenv('ESVIT_JAX_CACHE', str(tmp_path / 'kept'))
    for i in range(2):
      source = opened(self.write(tmp_path, image=[containers.picture(i)] * 2))
      assert source.read(0)[0] == containers.picture(i)
    assert len(list((tmp_path / 'kept').glob('*.images'))) == 1

  def test_too_little_space(self, tmp_path, monkeypatch):
    monkeypatch.setenv('ESVIT_JAX_CACHE', str(tmp_path / 'kept'))
    monkeypatch.setattr(
      'shutil.disk_usage', lambda _: type('Usage', (), {'free': 10})
    )
    line = refusal(self.write(tmp_path, image=[containers.picture(0)]))
    assert 'ESVIT_JAX_CACHE' in line

  def test_without_pyarrow(self, tmp_path, monkeypatch):
    source = self.write(tmp_path, image=[containers.picture(9)])
    monkeypatch.setitem(sys.modules, 'pyarrow', None)
    assert 'pip install "esvit_jax[parquet]"' in refusal(source)


class TestWebDataset:
  def write(self, path, members):
    with tarfile.open(path, 'w') as tar:
      for name, content in members.items():
        containers.add(tar, name, content)
    return f'wds:{path}'

  def test_labels_by_name_in_json(self, tmp_path):
    source = opened(
      self.write(
        tmp_path / 'a.tar',
        {
          'x.1.json': b'{"label": "wren"}',
          'x.jpg': containers.picture(1),
          'y.png': containers.picture(2),
          'y.mask.png': containers.picture(4),
          'y.cls': b'owl\n',
          'z.txt': b'no image',
          'w.png': containers.picture(6),
        },
      )
    )
    assert source.classes == ['owl', 'wren']
    assert source.labels.tolist() == [1, 0, -1]
    assert source.where(1) == f'{tmp_path}/a.tar/y.png'
    notes = '\n'.join(source.notes)
    assert '1 samples have no image' in notes
    assert '1 samples have no label' in notes

  def test_labels_without_a_name(self, tmp_path):
    (tmp_path / 'classes.txt').write_text('ant\n')
    members = {'x.jpg': containers.picture(1), 'x.cls': b'2'}
    line = refusal(self.write(tmp_path / 'a.tar', members))
    assert 'names 1 classes, but there are labels up to 2' in line

  def test_no_image(self, tmp_path):
    line = refusal(self.write(tmp_path / 'a.tar', {'a.txt': b'a'}))
    assert 'none of 1 members' in line


def test_patterns_of_shards(tmp_path):
  for name in ('a-8.tar', 'a-9.tar', 'a-10.tar', 'b.tar'):
    (tmp_path / name).write_bytes(b'')

  def names(place):
    return [os.path.basename(path) for path in shards.expand(place, ('.tar',))]

  assert names(f'{tmp_path}/a-{{8..10}}.tar') == [
    'a-8.tar',
    'a-9.tar',
    'a-10.tar',
  ]
  assert names(f'{tmp_path}/{{b,a-9}}.tar') == ['b.tar', 'a-9.tar']
  assert len(names(str(tmp_path))) == 4
  with pytest.raises(UserError, match=r'ends in \.tar'):
    shards.expand(f'{tmp_path}/c*.tar', ('.tar',))


class TestTables:
  def line(self, tmp_path, text, name='a.csv'):
    (tmp_path / name).write_text(text)
    return refusal(f'list:{tmp_path / name}')

  def test_refusals(self, tmp_path):
    assert 'no column of paths' in self.line(tmp_path, 'name,label\na,b\n')
    assert 'it has: name, label' in self.line(tmp_path, 'name,label\na,b\n')
    assert 'no rows' in self.line(tmp_path, 'path,label\n')
    assert 'row 2 has no path' in self.line(tmp_path, 'path,label\na,b\n,c\n')
    assert 'without a label' in self.line(tmp_path, 'path,label\na,b\nc,\n')
    assert 'cannot read' in self.line(tmp_path, '{"path": 1\n', 'a.jsonl')
    assert 'is no .txt' in self.line(tmp_path, 'a', 'a.xml')

  def test_a_missing_file_is_one_unreadable_image(self, tmp_path):
    for i in range(7):
      (tmp_path / f'{i}.png').write_bytes(containers.picture(2 * i))
    rows = '\n'.join(f'{i}.png,{i % 2}' for i in range(8))
    (tmp_path / 'a.csv').write_text(f'path,label\n{rows}\n')
    source = opened(f'list:{tmp_path}/a.csv')
    with pytest.raises(data.Unreadable, match='No such file'):
      source[7]
    assert 7 not in data.Pipeline(source, 0, 8)[0]['index']


class TestMixtures:
  def test_shares_of_parts_and_every_image_of_each(self, sources):
    mixed = opened(f'{sources["folder"]}*0.75+{sources["zip"]}*.25')
    assert len(mixed) == 52
    assert mixed.classes == list(containers.CLASSES)
    assert mixed.name.startswith('75 % folder')
    pipeline = data.Pipeline(mixed, seed=1, batch_size=8)
    index = np.concatenate([pipeline[k]['index'] for k in range(13)])
    first = index[index < 26]
    assert len(first) == 78
    # Each part is shuffled anew for each of its own epochs.
    for k in range(3):
      assert sorted(first[26 * k : 26 * k + 26]) == list(range(26))
    assert sorted(index[index >= 26]) == list(range(26, 52))
    assert not np.array_equal(first[:26], index[index >= 26] - 26)
    with pipeline.iterate(4) as feed:
      assert np.array_equal(next(feed)['index'], pipeline[4]['index'])

  def test_processes_share_a_batch(self, sources):
    mixed = opened(f'{sources["folder"]}*3+{sources["zip"]}*1')
    whole = data.Pipeline(mixed, 1, 8)[5]['index']
    halves = [data.Pipeline(mixed, 1, 8, k, 2)[5]['index'] for k in range(2)]
    assert np.array_equal(np.concatenate(halves), whole)

  def test_classes_of_one_name_are_one(self, sources, tmp_path):
    for name in ('bee', 'cow'):
      (tmp_path / name).mkdir()
      (tmp_path / name / 'a.png').write_bytes(containers.picture(0))
    mixed = opened(f'folder:{tmp_path}*1+{sources["folder"]}*1')
    assert mixed.classes == ['ant', 'bee', 'cow']
    assert mixed.labels[:2].tolist() == [1, 2]
    assert set(mixed.labels[2:]) == {0, 1}
    assert mixed[1]['label'] == 2

  def test_a_part_of_a_mixture_is_held_out(self, sources):
    mixed = opened(f'{sources["folder"]}*1+{sources["zip"]}*1')
    train, held = data.hold_out(mixed)
    batch = data.Pipeline(train, 0, 8)[0]
    assert (batch['index'] < len(train)).all()
    assert len(train) + len(held) == 52

  def test_the_split_to_judge_on(self, sources):
    source = f'{sources["folder"]}*1+{sources["wds"]}*1'
    _, test = data.open_pair(
      {'source': source, 'test_split': 'auto', 'canvas': 16}
    )
    assert (len(test), test.split) == (16, 'val')

  def test_refusals(self, sources):
    folder = sources['folder']
    assert 'a weight is 0' in refusal(f'{folder}*0+{folder}*1')
    assert 'did you mean' in refusal(f'{folder}*1+foldr:/a*1')
    assert 'masks' in refusal(f'{folder}*1+scenes*1', canvas=64)
    assert 'buckets' in refusal(f'{folder}*1+folder:gs://a*1')


def test_every_kind_of_source_is_named_in_refusals():
  line = refusal('nothing')
  for kind in data.SOURCES:
    assert kind in line


def test_formats_of_members_are_read_as_files_are(tmp_path):
  """Deep images, too."""
  file = io.BytesIO()
  Image.fromarray(np.full((5, 6), 3000, np.uint16)).save(file, 'PNG')
  with zipfile.ZipFile(tmp_path / 'a.zip', 'w') as out:
    out.writestr('a.png', file.getvalue())
  source = opened(f'zip:{tmp_path}/a.zip', channels=1)
  assert source.scale.assumed == {'uint16': (0.0, 4095.0)}
  assert formats.header(source.read(0)[0]).range == (3000, 3000)
