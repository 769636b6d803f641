"""ViTs of fine-tuning: pooling, relative positions, gains, first weights."""

import functools

import golden_mae_sit
import golden_weights
import jax
import jax.numpy as jnp
import mae_runs
import numpy as np
import pytest

from esvit_jax import models
from esvit_jax.errors import UserError
from esvit_jax.models import positions
from esvit_jax.models.classifier import Classifier
from esvit_jax.models.positions import mae_table, moco_table
from esvit_jax.weights import tables

KEY = jax.random.key(0)
SMALL = {'name': 'vit', 'dim': 16, 'depth': 2, 'heads': 2, 'patch': 4} | {
  'image_size': 16,
  'init_scale': 'fan_in',
}
GOLDENS = {
  'vit_tiny_gap': {},
  'vit_tiny_rpe2023': {
    'rel_pos': True,
    'layer_scale': 0.1,
    'qkv_bias': 'qv',
  },
}


def shapes(module: Classifier, channels: int = 3) -> dict:
  side = module.backbone.image_size
  image = jax.ShapeDtypeStruct((1, side, side, channels), jnp.float32)
  return jax.eval_shape(module.init, KEY, image)


@functools.cache
def published(name: str):
  """A golden, its entry and keys, the classifier and its variables."""
  golden, entry = golden_mae_sit.load(name)
  keys = entry['keys']
  backbone = models.build(
    {'name': 'mae_tiny', 'final_norm': False, **GOLDENS[name]}
  )
  module = Classifier(backbone, 1000)
  variables = tables.from_published(
    golden_mae_sit.weights(keys), 'vit_classifier', shapes(module)
  )
  return golden, entry, module, variables


@pytest.mark.parametrize('name', GOLDENS)
def test_published_classifiers(name):
  golden, entry, module, variables = published(name)
  assert entry['params'] == sum(x.size for x in jax.tree.leaves(variables))
  images = mae_runs.image('vit_img')
  target = jax.nn.softmax(golden_mae_sit.normal('vit_target_logits', (2, 1000)))

  def loss(params):
    logits = module.apply({'params': params}, images, train=True)
    return -(target * jax.nn.log_softmax(logits)).sum(-1).mean(), logits

  (value, logits), grads = jax.jit(jax.value_and_grad(loss, has_aux=True))(
    variables['params']
  )
  np.testing.assert_allclose(logits, golden['logits'], rtol=1e-4, atol=1e-5)
  np.testing.assert_allclose(value, golden['soft_ce'], rtol=1e-5)
  theirs = tables.to_published({'params': grads}, 'vit_classifier')
  for i, key in enumerate(entry['grad_names']):
    norm = np.linalg.norm(theirs[key])
    np.testing.assert_allclose(
      norm, golden['grad_norm'][i], rtol=1e-3, err_msg=key
    )
    first = theirs[key].reshape(-1)[:8]
    np.testing.assert_allclose(
      first,
      golden['grad_first8'][i][: len(first)],
      rtol=1e-3,
      atol=1e-4 * np.abs(theirs[key]).max(),
      err_msg=key,
    )


def test_published_index_of_relative_positions():
  golden, *_ = published('vit_tiny_rpe2023')
  index = positions.grid_index(14)
  np.testing.assert_array_equal(index, golden['rel_index'])


@pytest.mark.parametrize('name', GOLDENS)
def test_there_and_back_is_byte_equal(name):
  _, entry, _, variables = published(name)
  state = golden_mae_sit.weights(entry['keys'])
  back = tables.to_published(variables, 'vit_classifier')
  for key, _, kind in entry['keys']:
    if kind == 'buffer_default':
      np.testing.assert_array_equal(back[key], positions.grid_index(14))
    else:
      np.testing.assert_array_equal(back[key], state[key])
  assert len(back) == len(entry['keys'])


@pytest.mark.parametrize(
  ('name', 'parameters'),
  [
    ('mae_tiny', 5_524_416),
    ('mae_small', 21_665_664),
    ('mae_base', 85_798_656),
    ('mae_large', 303_301_632),
    ('mae_huge', 630_764_800),
  ],
)
def test_sizes(name, parameters):
  module = models.build({'name': name})
  found = models.abstract_variables(module)
  assert sum(x.size for x in jax.tree.leaves(found)) == parameters


def small(**overrides):
  backbone = models.build({**SMALL, **overrides})
  like = models.abstract_variables(backbone)
  return backbone, golden_weights.random_variables(like)


def images():
  return jax.random.normal(KEY, (2, 1, 16, 16, 3))


def run(module, variables, sown=False):
  apply = functools.partial(
    module.apply, mutable=['intermediates'] if sown else False
  )
  return jax.jit(apply)(variables, (images(),))


