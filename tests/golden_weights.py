"""Goldens of the published code, its weights and its inputs.

Weights and inputs are not stored: NumPy makes them again by the rules in
goldens/esvit/manifest.json.
"""

import functools
import json
import math
import pathlib
import zlib

import jax
import numpy as np

HERE = pathlib.Path(__file__).parent / 'goldens' / 'esvit'


@functools.cache
def manifest() -> dict:
  return json.loads((HERE / 'manifest.json').read_text())['files']


def load(name: str) -> tuple[dict, dict]:
  """Arrays and manifest entry of a golden file (no suffix)."""
  with np.load(HERE / f'{name}.npz') as data:
    return dict(data), manifest()[f'{name}.npz']


def tolerance(entry: dict, output: str) -> float:
  """Three times the published code's own float32 noise, 2e-5 at least."""
  return max(3 * entry.get('noise_f32_vs_f64', {}).get(output, 0), 2e-5)


def error(actual, expected) -> float:
  """Largest absolute difference; shapes must agree."""
  actual, expected = np.asarray(actual), np.asarray(expected)
  assert actual.shape == expected.shape, (actual.shape, expected.shape)
  return float(np.abs(actual - expected).max())


def normal(name: str, shape) -> np.ndarray:
  """f32 numbers named `name`: the input rule."""
  return _generator(f'input:{name}').standard_normal(shape).astype(np.float32)


def images(name: str, shape) -> np.ndarray:
  """A named input, NCHW in the manifest, as one view each: [N, 1, H, W, C]."""
  return normal(name, shape).transpose(0, 2, 3, 1)[:, None]


def weights(state_dict: dict, prefix: str = '') -> dict[str, np.ndarray]:
  """The state_dict of a golden network: the fill rule.

  Args:
    state_dict: [shape, dtype] by key, as the manifest has them.
    prefix: '' or 'teacher:'.
  """
  return {
    key: _weight(prefix, key, tuple(shape), dtype)
    for key, (shape, dtype) in state_dict.items()
  }


def _weight(prefix, key, shape, dtype) -> np.ndarray:
  leaf = key.rpartition('.')[-1]
  if dtype == 'int64':
    if leaf == 'num_batches_tracked':
      return np.zeros(shape, np.int64)
    side = round(shape[0] ** 0.5)
    at = np.stack(np.mgrid[:side, :side]).reshape(2, -1)  # 2 n
    reach, keys = side, at
    if shape[1] == 9 * shape[0]:  # ViL: of the 3x3 chunks, one by one
      reach = 2 * side
      chunks = [side * np.array([[y], [x]]) for y, x in np.ndindex(3, 3)]
      keys = np.concatenate([at - side + chunk for chunk in chunks], 1)
    delta = at[:, :, None] - keys[:, None] + reach - 1
    return delta[0] * (2 * reach - 1) + delta[1]
  for word in ('query', 'kv', 'proj'):
    key = key.replace(f'{word}_global', word)
  z = _generator(prefix + key).standard_normal(shape).astype(np.float32)
  if leaf == 'running_mean':
    z = 0.1 * z
  elif leaf == 'running_var':
    z = 1 + 0.2 * np.abs(z)
  elif 'relative_position_bias' in leaf or leaf in ('cls_token', 'pos_embed'):
    z = 0.5 * z
  elif leaf == 'weight_g':
    z = 1 + 0.1 * z
  elif z.ndim >= 2:
    z = z / np.sqrt(np.prod(shape[1:]))
  elif leaf == 'weight':
    z = 1 + 0.1 * z
  else:
    z = 0.02 * z
  return z.astype(np.float32)


def random_variables(shapes, seed: int = 0) -> dict:
  """Variables of these shapes in which nothing is zero; compiles nothing."""
  rng = np.random.default_rng(seed)

  def fill(path, leaf):
    z = rng.standard_normal(leaf.shape).astype(np.float32)
    if path[-1].key == 'scale':
      return 1 + 0.1 * z
    fan_in = math.prod(leaf.shape[:-1])
    return z / math.sqrt(fan_in) if leaf.ndim > 1 else 0.1 * z

  return jax.tree.map_with_path(fill, shapes)


def _generator(name: str) -> np.random.Generator:
  return np.random.Generator(np.random.PCG64(zlib.crc32(name.encode())))
