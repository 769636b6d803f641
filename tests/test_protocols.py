"""Evaluations alone: one tiny run, every protocol on it."""

import dataclasses
import io
import json
import os
import shutil

import numpy as np
import pytest
from runs import tiny

import esvit_jax
from configs.eval import (
  correspondence,
  embedding,
  finetune,
  knn,
  layers,
  linear,
  probe,
  transfer,
)
from esvit_jax import bench, evaluate
from esvit_jax.analysis import pictures
from esvit_jax.errors import UserError
from esvit_jax.protocols import fixed, suites
from esvit_jax.protocols import layers as layers_protocol
from esvit_jax.protocols import prepare as prepare_setup
from esvit_jax.protocols import probe as probe_protocol
from esvit_jax.workdir import metrics


@pytest.fixture(scope='module')
def run_dir(tiny_run, tmp_path_factory):
  """A copy of a run of five steps."""
  return shutil.copytree(tiny_run, str(tmp_path_factory.mktemp('run') / 'a'))


def evaluated(config, directory='', labels_per_class=20):
  """(figures, what was printed, the JSON that was written)."""
  out = io.StringIO()
  config.data.labels_per_class = labels_per_class
  figures = evaluate.run(config, str(directory), out)
  where = str(directory) or config.checkpoint
  with open(os.path.join(where, 'eval', f'{config.task}.json')) as f:
    return figures, out.getvalue(), json.load(f)


def of(module, checkpoint, arg=None):
  config = module.get_config(arg) if arg else module.get_config()
  config.checkpoint = str(checkpoint)
  config.data.workers = 2
  return config


@pytest.mark.parametrize('module', [knn, linear])
def test_a_run_says_itself_how_to_be_judged(run_dir, module):
  """Data, size and network come from the run; figures lie beside it."""
  figures, said, written = evaluated(of(module, run_dir))
  assert 10 < figures['top1'] <= 100
  assert written['figures'] == figures
  assert written['network'] == 'teacher'
  assert written['config']['data']['source'] == 'embedded'
  assert written['config']['size'] == 28
  assert written['run']['versions']['jax']
  assert f'{figures["top1"]:.4g}' in said
  assert 'report.html' in said


def test_alone_as_in_training(run_dir, tmp_path):
  """The same features, so the same figure as at the end of the run."""
  config = of(knn, run_dir)
  figures, _, _ = evaluated(config, tmp_path, labels_per_class=0)
  last = metrics.read(f'{run_dir}/metrics.jsonl')[-1]
  limited = tiny().eval.train_images
  assert limited == 256  # in training k-NN sees these only
  assert figures['top1'] >= last['knn/teacher']


def test_baselines_stand_beside_a_figure(run_dir, tmp_path):
  figures, said, _ = evaluated(of(knn, run_dir), tmp_path / 'a')
  assert 10 <= figures['chance'] < 12  # of ten classes
  assert 'chance, %' in said and 'top-1 accuracy, %' in said
  assert 'raw_pixels' not in figures  # measured with more training images

  copy = tmp_path / 'run'
  shutil.copytree(run_dir, copy)
  config = json.loads((copy / 'config.json').read_text())
  config['eval']['train_images'] = 0
  (copy / 'config.json').write_text(json.dumps(config))
  line = json.loads((copy / 'metrics.jsonl').read_text().splitlines()[0])
  figures, _, _ = evaluated(of(knn, copy), labels_per_class=0)
  for name in ('random_init', 'raw_pixels'):
    assert figures[name] == line[f'knn/{name}']


def test_knn_of_several_labels_is_refused(run_dir, tmp_path, monkeypatch):
  def prepare(*args):
    setup = prepare_setup(*args)
    several = dataclasses.replace(setup.test, multi_label=True)
    return setup._replace(test=several)

  monkeypatch.setattr(fixed, 'prepare', prepare)
  with pytest.raises(UserError, match='map_11'):
    evaluate.run(of(knn, run_dir), str(tmp_path), io.StringIO())


def test_student_and_teacher_differ(run_dir, tmp_path):
  config = of(knn, run_dir)
  config.which = 'student'
  assert evaluated(config, tmp_path)[2]['network'] == 'student'


def test_exported_weights_are_judged_alike(run_dir, tmp_path):
  from esvit_jax.weights import loading, writing

  file = str(tmp_path / 'net.safetensors')
  writing.save(file, loading.load(run_dir, 'teacher'))
  config = of(knn, file)
  config.data.source, config.data.mean, config.data.std = (
    'embedded',
    (0.286,),
    (0.353,),
  )
  config.data.canvas, config.size = 0, 28
  figures, _, _ = evaluated(config, tmp_path)
  assert figures == evaluated(of(knn, run_dir), tmp_path / 'run')[0]
  apply, params = esvit_jax.load(file)
  assert apply(params, np.zeros((1, 28, 28, 1), 'float32')).view.shape[0] == 1


