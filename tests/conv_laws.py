"""Laws of every backbone of convolutions and batch norm.

`case` is what a test module knows of its backbone: the config of a small one,
the name of its table in `convert`, its prefix in published files.
"""

import functools
import os
from typing import NamedTuple

import golden_weights
import jax
import jax.numpy as jnp
import numpy as np
import torch_writer
from ml_collections import ConfigDict
from runs import tiny

import esvit_jax
from esvit_jax import data, models, sharding
from esvit_jax.run import jobs
from esvit_jax.weights import directory, reading, tables, writing
from esvit_jax.weights.published import files, shapes

KEY = jax.random.key(0)


class Case(NamedTuple):
  small: dict
  table: str
  prefix: str  # of teachers in published files
  infer: dict  # what its shapes do not say


def groups(B: int = 4, sides=((32, 32), (20, 27)), channels: int = 3):
  """Two views of the first size, three of the second."""
  keys = jax.random.split(KEY, len(sides))
  return tuple(
    jax.random.normal(key, (B, 2 + i, *side, channels))
    for i, (key, side) in enumerate(zip(keys, sides))
  )


def small(case: Case, channels: int = 3, **fields):
  """A small backbone and random variables for it."""
  backbone = models.build({**case.small, **fields})
  shapes = models.abstract_variables(backbone, channels)
  variables = golden_weights.random_variables(shapes)

  def positive(path, x):
    return 0.5 + np.abs(x) if path[-1].key == 'var' else x

  return backbone, jax.tree.map_with_path(positive, variables)


@functools.cache
def forward(backbone, train: bool):
  """(variables, groups, key) -> features and batch statistics, jitted."""

  @jax.jit
  def apply(variables, images, key):
    mutable = ['batch_stats'] if train else []
    features, changed = backbone.apply(
      variables,
      images,
      train=train,
      rngs={'drop_path': key},
      mutable=mutable,
    )
    return features, changed.get('batch_stats')

  return apply


def near(a, b, atol=2e-5) -> None:
  """Asserts that two trees are equal but for rounding."""
  assert jax.tree.structure(a) == jax.tree.structure(b)
  jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, atol=atol), a, b)


def published_is_met(golden_name: str, name: str, table: str) -> None:
  """Features of the published code, sizes of the weights, and back again."""
  golden, entry = golden_weights.load(golden_name)
  state = golden_weights.weights(entry['state_dict'])
  config = shapes.infer(state, {})
  assert config == {'name': name}
  backbone = models.build({**config, 'drop_path': 0.5})
  variables = tables.from_published(
    state, table, models.abstract_variables(backbone)
  )
  params = jax.tree.leaves(variables['params'])
  assert sum(x.size for x in params) == entry['params']
  images = tuple(golden_weights.images(*x) for x in entry['inputs'].items())
  features, _ = forward(backbone, False)(variables, images, KEY)
  result = {}
  for f, image in zip(features, entry['inputs']):
    suffix, grid = image.removeprefix('img'), f.grid[:, 0]
    result |= {
      f'pooled_{suffix}': f.view[:, 0],
      f'regions_{suffix}': grid.reshape(len(grid), -1, grid.shape[-1]),
      f'nlast1_{suffix}': f.blocks[-1][:, 0],
      f'nlast4_{suffix}': jnp.concatenate(f.blocks[-4:], -1)[:, 0],
    }
    assert backbone.num_features == f.view.shape[-1]
  assert golden.keys() <= result.keys()
  for key, value in golden.items():
    error = golden_weights.error(result[key], value)
    assert error < golden_weights.tolerance(entry, key), key

  back = tables.to_published(variables, table)
  assert back.keys() == state.keys()
  for key, value in state.items():
    assert (back[key].dtype, back[key].shape) == (value.dtype, value.shape)
    assert back[key].tobytes() == value.tobytes(), key