def test_pooling_takes_the_class_token_or_the_mean_patch():
  cls, variables = small()
  mean, _ = small(pool='mean')
  (a,), (b,) = run(cls, variables), run(mean, variables)
  np.testing.assert_array_equal(a.grid, b.grid)
  np.testing.assert_allclose(b.view, b.grid.mean((2, 3)), atol=1e-6)
  np.testing.assert_array_equal(b.blocks[-1], b.view)
  assert jnp.abs(a.view - b.view).max() > 0.1


def test_without_the_final_norm_features_are_raw():
  module, variables = small(final_norm=False)
  assert 'norm' not in variables['params']
  (features,) = run(module, variables)
  np.testing.assert_array_equal(features.grid, features.stages[-1])


def test_relative_positions_depend_on_offsets_alone():
  """Logits less those without them: the table's rows in their places."""
  module, variables = small(rel_pos=True)
  plain, _ = small()
  tables = {
    name: variables['params'][name]['attn'].pop('bias_table')
    for name in ('block0', 'block1')
  }
  without = run(plain, variables, True)[1]['intermediates']
  for name, table in tables.items():
    variables['params'][name]['attn']['bias_table'] = table
  with_ = run(module, variables, True)[1]['intermediates']
  table = tables['block0']
  assert table.shape == (7 * 7 + 3, 2)
  (bias,) = with_['block0']['attn']['logits']
  bias = bias - without['block0']['attn']['logits'][0]  # B V a n n
  patches = bias[0, 0, :, 1:, 1:].reshape(2, 4, 4, 4, 4)
  for r, c, s, d in np.ndindex(4, 4, 4, 4):
    np.testing.assert_allclose(
      patches[:, r, c, s, d],
      table[(r - s + 3) * 7 + (c - d + 3)],
      atol=1e-5,
    )
  bias = bias[0, 0].transpose(1, 2, 0)  # n n a
  np.testing.assert_allclose(
    bias[0, 1:], np.tile(table[49], (16, 1)), atol=1e-5
  )
  np.testing.assert_allclose(
    bias[1:, 0], np.tile(table[50], (16, 1)), atol=1e-5
  )
  np.testing.assert_allclose(bias[0, 0], table[51], atol=1e-5)


def test_relative_positions_start_as_none():
  plain = models.build(SMALL)
  module = models.build({**SMALL, 'rel_pos': True})
  variables = jax.jit(module.init)(KEY, (images(),))
  np.testing.assert_allclose(
    run(module, variables)[0].view, run(plain, variables)[0].view, atol=1e-6
  )


def test_relative_positions_want_their_size():
  module, variables = small(rel_pos=True)
  with pytest.raises(UserError, match='made for 16 px'):
    module.apply(variables, (jnp.zeros((1, 1, 24, 24, 3)),))


def test_biases_of_queries_and_values_only():
  """As one bias whose part for keys is zero."""
  two, variables = small(qkv_bias='qv')
  one, _ = small()
  (a,) = run(two, variables)
  for block in ('block0', 'block1'):
    attn = variables['params'][block]['attn']
    q, v = attn.pop('q_bias'), attn.pop('v_bias')
    attn['qkv']['bias'] = np.concatenate([q, 0 * q, v])
  (b,) = run(one, variables)
  np.testing.assert_allclose(a.view, b.view, atol=1e-5)


def test_gains_scale_what_blocks_add():
  module, variables = small(layer_scale=0.1)
  for block in ('block0', 'block1'):
    for gamma in ('gamma_1', 'gamma_2'):
      assert variables['params'][block][gamma].shape == (16,)
      variables['params'][block][gamma] = np.zeros(16, np.float32)
  plain, _ = small(depth=1)
  (features,) = run(module, variables)
  params = dict(variables['params'])
  del params['block1']
  for path in (('attn', 'proj'), ('mlp', 'fc2')):
    layer = params['block0'][path[0]][path[1]]
    layer['kernel'], layer['bias'] = 0 * layer['kernel'], 0 * layer['bias']
  (empty,) = run(plain, {'params': params})
  np.testing.assert_allclose(features.grid, empty.grid, atol=1e-6)
  made = jax.jit(module.init)(KEY, (images(),))
  np.testing.assert_allclose(made['params']['block1']['gamma_2'], 0.1)


def test_what_blocks_normed_and_logits_are_sown():
  module, variables = small()
  sown = run(module, variables, True)[1]['intermediates']
  (normed,) = sown['block1']['normed']
  assert normed.shape == (2, 1, 17, 16)
  (logits,) = sown['block1']['attn']['logits']
  (probs,) = sown['block1']['attn']['attention']
  np.testing.assert_allclose(jax.nn.softmax(logits), probs, atol=1e-6)
  qkv = variables['params']['block1']['attn']['qkv']
  x = np.asarray(normed) @ qkv['kernel'] + qkv['bias']
  q, k, _ = np.split(x, 3, -1)
  head = q[..., 8:] @ k[..., 8:].swapaxes(-1, -2) / 8**0.5
  np.testing.assert_allclose(logits[:, :, 1], head, atol=1e-5)


