"""Images of several classes: metrics, the loss, fine-tuning on scenes."""

import io
import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from golden_dense import Case
from PIL import Image
from runs import tiny

from configs.eval import finetune as recipes
from configs.eval import small_data, transfer
from esvit_jax import data, evaluate, train
from esvit_jax.augment import mixing
from esvit_jax.errors import UserError
from esvit_jax.evals import scores
from esvit_jax.methods import finetune
from esvit_jax.protocols import small_data as small_data_protocol
from esvit_jax.protocols import suites
from esvit_jax.protocols import transfer as transfer_protocol


@pytest.mark.parametrize('name', ['a', 'difficult'])
def test_average_precision(name):
  case = Case('multilabel', name)
  x, y = case.inputs['scores'], case.inputs['labels']
  each = [(x[:, [k]], y[:, [k]]) for k in range(y.shape[1])]
  case.check(
    ap11=[scores.map_11(*pair) / 100 for pair in each],
    ap11_origin=[scores.map_11(*pair, origin=True) / 100 for pair in each],
    ap_area=[scores.map_area(*pair) / 100 for pair in each],
    map11=scores.map_11(x, y) / 100,
    map_area=scores.METRICS['map'](x, y) / 100,
  )


def test_a_class_without_a_positive_is_left_out():
  case = Case('multilabel', 'class_without_positive')
  x, y = case.inputs['scores'], case.inputs['labels']
  case.check(map_area=scores.map_area(x, y) / 100)
  with pytest.raises(UserError, match='no class has one'):
    scores.map_area(x, np.zeros_like(y))
  with pytest.raises(UserError, match='labels for each class'):
    scores.map_area(x, y[:, 0])
  scores.check('map', 20, True)
  with pytest.raises(UserError, match='use map_11 or map'):
    scores.check('top1', 20, True)


@pytest.mark.parametrize('name', ['a', 'difficult'])
def test_binary_cross_entropy(name):
  case = Case('multilabel', name)
  y = jnp.asarray(case.inputs['labels'])

  def loss(x):
    targets = jnp.maximum(y, 0).astype(jnp.float32)
    return finetune.binary_cross_entropy(x[:, None], targets, y >= 0)[0]

  value, gradient = jax.value_and_grad(loss)(jnp.asarray(case.inputs['scores']))
  case.check(bce=value, grad_scores=gradient)


def test_binary_cross_entropy_of_nothing_and_of_large_logits():
  x = jnp.array([[[500.0, -500.0]]])
  value, metrics = finetune.binary_cross_entropy(
    x, jnp.array([[1.0, 0.0]]), jnp.array([[True, True]])
  )
  assert value == 0 and metrics['accuracy'] == 100
  nothing = finetune.binary_cross_entropy(
    x, jnp.array([[1.0, 0.0]]), jnp.zeros((1, 2), bool)
  )
  assert nothing[0] == 0 and nothing[1]['accuracy'] == 0


def test_mixed_targets_count_where_both_images_are_known():
  labels = jnp.array([[1, 0, -1], [0, -1, 1]])
  mix = mixing.Mix(jnp.float32(0.75), jnp.array(False), jnp.zeros(4, int))
  targets, counted = mixing.multi_label_targets(labels, mix)
  np.testing.assert_allclose(targets[0], [0.75, 0, 0.25])
  np.testing.assert_array_equal(counted, [[True, False, False]] * 2)
  alone, counted = mixing.multi_label_targets(
    labels, mix._replace(share=jnp.float32(1))
  )
  np.testing.assert_array_equal(counted, labels >= 0)
  np.testing.assert_array_equal(alone, labels == 1)


def test_scenes_say_which_garments_they_show():
  source = data.open_source({'source': 'scenes'})
  for i in range(30):
    example = source[i]
    seen = set(np.unique(example['segmentation'])) - {0, 255}
    assert {1 + k for k in np.flatnonzero(example['label'] == 1)} == seen
    if (example['label'] == -1).any():
      assert (example['segmentation'] == 255).any()
  labels = data.labels(data.subset(source, range(300), 'some'))
  assert labels.shape == (300, 10)
  assert (-1 in labels) and (labels == 1).any(0).all()


@pytest.mark.slow
def test_fine_tuning_on_scenes(tmp_path):
  out = io.StringIO()
  config = recipes.get_config('embedded,debug')
  config.data.source, config.eval.metric, config.steps = 'scenes', 'map', 2
  config.data.mean, config.data.std = (0.286,), (0.353,)
  figures = evaluate.run(config, str(tmp_path / 'a'), out)
  assert list(figures) == ['map'] and 0 < figures['map'] < 100
  lines = (tmp_path / 'a' / 'metrics.jsonl').read_text().splitlines()
  losses = [json.loads(line).get('train/loss') for line in lines]
  assert next(filter(None, losses)) == pytest.approx(math.log(2), rel=0.3)
  config.eval.metric = 'top1'
  with pytest.raises(UserError, match='use map_11 or map'):
    evaluate.run(config, str(tmp_path / 'b'), out)


@pytest.mark.slow
def test_pre_training_on_scenes_asks_for_no_labels(tmp_path):
  config = tiny()
  config.data.source, config.steps = 'scenes', 2
  train.run(config, str(tmp_path), io.StringIO())
  assert (tmp_path / 'report.html').exists()


def test_sets_of_several_labels_are_fine_tuned_on(tmp_path):
  row = suites.SETS['voc2007']
  for name in ('train/a', 'train/b', 'test/a', 'test/b'):
    (tmp_path / 'voc2007' / name).mkdir(parents=True)
    image = Image.new('L', (8, 8))
    image.save(tmp_path / 'voc2007' / name / '0.png')
  config = transfer.get_config()
  config.transfer.mode, config.transfer.root = 'finetune', str(tmp_path)
  new = transfer_protocol.config_of(config, 'voc2007', row)
  assert new.eval.metric == 'map_11'
  config = small_data.get_config()
  config.root = str(tmp_path)
  new = small_data_protocol.config_of(config, 'voc2007', row)
  assert new.finetuning.eval.metric == 'map_11'
