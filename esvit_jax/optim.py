"""Optimisers composed from optax.

  gradients -> clip -> [frozen first? -> direction + decay -> -lr] -> scale

The bracket runs once for each group of parameters that thaw together.
"""

import math
import re
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax

from esvit_jax.errors import UserError, suggestion
from esvit_jax.schedules import Schedule, cosine, falling

Tree = Any

DEFAULTS = {
  'name': 'adamw',  # or 'sgd', 'lars'
  'b1': 0.9,
  'b2': 0.999,
  'eps': 1e-8,
  'momentum': 0.9,  # sgd, lars
  'nesterov': False,  # sgd
  'trust': 0.001,  # lars: step length over parameter length
  'clip': None,  # longest gradient
  'clip_mode': 'tensor',  # each tensor's own length; or 'global'
  'frozen': {},  # pattern of a path: steps it waits, None for ever
  'scale': {},  # pattern of a path: factor of its learning rate
  'layer_decay': 1.0,  # that factor from one block to the block below it
  'no_decay': '',  # patterns, with commas, without weight decay
  'decay_vectors': False,  # whether vectors and biases have weight decay
}


def build(
  config: Mapping,
  params: Tree,
  lr: Schedule,
  weight_decay: Schedule,
  layer_ids: Mapping[str, int] | None = None,
) -> optax.GradientTransformation:
  """The optimiser that a config describes.

  Paths in `frozen` and `scale` are 'module/name'; a pattern is searched for
  anywhere in a path and the first that is found counts.

  Args:
    config: some of the fields of `DEFAULTS`.
    params: the parameters, or their shapes.
    lr: step -> learning rate.
    weight_decay: step -> decay of matrices; vectors and biases have none.
    layer_ids: of the backbone, for `layer_decay`; see `layer_scales`.

  Returns:
    A transformation whose state holds arrays and named tuples only.

  Raises:
    UserError: unknown field or name, a pattern that finds no parameter.
  """
  c = _checked(config)
  waits = _first_found('frozen', c['frozen'], params, default=0)
  factors = _first_found('scale', c['scale'], params, default=1.0)
  if c['layer_decay'] != 1:
    by_layer = layer_scales(params, layer_ids or {}, c['layer_decay'])
    factors = jax.tree.map(lambda a, b: a * b, factors, by_layer)

  parts = []
  if c['clip']:
    # Before the freeze, as published.
    parts.append(_clip(c['clip'], c['clip_mode']))
  groups = {
    _label(wait): _after(wait, c, lr, weight_decay)
    for wait in jax.tree.leaves(waits)
  }
  if set(groups) == {_label(0)}:
    parts.append(groups[_label(0)])
  else:
    parts.append(optax.partition(groups, jax.tree.map(_label, waits)))
  if c['scale'] or c['layer_decay'] != 1:
    parts.append(
      optax.stateless(
        lambda updates, _: jax.tree.map(jnp.multiply, factors, updates)
      )
    )
  return optax.chain(*parts)


def from_config(
  config, horizon, params: Tree, layer_ids: Mapping[str, int] | None = None
) -> tuple[optax.GradientTransformation, dict[str, Schedule]]:
  """The optimiser of a pre-training run.

  Args:
    config: as in configs/common.
    horizon: length of the run: `steps` and `steps_per_epoch`.
    params: the parameters, or their shapes.
    layer_ids: as for `build`.

  Returns:
    The transformation, and its schedules by name: step of the run -> 'lr'
    and 'weight_decay'.

  Raises:
    UserError: as `build` and `cosine`.
  """
  c, epoch = config.optim, horizon.steps_per_epoch
  lr = _lr(c, c.lr * config.batch_size / 256, horizon)
  decay = cosine(c.weight_decay, c.weight_decay_end, horizon.steps)
  # A continued run counts its own steps, but goes on in the schedules.
  start = round(config.init.epoch * epoch)
  freeze = {}
  for word in filter(None, c.frozen.split(',')):
    freeze[word] = None
  if 'head' in config and config.head.norm_last_layer:
    freeze['last_layer/g$'] = None
  if c.get('freeze_last_layer_epochs'):
    wait = round(c.freeze_last_layer_epochs * epoch) - start
    freeze['last_layer'] = max(wait, 0)
  tx = build(
    {k: c[k] for k in DEFAULTS if k in c} | {'frozen': freeze},
    params,
    lambda count: lr(count + start),
    lambda count: decay(count + start),
    layer_ids,
  )
  return tx, {'lr': lr, 'weight_decay': decay}


def _lr(c, base: float, horizon) -> Schedule:
  """The learning rate: 'cosine', or the 'falling' of dense recipes."""
  steps, start = horizon.steps, c.get('start_lr', 0.0)
  warmup = round(c.warmup_epochs * horizon.steps_per_epoch)
  schedule = c.get('schedule', 'cosine')
  _known('schedule', schedule, ('cosine', 'falling'))
  if schedule == 'falling':
    warmup = c.warmup_steps
    return falling(base, steps, min(warmup, steps), start * base, c.drops)
  return cosine(base, c.min_lr, steps, warmup, start, c.get('top_twice', True))