def statistics_are_torchs(case: Case, convolutions: dict[str, str]) -> None:
  """Each group moves them once, in order, by momentum 0.1, unbiased.

  Args:
    case: the backbone.
    convolutions: path of a batch norm -> path of what it normalises.
  """
  backbone, variables = small(case)
  _, changed = jax.jit(
    lambda v, g: backbone.apply(
      v,
      g,
      train=True,
      mutable=['batch_stats', 'intermediates'],
      capture_intermediates=True,
    )
  )(variables, groups())
  found = {
    '/'.join(p.key for p in path[:-1]): x  # the output for each group
    for path, x in jax.tree.leaves_with_path(
      changed['intermediates'], is_leaf=lambda x: isinstance(x, tuple)
    )
  }
  for norm, convolution in convolutions.items():
    before = _at(variables['batch_stats'], norm)
    mean, var = before['mean'], before['var']
    assert len(found[convolution]) == 2
    for x in found[convolution]:
      x = np.asarray(x, np.float64).reshape(-1, x.shape[-1])
      mean = 0.9 * mean + 0.1 * x.mean(0)
      var = 0.9 * var + 0.1 * x.var(0, ddof=1)
    after = _at(changed['batch_stats'], norm)
    np.testing.assert_allclose(after['mean'], mean, atol=1e-5)
    np.testing.assert_allclose(after['var'], var, rtol=1e-5)
    affine = _at(variables['params'], norm)
    for x in found[norm]:  # normalised by the group's own, not the running ones
      y = (np.asarray(x) - affine['bias']) / affine['scale']
      axes = tuple(range(y.ndim - 1))
      np.testing.assert_allclose(y.mean(axes), 0, atol=1e-4)
      np.testing.assert_allclose(y.std(axes), 1, atol=1e-2)


def groups_are_forwards_of_their_own(case: Case) -> None:
  """In features, and in what they leave behind."""
  backbone, variables = small(case)
  apply = forward(backbone, True)
  together, stats = apply(variables, groups(), KEY)
  alone, left = [], variables
  for group in groups():
    (features,), after = apply(left, (group,), KEY)
    alone.append(features)
    left = {**variables, 'batch_stats': after}
  near((together, stats), (tuple(alone), left['batch_stats']))


def drop_path_is_for_training_only(case: Case) -> None:
  """Then it draws for every group, and remat draws the same."""
  backbone, variables = small(case, drop_path=0.5)
  (group, _) = groups()
  still = [
    str(jax.make_jaxpr(b.apply)(variables, (group,)))
    for b in (backbone, small(case)[0])
  ]
  assert still[0] == still[1]
  (a, b), stats = forward(backbone, True)(variables, (group, group), KEY)
  assert (jnp.abs(a.view - b.view).max(-1) > 1e-3).any()
  again = forward(small(case, drop_path=0.5, remat=True)[0], True)
  near(((a, b), stats), again(variables, (group, group), KEY))


def gradients_reach_everything(case: Case) -> None:
  """With remat and without alike; running statistics move once."""
  _, variables = small(case)

  def objective(backbone):
    def value(params):
      features, changed = backbone.apply(
        {**variables, 'params': params},
        groups()[1:],
        train=True,
        mutable=['batch_stats'],
      )
      return sum((f.grid[..., ::2] ** 3).mean() for f in features), changed

    return jax.jit(jax.grad(value, has_aux=True))(variables['params'])

  plain = objective(small(case)[0])
  for path, g in jax.tree.leaves_with_path(plain[0]):
    assert jnp.isfinite(g).all() and jnp.abs(g).max() > 0, path
  near(plain, objective(small(case, remat=True)[0]), 1e-4)


