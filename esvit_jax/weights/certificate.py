"""A certificate of a conversion, comparable across frameworks.

Checksums are of the arrays in the published layout, so that other frameworks
can compute them too. Features are of an input that NumPy alone defines.
"""

import hashlib
import re

import jax
import numpy as np
from flax import traverse_util

from esvit_jax.weights import writing
from esvit_jax.weights.networks import Weights, forward
from esvit_jax.weights.tables import Arrays

_IMAGES, _SIZE = 2, 224


def certify(weights: Weights, which: str) -> dict:
  """The certificate of one network, as JSON.

  Returns:
    arrays: number converted, with running statistics and centres.
    parameters: number of trainable values.
    stages: name -> arrays, values, sha256 and sum. sha256 is of the
      little-endian bytes of the arrays, concatenated in the order of their
      sorted keys; the sum is in float64.
    features: mean and std of `view` and `grid`, and the input.
  """
  arrays = {
    k: v
    for k, v in writing.to_published(weights, which, centres=True).items()
    if v.dtype == np.float32
  }
  params = weights.networks[which]['params']
  return {
    'network': which,
    'arrays': len(arrays),
    'parameters': sum(x.size for x in jax.tree.leaves(params)),
    'stages': checksums(arrays),
    'features': _features(weights, which),
  }


def not_finite(weights: Weights) -> list[str]:
  """Names of arrays that hold NaN or infinities, as a diverged run has."""
  names = {}
  for network in weights.networks.values():
    for path, array in traverse_util.flatten_dict(network, sep='/').items():
      if not np.isfinite(array).all():
        names[path.partition('/')[2]] = None
  return list(names)


def checksums(arrays: Arrays) -> dict[str, dict]:
  """By stage, such as 'layers.0' or 'head'; see `certify`."""
  stages = {}
  for key in sorted(arrays):
    stages.setdefault(stage(key), []).append(arrays[key])
  return {
    name: {
      'arrays': len(values),
      'values': sum(v.size for v in values),
      'sha256': _sha256(values),
      'sum': sum(float(v.sum(dtype=np.float64)) for v in values),
    }
    for name, values in stages.items()
  }


def stage(key: str) -> str:
  """The stage of a key: layers.0 of layers.0.blocks.1.norm1.bias.

  Of this project's own names, a/b/c/d, it is a/b/c.
  """
  if '/' in key:
    return '/'.join(key.split('/')[:3])
  return re.match(r'(layers|blocks)\.\d+|[^.]*', key).group()


def fixed_images(channels: int, size: int = _SIZE) -> np.ndarray:
  """The input of a certificate's features: f32[2, size, size, C]."""
  rng = np.random.Generator(np.random.PCG64(0))
  shape = (_IMAGES, size, size, channels)
  return rng.standard_normal(shape, np.float32)


def _features(weights: Weights, which: str) -> dict:
  size = weights.about['model'].get('image_size') or _SIZE
  images = fixed_images(weights.about['channels'], size)
  variables = weights.variables(which)
  with jax.default_matmul_precision('highest'):
    out = forward(weights.backbone)(variables, images)
  figures = {
    'input': f'numpy.random.Generator(numpy.random.PCG64(0)).standard_normal('
    f'{images.shape}, numpy.float32), N H W C'
  }
  for name in ('view', 'grid'):
    x = np.asarray(getattr(out, name), np.float64)
    figures[name] = {'mean': x.mean(), 'std': x.std()}
  return figures


def lines(certificate: dict) -> list[str]:
  """The certificate as text."""
  text = [
    f'certificate of the {certificate["network"]}: '
    f'{certificate["arrays"]} arrays, {certificate["parameters"]:,} parameters'
  ]
  for name, row in certificate['stages'].items():
    text.append(
      f'  {name:<12} {row["arrays"]:>4} arrays {row["values"]:>11,}'
      f'  sha256 {row["sha256"][:16]}  sum {row["sum"]:+.9e}'
    )
  features = certificate['features']
  for name in ('view', 'grid'):
    row = features[name]
    text.append(f'  {name:<12} mean {row["mean"]:+.6e}  std {row["std"]:.6e}')
  return [*text, f'  of {features["input"]}']


def _sha256(values: list[np.ndarray]) -> str:
  total = hashlib.sha256()
  for value in values:
    total.update(np.asarray(value, '<f4', order='C').data)
  return total.hexdigest()
