"""Networks of timm, torchvision and Hugging Face, read and written.

tests/interop/make_goldens.py made the goldens with these libraries.
"""

import json
import pathlib

import numpy as np
import pytest
from safetensors.numpy import save_file

import esvit_jax

GOLDENS = pathlib.Path(__file__).parent / 'goldens' / 'interop'
NAMES = sorted(path.stem for path in GOLDENS.glob('*.npz'))
TOLERANCE = 2e-5


def golden(name):
  """(arrays by key, features by size, what shapes do not tell)."""
  with np.load(GOLDENS / f'{name}.npz') as file:
    parts = {'array': {}, 'features': {}}
    for key in file.files:
      kind, _, rest = key.partition(':')
      if rest:
        parts[kind][rest] = file[key]
    about = json.loads(str(file['about']))
  features = {int(size): x for size, x in parts['features'].items()}
  return parts['array'], features, about


def images(size: int) -> np.ndarray:
  rng = np.random.Generator(np.random.PCG64(size))
  return rng.standard_normal((2, size, size, 3), np.float32)


def fields(about) -> dict:
  """What a user has to say of a file."""
  config = about.get('config', {})
  heads = about.get('heads') or config.get('num_attention_heads')
  size = {'image_size': 56} if 'swin' in config.get('model_type', '') else {}
  return ({'heads': heads} if heads else {}) | size


def ours(path, about, size):
  """Features in the form of the golden: maps N D h w, or tokens N T D."""
  apply, variables = esvit_jax.load(path, **fields(about))
  features = apply(variables, images(size))
  return features


@pytest.mark.parametrize('name', NAMES)
def test_features_of_their_files_are_theirs(name, tmp_path):
  arrays, features, about = golden(name)
  save_file(arrays, tmp_path / 'a.safetensors')
  given = fields(about)
  if 'swin' in name:
    given['image_size'] = 56
  apply, variables = esvit_jax.load(str(tmp_path / 'a.safetensors'), **given)
  for size, expected in features.items():
    out = apply(variables, images(size))
    if expected.ndim == 4:
      found = np.moveaxis(np.asarray(out.grid), -1, 1)
    else:
      grid = np.asarray(out.grid).reshape(2, -1, expected.shape[-1])
      found = np.concatenate([np.asarray(out.view)[:, None], grid], 1)
    assert found.shape == expected.shape
    np.testing.assert_allclose(found, expected, atol=TOLERANCE)
