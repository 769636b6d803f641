"""Weights in directories: of runs, and converted from files.

A converted directory looks like that of a run: it has a config.json and a
checkpoint of step 0, without the state of an optimiser.
"""

import os
from collections.abc import Mapping

import numpy as np
from flax import traverse_util

from esvit_jax.errors import UserError, in_one_line
from esvit_jax.state import TrainState
from esvit_jax.weights import architecture
from esvit_jax.weights.handover import AUTO, NETWORKS, handed_on
from esvit_jax.weights.networks import POOLED_NORM, Weights
from esvit_jax.weights.tables import listed
from esvit_jax.workdir import checkpoint, files, flatten, read_json, write_json

# Parts that only training needs: optional tasks of SiT, and SiT's heads beside
# those of EsViT.
_TASKS = ('rotation', 'balance', 'sit')


def read(path: str, which: str = 'both') -> Weights:
  """The newest weights of a run directory, or of a converted one.

  Args:
    path: of the directory.
    which: 'student', 'teacher', 'both', or 'auto' for the one handed on.

  Raises:
    UserError: there are none.
  """
  config = _config(path)
  parts = checkpoint.restore_parts(path, ('params', 'teacher', 'extra'))
  trees = {'student': parts['params'], 'teacher': parts['teacher']}
  # There may be no teacher, or a frozen one of another architecture.
  notes = [
    f'left out the frozen {name}, which is another network'
    for name, tree in trees.items()
    if tree and 'backbone' not in tree
  ]
  trees = {k: v for k, v in trees.items() if v and 'backbone' in v}
  tasks = sorted({k for tree in trees.values() for k in tree if k in _TASKS})
  if tasks:
    notes.append(f'left out what only training needs: {", ".join(tasks)}')
  best = handed_on(trees, _recorded(path, config), config.get('method'))
  which = best if which == AUTO else which
  if which not in ('both', *trees):
    raise UserError(f'{path} has no {which}, only a {", ".join(trees)}')
  networks = {}
  for name in trees if which == 'both' else (which,):
    stats = parts['extra'].get(name) or {}
    networks[name] = {
      'params': _without_tasks(trees[name]),
      'batch_stats': _without_tasks(stats),
    }
  centres = {k: v for k, v in parts['extra'].items() if k.startswith('center')}
  about = _about(path, config, networks)
  best = handed_on(networks, best)
  weights = Weights(about, networks, centres, best, tuple(notes))
  differ = architecture.differences(
    {k: v for k, v in weights.variables().items() if k != POOLED_NORM},
    weights.backbone,
    about['channels'],
  )
  if differ:
    raise UserError(
      f'{path}: {listed("arrays are not those of its model", differ)}; a '
      'checkpoint of an older version is exported by that version'
    )
  return weights


def write(path: str, weights: Weights, source: str) -> None:
  """Writes a directory to train from, evaluate and export.

  Args:
    path: must not exist, or be empty.
    weights: of two networks, or of one, which then becomes both.
    source: where they come from.

  Raises:
    UserError: it cannot be written.
  """
  files.check_free(path)
  (any_network, *_) = weights.networks.values()
  student, teacher = (
    weights.networks.get(name, any_network) for name in NETWORKS
  )
  state = TrainState(
    np.zeros((), np.int32),
    student['params'],
    teacher['params'],
    {
      'student': student['batch_stats'],
      'teacher': teacher['batch_stats'],
      **weights.centres,
    },
    {},
  )
  about = dict(weights.about)
  config = {
    'converted_from': source,
    'network': weights.handed_on,
    'model': about.pop('model'),
    'data': {
      k: about.pop(k) for k in ('channels', 'mean', 'std') if k in about
    },
    **{k: about.pop(k) for k in ('head',) if k in about},
    'weights': about,
  }
  with files.replacing(path) as part:
    os.mkdir(part)
    checkpoints = checkpoint.Checkpoints(
      os.path.join(part, 'checkpoints'), config=config
    )
    checkpoints.save(state)
    checkpoints.close()
    write_json(os.path.join(part, 'config.json'), config)


def _config(path: str) -> dict:
  """The config.json of a directory; it has model.name and data.channels."""
  name = os.path.join(path, 'config.json')
  try:
    config = read_json(name)
    if not all(isinstance(config[k], dict) for k in ('model', 'data')):
      raise ValueError('model and data are no sections')
    architecture.check_channels(config['data']['channels'])
    config['model']['name'].upper()
  except (OSError, ValueError, LookupError, AttributeError) as e:
    raise UserError(
      f'cannot read {name} ({in_one_line(e)}): give the directory of a run, '
      'which has a config.json and checkpoints/'
    ) from None
  _require_own(path, config)
  return config


def _require_own(path: str, config: Mapping) -> None:
  """Raises UserError where the checkpoint was saved with another config."""
  saved = checkpoint.saved_config(path)
  there, here = _defining(saved), _defining(config)
  differ = [k for k in sorted({*there, *here}) if there.get(k) != here.get(k)]
  if saved and differ:
    raise UserError(
      f'the config.json of {path} contradicts its checkpoint: '
      f'{differ[0]} is {str(here.get(differ[0]))[:80]}, and was '
      f'{str(there.get(differ[0]))[:80]} when it was saved'
      + (f'; and {len(differ) - 1} more' if differ[1:] else '')
    )


def _defining(config: Mapping) -> dict:
  """The fields of a config that say what its arrays compute, flat."""
  data = config.get('data')
  images = {k: data.get(k) for k in ('channels', 'mean', 'std')} if data else {}
  sections = {k: config.get(k) for k in ('method', 'model', 'head')}
  return flatten({**sections, 'data': images})


def _recorded(path: str, config: Mapping) -> str | None:
  """The network that a run or a converted directory records as handed on."""
  try:
    return read_json(os.path.join(path, 'run.json')).get('network')
  except (OSError, ValueError):
    return config.get('network')


def _about(path: str, config: Mapping, networks: Mapping) -> dict:
  """The description of a directory's networks; see `Weights.about`."""
  model, data = config['model'], config['data']
  params = next(iter(networks.values()))['params']
  arrays = traverse_util.flatten_dict(params['backbone'], sep='/')
  try:
    module = architecture.build(model, arrays)
    about = {
      **config.get('weights', {}),
      'model': architecture.resolved(model, module),
      'channels': data['channels'],
    }
    about |= {k: list(data[k]) for k in ('mean', 'std') if data.get(k)}
    if 'last_layer' in params.get('head', {}):
      head = {'layers': 3, 'use_bn': False, **config['head']}
      about['head'] = {k: head[k] for k in architecture.HEAD_FIELDS}
  except UserError as e:
    raise UserError(f'the config.json of {path}: {e}') from None
  except (LookupError, TypeError, ValueError) as e:
    raise UserError(f'the config.json of {path}: {in_one_line(e)}') from None
  return about


def _without_tasks(tree: Mapping) -> dict:
  return {k: v for k, v in tree.items() if k not in _TASKS}
