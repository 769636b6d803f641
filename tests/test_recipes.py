"""The recipes of CONTRIBUTING: a backbone and a method of one's own.

Each is added by its recipe alone, a file (here) and one line in a table, and
then goes through everything that is done with a network.
"""

import io
import os
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from ml_collections import ConfigDict

import esvit_jax
from configs import common, quickstart
from configs.eval import finetune, knn, layers
from esvit_jax import convert, evaluate, methods, models, optim, report, train
from esvit_jax import state as state_lib
from esvit_jax.methods import method as shared
from esvit_jax.models.backbone import Backbone, Features
from esvit_jax.models.layers import linear_init

# --- a backbone


class Toy(Backbone, kw_only=True):
  """Patches through linear layers; a view is the mean of its regions."""

  dim: int = 64
  depth: int = 2

  DEBUG: ClassVar = {'dim': 16}

  @property
  def num_features(self):
    return self.dim

  @property
  def layer_ids(self):
    return {'stem': 0} | {f'layer{i}': 1 + i for i in range(self.depth)}

  @nn.compact
  def __call__(self, groups, train=False):
    init = linear_init(self.init_scale)
    stem = nn.Conv(self.dim, (4, 4), 4, kernel_init=init, name='stem')
    norm = nn.LayerNorm(name='norm')
    maps, blocks = [stem(x) for x in groups], []
    for i in range(self.depth):
      layer = nn.Dense(self.dim, kernel_init=init, name=f'layer{i}')
      maps = [x + nn.gelu(layer(x)) for x in maps]
      blocks.append([x.mean((2, 3)) for x in maps])
    return tuple(
      Features(grid.mean((2, 3)), grid, (x,), pooled)
      for grid, x, pooled in zip(map(norm, maps), maps, zip(*blocks))
    )


# --- a method


class Network(nn.Module):
  """Whatever backbone, and a linear layer."""

  backbone: nn.Module

  @nn.compact
  def __call__(self, groups, train=False):
    (features,) = self.backbone(groups, train)
    return nn.Dense(8, name='head')(features.view)  # B V 8


def build(config, run):
  """Two views of an image shall be alike, those of two images shall not."""
  groups = shared.view_groups(config.views, 'it compares two', 2)
  network = Network(models.build(config.model))

  def init(key):
    blank = shared.blank_views(groups[0], config.data.channels)
    params, stats = shared.init_variables(network, key, (blank,))
    return params, None, {'student': stats}

  def loss(params, state, views, key):
    stats = state.extra['student']
    x, stats = shared.forward(network, params, stats, (views['globals'],), key)
    first, second = x[:, 0], x[:, 1]
    alike = ((first - second) ** 2).mean()
    apart = jnp.exp(-((first - first[::-1]) ** 2).mean())
    return state_lib.Loss(
      alike + config.toy.weight * apart, {'student': stats}, {'alike': alike}
    )

  return shared.define(
    config,
    groups,
    network.backbone,
    init=init,
    loss=loss,
    momentum=None,
    network='student',
  )


def toy_method():
  """The config of the method: what it has beside common.base()."""
  c = quickstart.get_config('sit,debug')
  base = common.base()
  for section in set(c) - set(base):
    del c[section]
  c.toy = ConfigDict({'weight': 1.0})
  c.method = 'toy'
  c.model = ConfigDict({'name': 'vit', 'debug': True, 'dtype': 'float32'})
  return c


def toy_backbone():
  c = quickstart.get_config('debug')
  c.model.name = 'toy'
  return c


@pytest.mark.parametrize('config', [toy_backbone, toy_method])
def test_added_by_its_recipe(config, tmp_path, monkeypatch):
  """Trains, is evaluated, fine-tuned, analysed, reported, exported, loaded."""
  monkeypatch.setitem(models.BACKBONES, 'toy', (Toy, {}))
  monkeypatch.setitem(methods.METHODS, 'toy', build)
  run, out = str(tmp_path / 'run'), io.StringIO()
  train.run(config(), run, out)
  assert 'k-NN' in out.getvalue() or 'knn' in out.getvalue()

  for module in (knn, layers):
    c = module.get_config()
    c.checkpoint = run
    c.data.labels_per_class = 8
    c.data.workers = 2
    if module is layers:
      c.layers.images = 128
    evaluate.run(c, '', out)
    assert os.path.exists(f'{run}/eval/{c.task}.json')

  c = finetune.get_config('embedded_few')
  c.checkpoint, c.batch_size, c.steps = run, 16, 2
  c.optim.warmup_epochs = 0.0
  c.eval.pictures = False
  evaluate.run(c, str(tmp_path / 'tuned'), out)
  assert 'accuracy' in (tmp_path / 'tuned' / 'metrics.jsonl').read_text()

  page = report.build([run])
  assert os.path.getsize(page) > 10_000

  exported = str(tmp_path / 'net.safetensors')
  assert convert.main([run, exported]) == 0
  images = np.random.default_rng(0).normal(size=(2, 28, 28, 1)).astype('f4')
  ours, again = (
    apply(variables, images)
    for apply, variables in map(esvit_jax.load, (run, exported))
  )
  jax.tree.map(np.testing.assert_array_equal, ours, again)


# --- the contract


def module_of(name):
  """The debug size of a backbone of the table."""
  return models.build({'name': name, 'debug': True})


@pytest.mark.parametrize('name', ['swin', 'cvt', 'resnet', 'vil', 'vit', 'toy'])
def test_backbones_keep_the_contract(name, monkeypatch):
  monkeypatch.setitem(models.BACKBONES, 'toy', (Toy, {}))
  backbone = module_of(name)
  assert isinstance(backbone, Backbone)
  assert backbone.DEBUG
  params = models.abstract_variables(backbone, 1)['params']
  ids = backbone.layer_ids
  assert set(ids) <= set(params)
  assert set(ids.values()) == set(range(1 + max(ids.values())))
  images = jax.ShapeDtypeStruct((2, 3, 28, 28, 1), 'float32')
  (features,), _ = jax.eval_shape(
    backbone.init_with_output, jax.random.key(0), (images,)
  )
  assert features.view.shape == (2, 3, backbone.num_features)
  assert features.grid.shape[:2] == (2, 3)
  assert features.grid.shape == features.stages[-1].shape
  assert len(features.blocks) == max(ids.values())
  scales = optim.layer_scales({'backbone': params, 'head': params}, ids, 0.5)
  assert set(jax.tree.leaves(scales['head'])) == {1.0}
  assert min(jax.tree.leaves(scales)) == 0.5 ** (1 + max(ids.values()))


@pytest.mark.parametrize(
  'config', ['quickstart', 'esvit', 'imagenette', 'dino', 'sit', 'moco']
)
def test_any_config_takes_a_new_backbone(config, monkeypatch):
  monkeypatch.setitem(models.BACKBONES, 'toy', (Toy, {}))
  c = __import__(f'configs.{config}', fromlist=['x']).get_config()
  c.model.name = 'toy'
  if config == 'sit':
    del c.model.resize_extra  # of a ViT
  assert isinstance(models.build(c.model), Toy)