@functools.cache
def first_weights(scale: str, positions: str = 'learned') -> dict:
  module = models.build(
    {
      'name': 'vit',
      'dim': 64,
      'depth': 3,
      'heads': 2,
      'patch': 8,
      'image_size': 32,
      'init_scale': scale,
      'positions': positions,
    }
  )
  image = jnp.zeros((1, 1, 32, 32, 3))
  return jax.jit(module.init)(KEY, (image,))['params']


def is_uniform(x, bound):
  return (
    0.95 * bound < jnp.abs(x).max() <= bound
    and abs(x.std() / (bound / 3**0.5) - 1) < 0.1
  )


def test_first_weights_of_mae():
  p = first_weights('mae', 'mae')
  np.testing.assert_array_equal(p['pos_embed'], mae_table(64, 4))
  assert is_uniform(p['patch_embed']['kernel'], (6 / (192 + 64)) ** 0.5)
  assert jnp.abs(p['patch_embed']['bias']).max() <= 192**-0.5
  assert p['patch_embed']['bias'].std() > 0
  attn, mlp = p['block2']['attn'], p['block2']['mlp']
  assert is_uniform(attn['qkv']['kernel'], (6 / (64 + 192)) ** 0.5)
  assert is_uniform(attn['proj']['kernel'], (6 / 128) ** 0.5)
  assert is_uniform(mlp['fc2']['kernel'], (6 / 320) ** 0.5)
  assert 0.01 < p['cls_token'].std() < 0.03


def test_first_weights_of_moco():
  p = first_weights('moco', 'moco')
  np.testing.assert_array_equal(p['pos_embed'], moco_table(64, 4))
  assert is_uniform(p['patch_embed']['kernel'], (6 / (192 + 64)) ** 0.5)
  assert not p['patch_embed']['bias'].any()
  assert is_uniform(p['block0']['attn']['qkv']['kernel'], (6 / 128) ** 0.5)
  assert is_uniform(p['block0']['mlp']['fc1']['kernel'], (6 / 320) ** 0.5)
  assert jnp.abs(p['cls_token']).max() < 1e-5


def test_first_weights_with_relative_positions():
  p = first_weights('rpe')
  for i in range(3):
    block = p[f'block{i}']
    for layer in (block['attn']['proj'], block['mlp']['fc2']):
      expected = 0.02 / (2 * (i + 1)) ** 0.5
      np.testing.assert_allclose(layer['kernel'].std(), expected, rtol=0.05)
    for layer in (block['attn']['qkv'], block['mlp']['fc1']):
      np.testing.assert_allclose(layer['kernel'].std(), 0.02, rtol=0.05)
  kernel = p['patch_embed']['kernel']
  np.testing.assert_allclose(kernel.std(), 0.02, rtol=0.05)


@pytest.mark.parametrize('pool', ['gap', 'cls', 'mean', 'cls_mean'])
def test_heads_read_what_they_say(pool):
  module = Classifier(models.build(SMALL), 5, pool)
  variables = golden_weights.random_variables(shapes(module))
  x = images()[:, 0]
  logits = jax.jit(module.apply)(variables, x)
  p = variables['params']
  (f,) = module.backbone.apply({'params': p['backbone']}, (x[:, None],))
  if pool == 'gap':
    y = f.stages[-1][:, 0].mean((1, 2))
    y = (y - y.mean(-1, keepdims=True)) / jnp.sqrt(
      y.var(-1, keepdims=True) + 1e-6
    )
    y = y * p['fc_norm']['scale'][None] + p['fc_norm']['bias'][None]
  elif pool == 'cls_mean':
    y = jnp.concatenate([f.view[:, 0], f.grid[:, 0].mean((1, 2))], -1)
    y = y @ p['hidden']['kernel'] + p['hidden']['bias'][None]
    y = jax.nn.gelu(y, approximate=False)
  else:
    y = f.view[:, 0]
  expected = y @ p['head']['kernel'] + p['head']['bias'][None]
  np.testing.assert_allclose(logits, expected, atol=1e-5)
  assert logits.dtype == jnp.float32


def test_unknown_pools_are_refused():
  with pytest.raises(UserError, match="pool is 'max'"):
    Classifier(models.build(SMALL), 5, 'max')


@pytest.mark.parametrize(
  ('overrides', 'words'),
  [
    ({'positions': 'sine'}, 'use one of learned, mae, moco'),
    ({'pool': 'max'}, 'use one of cls, mean'),
    ({'qkv_bias': 'k'}, 'use one of qkv, qv'),
    ({'init_scale': 'big'}, "init_scale is 'big'"),
  ],
)
def test_fields_that_do_not_fit(overrides, words):
  with pytest.raises(UserError, match=words):
    models.abstract_variables(models.build({**SMALL, **overrides}))
