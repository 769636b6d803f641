"""Common parts of methods.

A method defines its networks, their initialisation and its loss; `define` adds
the usual views, features and stages.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from esvit_jax import augment
from esvit_jax.errors import UserError
from esvit_jax.models.backbone import Features
from esvit_jax.state import Method


def define(
  config,
  groups: tuple[augment.Group, ...],
  backbone: nn.Module,
  *,
  init: Callable,
  loss: Callable,
  stages: dict[str, Callable] | None = None,
  **fields,
) -> Method:
  """A Method with the usual views, features and stages.

  Args:
    config: section data.
    groups: of views.
    backbone: the module whose parameters are `params['backbone']`.
    init, loss: see `state.Method`.
    stages: pieces to measure, beside the loss with its gradient.
    fields: other fields of `state.Method`; they override the usual ones.
  """
  usual = {
    'views': crops(config, groups),
    'features': backbone_features(backbone),
    'stages': {**(stages or {}), 'loss_and_gradient': gradient_stage(loss)},
  }
  # Jitted, it is traced once for the shapes and for the first state.
  return Method(init=jax.jit(init), loss=loss, **(usual | fields))


def crops(config, groups) -> Callable:
  """(batch, keys[B]) -> every group's augmented crops, normalised."""

  def views(batch, keys):
    return augment.multi_crop(
      batch['image'],
      batch['size'],
      keys,
      groups,
      config.data.mean,
      config.data.std,
    )

  return views


def backbone_features(backbone: nn.Module) -> Callable:
  """(params, stats, images f32[N, H, W, C]) -> Features of each image."""

  def features(params, stats, images) -> Features:
    stats = {'batch_stats': stats['backbone']} if 'backbone' in stats else {}
    (out,) = backbone.apply(
      {'params': params['backbone'], **stats}, (images[:, None],), train=False
    )
    return jax.tree.map(lambda x: x[:, 0], out)

  return features


def gradient_stage(loss: Callable) -> Callable:
  """The stage that measures a loss with its gradient."""

  def stage(state, views, key, done):
    return jax.grad(lambda p: loss(p, state, views, key).value)(state.params)

  return stage


def forward(network, params, stats, inputs, key, **options) -> tuple[Any, Any]:
  """One forward in train mode; returns outputs and new batch statistics."""
  out, changed = network.apply(
    {'params': params, 'batch_stats': stats},
    inputs,
    train=True,
    **options,
    rngs={'drop_path': key, 'neighbour': jax.random.fold_in(key, 2)},
    mutable=['batch_stats'],
  )
  return out, changed.get('batch_stats', stats)


def teach(network, state, inputs, key, **options) -> tuple[Any, Any]:
  """The teacher's outputs, without gradients, and its batch statistics.

  As published it runs in train mode. It draws apart from the student where
  training is random.
  """
  out, stats = forward(
    network,
    state.teacher,
    state.extra['teacher'],
    inputs,
    key=jax.random.fold_in(key, 1),
    **options,
  )
  return jax.lax.stop_gradient(out), stats


def init_variables(network, key, inputs) -> tuple[Any, Any]:
  """Parameters and batch statistics of a network at its start."""
  variables = network.init(key, inputs, train=False)
  return variables['params'], variables.get('batch_stats', {})


def student_init(network, group: augment.Group, channels: int) -> Callable:
  """`Method.init` of a network over single images, without a teacher."""

  def init(key):
    image = blank_views(group, channels)[:, 0]
    params, stats = init_variables(network, key, image)
    return params, None, {'student': stats}

  return init


def view_groups(
  config, why: str, count: int = 0, others: bool = False
) -> tuple[augment.Group, ...]:
  """The groups of views, `globals` first.

  Args:
    config: section views.
    why: what the method does with them, for the error message.
    count: number of global views; 0: any.
    others: whether there may be other groups.

  Raises:
    UserError: the views are not as described.
  """
  groups = augment.view_groups(config)
  globals_ = tuple(g for g in groups if g.name == 'globals')
  extra = tuple(g for g in groups if g.name != 'globals')
  views = sum(g.count for g in globals_)
  if (count and views != count) or not views or (extra and not others):
    names = ', '.join(g.name for g in extra)
    raise UserError(
      f'views.globals has {views} views'
      + (f', and there are {names}' if extra else '')
      + f': {why}: set views.globals.count={count or 1}'
      + ('' if others else ' and no other group')
    )
  return globals_ + extra


def images_to_contrast(config) -> int:
  """The number of images that a contrastive loss compares at once.

  Raises:
    UserError: it is 1; without negatives the loss is always 0.
  """
  images = config.batch_size // config.accumulate
  if images < 2:
    raise UserError(
      f'batch_size {config.batch_size} in {config.accumulate} parts '
      '(accumulate) leaves one image in each, and a contrastive loss tells '
      f'images apart: use batch_size={2 * config.accumulate} or more'
      + (
        f', or accumulate={config.batch_size // 2} or less'
        if config.batch_size > 1
        else ''
      )
    )
  return images


def blank_views(group: augment.Group, channels: int) -> jax.Array:
  """Views of one black image, f32[1, V, h, w, channels]."""
  return jnp.zeros((1, group.count, *group.size, channels))
