"""Our exports, loaded strictly by the libraries they are for.

  python tests/interop/check_exports.py write DIR     # with esvit_jax
  python tests/interop/check_exports.py read DIR      # with torch, timm, ...

The second prints the largest difference of features for each, and fails above
2e-5. They may be two environments.
"""

import json
import pathlib
import sys

import numpy as np

TOLERANCE = 2e-5
# name -> our network, the library
CASES = {
  'timm_swin': ('swin', 'timm'),
  'timm_vit': ('vit', 'timm'),
  'torchvision_swin': ('swin', 'torchvision'),
  'torchvision_vit': ('vit', 'torchvision'),
  'hf_swin': ('swin', 'hf'),
  'hf_vit': ('vit', 'hf'),
  'hf_resnet': ('resnet', 'hf'),
}
SWIN = {'dims': (8, 16), 'depths': (2, 1), 'heads': (2, 4), 'image_size': 56}
FIELDS = {
  'swin': {'name': 'swin', **SWIN, 'norm_eps': 1e-5},
  'vit': {
    'name': 'vit',
    'dim': 24,
    'depth': 2,
    'heads': 3,
    'patch': 8,
    'image_size': 32,
  },
  'resnet': {'name': 'resnet', 'depths': (1, 2), 'width': 8},
}


def images(size: int) -> np.ndarray:
  rng = np.random.Generator(np.random.PCG64(size))
  return rng.standard_normal((2, size, size, 3), np.float32)


def sizes(kind: str) -> tuple[int, ...]:
  return {'swin': (56, 84), 'vit': (32,), 'resnet': (32, 48)}[kind]


def random_weights(kind: str):
  """`Weights` of a small network whose arrays are all random."""
  import jax

  from esvit_jax import models
  from esvit_jax.weights import architecture
  from esvit_jax.weights.networks import Weights

  module = models.build(FIELDS[kind])
  variables = models.abstract_variables(module)
  rng = np.random.default_rng(0)

  def draw(path, x):
    noise = rng.standard_normal(x.shape).astype(np.float32)
    name = path[-1].key
    if name in ('var', 'scale'):
      return 1 + 0.2 * np.abs(noise)
    return 0.15 * noise

  variables = jax.tree_util.tree_map_with_path(draw, variables)
  tree = {
    'params': {'backbone': variables['params']},
    'batch_stats': {'backbone': variables.get('batch_stats', {})},
  }
  about = {
    'model': architecture.resolved(FIELDS[kind], module),
    'channels': 3,
    'mean': [0.5] * 3,
    'std': [0.25] * 3,
  }
  return Weights(about, {'teacher': tree}, {})


def write(folder: pathlib.Path) -> None:
  """Exports with our features of the same images."""
  from esvit_jax.weights import exchange
  from esvit_jax.weights.networks import forward

  folder.mkdir(parents=True, exist_ok=True)
  for name, (kind, library) in CASES.items():
    weights = random_weights(kind)
    ending = '' if library == 'hf' else '.safetensors'
    notes = exchange.save(
      str(folder / f'{name}{ending}'), weights, 'auto', library, {}
    )
    features = {'notes': json.dumps(notes)}
    for size in sizes(kind):
      out = forward(weights.backbone)(weights.variables(), images(size))
      grid = np.asarray(out.grid)
      if kind == 'vit':
        tokens = grid.reshape(2, -1, grid.shape[-1])
        value = np.concatenate([np.asarray(out.view)[:, None], tokens], 1)
      else:
        value = np.moveaxis(grid, -1, 1)
      features[str(size)] = value
    np.savez(folder / f'{name}.npz', **features)


def read(folder: pathlib.Path) -> int:
  """Loads each with strict keys and compares; returns the exit status."""
  import torch

  worst = 0.0
  for name in CASES:
    with np.load(folder / f'{name}.npz') as file:
      expected = {k: file[k] for k in file.files if k != 'notes'}
      notes = json.loads(str(file['notes']))
    run = READERS[name](folder, notes)
    for size, value in expected.items():
      x = torch.from_numpy(images(int(size))).permute(0, 3, 1, 2)
      with torch.no_grad():
        found = run(x).numpy()
      difference = float(np.abs(found - value).max())
      worst = max(worst, difference)
      print(f'{name:<18} {size:>3} px  {difference:.1e}')
  return int(worst > TOLERANCE)


def timm_swin(folder, notes):
  import timm  # noqa: F401 - of the note's call

  call = notes[-1].replace(
    'num_classes=0', 'num_classes=0, strict_img_size=False'
  )
  model = eval(call).eval()
  return lambda x: model.forward_features(x).permute(0, 3, 1, 2)


def timm_vit(folder, notes):
  import timm  # noqa: F401

  model = eval(notes[-1]).eval()
  return model.forward_features


def torchvision_swin(folder, notes):
  from safetensors.torch import load_file
  from torchvision.models.swin_transformer import SwinTransformer

  model = SwinTransformer([4, 4], 8, [2, 1], [2, 4], [7, 7])
  model.head = torch_identity()
  model.load_state_dict(load_file(folder / 'torchvision_swin.safetensors'))
  model.eval()
  return lambda x: model.norm(model.features(x)).permute(0, 3, 1, 2)


def torchvision_vit(folder, notes):
  import torch
  from safetensors.torch import load_file
  from torchvision.models.vision_transformer import VisionTransformer

  model = VisionTransformer(32, 8, 2, 3, 24, 96)
  model.heads = torch_identity()
  model.load_state_dict(load_file(folder / 'torchvision_vit.safetensors'))
  model.eval()

  def run(x):
    x = model._process_input(x)
    x = torch.cat([model.class_token.expand(len(x), -1, -1), x], 1)
    return model.encoder(x)

  return run


def torch_identity():
  import torch

  return torch.nn.Identity()


def hugging_face(name):
  def load(folder, notes):
    import transformers

    model, info = transformers.AutoModel.from_pretrained(
      folder / name, output_loading_info=True
    )
    missing = {k for k in info['missing_keys'] if not k.startswith('pooler.')}
    assert not missing, missing
    assert not info['unexpected_keys'], info
    model.eval()

    def run(x):
      out = model(x).last_hidden_state
      if name != 'hf_swin':
        return out
      side = round(out.shape[1] ** 0.5)
      return out.transpose(1, 2).reshape(len(out), -1, side, side)

    return run

  return load


READERS = {
  'timm_swin': timm_swin,
  'timm_vit': timm_vit,
  'torchvision_swin': torchvision_swin,
  'torchvision_vit': torchvision_vit,
  **{name: hugging_face(name) for name in ('hf_swin', 'hf_vit', 'hf_resnet')},
}


if __name__ == '__main__':
  verb, place = sys.argv[1:]
  if verb == 'write':
    write(pathlib.Path(place))
  else:
    sys.exit(read(pathlib.Path(place)))
