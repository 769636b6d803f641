"""Goldens of MAE-Lite, MoCo-v3 and SiT, their weights and their inputs.

Weights and inputs are not stored: NumPy makes them again by the rules in
goldens/mae_sit/manifest.json.
"""

import functools
import json
import math
import pathlib
import zlib

import numpy as np

HERE = pathlib.Path(__file__).parent / 'goldens' / 'mae_sit'
SCALES = {'bias': 0.02, 'token': 0.02, 'pos': 0.02, 'table': 0.5}


@functools.cache
def manifest() -> dict:
  return json.loads((HERE / 'manifest.json').read_text())['goldens']


def load(name: str) -> tuple[dict, dict]:
  """Arrays and manifest entry of a golden (no suffix)."""
  with np.load(HERE / f'{name}.npz') as data:
    return dict(data), manifest()[name]


def weights(keys, prefix: str = '') -> dict[str, np.ndarray]:
  """What the fill rule fills of `keys`, a manifest's [key, shape, kind].

  Position tables as the model computes them and buffers as it makes them are
  left out: they are the port's to make.
  """
  return {
    key: _weight(prefix + key, tuple(shape), kind)
    for key, shape, kind in keys
    if kind not in ('fixed_sincos', 'buffer_default')
  }


def normal(name: str, shape) -> np.ndarray:
  """f32 numbers named `name`, such as 'mae_img'."""
  return _generator(f'input:{name}').standard_normal(shape).astype(np.float32)


def uniform(name: str, shape) -> np.ndarray:
  """f32 numbers in 0..1 named `name`, such as 'mae_noise'."""
  return _generator(f'input:{name}').random(shape).astype(np.float32)


def _weight(name: str, shape, kind: str) -> np.ndarray:
  x = _generator(name).standard_normal(shape).astype(np.float32)
  if kind == 'matrix':
    return x * np.float32(1 / math.sqrt(math.prod(shape[1:])))
  if kind == 'convT':
    return x * np.float32(1 / math.sqrt(shape[0]))
  if kind == 'norm_weight':
    return 1 + np.float32(0.1) * x
  if kind == 'layerscale':
    return np.float32(0.1) + np.float32(0.02) * x
  return x * np.float32(SCALES[kind])


def _generator(name: str) -> np.random.Generator:
  return np.random.Generator(np.random.PCG64(zlib.crc32(name.encode())))
