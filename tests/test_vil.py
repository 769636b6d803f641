"""ViL against the published one, and its laws."""

import functools

import golden_weights
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from runs import tiny

import esvit_jax
from esvit_jax import data, models, sharding
from esvit_jax.errors import UserError
from esvit_jax.models import chunks, longformer
from esvit_jax.run import jobs
from esvit_jax.weights import architecture, tables, writing
from esvit_jax.weights.networks import Weights
from esvit_jax.weights.published import families, shapes

KEY = jax.random.key(0)
# All kinds of stages; maps of 10, 5 and 2 tokens at the reference size.
SMALL = {
  'name': 'vil',
  'dims': (8, 8, 16),
  'depths': (1, 1, 1),
  'heads': (1, 2, 2),
  'sparse': (True, False, False),
  'global_tokens': (2, 1, 0),
  'patches': (2, 2, 2),
  'window': 3,
  'image_size': 20,
  'init_scale': 'fan_in',
}


# The published code.


@functools.cache
def published(**changes):
  golden, entry = golden_weights.load('backbone_vil_2262')
  backbone = models.build({'name': 'vil_2262', 'drop_path': 0.0, **changes})
  state = golden_weights.weights(entry['state_dict'])
  like = models.abstract_variables(backbone)
  variables = tables.from_published(state, 'vil', like)
  groups = tuple(golden_weights.images(*x) for x in entry['inputs'].items())
  return golden, entry, backbone, variables, groups


@functools.cache
def published_features():
  """Both sizes of the golden in one packed forward."""
  *_, backbone, variables, groups = published()
  return jax.jit(backbone.apply)(variables, groups)


def test_published_features():
  golden, entry, *_ = published()
  result = {}
  for f, image in zip(published_features(), entry['inputs'], strict=True):
    size, grid = image.removeprefix('img'), f.grid[:, 0]
    result |= {
      f'pooled_{size}': f.view[:, 0],
      f'regions_{size}': grid.reshape(len(grid), -1, grid.shape[-1]),
      f'nlast1_{size}': f.blocks[-1][:, 0],
      f'nlast4_{size}': jnp.concatenate(f.blocks[-4:], -1)[:, 0],
    }
  assert golden.keys() == result.keys()
  for key, value in golden.items():
    error = golden_weights.error(result[key], value)
    assert error < golden_weights.tolerance(entry, key), key


def test_published_modes(monkeypatch):
  golden, _ = golden_weights.load('vil_modes')
  result = {f'mode{m}_eval': published_features()[1].view[:, 0] for m in (0, 1)}
  *_, backbone, variables, (_, image) = published(mode=-1)
  result['mode-1'] = jax.jit(backbone.apply)(variables, (image,))[0].view[:, 0]

  backbone = published(mode=1)[2]

  @jax.jit
  def forced(variables, neighbour):
    monkeypatch.setattr(longformer, 'draw_neighbour', lambda key: neighbour)
    (f,) = backbone.apply(
      variables, (image,), train=True, rngs={'neighbour': KEY}
    )
    return f.view[:, 0]

  for c in range(1, 9):  # published: 1 to 8, we leave a gap for the own one
    neighbour = c if c > chunks.OWN else c - 1
    result[f'mode1_train_chunk{c}'] = forced(variables, neighbour)
  assert golden.keys() == result.keys()
  for key, value in golden.items():
    assert golden_weights.error(result[key], value) < 2e-5, key


def test_published_size():
  backbone = models.build({'name': 'vil_2262'})
  variables = models.abstract_variables(backbone)
  assert sum(x.size for x in jax.tree.leaves(variables)) == 27_569_352
  assert backbone.num_features == 768 and backbone.drop_path == 0.1


# Published files.


def test_there_and_back_is_byte_equal():
  _, entry, _, variables, _ = published()
  state = golden_weights.weights(entry['state_dict'])
  back = tables.to_published(variables, 'vil')
  assert back.keys() == state.keys()
  for key, value in state.items():
    assert back[key].dtype == value.dtype and back[key].shape == value.shape
    assert back[key].tobytes() == value.tobytes(), key


