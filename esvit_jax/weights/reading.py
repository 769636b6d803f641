"""Published files -> `Weights`, part by part."""

import functools
import os
from collections.abc import Mapping

import numpy as np
from flax import traverse_util

from esvit_jax import models
from esvit_jax.errors import UserError
from esvit_jax.weights import accounting, architecture, tables
from esvit_jax.weights.accounting import Account, Allowed, Part
from esvit_jax.weights.handover import AUTO, NETWORKS, handed_on
from esvit_jax.weights.libraries import huggingface
from esvit_jax.weights.networks import POOLED_NORM, Weights
from esvit_jax.weights.published import (
  arguments,
  families,
  files,
  masks,
  parts,
  shapes,
)
from esvit_jax.weights.published.files import CENTRES, OWN
from esvit_jax.weights.published.parts import HEADS
from esvit_jax.weights.tables import Arrays

# Fields of the description in an exported file that `Weights.about` keeps.
ABOUT = (
  *('model', 'channels', 'mean', 'std', 'head'),
  *('batches', 'buffers', 'random'),
)
IMAGENET = {'mean': [0.485, 0.456, 0.406], 'std': [0.229, 0.224, 0.225]}
# Width -> heads of SiT's ViTs (arXiv 2104.03602, section 4).
SIT_HEADS = {192: 3, 384: 6, 768: 12}
_COUNT = 'num_batches_tracked'


def from_file(
  file: files.File,
  which: str = 'both',
  fields: Mapping | None = None,
  allowed: Allowed | None = None,
) -> Weights:
  """The weights of a published file; every key of it is accounted for.

  Args:
    file: see `files.read`.
    which: 'student', 'teacher', 'both' or 'auto'. A single unnamed network
      counts as either.
    fields: of the backbone. Without a name the architecture is that of the
      file's description or, if it has none, inferred.
    allowed: keys that may differ.

  Raises:
    UserError: keys are missing, unexpected, of another shape or type, or
      leave a choice that `fields` does not settle.
  """
  fields = dict(fields or {})
  if file.about is None:
    fields = {**file.fields, **fields}
  try:
    return _from_file(file, which, fields, allowed or Allowed())
  except families.OpenError as e:
    raise families.OpenError(f'{file.path!r}: {e}', e.field) from None
  except UserError as e:
    raise UserError(f'{file.path!r}: {e}') from None


def from_folder(
  path: str,
  which: str = 'both',
  fields: Mapping | None = None,
  allowed: Allowed | None = None,
) -> Weights:
  """The weights of a folder of Hugging Face; see `from_file`.

  Raises:
    UserError: as `from_file`, or the folder holds another network.
  """
  known = huggingface.fields(path)
  file = files.read(os.path.join(path, huggingface.WEIGHTS))
  file.notes += huggingface.remarks(path)
  return from_file(file, which, {**known, **(fields or {})}, allowed)


def _from_file(file, which, fields, allowed) -> Weights:
  account = Account(allowed, list(file.notes))
  networks = _selected(file, which)
  account.leave_out(file.others)
  if (file.about or {}).get('layout') == OWN:
    return _from_own(file, networks, account)
  attn_masks = set()
  for name, arrays in networks.items():
    arrays = accounting.single_precision(arrays, account.notes)
    networks[name], taken = masks.taken_out(arrays)
    attn_masks |= taken

  first = next(iter(networks.values()))
  config = _config(first, fields, file, account.notes)
  backbone = parts.split(first)['backbone']
  module = architecture.build(config, backbone)
  about = {
    'model': architecture.resolved(config, module),
    'channels': architecture.channels(module, backbone),
  }
  about |= _normalisation(file, about['channels'], account.notes)
  if attn_masks:
    masks.check(attn_masks, module)
    about['buffers'] = [masks.KEY]
    account.notes.append(
      f'{len(attn_masks)} constant {masks.KEY}, as in upstream Swin: its norms '
      'have eps 1e-5, those here and in EsViT 1e-6'
    )
  result = {
    name: _read_network(name, arrays, module, about, account)
    for name, arrays in networks.items()
  }
  heads = {tuple(h for h in HEADS if h in x['params']) for x in result.values()}
  if len(heads) > 1:
    raise UserError('its student and its teacher have different heads')
  batches = {name: _batches(arrays) for name, arrays in networks.items()}
  return _weights(file, result, about, account, batches)


