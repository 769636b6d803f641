"""Segmentation and detection as methods: one device and eight, whole runs."""

import functools
import importlib
import io
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from golden_dense import Case

from esvit_jax import data, evaluate, sharding
from esvit_jax.detection import average_precision
from esvit_jax.errors import UserError
from esvit_jax.run import jobs

SEGMENT = (
  'mae_lite',
  'swin',
  'linear',
  'scenes',
  'scenes_linear',
  'scenes_fpn',
)
DETECT = ('vitdet_tiny', 'swin_1x', 'swin_3x', 'resnet50', 'scenes')


def config(name, variant):
  module = importlib.import_module(f'configs.eval.{name}')
  c = module.get_config(f'{variant},debug')
  c.checkpoint = ''
  return c


@functools.cache
def prepared(name, variant, devices=1):
  return jobs.prepare(
    config(name, variant), sharding.mesh(jax.devices()[:devices])
  )


def test_there_are_recipes():
  for name, variants in (('segment', SEGMENT), ('detect', DETECT)):
    module = importlib.import_module(f'configs.eval.{name}')
    assert set(variants) <= set(module.RECIPES)
    command = f'python -m main --config=configs/eval/{name}.py'
    assert command in module.__doc__
    for variant in module.RECIPES:
      assert module.get_config(variant).method == name


@pytest.mark.slow
@pytest.mark.parametrize(
  ('name', 'variant'),
  [('segment', x) for x in SEGMENT] + [('detect', x) for x in DETECT],
)
def test_every_recipe_is_traced(name, variant):
  assert prepared(name, variant).config.method == name


def one_step(name, variant, devices):
  """The loss of a first batch, drawn from the same key on any mesh."""
  job = prepared(name, variant, devices)
  params, _, extra = jax.jit(job.method.init)(jax.random.key(0))
  pipeline = data.Pipeline(job.sources['train'], 0, job.config.batch_size)
  batch = sharding.global_batch(job.mesh, pipeline[0])
  keys = jax.random.split(jax.random.key(1), job.config.batch_size)

  class State:
    pass

  State.extra = extra

  @jax.jit
  def loss(params, batch, keys):
    views = job.method.views(batch, keys)
    return job.method.loss(params, State, views, jax.random.key(2)).metrics

  return jax.device_get(loss(params, batch, keys))


