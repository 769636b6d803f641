"""Writes tests/goldens/interop: arrays and features as other libraries give.

  python tests/interop/make_goldens.py

Needs torch, timm, torchvision and transformers (`pip install -e
".[interop-test]"`), which no test of the default suite does.
"""

import json
import pathlib

import numpy as np
import timm
import torch
import torchvision
import transformers
from safetensors.torch import load_file
from timm.models import swin_transformer as timm_swin
from timm.models import vision_transformer as timm_vit
from torchvision.models import swin_transformer as tv_swin
from torchvision.models import vision_transformer as tv_vit

FOLDER = pathlib.Path(__file__).parent.parent / 'goldens' / 'interop'


def randomised(model):
  """Every array random, running variances positive."""
  generator = torch.Generator().manual_seed(0)
  state = model.state_dict()
  for key, value in state.items():
    if value.is_floating_point():
      noise = torch.randn(value.shape, generator=generator)
      if key.endswith('running_var'):
        value.copy_(1 + 0.2 * noise.abs())
      elif value.ndim == 1 and key.endswith('weight'):
        value.copy_(1 + 0.2 * noise)
      else:
        value.copy_(0.15 * noise)
  model.load_state_dict(state)
  return model.eval()


def images(size: int, channels: int = 3) -> np.ndarray:
  """f32[2, size, size, C], the same for both sides."""
  rng = np.random.Generator(np.random.PCG64(size))
  return rng.standard_normal((2, size, size, channels), np.float32)


def save(name: str, state: dict, features: dict, **about) -> None:
  """Arrays by key, features by size, and what the shapes do not tell."""
  arrays = {f'array:{k}': v.numpy() for k, v in state.items()}
  for size, value in features.items():
    arrays[f'features:{size}'] = value.detach().numpy().astype(np.float32)
  about['versions'] = {
    'torch': torch.__version__,
    'timm': timm.__version__,
    'torchvision': torchvision.__version__,
    'transformers': transformers.__version__,
  }
  FOLDER.mkdir(parents=True, exist_ok=True)
  np.savez_compressed(FOLDER / name, about=json.dumps(about), **arrays)


def at(sizes, model, of):
  """Features of images of these sizes."""
  with torch.no_grad():
    return {
      size: of(model, torch.from_numpy(images(size)).permute(0, 3, 1, 2))
      for size in sizes
    }


def keys(model) -> dict:
  return {k: list(v.shape) for k, v in model.state_dict().items()}


def written_keys(model, folder='/tmp/interop_keys') -> tuple[dict, dict]:
  """As a library writes them to disk."""
  model.save_pretrained(folder)
  arrays = load_file(f'{folder}/model.safetensors')
  return {k: list(v.shape) for k, v in arrays.items()}, arrays