def agree(model: Mapping, fields: Mapping) -> None:
  """Raises UserError if `fields` differ from a model's own description."""
  for field, value in fields.items():
    own = model.get(field)
    listed = list(value) if isinstance(value, tuple) else value
    if own != listed:
      raise UserError(f'it says itself that its {field} is {own}, not {listed}')


def _selected(file: files.File, which: str) -> dict[str, Arrays]:
  """The networks asked for; a single unnamed one is called 'model'."""
  networks = dict(file.networks)
  if which == AUTO:
    recorded = (file.about or {}).get('handed_on')
    best = handed_on(networks, recorded, file.method)
    which = 'both' if 'model' in networks else best
  if 'model' not in networks and which not in ('both', *networks):
    raise UserError(f'it has no {which}, only {", ".join(networks)}')
  if which != 'both':
    networks = {which: networks.get(which, networks.get('model'))}
  return networks


def _weights(file, networks, about, account, batches) -> Weights:
  """The result; a single unnamed network becomes student and teacher."""
  account.check_all_used()
  if account.random or (file.about or {}).get('random'):
    about['random'] = account.random or file.about['random']
  if 'model' in networks:
    networks = dict.fromkeys(NETWORKS, networks['model'])
    batches = dict.fromkeys(NETWORKS, batches.get('model'))
    account.notes.append('one network: it is both student and teacher')
  batches = {name: counts for name, counts in batches.items() if counts}
  if batches:
    about['batches'] = batches
  recorded = (file.about or {}).get('handed_on')
  best = handed_on(networks, recorded, file.method)
  centres = _centres(file.centres, about)
  return Weights(about, networks, centres, best, tuple(account.notes))


def _config(arrays, fields, file, notes) -> dict:
  """The config of the backbone; adds notes on where it comes from."""
  if file.about is not None:
    source, config = 'its own description', file.about['model']
    agree(config, fields)
  else:
    known = _evidence(arrays, file, notes)
    notes += [
      f'{k} {fields[k]} as asked for, against {v} as the file says'
      for k, v in known.items()
      if fields.get(k, v) != v
    ]
    source = 'as asked for' if 'name' in fields else 'inferred from the shapes'
    backbone = parts.split(arrays)['backbone']
    config = shapes.infer(backbone, {**known, **fields})
  settings = [
    f'{k} {v}'
    for k, v in config.items()
    if k not in ('name', 'dtype', 'init_scale')
  ]
  name = ' with '.join(
    [str(config.get('name')), *filter(None, [', '.join(settings)])]
  )
  notes.append(f'architecture: {name}, {source}')
  return config


def _evidence(arrays: Arrays, file: files.File, notes: list[str]) -> dict:
  """Fields of the backbone that other parts of the file tell."""
  family = families.of_keys(arrays)
  known, more = arguments.fields(file.arguments, family, file.method)
  notes += more
  if family != 'vit':
    return known
  kind = parts.kind(arrays)
  if f'{POOLED_NORM}.weight' in arrays:
    known['pool'] = 'mean'
  if kind == 'sit':
    known['resize_extra'] = 0.1
    width = arrays['norm.weight'].shape[0] if 'norm.weight' in arrays else 0
    if width in SIT_HEADS:
      known.setdefault('heads', SIT_HEADS[width])
  elif 'head.last_layer.weight_v' in arrays:
    # DINO's ViT is inside a wrapper, which leaves a prefix; EsViT's is not.
    wrapped = any(p.endswith('backbone.') for p in file.prefixes.values())
    if arguments.is_dino(file.arguments) or (not file.arguments and wrapped):
      known['resize_extra'] = 0.1
      notes.append("resize_extra 0.1: DINO's, by its args or prefix")
  elif kind is None:
    notes.append(
      "no heads: other image sizes resize its positions as EsViT does; DINO's "
      'way is --model.resize_extra=0.1'
    )
  return known


