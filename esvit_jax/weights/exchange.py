"""Networks written for other libraries: files and folders that they load."""

import json
import os
from collections.abc import Mapping

import numpy as np
import safetensors.numpy

from esvit_jax.errors import UserError
from esvit_jax.models.windows import stage_window
from esvit_jax.weights import libraries, tables, writing
from esvit_jax.weights.handover import AUTO
from esvit_jax.weights.libraries import TITLES, huggingface
from esvit_jax.weights.networks import Weights
from esvit_jax.weights.published import families
from esvit_jax.weights.tables import Arrays
from esvit_jax.workdir.files import check_free, replacing

_HEADED = ('timm', 'torchvision', 'hf')  # others take backbones alone


def arrays(
  weights: Weights, which: str, library: str
) -> tuple[Arrays, str, list[str]]:
  """The arrays of one network by the keys of a library.

  Returns:
    The arrays, the kind of network, and the parts that are left out.

  Raises:
    UserError: the library has no such network.
  """
  kind = families.NAMES.get(type(weights.backbone))
  if kind is None:
    kind = type(weights.backbone).__name__
    published = {}
  else:
    published = tables.to_published(weights.variables(which), kind)
  params = weights.networks[which]['params']
  left_out = [name for name in params if name != 'backbone']
  if library in _HEADED and writing.layout(weights, which) == (
    f'{kind}_classifier'
  ):
    tree = weights.networks[which]
    published = tables.to_published(tree, f'{kind}_classifier')
    left_out = []
  _check_windows(weights, library, kind)
  return libraries.translate(published, library, kind), kind, left_out


def _check_windows(weights: Weights, library: str, kind: str) -> None:
  """Raises UserError where a Swin's stages have several windows."""
  if kind != 'swin' or library == 'timm':
    return
  module = weights.backbone
  sizes = {
    stage_window(module.image_size, module.patch, module.window, i)[0]
    for i in range(len(module.depths))
  }
  if len(sizes) > 1:
    raise UserError(
      f"{TITLES[library]}'s Swin has one window in all stages, this one "
      f'{sorted(sizes)}: --to=timm takes it'
    )


def save(
  path: str, weights: Weights, which: str, library: str, facts: Mapping
) -> list[str]:
  """Writes a safetensors file, or for 'hf' a folder, whole or not at all.

  Args:
    path: must not exist.
    weights: what to write.
    which: 'teacher', 'student' or 'auto'.
    library: a key of `libraries.LIBRARIES`.
    facts: of the model card, by name.

  Returns:
    Notes for those who load it, the command among them.

  Raises:
    UserError: the library has no such network, or it cannot be written.
  """
  check_free(path)
  if which == 'both':
    raise UserError(f'--to={library} takes one network: give --which')
  which = weights.handed_on if which == AUTO else which
  translated, kind, left_out = arrays(weights, which, library)
  notes = _notes(weights, library, kind, path)
  if left_out:
    notes.insert(0, f'left out: {", ".join(left_out)}')
  head = next((k for k in translated if k in _HEADS), None)
  classes = translated[head].shape[0] if head else 0
  with replacing(path) as part:
    if library == 'hf':
      os.mkdir(part)
      if classes:
        translated = _prefixed(translated, f'{kind}.')
      _write(os.path.join(part, huggingface.WEIGHTS), translated)
      _write_folder(part, weights, kind, classes, facts, notes)
    else:
      _write(part, translated)
  return notes


_HEADS = ('classifier.weight', 'classifier.1.weight')


def _prefixed(arrays: Arrays, word: str) -> Arrays:
  """As in a model with a head: a prefix on all but the head."""
  return {
    k if k.startswith('classifier.') else word + k: v for k, v in arrays.items()
  }


def _write(path: str, arrays: Arrays) -> None:
  arrays = {k: np.asarray(v, order='C') for k, v in arrays.items()}
  try:
    # transformers wants to be told which framework's arrays they are.
    safetensors.numpy.save_file(arrays, path, {'format': 'pt'})
  except safetensors.SafetensorError as e:
    raise UserError(f'cannot write {path}: {e}') from None


def _write_folder(
  folder: str, weights: Weights, kind: str, classes: int, facts, notes
) -> None:
  about = weights.about
  model = about['model']
  contents = {
    'config.json': huggingface.config(kind, model, about['channels'], classes),
    'preprocessor_config.json': huggingface.preprocessor(about),
  }
  for name, content in contents.items():
    with open(os.path.join(folder, name), 'w', encoding='utf-8') as f:
      json.dump(content, f, indent=2)
  with open(os.path.join(folder, 'README.md'), 'w', encoding='utf-8') as f:
    f.write(huggingface.card(kind, model, facts, notes))


def _notes(weights: Weights, library: str, kind: str, path: str) -> list[str]:
  """How to load it, and what differs in arithmetic there."""
  model, channels = weights.about['model'], weights.about['channels']
  notes = []
  if kind == 'swin' and library in ('torchvision', 'mm'):
    eps = model['norm_eps']
    if eps != 1e-5:
      notes.append(
        f'layer norms add {eps:g} to the variance: build it there with '
        f'norm_layer=partial(torch.nn.LayerNorm, eps={eps:g})'
      )
  if kind == 'swin' and library == 'hf' and model['norm_eps'] != 1e-5:
    notes.append(
      'the norms of patches and merged patches add 1e-05 to the variance '
      f'there, {model["norm_eps"]:g} here'
    )
  if kind == 'vit' and model.get('pool') == 'mean':
    notes.append(
      'its view is the mean of the patch tokens, not the class token'
    )
  if library == 'timm':
    notes.append(_timm(kind, model, channels, path))
  elif library == 'hf':
    notes.append(f"transformers.AutoModel.from_pretrained('{path}')")
  else:
    notes.append(
      f"model.load_state_dict(safetensors.torch.load_file('{path}'))"
    )
  return notes


# kind -> (timm's model, its arguments -> our fields)
_TIMM = {
  'swin': (
    'swin_tiny_patch4_window7_224',
    {
      'img_size': 'image_size',
      'patch_size': 'patch',
      'embed_dim': 'dims',
      'depths': 'depths',
      'num_heads': 'heads',
      'window_size': 'window',
    },
  ),
  'vit': (
    'vit_small_patch16_224',
    {
      'img_size': 'image_size',
      'patch_size': 'patch',
      'embed_dim': 'dim',
      'depth': 'depth',
      'num_heads': 'heads',
    },
  ),
  'resnet': ('resnet50', {'layers': 'depths'}),
}


def _timm(kind: str, model: Mapping, channels: int, path: str) -> str:
  """The call of timm.create_model that loads it."""
  name, arguments = _TIMM[kind]
  values = {theirs: model[ours] for theirs, ours in arguments.items()}
  if kind == 'swin':
    values['embed_dim'] = model['dims'][0]
  if kind == 'resnet' and model['width'] != 64:
    raise UserError("timm's ResNets have 64 channels after the stem")
  if kind == 'swin' and model['norm_eps'] != 1e-5:
    eps = model['norm_eps']
    values['norm_layer'] = f'functools.partial(torch.nn.LayerNorm, eps={eps:g})'
  text = ', '.join(f'{k}={v}' for k, v in values.items())
  return (
    f"timm.create_model('{name}', {text}, in_chans={channels}, num_classes=0, "
    f"checkpoint_path='{path}')"
  )