@pytest.mark.parametrize('augment', [False, True])
def test_probe_chooses_among_heads(run_dir, tmp_path, augment):
  config = of(probe, run_dir)
  config.probe.lrs = (0.01, 1.0)
  config.probe.epochs = 8
  config.probe.batch = 32
  config.probe.augment = augment
  figures, _, written = evaluated(config, tmp_path)
  assert figures['train_images'] == 200
  assert figures['top1'] > 15
  # Two rates, with and without batch norm, of one and of all three blocks.
  assert len(written['figures']['table']) == 8
  held_out = [row['held_out'] for row in figures['table']]
  assert held_out == sorted(held_out, reverse=True)


def test_crops_without_finite_features_are_counted(
  run_dir, tmp_path, monkeypatch
):
  crops = probe_protocol._crops
  config = of(probe, run_dir)
  config.probe.lrs, config.probe.blocks = (0.1,), (1,)
  config.probe.epochs, config.probe.batch = 2, 32
  config.probe.augment = True

  def broken(*args):
    for x, y, index in crops(*args):
      bad = np.isin(index, [3, 70])[:, None]
      yield {k: np.where(bad, np.nan, a) for k, a in x.items()}, y, index

  monkeypatch.setattr(probe_protocol, '_crops', broken)
  figures, _, _ = evaluated(config, tmp_path)
  assert figures['non_finite'] == 2
  assert figures['top1'] > 10


def test_fine_tuning_starts_from_the_backbone(run_dir, tmp_path):
  config = of(finetune, run_dir, 'embedded')
  config.steps, config.batch_size, config.log_every = 2, 16, 1
  config.eval.pictures = False
  config.optim.lr = config.optim.min_lr = config.optim.warmup_epochs = 0.0
  figures, said, _ = evaluated(config, tmp_path / 'a')
  assert set(figures) == {'top1', 'chance'} and figures[
    'chance'
  ] == pytest.approx(10)
  tuned = esvit_jax.load(tmp_path / 'a')[1]['params']
  before = esvit_jax.load(run_dir)[1]['params']
  assert tuned.keys() == before.keys()
  for name in ('patch_embed', 'norm'):
    for a, b in zip(tuned[name].values(), before[name].values()):
      np.testing.assert_array_equal(a, b)  # nothing moves at a rate of 0
  assert 'accuracy' in said

  config.scratch = True
  evaluated(config, tmp_path / 'b')
  fresh = esvit_jax.load(tmp_path / 'b')[1]['params']
  assert not np.array_equal(
    fresh['patch_embed']['kernel'], before['patch_embed']['kernel']
  )


def test_deviations_are_positive(run_dir):
  config = of(knn, run_dir)
  config.data.mean, config.data.std = (0.3,), (0.0,)
  with pytest.raises(UserError, match='use more than 0'):
    evaluate.run(config, '', io.StringIO())


def test_a_suite_goes_on_and_remembers(run_dir, tmp_path):
  config = of(transfer, run_dir, 'sit')
  config.transfer.suite = 'embedded,cifar10,aircraft'
  config.transfer.root = str(tmp_path)
  config.data.data_dir = str(tmp_path)
  config.probe.epochs, config.probe.lrs = 1, (1.0,)
  figures, said, _ = evaluated(config, tmp_path / 'suite')
  assert figures['embedded'] == figures['mean']
  assert set(figures['not_judged']) == {'cifar10', 'aircraft'}
  assert "tfds.builder('cifar10'" in said
  assert f'{tmp_path}/aircraft' in said

  file = tmp_path / 'suite/transfer/embedded.json'
  done = json.loads(file.read_text())
  file.write_text(json.dumps({**done, 'score': 12.5}))
  config.transfer.baseline = str(tmp_path / 'suite')
  figures, said, _ = evaluated(config, tmp_path / 'suite')
  assert figures['embedded'] == 12.5  # remembered, not computed again
  assert (figures['compared'], figures['wins']) == (1, 0)
  config.probe.lrs = (0.1,)
  assert evaluated(config, tmp_path / 'suite')[0]['embedded'] != 12.5


def test_a_suite_without_any_set_fails(run_dir, tmp_path):
  config = of(transfer, run_dir, 'esvit')
  config.transfer.root = config.data.data_dir = str(tmp_path)
  out = io.StringIO()
  with pytest.raises(UserError, match='none of 18 sets') as e:
    evaluate.run(config, str(tmp_path / 'suite'), out)
  assert '\n' not in str(e.value)
  assert 'not a confirmed one' in out.getvalue()
  assert not os.path.exists(tmp_path / 'suite/eval/transfer.json')


