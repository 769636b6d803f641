"""Layouts of MAE, D-MAE, fine-tuned ViTs, MoCo-v3 and SiT: in and out again."""

import golden_weights
import jax
import numpy as np
import pytest
import torch_writer as writer

from configs import mae_lite, moco, sit
from configs.eval import finetune
from esvit_jax import methods, models
from esvit_jax.errors import UserError
from esvit_jax.state import Horizon, Run
from esvit_jax.weights import reading, tables, writing
from esvit_jax.weights.published import files


def network(config, **given) -> dict:
  """Random variables of what a method trains: {'params', 'batch_stats'}."""
  method = methods.METHODS[config.method](config, Run(Horizon(10, 5), **given))
  params, _, extra = jax.eval_shape(method.init, jax.random.key(0))
  stats = extra.get('student', {})
  return golden_weights.random_variables(
    {'params': params, **({'batch_stats': stats} if stats else {})}
  )


def mae(arg='tiny,debug', **distill):
  config = mae_lite.get_config(arg)
  config.model.depth = 12  # published tails and adapters count twelve blocks
  config.distill.update(distill)
  return config


def teacher(config):
  fields = {**config.model, 'dim': 48, 'heads': 4, 'drop_path': 0.0}
  module = models.build(fields)
  shapes = models.abstract_variables(module, 1)
  return module, golden_weights.random_variables(shapes)


def d2mae():
  config = mae(decoupled=True, checkpoint='x')
  config.mae.decode_at = 8
  return config


def classifier():
  config = finetune.get_config('impr,debug')
  config.model.final_norm = False
  return config


CASES = {
  'mae': lambda: network(mae()),
  'd2mae': lambda: network(d2mae(), teacher=teacher(d2mae())),
  'vit_classifier': lambda: network(classifier(), classes=7),
  'moco': lambda: network(moco.get_config('tiny,debug')),
  'sit': lambda: network(sit.get_config('small,debug')),
}


def saved(folder, arrays, prefix, key='model', more=None):
  """A file of torch with these arrays under a prefix."""
  state = {prefix + k: writer.tensor(v) for k, v in arrays.items()}
  return writer.save(folder / 'a.pth', {key: state | (more or {})})


@pytest.mark.parametrize('kind', CASES)
@pytest.mark.parametrize('prefix', ['', 'module.model.'])
def test_a_file_comes_back_byte_for_byte(tmp_path, kind, prefix):
  variables = CASES[kind]()
  arrays = tables.to_published(variables, kind)
  path = saved(tmp_path, arrays, prefix)
  file = files.read(str(path), None)
  found = reading.from_file(file, fields={'heads': 2})
  jax.tree.map(
    np.testing.assert_array_equal,
    found.networks['student']['params'],
    variables['params'],
  )
  extra = found.about['model']['resize_extra']
  assert extra == (0.1 if kind == 'sit' else 0)
  back = writing.to_published(found)
  assert back.keys() == arrays.keys()
  for k, v in arrays.items():
    np.testing.assert_array_equal(back[k], v)


def test_distilled_students_leave_their_teacher(tmp_path):
  """D-MAE's file: module.model.*, module.tch_model.*, module.attn_adapter.*"""
  config = mae(checkpoint='x')
  variables = network(config, teacher=teacher(config))
  arrays = tables.to_published(variables, 'mae')
  state = {
    f'module.{"" if k.startswith("attn_adapter") else "model."}{k}': v
    for k, v in arrays.items()
  }
  state['module.tch_model.cls_token'] = np.zeros((1, 1, 48), np.float32)
  path = saved(tmp_path, state, '')
  file = files.read(str(path), None)
  found = reading.from_file(file, fields={'heads': 2})
  assert 'attn_adapter' in found.networks['student']['params']
  assert any('frozen teacher, 1 arrays' in note for note in found.notes)
  assert writing.to_published(found).keys() == arrays.keys()


def test_frozen_tables_tell_whose_network_it_is(tmp_path):
  """An encoder without a decoder: the sines of MAE are still in it."""
  module = models.build({'name': 'mae_tiny', 'image_size': 32})
  variables = jax.jit(module.init)(
    jax.random.key(0), (np.zeros((1, 1, 32, 32, 3), 'float32'),)
  )
  arrays = tables.to_published(jax.device_get(variables), 'vit')
  path = saved(tmp_path, arrays, '')
  found = reading.from_file(files.read(str(path), None))
  about = found.about['model']
  assert (about['name'], about['heads'], about['pool']) == (
    'mae_tiny',
    12,
    'mean',
  )


def test_a_strange_key_of_a_decoder_is_told(tmp_path):
  arrays = tables.to_published(CASES['mae'](), 'mae')
  arrays['decoder_extra.weight'] = np.zeros((2, 2), np.float32)
  path = saved(tmp_path, arrays, '')
  with pytest.raises(UserError, match='decoder_extra'):
    reading.from_file(files.read(str(path), None), fields={'heads': 2})