def _normalisation(file, channels: int, notes: list[str]) -> dict:
  """Mean and std of the images that a network was trained on."""
  own = file.about or {}
  if 'mean' in own and 'std' in own:
    return {k: own[k] for k in ('mean', 'std')}
  if channels != 3 or file.about is not None:
    return {}
  notes.append("mean and std: ImageNet's, as all published recipes have")
  return dict(IMAGENET)


def _read_network(name, arrays, module, about, account) -> dict:
  """{'params', 'batch_stats'} of a network, part by part."""
  split = parts.split(arrays)
  if 'head_dense' in split and 'head' not in split:
    raise UserError(f'its {name} has a head_dense but no head')
  heads = [architecture.head(split[k]) for k in HEADS if k in split]
  if any(head != about.setdefault('head', heads[0]) for head in heads):
    raise UserError('its heads are of different sizes')
  variables = {'params': {}, 'batch_stats': {}}
  for key, part_arrays in split.items():
    if key == 'beside':
      layout = parts.kind(arrays)
      init = functools.partial(_implied, part_arrays, layout)
      part = Part(f'{name} {layout}', layout, init)
    elif key == 'backbone':
      layout = families.NAMES.get(type(module))
      init = models.initial(module, about['channels'])
      part = Part(f'{name} {key}', layout, init)
    else:
      layout = architecture.head_layout(about['head'])
      init = architecture.head_init(about['head'], module.num_features)
      part = Part(f'{name} {key}', layout, init, f'{key}.')
    for collection, tree in account.read(part_arrays, part).items():
      variables[collection] |= tree if key == 'beside' else {key: tree}
  return variables


def _implied(arrays: Arrays, layout: str, key) -> dict:
  """`tables.implied`, as a function that initialises."""
  del key
  return tables.implied(arrays, layout)


def _batches(arrays: Arrays) -> dict[str, int]:
  """The number of batches that each batch norm has seen, if known."""
  return {
    k: int(v)
    for k, v in arrays.items()
    if k.endswith(_COUNT) and v.shape == () and v
  }


def _centres(arrays: Arrays, about: dict) -> Arrays:
  """Centres f[1, K] -> f[K]."""
  centres = {}
  for name, value in arrays.items():
    width = about.get('head', {}).get('out_dim')
    if value.shape != (1, width) or value.dtype != np.float32:
      raise UserError(
        f'{CENTRES}{name} is {value.dtype}{list(value.shape)}, not '
        f'float32[1, {width}] as of its head'
      )
    centres[name] = np.array(value[0])
  return centres


def _from_own(file, networks, account) -> Weights:
  """The weights of a file that keeps this project's names."""
  model = file.about['model']
  architecture.check_channels(file.about['channels'])
  module = architecture.build(model, next(iter(networks.values())))
  about = {k: v for k, v in file.about.items() if k in ABOUT}
  result = {}
  for name, arrays in networks.items():
    tree = traverse_util.unflatten_dict(arrays, sep='/')
    backbone = {k: v['backbone'] for k, v in tree.items() if 'backbone' in v}
    differ = architecture.differences(backbone, module, about['channels'])
    if differ:
      raise UserError(f'{name}: {tables.listed("not of its model", differ)}')
    result[name] = {'params': {}, 'batch_stats': {}, **tree}
  account.notes.append(f'architecture: {model["name"]}, its own description')
  return _weights(file, result, about, account, {})
