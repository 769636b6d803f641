"""The verbs `pack` and `check` of python -m esvit_jax.data."""

import json
import os
import shutil

import containers
import numpy as np
import pytest
from PIL import Image

from esvit_jax import data
from esvit_jax.data import check as check_lib
from esvit_jax.data import duplicates, pack
from esvit_jax.data.__main__ import main
from esvit_jax.errors import UserError


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
  return containers.as_folder(tmp_path_factory.mktemp('pack'))


def sources(folder, **config):
  return {
    name: data.open_source({'source': folder, **config}, name)
    for name in data.split_names(folder)
  }


def photograph(seed=0, height=90, width=120):
  """A smooth picture in colour."""
  rng = np.random.default_rng(seed)
  small = Image.fromarray(rng.integers(0, 256, (6, 8, 3), np.uint8))
  return small.resize((width, height), Image.Resampling.BICUBIC)


class TestPack:
  def test_read_back_byte_equal(self, folder, tmp_path, capsys):
    """Upright images keep their bytes; order and labels are the folder's."""
    place = tmp_path / 'birds'
    ours = sources(folder, exif_orientation=False, canvas=16)
    packed = pack.pack(ours, str(place), pack.Options(shard=10), 2)
    assert [sum(x.lengths) for x in packed] == [26, 8]
    assert packed[0].lengths == [10, 10, 6]
    config = {'source': 'tfds:birds', 'data_dir': str(tmp_path), 'canvas': 16}
    for split, source in ours.items():
      back = data.open_source(config, split)
      assert list(back.classes) == source.classes
      a, b = (data.Pipeline(x, 3, 8)[5] for x in (source, back))
      for key in a:
        assert a[key].tobytes() == b[key].tobytes(), key

  def test_the_command(self, folder, tmp_path, capsys):
    args = ['pack', folder, str(tmp_path / 'birds'), '--short_side=8']
    assert main(args) == 0
    out = capsys.readouterr().out
    assert f'tfds:birds --config.data.data_dir={tmp_path}' in out
    config = {'source': 'tfds:birds', 'data_dir': str(tmp_path)}
    back = data.open_source(config)
    assert {min(back[i]['image'].shape[:2]) for i in range(26)} == {8}
    assert main(args) == 2
    assert 'is packed already' in capsys.readouterr().err

  def test_goes_on_where_it_was_interrupted(
    self, folder, tmp_path, monkeypatch
  ):
    place, options = tmp_path / 'birds', pack.Options(shard=10)
    ours = sources(folder)
    write, written = pack._write, []

    def interrupted(path, *args):
      if len(written) == 2:
        (path.parent / f'partial-{path.name}').write_bytes(b'half')
        raise KeyboardInterrupt
      written.append(path.name)
      write(path, *args)

    monkeypatch.setattr(pack, '_write', interrupted)
    with pytest.raises(KeyboardInterrupt):
      pack.pack(ours, str(place), options, 2)
    with pytest.raises(UserError, match='other images or options'):
      pack.pack(ours, str(place), options._replace(quality=80), 2)

    def noted(path, *args):
      written.append(path.name)
      write(path, *args)

    monkeypatch.setattr(pack, '_write', noted)
    pack.pack(ours, str(place), options, 2)
    assert len(written) == len(set(written)) == 4
    files = (place / '1.0.0').iterdir()
    assert sorted(path.name.split('.')[0] for path in files) == [
      *['birds-train'] * 3,
      'birds-val',
      'dataset_info',
      'features',
      'label',
    ]

  def test_unreadable_images_are_left_out_and_named(self, folder, tmp_path):
    copy = tmp_path / 'copy'
    shutil.copytree(folder.removeprefix('folder:'), copy)
    next((copy / 'train' / 'bee').glob('03.*')).write_bytes(b'none')
    ours = sources(f'folder:{copy}')
    packed = pack.pack(ours, str(tmp_path / 'birds'), pack.Options(), 2)
    assert sum(packed[0].lengths) == 25
    assert '/bee/03.' in packed[0].unreadable[0]
    with pytest.raises(UserError, match='max_unreadable=0'):
      options = pack.Options(max_unreadable=0.0)
      pack.pack(ours, str(tmp_path / 'none'), options, 2)

  def test_refusals(self, folder, tmp_path, capsys):
    place = str(tmp_path / 'birds')
    assert main(['pack', folder, str(tmp_path / 'Birds 2')]) == 2
    assert 'small letters' in capsys.readouterr().err
    assert main(['pack', folder, place, '--quality=0']) == 2
    assert '--quality is 0' in capsys.readouterr().err
    assert main(['pack', 'scenes', place, '--split=test']) == 2
    assert 'has masks' in capsys.readouterr().err
    os.makedirs(f'{place}/1.0.0', exist_ok=True)
    for path in os.listdir(f'{place}/1.0.0'):
      os.unlink(f'{place}/1.0.0/{path}')
    (tmp_path / 'birds' / '1.0.0' / 'mine.txt').write_text('keep')
    assert main(['pack', folder, place]) == 2
    assert 'holds other files' in capsys.readouterr().err
    assert os.listdir(f'{place}/1.0.0') == ['mine.txt']


