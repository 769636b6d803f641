"""Published checkpoints in and out: every key accounted for."""

import golden_weights
import jax
import numpy as np
import pytest

from esvit_jax import models
from esvit_jax.errors import UserError
from esvit_jax.models.heads import DINOHead
from esvit_jax.weights import tables

BACKBONES = {
  'backbone_swin_small24_w7': {
    'name': 'swin',
    'dims': (24, 48, 96, 192),
    'depths': (2, 2, 2, 2),
    'heads': (1, 2, 4, 8),
  },
  'backbone_deit_tiny_p16': {'name': 'deit_tiny'},
}


def backbone(name: str):
  entry = golden_weights.manifest()[f'{name}.npz']
  module = models.build(BACKBONES[name])
  arch = 'vit' if 'deit' in name else 'swin'
  like = models.abstract_variables(module)
  return golden_weights.weights(entry['state_dict']), arch, like


def head(use_bn: bool):
  entry = golden_weights.manifest()['dino_head.npz']
  keys = entry['keys_bn' if use_bn else 'keys']
  keys = {
    k: (s, 'int64' if k.endswith('tracked') else 'float32')
    for k, s in keys.items()
  }
  module = DINOHead(entry['out_dim'], use_bn=use_bn)
  x = jax.ShapeDtypeStruct((2, entry['in_dim']), 'float32')
  like = jax.eval_shape(module.init, jax.random.key(0), x)
  arch = 'dino_head_bn' if use_bn else 'dino_head'
  return golden_weights.weights(keys), arch, like


CASES = {
  'swin': lambda: backbone('backbone_swin_small24_w7'),
  'vit': lambda: backbone('backbone_deit_tiny_p16'),
  'dino_head': lambda: head(False),
  'dino_head_bn': lambda: head(True),
}


@pytest.mark.parametrize('case', CASES)
def test_there_and_back_is_byte_equal(case):
  state, arch, like = CASES[case]()
  variables = tables.from_published(state, arch, like)
  assert jax.tree.map(lambda x: x.shape, variables) == jax.tree.map(
    lambda x: x.shape, like
  )
  back = tables.to_published(variables, arch)
  assert back.keys() == state.keys()
  for key, value in state.items():
    assert back[key].dtype == value.dtype and back[key].shape == value.shape
    assert back[key].tobytes() == value.tobytes(), key


@pytest.mark.parametrize('case', CASES)
def test_a_fresh_network_has_a_published_name_for_all_it_has(case):
  state, arch, like = CASES[case]()
  fresh = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), like)
  assert tables.to_published(fresh, arch).keys() == state.keys()


def spoilt(change) -> str:
  """What is said about a Swin state_dict after `change` of it."""
  state, arch, like = CASES['swin']()
  change(state)
  with pytest.raises(UserError) as error:
    tables.from_published(state, arch, like)
  text = str(error.value)
  assert '\n' not in text
  return text


def test_a_missing_key_is_named():
  key = 'layers.1.blocks.0.attn.qkv.bias'
  assert f'1 missing: {key}' in spoilt(lambda s: s.pop(key))


def test_an_unexpected_key_is_named():
  extra = {
    'module.norm.bias': np.zeros(3, np.float32),
    'layers.7.blocks.0.norm1.bias': np.zeros(3, np.float32),
  }
  text = spoilt(lambda s: s.update(extra))
  assert '2 unexpected: module.norm.bias, layers.7.blocks.0.norm1.bias' in text


@pytest.mark.parametrize(
  ('key', 'value', 'words'),
  [
    ('norm.bias', np.zeros(7, np.float32), '(7,), not (192,)'),
    ('norm.bias', np.zeros(192, np.float16), 'float16, not float32'),
    (
      'layers.0.blocks.0.mlp.fc1.weight',
      np.zeros((24, 96), np.float32),
      '(24, 96), not (96, 24)',
    ),
    ('patch_embed.proj.weight', np.zeros(4, np.float32), 'not (24, 3, 4, 4)'),
    (
      'layers.0.blocks.0.attn.relative_position_index',
      np.zeros((49, 49), np.int64),
      '(values)',
    ),
  ],
)
def test_a_tensor_of_another_kind_is_named(key, value, words):
  text = spoilt(lambda s: s.update({key: value}))
  assert f'1 different: {key}' in text and words in text


def test_long_lists_are_cut():
  text = spoilt(dict.clear)
  assert 'and 111 more' in text and len(text) < 800


def test_unknown_architectures_and_variables():
  with pytest.raises(UserError, match="did you mean 'swin'"):
    tables.from_published({}, 'swim', {})
  with pytest.raises(UserError, match='1 unexpected: params/spam'):
    tables.to_published({'params': {'spam': np.zeros(1)}}, 'swin')
