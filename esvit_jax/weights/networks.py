"""Weights of a finished network, whatever they come from.

The common form between published files, our runs and exported files: trees as
a run has them, and a description from which the network can be built.
"""

import functools
import json
import os
from collections.abc import Mapping
from typing import NamedTuple

import jax
import numpy as np
from flax import linen as nn

from esvit_jax import models
from esvit_jax.errors import UserError
from esvit_jax.models.layers import Features
from esvit_jax.weights import accounting, architecture, published, tables
from esvit_jax.weights.accounting import Allowed
from esvit_jax.weights.handover import AUTO, NETWORKS, handed_on
from esvit_jax.weights.published import CENTRES, HEADS, Arrays
from esvit_jax.workdir.checkpoint import restore_parts

# Parts that training has and no published layout: tasks that SiT may add, and
# SiT's heads beside EsViT's.
_OWN = ('rotation', 'balance', 'sit')


class Weights(NamedTuple):
  """One network or two, and their centres.

  Attributes:
    about: plain JSON: 'model', the config of the backbone with all fields;
      'channels' of its images; 'head', the fields of its DINOHeads, if any.
    networks: 'student', 'teacher' or both -> {'params': {'backbone', 'head',
      'head_dense'}, 'batch_stats': likewise}.
    centres: 'center' and 'center_grid' f[K], where known.
    handed_on: which network is meant where none is named.
  """

  about: dict
  networks: dict[str, dict]
  centres: Arrays
  handed_on: str = 'teacher'

  @property
  def backbone(self) -> nn.Module:
    """The module, in float32 and without drop path."""
    model = {**self.about['model'], 'dtype': 'float32'}
    if 'drop_path' in model:
      model['drop_path'] = 0.0
    return models.build(model)


def load(path: str, which: str = 'both') -> Weights:
  """The weights at a path, whatever is there.

  Args:
    path: a run directory, a file of torch.save, or a safetensors file.
    which: 'student', 'teacher', 'both' (all there are) or 'auto'.

  Raises:
    UserError: there are none, or not what was asked for.
  """
  if os.path.isdir(path):
    return from_run(path, which)
  return from_file(published.read(path), which)


def pick(path: str, which: str = 'auto') -> tuple[Weights, str]:
  """The weights at a path, and which of its networks is meant.

  Args:
    path: as for `load`.
    which: 'student', 'teacher', or 'auto' for the one to hand on.

  Raises:
    UserError: as `load`.
  """
  if which not in (AUTO, *NETWORKS):
    raise UserError(f"which is '{which}': use auto, {', '.join(NETWORKS)}")
  weights = load(path, which)
  return weights, weights.handed_on


def from_run(path: str, which: str = 'both') -> Weights:
  """The newest weights of a run directory, or of a converted one.

  Raises:
    UserError: there are none.
  """
  name = os.path.join(path, 'config.json')
  try:
    with open(name, encoding='utf-8') as f:
      config = json.load(f)
    model, channels = config['model'], config['data']['channels']
    head = config.get('head') or {}
  except (OSError, ValueError, KeyError, TypeError) as e:
    raise UserError(
      f'cannot read {name} ({type(e).__name__}): give the directory of a run, '
      'which has a config.json and checkpoints/'
    ) from None
  parts = restore_parts(path, ('params', 'teacher', 'extra'))
  trees = {'student': parts['params'], 'teacher': parts['teacher']}
  # A teacher may be none, or another network that only distils.
  trees = {
    who: {k: v for k, v in tree.items() if k not in _OWN}
    for who, tree in trees.items()
    if tree and 'backbone' in tree
  }
  best = handed_on(trees, _recorded(path, config), config.get('method'))
  which = best if which == AUTO else which
  if which not in ('both', *trees):
    raise UserError(f'{path} has no {which}, only a {best}')
  stats = {
    who: {
      k: v for k, v in (parts['extra'].get(who) or {}).items() if k not in _OWN
    }
    for who in trees
  }
  networks = {
    who: {'params': trees[who], 'batch_stats': stats[who]}
    for who in (trees if which == 'both' else (which,))
  }
  centres = {k: v for k, v in parts['extra'].items() if k.startswith('center')}
  about = {
    'model': architecture.resolved(model, models.build(model)),
    'channels': channels,
  }
  if 'last_layer' in trees[best].get('head', {}):
    head = {'layers': 3, 'use_bn': False, **head}
    about['head'] = {k: head[k] for k in architecture.HEAD_FIELDS}
  best = handed_on(networks, best)
  return Weights(about, networks, centres, best)