@pytest.fixture(scope='module')
def messy(tmp_path_factory):
  """Copies, near copies, one image in two splits, one that is broken."""
  root = tmp_path_factory.mktemp('messy')
  for name in ('train/ant', 'train/bee', 'val/ant', 'val/bee'):
    (root / name).mkdir(parents=True)
  for k in range(6):
    photograph(k).save(root / 'train' / 'ant' / f'{k}.png')
  shutil.copy(root / 'train/ant/0.png', root / 'train/bee/0.png')
  shutil.copy(root / 'train/ant/1.png', root / 'val/ant/1.png')
  near = photograph(2).resize((60, 45))
  near.save(root / 'val' / 'bee' / '2.jpg', quality=60)
  photograph(9).convert('L').save(root / 'val' / 'bee' / 'grey.png')
  (root / 'train' / 'bee' / 'broken.jpg').write_bytes(b'\xff\xd8none')
  return root


class TestCheck:
  def test_findings(self, messy):
    found = check_lib.check(sources(f'folder:{messy}'), 2)

    def names(groups):
      where = [[found.images[i].where for i in rows] for rows in groups]
      return [sorted(os.path.relpath(x, messy) for x in rows) for rows in where]

    assert names(found.exact) == [
      ['train/ant/0.png', 'train/bee/0.png'],
      ['train/ant/1.png', 'val/ant/1.png'],
    ]
    assert names(found.near) == [['train/ant/2.png', 'val/bee/2.jpg']]
    assert names(found.leaks()) == [*names(found.exact[1:]), *names(found.near)]
    assert names(found.contradictions()) == names(found.exact[:1])
    assert [x.where for x in found.unreadable] == [
      f'{messy}/train/bee/broken.jpg'
    ]
    assert found.splits[0].classes == {'ant': 6, 'bee': 1}
    assert found.tally('size') == {(90, 120): 9, (45, 60): 1}
    assert found.tally('format')['PNG L'] == 1

  def test_text_json_and_page(self, messy, tmp_path, capsys):
    out = tmp_path / 'out'
    assert main(['check', f'folder:{messy}', f'--out={out}']) == 0
    text = capsys.readouterr().out
    for words in ('two splits 4 images in 2 groups', 'unreadable 1', 'broken'):
      assert words in text
    content = json.loads((out / 'check.json').read_text())
    assert len(content['two_labels']) == 1
    assert content['unreadable'][0][0].endswith('broken.jpg')
    assert 'broken.jpg' in (out / 'check.html').read_text()
    with Image.open(out / 'contact_sheet.jpg') as sheet:
      assert sheet.width >= 300

  def test_mean_and_std_are_those_of_all_pixels(self, tmp_path):
    for k in range(3):
      photograph(k).save(tmp_path / f'{k}.png')
    found = check_lib.check(sources(f'folder:{tmp_path}'), 1)
    pixels = np.stack([photograph(k) for k in range(3)]).reshape(-1, 3) / 255
    expected = np.stack([pixels.mean(0), pixels.std(0)])
    np.testing.assert_allclose(found.mean_and_std, expected, rtol=1e-9)

  def test_nothing_to_read(self, tmp_path, capsys):
    (tmp_path / 'a.png').write_bytes(b'none')
    assert main(['check', f'folder:{tmp_path}']) == 2
    assert 'error: ' in capsys.readouterr().err


class TestPerceptualHash:
  def test_small_changes_keep_it_and_other_pictures_do_not(self):
    hashes = {}
    for k in range(20):
      image = photograph(k)
      hashes[k] = duplicates.perceptual_hash(np.asarray(image))
      small = np.asarray(image.resize((61, 44)))
      again = duplicates.perceptual_hash(small)
      assert (hashes[k] ^ again).bit_count() <= duplicates.NEAR
    far = min(
      (hashes[a] ^ hashes[b]).bit_count() for a in hashes for b in range(a)
    )
    assert far > duplicates.NEAR

  def test_no_pattern_no_hash(self):
    assert duplicates.perceptual_hash(np.full((9, 9, 3), 7, np.uint8)) is None

  def test_pairs_equal_those_of_all_against_all(self):
    rng = np.random.default_rng(0)
    base = rng.integers(0, 2**63, 60, np.uint64)
    flips = [
      np.bitwise_or.reduce(
        np.uint64(1) << rng.choice(64, k, False).astype(np.uint64)
      )
      for k in rng.integers(1, 8, 60)
    ]
    hashes = np.concatenate([base, base ^ np.array(flips, np.uint64)])
    bits = np.bitwise_count(hashes[:, None] ^ hashes[None])
    wanted = np.argwhere(np.triu(bits <= duplicates.NEAR, 1))
    assert len(wanted) > 10
    assert np.array_equal(duplicates.near_pairs(hashes), wanted)
    groups = duplicates.groups(wanted, len(hashes))
    assert all(len(rows) == 2 for rows in groups)
