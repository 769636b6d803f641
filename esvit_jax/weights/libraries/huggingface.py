"""Folders of Hugging Face: config.json, model.safetensors and what goes along.

transformers builds the network from config.json, and a processor of images
from preprocessor_config.json; README.md is the model card.
"""

import os
from collections.abc import Mapping

from esvit_jax.errors import UserError
from esvit_jax.workdir import parse_json

WEIGHTS = 'model.safetensors'
# kind -> (model_type, the class without a head, the class with one)
_MODELS = {
  'swin': ('swin', 'SwinModel', 'SwinForImageClassification'),
  'vit': ('vit', 'ViTModel', 'ViTForImageClassification'),
  'mae': ('vit_mae', 'ViTMAEForPreTraining', ''),
  'resnet': ('resnet', 'ResNetModel', 'ResNetForImageClassification'),
}


def is_folder(path: str) -> bool:
  """Whether a folder is of Hugging Face, by its config.json."""
  return 'model_type' in (_json(os.path.join(path, 'config.json')) or {})


def fields(path: str) -> dict:
  """What the config of a folder says that shapes do not: backbone's fields.

  Raises:
    UserError: it is of another network, or without plain weights.
  """
  config = _json(os.path.join(path, 'config.json'))
  kinds = {model_type: kind for kind, (model_type, *_) in _MODELS.items()}
  kind = kinds.get(config['model_type'])
  if kind is None:
    raise UserError(
      f'{path!r} holds a {config["model_type"]}: read are {", ".join(kinds)}'
    )
  if not os.path.isfile(os.path.join(path, WEIGHTS)):
    raise UserError(
      f'{path!r} has no {WEIGHTS}: save the model with '
      'save_pretrained(folder, max_shard_size="100GB")'
    )
  if config.get('hidden_act', 'gelu') != 'gelu' and kind != 'resnet':
    raise UserError(
      f'{path!r} has the activation {config["hidden_act"]}: only gelu is read'
    )
  if kind == 'resnet':
    return {}
  image_size = config.get('image_size', 224)
  if kind == 'swin':
    eps = config.get('layer_norm_eps', 1e-5)
    return {'image_size': image_size, 'norm_eps': eps}
  return {'heads': config['num_attention_heads']}


def remarks(path: str) -> list[str]:
  """Differences in arithmetic that stay."""
  config = _json(os.path.join(path, 'config.json'))
  eps = config.get('layer_norm_eps')
  if config['model_type'] in ('vit', 'vit_mae') and eps not in (None, 1e-6):
    return [
      f'its layer norms add {eps:g} to the variance, those here 1e-06: '
      'features differ where tokens hardly vary'
    ]
  return []


def config(kind: str, model: Mapping, channels: int, classes: int) -> dict:
  """The config.json of a network.

  Args:
    kind: 'swin', 'vit' or 'resnet'.
    model: all fields of the backbone, see `Weights.about`.
    channels: of its images.
    classes: of its head; 0 without one.
  """
  model_type, bare, headed = _MODELS[kind]
  content = {
    'model_type': model_type,
    'architectures': [headed if classes else bare],
    'num_channels': channels,
    'dtype': 'float32',
  }
  if classes:
    content['id2label'] = {str(k): str(k) for k in range(classes)}
    content['label2id'] = {str(k): k for k in range(classes)}
  if kind == 'resnet':
    width, depths = model['width'], model['depths']
    return content | {
      'embedding_size': width,
      'hidden_sizes': [4 * width * 2**k for k in range(len(depths))],
      'depths': list(depths),
    }
  content |= {
    'image_size': model['image_size'],
    'patch_size': model['patch'],
    'hidden_act': 'gelu',
    'qkv_bias': True,
  }
  if kind == 'swin':
    return content | {
      'embed_dim': model['dims'][0],
      'depths': list(model['depths']),
      'num_heads': list(model['heads']),
      'window_size': model['window'],
      'layer_norm_eps': model['norm_eps'],
      'drop_path_rate': 0.0,
    }
  return content | {
    'hidden_size': model['dim'],
    'num_hidden_layers': model['depth'],
    'num_attention_heads': model['heads'],
    'intermediate_size': 4 * model['dim'],
    'layer_norm_eps': 1e-6,
  }


def preprocessor(about: Mapping) -> dict:
  """The preprocessor_config.json that normalises as in training."""
  size = about['model'].get('image_size') or 224
  channels = about['channels']
  return {
    'image_processor_type': 'ViTImageProcessor',
    'do_resize': True,
    'size': {'height': size, 'width': size},
    'resample': 3,  # bicubic
    'do_rescale': True,
    'rescale_factor': 1 / 255,
    'do_normalize': True,
    'image_mean': list(about.get('mean') or [0.5] * channels),
    'image_std': list(about.get('std') or [0.5] * channels),
  }


def card(kind: str, model: Mapping, facts: Mapping[str, str], notes) -> str:
  """The README.md of a folder.

  Args:
    kind: of the network.
    model: fields of the backbone.
    facts: figures, data and source, by name.
    notes: what else a person should know.
  """
  rows = '\n'.join(f'| {name} | {value} |' for name, value in facts.items())
  listed = '\n'.join(f'- {note}' for note in notes)
  where = {
    'swin': '`last_hidden_state` holds the map of regions, normed; '
    '`pooler_output` is its mean.',
    'resnet': '`last_hidden_state` holds the map of regions; `pooler_output` '
    'is its mean.',
  }.get(
    kind,
    '`last_hidden_state[:, 0]` is the class token, the rest are the patches. '
    'There is no trained pooler.',
  )
  return f"""---
library_name: transformers
pipeline_tag: image-feature-extraction
license: other
tags: [self-supervised, {_MODELS[kind][0]}]
---
# {model['name']}

A {model['name']} trained without labels by esvit_jax.

| | |
|---|---|
{rows}

```python
from transformers import AutoImageProcessor, AutoModel

processor = AutoImageProcessor.from_pretrained('.')
model = AutoModel.from_pretrained('.')
outputs = model(**processor(image, return_tensors='pt'))
```

{where}

{listed}

The licence is for whoever trained it to say, and depends on the data: set
`license:` above.
"""


def _json(file: str) -> dict | None:
  try:
    with open(file, encoding='utf-8') as f:
      content = parse_json(f.read())
  except (OSError, ValueError):
    return None
  return content if isinstance(content, dict) else None
