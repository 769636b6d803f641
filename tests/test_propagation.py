"""Videos, and label propagation against DINO's and DAVIS's own code."""

import jax.numpy as jnp
import numpy as np
import pytest
from davis import write_davis
from golden_dense import Case
from PIL import Image

from esvit_jax import data
from esvit_jax.dense import propagation, resize, tracks
from esvit_jax.errors import UserError
from esvit_jax.protocols.propagation import view_size


@pytest.mark.parametrize('name', ['a', 'empty'])
def test_regions_and_contours_of_davis(name):
  case = Case('davis', name)
  pair = case.inputs['annotation'], case.inputs['segmentation']
  J, F = tracks.region_similarity(*pair), tracks.contour_accuracy(*pair)
  case.check(
    J=J, F=F, J_stats=tracks.statistics(J), F_stats=tracks.statistics(F)
  )


@pytest.mark.parametrize('name', ['propagate', 'propagate_everywhere'])
def test_propagation_of_dino(name):
  case = Case('davis', name)
  x, p = case.inputs, case.params
  labels = jnp.moveaxis(jnp.asarray(x['context_labels']), 1, -1)
  features = jnp.asarray(x['context_features'])
  features /= jnp.linalg.norm(features, axis=-1, keepdims=True)
  target = jnp.asarray(x['target_features'])
  target /= jnp.linalg.norm(target, axis=-1, keepdims=True)
  context = propagation.start(features[0], labels[0], recent=4)
  for t in range(1, len(features)):
    context = propagation.remember(
      context, features[t], labels[t], jnp.int32(t)
    )
  found = propagation.propagate(
    context, target, p['radius'], p['topk'], p['temperature']
  )
  size = tuple(4 * n for n in found.shape[:2])
  case.check(
    labels=jnp.moveaxis(found, -1, 0),
    normed_x4=jnp.moveaxis(propagation.stretched(found, size), -1, 0),
    argmax_x4=propagation.objects(found, size),
  )


@pytest.mark.parametrize('recent', [0, 1, 3])
def test_the_ring_forgets_the_oldest_but_the_first(recent):
  x = jnp.arange(7.0)[:, None, None, None]
  context = propagation.start(x[0], x[0], recent)
  for t in range(1, 7):
    held = sorted(context.labels[context.valid].ravel().tolist())
    assert held == [0, *range(max(1, t - recent), t)]
    context = propagation.remember(context, x[t], x[t], jnp.int32(t))


@pytest.mark.parametrize('size', [(3, 5), (13, 9), (7, 4)])
def test_nearest_is_that_of_pil(size):
  x = np.random.default_rng(0).integers(256, size=(7, 9), dtype=np.uint8)
  theirs = Image.fromarray(x).resize(size[::-1], Image.Resampling.NEAREST)
  np.testing.assert_array_equal(resize.nearest(jnp.asarray(x), size), theirs)


def test_davis_frames_are_cut_down_to_whole_tokens():
  assert view_size((480, 854), 480, 64) == (480, 832)
  assert view_size((854, 480), 480, 64) == (832, 480)
  assert view_size((1080, 1920), 480, 64) == (480, 832)
  assert view_size((96, 96), 96, 32) == (96, 96)


def test_clips_move_and_show_all_objects_first():
  clips = data.open_videos('scenes')
  assert clips.count == 40
  for i in range(4):
    video, same = clips.read(i), clips.read(i)
    np.testing.assert_array_equal(video.frames, same.frames)
    assert video.frames.shape == (12, 96, 96, 1)
    assert video.objects.shape == (12, 96, 96)
    assert set(np.unique(video.objects[0])) == {*range(video.objects.max() + 1)}
    assert 2 <= video.objects.max() <= 3
    assert (video.objects[0] != video.objects[-1]).any()
  other = data.open_videos('scenes:1').read(0)
  assert (other.frames[0] != clips.read(0).frames[0]).any()


def test_a_davis_folder_of_clips_holds_the_clips(tmp_path):
  clips = data.open_videos('scenes')
  write_davis(tmp_path, [clips.read(0), clips.read(1)])
  folder = data.open_videos(f'davis:{tmp_path}', 'val', 1)
  assert folder.count == 2
  for i in range(2):
    video = folder.read(i)
    np.testing.assert_array_equal(video.objects, clips.read(i).objects)
    off = video.frames.astype(int) - clips.read(i).frames
    assert np.abs(off).mean() < 2


def test_what_is_wrong_with_videos_is_said(tmp_path):
  def refused(source=f'davis:{tmp_path}', split='val'):
    with pytest.raises(UserError) as e:
      data.open_videos(source, split).read(0)
    assert '\n' not in str(e.value)
    return str(e.value)

  assert 'holds no videos' in refused('embedded')
  assert 'give a seed' in refused('scenes:x')
  assert "there is no '" in refused()
  video = data.open_videos('scenes').read(0)
  write_davis(tmp_path, [video])
  masks = tmp_path / 'Annotations' / '480p' / 'clip_0'
  Image.new('L', (90, 96)).save(masks / '00003.png')
  assert 'is not of the size of its video' in refused()
  (masks / '00003.png').unlink()
  assert 'has no annotation' in refused()
  frames = tmp_path / 'JPEGImages' / '480p' / 'clip_0'
  (frames / '00002.jpg').write_bytes(b'no image')
  assert "cannot read the frame '" in refused()
  for path in sorted((tmp_path / 'JPEGImages/480p/clip_0').iterdir())[1:]:
    path.unlink()
  assert 'holds 1 frames' in refused()
  (tmp_path / 'ImageSets/2017/val.txt').write_text('\n')
  assert 'names no videos' in refused()