@pytest.mark.parametrize(
  'key',
  [
    'layer1.1.attn.query_global.weight',
    'layer1.1.attn.kv_global.bias',
    'layer1.1.attn.proj_global.weight',
    'layer1.1.attn.relative_position_index',
    'layer2.1.attn.relative_position_index',
  ],
)
def test_what_their_files_hold_twice_has_to_agree(key):
  backbone, variables = small()
  state = tables.to_published(variables, 'vil')
  like = models.abstract_variables(backbone)
  tables.from_published(state, 'vil', like)
  state[key] = state[key] + 1
  with pytest.raises(UserError, match=rf'1 different: {key} \(values\)'):
    tables.from_published(state, 'vil', like)


def test_second_names_are_those_of_the_published_code():
  state = tables.to_published(small()[1], 'vil')
  shared = {key.split('.attn.')[0] for key in state if '_global.' in key}
  assert shared == {'layer1.1'}  # none in full attention
  _, alone = small(global_tokens=(0, 1, 0))
  state = tables.to_published(alone, 'vil')
  assert not [key for key in state if '_global.' in key]


@pytest.mark.parametrize(
  'config',
  [
    {'name': 'vil_2262'},
    {'name': 'vil_2262', 'image_size': 96, 'window': 6},
    SMALL,
    {**SMALL, 'sparse': (False, True, True), 'global_tokens': (0, 0, 3)},
  ],
)
def test_architectures_are_told_by_their_shapes(config):
  module = models.build({**config, 'drop_path': 0.0})
  abstract = models.abstract_variables(module)
  variables = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), abstract)
  state = tables.to_published(variables, families.NAMES[type(module)])
  found = shapes.infer(state, {})
  assert found['name'] == config['name']
  found = models.build({**found, 'drop_path': 0.0})
  again = models.abstract_variables(found)
  assert jax.tree.map(lambda x: x.shape, again) == jax.tree.map(
    lambda x: x.shape, abstract
  )
  sides = [
    [size // np.prod(module.patches[: i + 1]) for i in range(3)]
    for size in (found.image_size, module.image_size)
  ]
  assert [s for s, x in zip(sides[0], module.sparse) if not x] == [
    s for s, x in zip(sides[1], module.sparse) if not x
  ]


def test_a_file_in_and_out_gives_the_same_features(tmp_path):
  backbone, variables = small()
  about = {'model': architecture.resolved(SMALL, backbone), 'channels': 3}
  network = {'params': {'backbone': variables['params']}, 'batch_stats': {}}
  path = str(tmp_path / 'a.safetensors')
  writing.save(path, Weights(about, {'teacher': network}, {}))
  bare = str(tmp_path / 'b.safetensors')  # without our description
  safetensors.numpy.save_file(safetensors.numpy.load_file(path), bare)
  images = jax.random.normal(KEY, (2, 20, 20, 3))
  (want,) = jax.jit(backbone.apply)(variables, (images[:, None],))
  for name in (path, bare):
    apply, params = esvit_jax.load(name)
    out = apply(params, images)
    np.testing.assert_allclose(out.grid, want.grid[:, 0], atol=1e-6)
    np.testing.assert_allclose(out.view, want.view[:, 0], atol=1e-6)


# The network.


def small(channels: int = 3, **overrides):
  """A backbone and random weights for it."""
  backbone = models.build({**SMALL, **overrides})
  abstract = models.abstract_variables(backbone, channels)
  return backbone, golden_weights.random_variables(abstract)


def random_groups(B=2, channels=3):
  a, b = jax.random.split(KEY)
  return (
    jax.random.normal(a, (B, 2, 20, 20, channels)),
    jax.random.normal(b, (B, 3, 14, 26, channels)),  # 7x13, 3x6, 1x3 tokens
  )


@functools.cache
def exact() -> tuple:
  """Features of the small network, float32, no drop path."""
  backbone, variables = small()
  return jax.jit(backbone.apply)(variables, random_groups())


def test_packed_groups_and_views_are_as_alone():
  backbone, variables = small()
  apply = jax.jit(backbone.apply)
  for group, together in zip(random_groups(), exact()):
    B, V = group.shape[:2]
    views = group.reshape(B * V, 1, *group.shape[2:])
    (alone,) = apply(variables, (views,))
    jax.tree.map(
      lambda x, y, B=B, V=V: np.testing.assert_allclose(
        x, y.reshape(B, V, *y.shape[2:]), atol=2e-5
      ),
      together,
      alone,
    )


def test_shapes_of_features():
  wide = exact()[1]
  assert wide.view.shape == (2, 3, 16)
  assert wide.grid.shape == (2, 3, 1, 3, 16)
  assert [x.shape for x in wide.stages] == [
    (2, 3, 7, 13, 8),
    (2, 3, 3, 6, 8),
    (2, 3, 1, 3, 16),
  ]
  assert [x.shape[-1] for x in wide.blocks] == [8, 8, 16]
  np.testing.assert_allclose(wide.view, wide.grid.mean((2, 3)), atol=1e-6)


def test_a_global_token_speaks_for_the_view_where_there_is_one():
  backbone, variables = small(global_tokens=(2, 1, 2))
  features = jax.jit(backbone.apply)(variables, random_groups())
  for f, other in zip(features, exact()):
    assert f.grid.shape == other.grid.shape
    np.testing.assert_array_equal(f.view, f.blocks[-1])
    assert jnp.abs(f.view - f.grid.mean((2, 3))).max() > 0.1


def test_a_global_token_sees_all_of_its_view_and_of_no_other():
  backbone, variables = small()

  @jax.jit
  @jax.grad
  def gradient(images):
    (f,) = backbone.apply(variables, (images,))
    return f.blocks[0][0, 0].sum()  # of a sparse stage

  grad = gradient(random_groups()[0])  # B V H W C
  assert (jnp.abs(grad[0, 0]).max(-1) > 0).all()
  assert not jnp.any(grad[0, 1]) and not jnp.any(grad[1])


@pytest.mark.parametrize('channels', [1, 5])
def test_any_number_of_channels(channels):
  backbone, variables = small(channels)
  (_, wide) = jax.eval_shape(
    backbone.apply, variables, random_groups(channels=channels)
  )
  assert wide.grid.shape == (2, 3, 1, 3, 16)
  with pytest.raises(UserError, match=f'made for {channels}'):
    backbone.apply(variables, random_groups(channels=3))


def test_remat_changes_nothing_and_gradients_reach_everything():
  _, variables = small()
  groups = random_groups()[:1]
  rngs = {'drop_path': jax.random.key(7), 'neighbour': jax.random.key(8)}

  def objective(backbone):
    def value(variables):
      features = backbone.apply(variables, groups, train=True, rngs=rngs)
      return sum(
        (f.grid[..., ::2] ** 3).mean() + sum((x**3).mean() for x in f.blocks)
        for f in features
      )

    return jax.jit(jax.value_and_grad(value))(variables)

  random = {'mode': 1, 'drop_path': 0.3}
  results = [objective(small(remat=r, **random)[0]) for r in (False, True)]
  jax.tree.map(
    lambda x, y: np.testing.assert_allclose(x, y, atol=1e-5, rtol=1e-4),
    *results,
  )
  for path, g in jax.tree.leaves_with_path(results[0][1]):
    assert jnp.isfinite(g).all() and jnp.abs(g).max() > 0, path


def test_bfloat16_is_close_and_keeps_float32_parameters():
  backbone, variables = small(dtype='bfloat16')
  made = models.abstract_variables(backbone)
  assert {x.dtype for x in jax.tree.leaves(made)} == {jnp.dtype('float32')}

  def value(variables):
    features = backbone.apply(variables, random_groups())
    return features[0].view.sum(), features

  grads, rough = jax.jit(jax.grad(value, has_aux=True))(variables)
  assert all(jnp.isfinite(g).all() for g in jax.tree.leaves(grads))
  for x, y in zip(exact(), rough):
    assert y.grid.dtype == y.blocks[0].dtype == jnp.float32
    assert jnp.abs(x.view - y.view).max() < 0.1


def test_drop_path_and_neighbours_are_for_training_only():
  groups = random_groups()
  plain, variables = small()
  still = jax.make_jaxpr(plain.apply)(variables, groups)
  for change in ({'drop_path': 0.5}, {'mode': 1}):
    backbone, _ = small(**change)
    assert str(jax.make_jaxpr(backbone.apply)(variables, groups)) == str(still)


def test_a_sharded_batch_needs_no_communication():
  mesh = jax.make_mesh((8,), ('data',), axis_types=(AxisType.Auto,))
  split = NamedSharding(mesh, PartitionSpec('data'))
  whole = NamedSharding(mesh, PartitionSpec())
  backbone, variables = small(mode=1)
  forward = jax.jit(
    lambda v, g, k: backbone.apply(v, g, train=True, rngs={'neighbour': k}),
    in_shardings=(whole, split, whole),
    out_shardings=split,
  )
  text = forward.lower(variables, random_groups(B=8), KEY).compile().as_text()
  assert 'dot(' in text
  for collective in (
    'all-gather',
    'all-reduce',
    'all-to-all',
    'collective-permute',
  ):
    assert f'{collective}(' not in text


@pytest.mark.parametrize(
  ('changes', 'words'),
  [
    ({'heads': (1,)}, 'need one entry per stage each'),
    ({'heads': (3, 2, 2)}, '8 channels do not split into 3 heads'),
    ({'mode': 2}, r'mode of the model is 2: use 0'),
    ({'patches': (2, 0, 2)}, 'have to be 1 or more'),
    ({'depths': (1, 1, 0)}, 'use 1 or more'),
    ({'global_tokens': (1, -1, 0)}, '0 or more'),
    ({'image_size': 7}, 'leaves no token in the last stage: use 8 or more'),
    ({'window': 0}, 'window of vil is 0'),
    ({'patch': 2}, "did you mean 'patches'"),
  ],
)
def test_configs_that_do_not_fit(changes, words):
  with pytest.raises(UserError, match=words) as error:
    models.build({**SMALL, **changes})
  assert '\n' not in str(error.value)


@pytest.mark.parametrize(
  ('side', 'words'),
  [
    (7, 'images of 7x7 px do not split into patches of 2 px'),
    (6, 'stage 3 of the model gets a map of 1x1 .*use 8x8 px or more'),
  ],
)
def test_images_that_do_not_fit(side, words):
  backbone, variables = small()
  with pytest.raises(UserError, match=words):
    jax.eval_shape(
      backbone.apply, variables, (jnp.zeros((1, 1, side, side, 3)),)
    )


def test_weights_at_the_start():
  backbone = models.build(
    {
      'name': 'vil',
      'dims': (64, 64),
      'depths': (1, 1),
      'heads': (1, 1),
      'sparse': (True, False),
      'global_tokens': (1, 0),
      'patches': (2, 1),
      'window': 3,
      'image_size': 6,
      'init_scale': 'fan_in',
    }
  )
  init = jax.jit(backbone.init)
  params = init(KEY, (jnp.zeros((1, 1, 6, 6, 3)),))['params']
  sparse, full = params['layer1_1']['attn'], params['layer2_1']['attn']
  for layer in (sparse['query'], sparse['kv'], full['qkv'], full['proj']):
    np.testing.assert_allclose(layer['kernel'].std(), 64**-0.5, rtol=0.05)
    np.testing.assert_array_equal(layer['bias'], 0)
  for leaf in (
    sparse['bias_table'],
    sparse['g2l_bias'],
    full['bias_table'],
    params['layer1_0']['cls_token'],
  ):
    assert 0.003 < jnp.abs(leaf).max() < 0.1


# Training.


def losses(mesh, steps: int = 3) -> list[float]:
  """Of EsViT with a tiny ViL, drop path and random neighbours."""
  config = tiny()
  with config.unlocked():
    config.model = {
      'name': 'vil',
      'dims': (8, 16),
      'depths': (1, 1),
      'heads': (1, 2),
      'sparse': (True, False),
      'global_tokens': (1, 0),
      'patches': (2, 2),
      'window': 4,
      'mode': 1,
      'image_size': 28,
      'drop_path': 0.3,
      'init_scale': 'fan_in',
      'dtype': 'float32',
    }
  job = jobs.prepare(config, mesh)
  step = jobs.compile_step(job)
  state, found = jobs.create_state(job), []
  pipeline = data.Pipeline(job.sources['train'], config.seed, config.batch_size)
  for i in range(steps):
    batch = sharding.global_batch(job.mesh, pipeline[i])
    state, values = step(state, batch, job.key)
    found.append(float(values['loss']))
  return found


@pytest.mark.slow
def test_training_on_eight_devices_is_training_on_one():
  one = losses(sharding.mesh(jax.devices()[:1]))
  mesh = sharding.mesh()
  assert mesh.size == 8
  np.testing.assert_allclose(losses(mesh), one, atol=1e-5)
  assert len(set(one)) == 3
