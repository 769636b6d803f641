"""`Weights` -> published arrays, and files of them."""

import json

import numpy as np
import safetensors.numpy
from flax import traverse_util

from esvit_jax.errors import UserError
from esvit_jax.models import Swin
from esvit_jax.models.windows import stage_window
from esvit_jax.weights import architecture, tables
from esvit_jax.weights.handover import AUTO
from esvit_jax.weights.networks import POOLED_NORM, Weights
from esvit_jax.weights.published import families, masks, parts
from esvit_jax.weights.published.files import CENTRES, FORMAT, OWN
from esvit_jax.weights.published.parts import HEADS
from esvit_jax.weights.tables import Arrays
from esvit_jax.workdir.files import check_free, replacing

_MOCO = {'student': 'base_encoder.', 'teacher': 'momentum_encoder.'}


def save(
  path: str,
  weights: Weights,
  which: str = AUTO,
  centres: bool = False,
  prefix: str = '',
) -> None:
  """Writes a safetensors file in the published layout, whole or not at all.

  Its metadata describe the architecture, as JSON under 'esvit_jax'.

  Args:
    path: must not exist.
    weights: what to write.
    which: 'teacher', 'student', 'both', or 'auto' for the one handed on.
    centres, prefix: see `to_published`.

  Raises:
    UserError: it cannot be written.
  """
  check_free(path)
  which = weights.handed_on if which == AUTO else which
  arrays = to_published(weights, which, centres, prefix)
  arrays = {k: np.asarray(v, order='C') for k, v in arrays.items()}
  about = {
    'version': 2,
    'network': which,
    'handed_on': weights.handed_on,
    **weights.about,
  }
  networks = weights.networks if which == 'both' else (which,)
  if OWN in [layout(weights, name) for name in networks]:
    about['layout'] = OWN
  try:
    with replacing(path) as part:
      safetensors.numpy.save_file(arrays, part, {FORMAT: json.dumps(about)})
  except safetensors.SafetensorError as e:
    raise UserError(f'cannot write {path}: {e}') from None


def to_published(
  weights: Weights, which: str = AUTO, centres: bool = False, prefix: str = ''
) -> Arrays:
  """Arrays by published key, of one network or of both.

  DINO's heads are `head.` and `head_dense.`. With 'both', keys begin with
  `student.` and `teacher.`, as in files of the training code, or as in MoCo's
  state_dict. Networks without a published layout keep this project's names.

  Args:
    weights: of the networks.
    which: 'student', 'teacher', 'both', or 'auto' for the one handed on.
    centres: whether to add DINO's centres, as `dino_loss.`.
    prefix: of the keys of the backbone, such as `backbone.backbone.` of EsViT's
      ResNet.
  """
  which = weights.handed_on if which == AUTO else which
  flat = {}
  for name in weights.networks if which == 'both' else (which,):
    arrays = _network_arrays(weights, name, prefix)
    moco = layout(weights, name) == 'moco'
    start = _MOCO[name] if moco else f'{name}.'
    for key, value in arrays.items():
      outside = which != 'both' or (moco and key.startswith('predictor.'))
      flat[key if outside else start + key] = value
  if centres:
    flat |= {
      CENTRES + k: np.asarray(v)[None] for k, v in weights.centres.items()
    }
  return flat


def layout(weights: Weights, network: str) -> str | None:
  """The layout of a whole network; None: a backbone, with DINO's heads or not.

  `OWN` if no published layout fits.
  """
  params = weights.networks[network]['params']
  family = families.NAMES.get(type(weights.backbone))
  if family is None:
    return OWN
  head = params.get('head', {})
  if 'decoder' in params:
    kind = 'd2mae' if 'tail_block' in params else 'mae'
  elif 'head_recons' in params:
    kind = 'sit'
  elif 'hidden' in params:
    kind = 'sit_classifier'
  elif 'kernel' in head:
    return f'{family}_classifier'
  elif 'predictor' in params or ('fc0' in head and 'last_layer' not in head):
    kind = 'moco'
  else:
    return None if params.keys() <= {'backbone', *HEADS} else OWN
  return kind if family == 'vit' else OWN


def _network_arrays(weights: Weights, name: str, prefix: str) -> Arrays:
  whole = layout(weights, name)
  tree = weights.networks[name]
  if whole == OWN:
    return traverse_util.flatten_dict(tree, sep='/')
  if whole:
    arrays = tables.to_published(tree, whole)
  else:
    arrays = {}
    for part in tree['params']:
      variables = weights.variables(name, part)
      variables.pop(POOLED_NORM, None)
      start = '' if part == 'backbone' else f'{part}.'
      part_layout = (
        families.NAMES[type(weights.backbone)]
        if part == 'backbone'
        else architecture.head_layout(weights.about['head'])
      )
      published_part = tables.to_published(variables, part_layout)
      arrays |= {f'{start}{k}': v for k, v in published_part.items()}
  if masks.KEY in weights.about.get('buffers', ()):
    arrays |= masks.of(weights.backbone)
  for key, count in weights.about.get('batches', {}).get(name, {}).items():
    arrays[key] = np.asarray(count, np.int64)
  if prefix:
    beside = parts.BESIDE
    arrays = {
      k if k.startswith(beside) or k.startswith(HEADS) else prefix + k: v
      for k, v in arrays.items()
    }
  return arrays


def remarks(weights: Weights, which: str = AUTO) -> list[str]:
  """Notes for those who load the written arrays with other code."""
  network = next(iter(weights.networks)) if which == 'both' else which
  network = weights.handed_on if network == AUTO else network
  module, lines = weights.backbone, []
  if layout(weights, network) == OWN:
    parts = ', '.join(weights.networks[network]['params'])
    lines.append(
      f'no published layout fits a {type(module).__name__} with these parts '
      f"({parts}): the arrays keep esvit_jax's names"
    )
  if isinstance(module, Swin):
    text, fitting = _constructor(module)
    if fitting:
      lines.append(f'{text}: build it there with img_size={fitting}')
  return lines


def unbuildable(weights: Weights) -> str:
  """Why no published constructor builds this network; '' if one does."""
  if not isinstance(weights.backbone, Swin):
    return ''
  text, fitting = _constructor(weights.backbone)
  return f'{text}, and no img_size gives these' if text and not fitting else ''


def _constructor(module: Swin) -> tuple[str, int | None]:
  """How the windows of the published constructor differ from these.

  Returns:
    ('', None) if it builds the same windows and shifts; else a text, and the
    img_size with which it builds them or None.
  """

  def published_windows(image_size):
    sides = [image_size // module.patch // 2**i for i in stages]
    window = module.window
    return [
      (side, 0) if side <= window else (window, window // 2) for side in sides
    ]

  stages = range(len(module.depths))
  ours = [
    stage_window(module.image_size, module.patch, module.window, i)
    for i in stages
  ]
  if published_windows(module.image_size) == ours:
    return '', None
  text = (
    f'the published Swin with img_size={module.image_size} builds windows of '
    f'{[w for w, _ in published_windows(module.image_size)]} tokens, not '
    f'{[w for w, _ in ours]}'
  )
  sizes = range(module.patch, 2049, module.patch)
  return text, next((s for s in sizes if published_windows(s) == ours), None)