def _recorded(path: str, config: Mapping) -> str | None:
  """The network that a run or a converted directory says it hands on."""
  try:
    with open(os.path.join(path, 'run.json'), encoding='utf-8') as f:
      return json.load(f).get('network')
  except (OSError, ValueError):
    return config.get('network')


def from_file(
  file: published.File,
  which: str = 'both',
  config: Mapping | None = None,
  allowed: Allowed | None = None,
) -> Weights:
  """The weights of a published file, every key of it accounted for.

  Args:
    file: as `published.read` gives it. Its `notes` grow.
    which: 'student', 'teacher', 'both' or 'auto'; a file of one unnamed
      network has it as either.
    config: of the backbone. Without a name, the file's own description is
      taken, or the architecture inferred.
    allowed: what may differ.

  Raises:
    UserError: keys are missing, unexpected, of another shape or type.
  """
  allowed, notes = allowed or Allowed(), file.notes
  networks = file.networks
  if which == AUTO:
    only = 'model' in networks
    best = handed_on(networks, file.recorded, file.method)
    which = 'both' if only else best
  if 'model' not in networks and which not in ('both', *networks):
    raise UserError(f'it has no {which}, only {", ".join(networks)}')
  if which != 'both':
    networks = {which: networks.get(which, networks.get('model'))}
  # One unnamed network is checked once and serves as both.
  networks = {
    who: accounting.single(arrays, allowed, notes)
    for who, arrays in networks.items()
  }
  used = accounting.leave_out(file.others, allowed, notes)

  first = next(iter(networks.values()))
  config = dict(config or {})
  if published.whole(first) == 'sit' and file.about is None:
    config = {'resize_extra': 0.1} | config
  config = _config(published.split(first)['backbone'], config, file)
  module = architecture.build(config, first)
  about = {
    'model': architecture.resolved(config, module),
    'channels': architecture.channels(module, first),
  }
  result = {}
  for who, network in networks.items():
    parts = published.split(network)
    heads = [architecture.head(parts[k]) for k in HEADS if k in parts]
    if any(head != about.setdefault('head', heads[0]) for head in heads):
      raise UserError('its heads are of different sizes')
    result[who] = _variables(who, parts, module, about, allowed, used, notes)
  heads = {tuple(h for h in HEADS if h in x['params']) for x in result.values()}
  if len(heads) > 1:
    raise UserError('its student and its teacher have not the same heads')
  accounting.check_all_used(allowed, used)
  if 'model' in result:
    result = dict.fromkeys(NETWORKS, result['model'])
    notes.append('one network: it is both student and teacher')
  best = handed_on(result, file.recorded, file.method)
  return Weights(about, result, _centres(file.centres, about), best)


def to_published(weights: Weights, which: str = 'teacher') -> Arrays:
  """Arrays by published key, of one network or of all, each named.

  Heads are `head.` and `head_dense.`, centres `dino_loss.`; with 'both', keys
  begin with `student.` or `teacher.`, as files of the training code nest.
  """
  flat = {}
  for who in weights.networks if which == 'both' else (which,):
    start = f'{who}.' if which == 'both' else ''
    kind = _whole(weights.networks[who]['params'])
    if kind:
      arrays = tables.to_published(weights.networks[who], kind)
      flat |= {f'{start}{k}': v for k, v in arrays.items()}
      continue
    for part in weights.networks[who]['params']:
      arrays = tables.to_published(
        part_variables(weights, who, part), _table(weights, part)
      )
      lead = start if part == 'backbone' else f'{start}{part}.'
      flat |= {f'{lead}{k}': v for k, v in arrays.items()}
  flat |= {CENTRES + k: np.asarray(v)[None] for k, v in weights.centres.items()}
  return flat