@pytest.mark.parametrize(
  ('module', 'drawn'),
  [
    (layers, {'cka', 'heads'}),
    (correspondence, {'copies'}),
    (embedding, {'pca', 'attention', 'neighbours', 'map'}),
  ],
)
def test_analyses_draw(run_dir, tmp_path, module, drawn):
  config = of(module, run_dir)
  config.data.split = config.data.test_split = 'test'
  config.batch_size = 32
  config[config.task].images = 64
  figures, _, _ = evaluated(config, tmp_path)
  assert all(os.path.getsize(f'{tmp_path}/pictures/{x}.png') for x in drawn)
  if module is layers:
    assert figures['same_layer'] == pytest.approx(1)
    blocks = figures['attention']
    assert list(blocks) == ['stage0_block0', 'stage1_block0']
    assert 0 < blocks['stage0_block0']['entropy'] < np.log(49)
  elif module is correspondence:
    assert 0 <= figures['accuracy'] <= 100
    assert 0 <= figures['random_init'] <= 100
    assert figures['chance'] == pytest.approx(100 / 16)
    assert figures['images'] == 64


def test_layers_of_two_networks(run_dir, tmp_path):
  config = of(layers, run_dir)
  config.batch_size, config.layers.images = 32, 32
  config.layers.other = run_dir
  config.which = 'student'
  figures, _, _ = evaluated(config, tmp_path)
  assert 0 < figures['same_layer'] < 1  # student against teacher


def test_an_image_without_finite_features_spoils_no_analysis(
  run_dir, tmp_path, monkeypatch
):
  grams = layers_protocol._grams

  def broken(setup):
    def of_batch(batch):
      K = np.array(grams(setup)(batch))
      K[:, 3] = K[:, :, 3] = np.nan
      return K

    return of_batch

  monkeypatch.setattr(layers_protocol, '_grams', broken)
  config = of(layers, run_dir)
  config.batch_size, config.layers.images = 32, 32
  figures, _, _ = evaluated(config, tmp_path)
  assert figures['non_finite'] == 1
  assert 0 < figures['least'] < 1


def test_a_finished_network_is_measured(run_dir, tmp_path, monkeypatch, capsys):
  monkeypatch.setattr(bench, 'KNN', 300)
  monkeypatch.setattr(bench, 'REPEATS', 2)
  config = of(knn, run_dir)
  config.data.labels_per_class = 10
  figures = bench.evaluation(config, str(tmp_path / 'new'))
  assert figures['extraction_images_per_s'] > 0
  assert figures['knn_300_300_768_s'] > 0
  assert 'extraction_share_of_forward' in capsys.readouterr().out


def test_pictures_take_their_share_and_no_more(monkeypatch):
  """At evaluations only if all drawing so far stays below 1 % of the run."""
  clock, drawn = [0.0], []
  monkeypatch.setattr(pictures.time, 'monotonic', lambda: clock[0])

  def draw(*_):
    drawn.append(clock[0])
    clock[0] += 20.0
    return []

  monkeypatch.setattr(pictures, 'draw', draw)
  monkeypatch.setattr(pictures.os, 'makedirs', lambda *a, **k: None)
  album = pictures.Album(None, 'x', None)
  for now in range(0, 10_000, 500):
    clock[0] = now
    album.update(None, [])
  assert drawn == [1000, 4000, 6000, 8000]
  album.update(None, [], last=True)
  assert len(drawn) == 5


def test_suites_name_sets_that_exist():
  sizes = {'elevater': 20, 'esvit': 18, 'mae_lite': 7, 'sit': 8}
  for name, size in sizes.items():
    assert len(suites.resolve(name)) == size
  assert suites.resolve('mae_lite')['pets'].metric == 'top1'
  assert suites.resolve('elevater')['pets'].metric == 'mean_per_class'
  assert suites.resolve('food101')['food101'].test == 'validation'


def test_bad_requests_are_told(run_dir, tmp_path):
  def refused(config, words, directory=tmp_path):
    with pytest.raises(UserError, match=words):
      evaluate.run(config, str(directory), io.StringIO())
    assert not os.path.exists(tmp_path / 'eval')

  refused(of(knn, ''), 'no --config.checkpoint')
  refused(of(knn, tmp_path / 'nope'), 'no such file')
  (tmp_path / 'x.pth').write_text('hello')
  refused(of(knn, tmp_path / 'x.pth'), 'x.pth')
  config = of(knn, run_dir)
  config.task = 'knm'
  refused(config, "no evaluation 'knm'")
  config = of(knn, run_dir)
  config.which = 'both'
  refused(config, 'auto')
  config = of(probe, run_dir)
  config.probe.recipe = 'best'
  refused(config, 'sweep')
  config = of(transfer, run_dir)
  config.transfer.suite = 'cifar11'
  refused(config, "'cifar11'")
  refused(of(finetune, run_dir, 'embedded'), 'no --workdir', '')
  images = tmp_path / 'flat'
  images.mkdir()
  from PIL import Image

  for k in range(30):
    Image.new('L', (28, 28), k).save(images / f'{k}.png')
  config = of(knn, run_dir)
  config.data.source = f'folder:{images}'
  refused(config, 'no labels')
  shutil.rmtree(images)