@pytest.mark.slow
@pytest.mark.parametrize(
  ('name', 'variant'), [('segment', 'scenes_fpn'), ('detect', 'scenes')]
)
def test_one_device_equals_eight(name, variant):
  one, eight = (one_step(name, variant, n) for n in (1, 8))
  for key, value in one.items():
    assert np.isfinite(value)
    np.testing.assert_allclose(value, eight[key], rtol=2e-4, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize('name', ['segment', 'detect'])
def test_a_run_from_targets_to_figures(name, tmp_path):
  c, out = config(name, 'scenes'), io.StringIO()
  figures = evaluate.run(c, str(tmp_path / 'run'), out)
  pictures = {x.name for x in (tmp_path / 'run' / 'pictures').iterdir()}
  assert 'targets.png' in pictures
  if name == 'segment':
    assert 0 <= figures['miou'] <= 100 and 'predictions.png' in pictures
  else:
    assert 0 <= figures['box_AP50'] <= 100 and 'detections.png' in pictures
  assert 'published' in out.getvalue()
  # The same command finds all of it done.
  assert evaluate.run(c, str(tmp_path / 'run'), io.StringIO()) == figures


def test_without_targets_nothing_is_trained():
  for name in ('segment', 'detect'):
    c = config(name, 'scenes')
    c.data.source, c.data.split, c.data.test_split = 'embedded', 'train', 'auto'
    with pytest.raises(UserError, match='this data has none'):
      jobs.prepare(c)


def test_anchors_for_another_number_of_maps():
  c = config('detect', 'scenes')
  c.detect.sizes = (16.0, 32.0)
  with pytest.raises(UserError, match='are for 2 maps'):
    jobs.prepare(c)


@pytest.mark.parametrize('name', ['a', 'crowd'])
def test_average_precision(name):
  case = Case('coco', name)
  content = json.loads(case.inputs['json'].tobytes())
  for kind in average_precision.KINDS:
    found = average_precision.figures(
      content['ground_truth'], content['detections'], kind
    )
    stats = np.nan_to_num(found.stats / 100, nan=-1)
    case.check(**{kind: stats, f'{kind}_precision': found.precision[[0, 5]]})
    mean = np.nanmean(found.of_classes())
    np.testing.assert_allclose(mean, found.stats[0], atol=1e-6)


def test_perfect_detections():
  source = data.open_source({'source': 'scenes', 'objects': 8})
  truth = {'info': {}, 'images': [], 'annotations': [], 'categories': []}
  truth['categories'] = [{'id': k, 'name': str(k)} for k in range(10)]
  results = []
  for i in range(3):
    truth['images'].append({'id': i, 'height': 96, 'width': 96})
    instances = source.objects.read(i)
    for box, kind, mask in zip(
      instances.boxes.tolist(), instances.classes, instances.masks
    ):
      x1, y1, x2, y2 = box
      each = {
        'image_id': i,
        'category_id': int(kind),
        'bbox': [x1, y1, x2 - x1, y2 - y1],
        'segmentation': average_precision.encode(mask),
      }
      results.append(each | {'score': 0.9})
      area = float(mask.sum())
      number = len(truth['annotations']) + 1
      truth['annotations'].append(
        each | {'id': number, 'area': area, 'iscrowd': 0}
      )
  for kind in average_precision.KINDS:
    np.testing.assert_allclose(
      average_precision.figures(truth, results, kind).stats[0], 100
    )
  assert (average_precision.figures(truth, [], 'bbox').stats == 0).all()


def test_part_of_the_scenes():
  source = data.open_source({'source': 'scenes', 'split': 'train[:8]'})
  whole = data.open_source({'source': 'scenes'})
  assert len(source) == 8
  np.testing.assert_array_equal(source[5]['image'], whole[5]['image'])
  with pytest.raises(UserError, match='has no split'):
    data.open_source({'source': 'scenes', 'split': 'trian[:8]'})


def test_every_bit_of_a_falling_schedule():
  from esvit_jax import schedules

  line = schedules.falling(1.0, 100, 10, 0.1)
  np.testing.assert_allclose(line(jnp.array(0)), 0.1, rtol=1e-6)
  np.testing.assert_allclose(line(jnp.array(5)), 0.95 * 0.55, rtol=1e-6)
  np.testing.assert_allclose(line(jnp.array(60)), 0.4, rtol=1e-6)
  steps = schedules.falling(1.0, 90, 0, drops=(2 / 3, 8 / 9))
  values = [float(steps(jnp.array(k))) for k in (59, 60, 79, 80)]
  np.testing.assert_allclose(values, [1, 0.1, 0.1, 0.01], rtol=1e-5)


@pytest.mark.slow
def test_memory_is_told_from_shapes():
  from esvit_jax.protocols import memory

  c = config('detect', 'scenes')
  source = data.open_source(c.data.to_dict())
  kept = [
    memory.kept_by_image(memory._at(c, source, side)) for side in (64, 128)
  ]
  assert 2 < kept[1] / kept[0] < 6
  text = memory.line(c, source)
  assert 'at 64 px' in text and 'at 640' not in text and '\n' not in text


def test_a_bar_only_on_a_terminal():
  from esvit_jax.workdir import terminal

  class Screen(io.StringIO):
    def isatty(self):
      return True

  for out, shown in ((io.StringIO(), False), (Screen(), True)):
    assert list(terminal.counted(range(3), 3, 'judging', out)) == [0, 1, 2]
    assert ('judging' in out.getvalue()) == shown


def test_a_curve_of_zeros_has_no_logarithm_and_no_picture():
  from esvit_jax.report import curves, records

  lines = [{'step': 1, 'train/update_norm': 0.0, 'train/loss': 1.0}]
  run = records.Record('x', 'x', {'steps': 1}, lines, {}, [], [], [], False)
  titles = [chart.title for chart in curves.of_run(run).charts]
  assert titles and 'norm of the updates' not in titles


def test_vitdet_takes_the_weights_of_a_plain_vit():
  from esvit_jax import models, workdir
  from esvit_jax.protocols import detect

  recipe = importlib.import_module('configs.eval.detect').get_config(
    'vitdet_tiny'
  )
  filled = recipe.copy_and_resolve_references()
  with filled.unlocked():
    filled.model = {'name': 'vit_28', 'drop_path': 0.0}
    filled.model.update({'dtype': 'float32', 'remat': False})
  c = detect.windowed(recipe, filled)
  made = models.build(c.model)
  assert (c.model.name, made.heads, made.window) == ('vitdet', 4, 14)
  ours, plain = (
    workdir.flatten(
      jax.tree.map(lambda x: x.shape, models.abstract_variables(x)['params'])
    )
    for x in (made, models.build({'name': 'vit_28'}))
  )
  tables = {k for k in ours if 'rel_pos_' in k}
  assert ours.keys() - tables == plain.keys() - {'cls_token'}
  assert all(ours[k] == plain[k] for k in ours.keys() - tables)