def part_variables(weights: Weights, who: str, part: str = 'backbone') -> dict:
  """{'params', 'batch_stats'} of one part of a network, for its apply."""
  network = weights.networks[who]
  variables = {'params': network['params'][part]}
  stats = network['batch_stats'].get(part)
  return variables | ({'batch_stats': stats} if stats else {})


@functools.lru_cache(maxsize=8)
def forward(backbone):
  """(variables, images f32[N, H, W, C]) -> Features of N images, jitted."""

  def apply(variables, images) -> Features:
    (out,) = backbone.apply(variables, (images[:, None],), train=False)
    return jax.tree.map(lambda x: x[:, 0], out)

  return jax.jit(apply)


@functools.lru_cache(maxsize=4)
def inspect(backbone):
  """As `forward`, but -> (Features, what its blocks sow), for analyses."""

  def apply(variables, images):
    (out,), sown = backbone.apply(
      variables, (images[:, None],), train=False, mutable=['intermediates']
    )
    features = jax.tree.map(lambda x: x[:, 0], out)
    return features, sown.get('intermediates', {})

  return jax.jit(apply)


def _whole(params: Mapping) -> str | None:
  """The table of a whole network that is not a backbone with DINO's heads."""
  head = params.get('head', {})
  if 'tail_block' in params:
    return 'd2mae'
  if 'decoder' in params:
    return 'mae'
  if 'head_recons' in params:
    return 'sit'
  if 'kernel' in head:
    return 'vit_classifier'
  if 'predictor' in params or ('fc0' in head and 'last_layer' not in head):
    return 'moco'
  return None


def _table(weights: Weights, part: str) -> str:
  """The name in `convert` of the table of a part."""
  if part == 'backbone':
    return architecture.family(weights.backbone)
  return architecture.head_table(weights.about['head'])


def _config(backbone: Arrays, config: Mapping, file: published.File) -> dict:
  """The config of the backbone, and a note on where it comes from."""
  if 'name' in config:
    source, config = 'as asked for', dict(config)
  elif file.about is not None:
    source, config = 'its own description', {**file.about['model'], **config}
  else:
    source = 'inferred from the shapes'
    config = architecture.infer(backbone, config)
  told = [
    f'{k} {v}'
    for k, v in config.items()
    if k not in ('name', 'dtype', 'init_scale')
  ]
  name = ' with '.join(
    [str(config.get('name')), *filter(None, [', '.join(told)])]
  )
  file.notes.append(f'architecture: {name}, {source}')
  return config


def _variables(who, parts, module, about, allowed, used, notes) -> dict:
  """{'params', 'batch_stats'} of a network, part by part."""
  if 'head_dense' in parts and 'head' not in parts:
    raise UserError(f'its {who} has a head_dense but no head')
  variables = {'params': {}, 'batch_stats': {}}
  kind = published.whole(parts['backbone'] | parts.get('rest', {}))
  for part, arrays in parts.items():
    if part == 'rest':
      init = functools.partial(_as_they_are, arrays, kind)
      found, more = accounting.agree(
        arrays, kind, init, '', f'{who} {kind}', allowed, used
      )
      notes.extend(more)
      for collection, tree in found.items():
        variables[collection] |= tree
      continue
    if part == 'backbone':
      table = architecture.family(module)
      init = architecture.backbone_init(module, about['channels'])
    else:
      table = architecture.head_table(about['head'])
      init = architecture.head_init(about['head'], module.num_features)
    lead = '' if part == 'backbone' else f'{part}.'
    where = f'{who} {part}'
    arrays, more = accounting.agree(
      arrays, table, init, lead, where, allowed, used
    )
    notes.extend(more)
    for collection, tree in arrays.items():
      variables[collection][part] = tree
  return variables


def _as_they_are(arrays: Arrays, kind: str, key) -> dict:
  """Fresh variables of the shapes of `arrays`."""
  del key
  return tables.implied(arrays, kind)


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