def small_models() -> None:
  """Networks of a few thousand parameters with their features."""
  swin = {'embed_dim': 8, 'depths': (2, 1), 'num_heads': (2, 4)}
  grid = lambda x: x.permute(0, 3, 1, 2)  # noqa: E731
  model = randomised(
    timm_swin.SwinTransformer(
      img_size=56, window_size=7, num_classes=3, strict_img_size=False, **swin
    )
  )
  run = lambda m, x: grid(m.forward_features(x))  # noqa: E731
  save('timm_swin', model.state_dict(), at((56, 84), model, run))

  for name, fields in (('timm_vit', {}), ('timm_vit_48', {'img_size': 48})):
    fields = {'img_size': 32, **fields}
    model = randomised(
      timm_vit.VisionTransformer(
        patch_size=8,
        embed_dim=24,
        depth=2,
        num_heads=3,
        num_classes=3,
        **fields,
      )
    )
    run = lambda m, x: m.forward_features(x)  # noqa: E731
    size = fields['img_size']
    features = at((size,), model, run)
    save(name, model.state_dict(), features, heads=3)

  model = randomised(
    tv_swin.SwinTransformer([4, 4], 8, [2, 1], [2, 4], [7, 7], num_classes=3)
  )
  run = lambda m, x: grid(m.norm(m.features(x)))  # noqa: E731
  save('torchvision_swin', model.state_dict(), at((56, 84), model, run))

  for size in (32, 48):
    model = randomised(
      tv_vit.VisionTransformer(size, 8, 2, 3, 24, 96, num_classes=3)
    )

    def tokens(m, x):
      x = m._process_input(x)
      x = torch.cat([m.class_token.expand(len(x), -1, -1), x], 1)
      return m.encoder(x)

    name = 'torchvision_vit' + ('' if size == 32 else '_48')
    save(name, model.state_dict(), at((size,), model, tokens), heads=3)

  vit = {
    'hidden_size': 24,
    'num_hidden_layers': 2,
    'num_attention_heads': 3,
    'intermediate_size': 96,
    'patch_size': 8,
    'layer_norm_eps': 1e-6,
  }
  for size in (32, 48):
    config = transformers.ViTConfig(image_size=size, **vit)
    model = randomised(transformers.ViTModel(config))
    run = lambda m, x: m(x).last_hidden_state  # noqa: E731
    name = 'hf_vit' + ('' if size == 32 else '_48')
    _, arrays = written_keys(model)
    save(name, arrays, at((size,), model, run), config=config.to_dict())

  config = transformers.SwinConfig(
    image_size=56, embed_dim=8, depths=[2, 1], num_heads=[2, 4], window_size=7
  )
  model = randomised(transformers.SwinModel(config))

  def swin_map(m, x):
    out = m(x).last_hidden_state  # N HW C
    side = round(out.shape[1] ** 0.5)
    return out.transpose(1, 2).reshape(len(out), -1, side, side)

  _, arrays = written_keys(model)
  features = at((56, 84), model, swin_map)
  save('hf_swin', arrays, features, config=config.to_dict())

  config = transformers.ViTMAEConfig(
    image_size=32,
    decoder_hidden_size=16,
    decoder_num_hidden_layers=1,
    decoder_num_attention_heads=2,
    decoder_intermediate_size=64,
    mask_ratio=0.0,
    **vit,
  )
  model = randomised(transformers.ViTMAEForPreTraining(config))
  _, arrays = written_keys(model)

  def encoded(m, x):
    noise = torch.arange(16.0)[None].expand(len(x), -1)
    return m.vit(x, noise=noise).last_hidden_state

  features = at((32,), model, encoded)
  save('hf_mae', arrays, features, config=config.to_dict())

  config = transformers.ResNetConfig(
    embedding_size=8, hidden_sizes=[32, 64], depths=[1, 2]
  )
  model = randomised(transformers.ResNetModel(config))
  run = lambda m, x: m(x).last_hidden_state  # noqa: E731
  _, arrays = written_keys(model)
  features = at((32, 48), model, run)
  save('hf_resnet', arrays, features, config=config.to_dict())


def key_lists() -> None:
  """Keys and shapes of networks of published sizes, of the backbone alone."""
  lists = {
    f'timm/{name}': keys(timm.create_model(name, num_classes=0))
    for name in (
      'swin_tiny_patch4_window7_224',
      'vit_small_patch16_224',
      'deit_tiny_patch16_224',
      'resnet50',
    )
  }
  for name in ('swin_t', 'vit_b_16', 'resnet50'):
    model = torchvision.models.get_model(name)
    heads = 'head.', 'heads.', 'fc.'
    lists[f'torchvision/{name}'] = {
      k: v for k, v in keys(model).items() if not k.startswith(heads)
    }
  swin = transformers.SwinConfig()
  vit = transformers.ViTConfig(
    hidden_size=384, num_attention_heads=6, intermediate_size=1536
  )
  lists['hf/swin_tiny'] = written_keys(transformers.SwinModel(swin))[0]
  lists['hf/vit_small'] = {
    k: v
    for k, v in written_keys(transformers.ViTModel(vit))[0].items()
    if not k.startswith('pooler.')
  }
  text = json.dumps(lists, separators=(',', ':'))
  (FOLDER / 'keys.json').write_text(text)


if __name__ == '__main__':
  small_models()
  key_lists()
