"""Weights of dense goldens: the fill rule, in our layout."""

import zlib

import numpy as np
from golden_dense import MANIFEST

DEVIATION = {'bias': 0.02, 'token': 0.02, 'pos': 0.02, 'table': 0.5}


def filled(key: str, shape, kind: str) -> np.ndarray:
  """An array in torch's layout by the rule of the manifest."""
  seed = zlib.crc32(key.encode())
  x = np.random.Generator(np.random.PCG64(seed)).standard_normal(tuple(shape))
  if kind == 'matrix':
    x = x / np.sqrt(np.prod(shape[1:]))
  elif kind == 'convT':
    x = x / np.sqrt(shape[0])
  elif kind == 'norm_weight':
    x = 1 + 0.1 * x
  elif kind == 'running_mean':
    x = 0.2 * x
  elif kind == 'running_var':
    x = 1 + 0.3 * np.tanh(x)
  else:
    x = DEVIATION[kind] * x
  return x.astype(np.float32)


def weights(kind: str, case: str) -> dict[str, np.ndarray]:
  """Torch's name -> array in torch's layout."""
  about = MANIFEST[kind]['cases'][case]
  return {
    name: filled(about['weights_prefix'] + name, shape, rule)
    for name, shape, rule in about['weights']
  }


def conv(x: np.ndarray) -> np.ndarray:
  """(out, in, h, w) -> (h, w, in, out)."""
  return x.transpose(2, 3, 1, 0)


def deconv(x: np.ndarray) -> np.ndarray:
  """(in, out, h, w) -> (h, w, in, out)."""
  return x.transpose(2, 3, 0, 1)


def maps(x, prefix: str, numbers) -> list:
  """Arrays B C h w named prefix + number, as B h w C."""
  return [np.moveaxis(x[f'{prefix}{i}'], 1, -1) for i in numbers]


def torch_order(x):
  """B h w C -> B C h w."""
  return np.moveaxis(np.asarray(x), -1, 1)