def summary(config: Mapping, params: Tree) -> dict[str, int]:
  """Counts scalars by what the optimiser does with them.

  Args:
    config: as for `build`.
    params: the parameters, or their shapes.

  Returns:
    'decayed' and 'undecayed' make up all that is trained, 'waiting' is the
    part of it that is frozen at first; 'frozen' is never trained.
  """
  c = _checked(config)
  waits = _first_found('frozen', c['frozen'], params, default=0)
  counts = dict.fromkeys(('decayed', 'undecayed', 'waiting', 'frozen'), 0)
  for x, decayed, wait in zip(
    *map(jax.tree.leaves, (params, _decayed(params, c), waits))
  ):
    size = math.prod(x.shape)
    if wait == math.inf:
      counts['frozen'] += size
    else:
      counts['decayed' if decayed else 'undecayed'] += size
      counts['waiting'] += size if wait else 0
  return counts


def _after(wait, c, lr, weight_decay) -> optax.GradientTransformation:
  """The optimiser of parameters that stand still for `wait` steps.

  As published, waiting tensors have no moments, no decay and no step count:
  once they start, Adam's bias correction starts from 1 too, while learning
  rate and decay are those of the run.
  """
  if wait == math.inf:
    return optax.set_to_zero()
  tx = optax.chain(
    *_direction(c, lambda count: weight_decay(count + wait)),
    optax.scale_by_learning_rate(lambda count: lr(count + wait)),
  )
  if wait:
    tx = optax.transforms.conditionally_mask(tx, lambda step: step >= wait)
  return tx


def _direction(c, weight_decay) -> list[optax.GradientTransformation]:
  """What to do with a gradient before the learning rate."""
  decay = optax.add_decayed_weights(
    weight_decay, lambda params: _decayed(params, c)
  )
  if c['name'] == 'adamw':
    return [optax.scale_by_adam(c['b1'], c['b2'], c['eps']), decay]
  momentum = optax.trace(c['momentum'], c['nesterov'])
  if c['name'] == 'sgd':
    return [decay, momentum]
  # Vectors take plain steps. The learning rate comes after the momentum,
  # unlike in optax.lars, so its schedule does not reach back.
  trust = optax.masked(
    optax.scale_by_trust_ratio(trust_coefficient=c['trust']),
    lambda params: jax.tree.map(lambda x: x.ndim != 1, params),
  )
  return [decay, trust, momentum]


def _clip(limit: float, mode: str) -> optax.GradientTransformation:
  """Shortens gradients to `limit`, each tensor alone or all as one vector."""
  if mode == 'global':
    return optax.clip_by_global_norm(limit)

  def shorten(g):
    norm = jnp.sqrt(jnp.sum(jnp.square(g.astype(jnp.float32))))
    return g * jnp.minimum(1, limit / (norm + 1e-6)).astype(g.dtype)

  return optax.stateless(lambda grads, _: jax.tree.map(shorten, grads))


def _decayed(params: Tree, c: Mapping) -> Tree:
  """True for what weight decay pulls: all but vectors and biases.

  So position tables, tokens and the prototypes' lengths decay, as published,
  unless `no_decay` names them.
  """
  spared = [word for word in c['no_decay'].split(',') if word]

  def decayed(path, x):
    path = _path(path)
    if any(re.search(pattern, path) for pattern in spared):
      return False
    matrix = x.ndim >= 2 and path.split('/')[-1] != 'bias'
    return matrix or c['decay_vectors']

  return jax.tree_util.tree_map_with_path(decayed, params)


def layer_scales(
  params: Tree, layer_ids: Mapping[str, int], decay: float
) -> Tree:
  """Factors of layer-wise decay: decay^(n + 1 - id) with n blocks.

  MAE (arXiv 2111.06377), appendix A.1. What makes tokens has id 0, the blocks
  1 to n in order, whatever comes after them n + 1.

  Args:
    params: of a network, its backbone under 'backbone'.
    layer_ids: of the backbone, see `models.backbone.Backbone`.
    decay: factor from one layer to the layer below it.

  Returns:
    A float for each parameter.
  """
  top = 1 + max(layer_ids.values(), default=0)

  def factor(path, _):
    first, _, below = _path(path).partition('/')
    module = below.partition('/')[0] if first == 'backbone' else ''
    return decay ** (top - layer_ids.get(module, top))

  return jax.tree_util.tree_map_with_path(factor, params)


def _first_found(field: str, patterns: Mapping, params: Tree, default) -> Tree:
  """For each parameter the value of the first pattern its path has."""
  paths = jax.tree.leaves(
    jax.tree_util.tree_map_with_path(lambda path, _: _path(path), params)
  )
  for pattern in patterns:
    if not any(re.search(pattern, path) for path in paths):
      raise UserError(
        f"optim.{field}: no parameter has '{pattern}' in its path; paths "
        f'look like {paths[-1]}'
      )

  def pick(path, _):
    name = _path(path)
    values = (v for k, v in patterns.items() if re.search(k, name))
    value = next(values, default)
    return math.inf if value is None else value

  return jax.tree_util.tree_map_with_path(pick, params)


def _checked(config: Mapping) -> dict:
  """`config` over the defaults, or a line saying what is wrong with it."""
  for field in config:
    _known('field', field, DEFAULTS)
  c = DEFAULTS | dict(config)
  _known('name', c['name'], ('adamw', 'sgd', 'lars'))
  _known('clip_mode', c['clip_mode'], ('tensor', 'global'))
  return c


def _known(what: str, word: str, choices) -> None:
  if word not in choices:
    raise UserError(
      f"optim has no {what} '{word}': {suggestion(word, choices)}"
    )


def _path(path) -> str:
  return jax.tree_util.keystr(path, simple=True, separator='/')


def _label(wait: float) -> str:
  """A group's name in the optimiser's state."""
  return 'frozen' if wait == math.inf else f'after_{wait}'