def bfloat16_is_close(case: Case) -> None:
  """And keeps parameters, statistics and region features in float32."""
  backbone, variables = small(case, dtype='bfloat16')
  made = models.abstract_variables(backbone)
  assert {x.dtype for x in jax.tree.leaves(made)} == {jnp.dtype('float32')}
  exact, _ = forward(small(case)[0], True)(variables, groups(), KEY)
  rough, stats = forward(backbone, True)(variables, groups(), KEY)
  for x, y in zip(exact, rough):
    assert y.grid.dtype == y.view.dtype == jnp.float32
    assert y.stages[0].dtype == jnp.bfloat16
    cosine = (x.grid * y.grid).sum(-1) / (
      jnp.linalg.norm(x.grid, axis=-1) * jnp.linalg.norm(y.grid, axis=-1)
    )
    assert cosine.min() > 0.99
  assert {x.dtype for x in jax.tree.leaves(stats)} == {jnp.dtype('float32')}


def eight_devices_are_one(model: dict) -> None:
  """Three steps of both losses, batch statistics included."""
  config = tiny(steps=3)
  config.model = ConfigDict({**model, 'dtype': 'float32', 'remat': False})
  assert config.loss.region_weight > 0 and 'locals' in config.views
  start, results = None, []
  for devices in (jax.devices()[:1], jax.devices()):
    mesh = sharding.mesh(devices)
    job = jobs.prepare(config, mesh)
    method = job.method._replace(views=_crops)
    job = job._replace(method=method, step=None)
    step = jobs.compile_step(job)
    if start is None:
      start = jax.tree.map(np.array, jobs.create_state(job))
    state = jax.tree.map(
      lambda x, like: jax.device_put(x, like.sharding), start, job.state
    )
    pipeline = data.Pipeline(
      job.sources['train'], config.seed, config.batch_size
    )
    losses = []
    for i in range(3):
      batch = sharding.global_batch(mesh, pipeline[i])
      state, values = step(state, batch, job.key)
      losses.append([values[k] for k in ('loss', 'view_loss', 'region_loss')])
    assert mesh.size == len(devices) and values['skipped'] == 0
    # Not parameters: where a gradient is zero but for rounding, Adam moves.
    results.append(jax.device_get((losses, state.extra)))
  near(*results, 1e-5)
  for who in ('student', 'teacher'):
    before, after = (
      jax.tree.leaves(x[who]['backbone']) for x in (start.extra, state.extra)
    )
    assert not any(np.allclose(a, b) for a, b in zip(before, after))


def _crops(batch, keys) -> dict:
  """Views that compile at once; how they are made is not at stake."""
  x = batch['image'] / 255 - 0.3  # B 28 28 1
  return {
    'globals': jnp.stack([x, x[:, :, ::-1] ** 2], 1),
    'locals': jnp.stack([x[:, :16, :16], x[:, 6:22, 9:25]], 1),
  }


def files_give_equal_features(case: Case, folder) -> None:
  """Published layout -> ours -> safetensors -> ours; all of one mind."""
  backbone, variables = small(case, drop_path=0.1)
  state = tables.to_published(variables, case.table)
  path = torch_writer.save(
    folder / 'a.pth',
    {
      'teacher': {
        case.prefix + k: torch_writer.tensor(v) for k, v in state.items()
      }
    },
  )
  file = files.read(os.fspath(path))
  assert f'teacher: prefix {case.prefix!r}' in file.notes
  found = reading.from_file(file, fields=case.infer)
  told = models.build({**found.about['model'], 'drop_path': 0.1})
  assert told == backbone
  writing.save(os.fspath(folder / 'b.safetensors'), found)
  directory.write(os.fspath(folder / 'run'), found, 'a.pth')

  images = groups()[0][:, 0]
  (want,), _ = forward(backbone, False)(variables, (images[:, None],), KEY)
  want = jax.tree.map(lambda x: x[:, 0], want)
  for name in ('b.safetensors', 'run'):
    apply, params = esvit_jax.load(folder / name)
    near(apply(params, images), want)
    for a, b in zip(jax.tree.leaves(params), jax.tree.leaves(variables)):
      assert np.asarray(a).tobytes() == np.asarray(b).tobytes()


def _at(tree: dict, path: str):
  return functools.reduce(lambda x, name: x[name], path.split('/'), tree)
