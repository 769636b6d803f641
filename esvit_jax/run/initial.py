"""The state a run starts from: fresh, or with the weights of another run."""

import jax
import jax.numpy as jnp
import numpy as np

from esvit_jax import state as state_lib
from esvit_jax.errors import UserError, require_local
from esvit_jax.run import jobs
from esvit_jax.run.jobs import Job
from esvit_jax.weights import loading
from esvit_jax.weights.networks import Weights
from esvit_jax.workdir.checkpoint import restore_parts

FRESH = ('head_dense', 'center')  # what a continued run may start anew
# What a recipe adds to a pre-trained backbone. With relative positions
# biases of queries and values start from zero, as published.
ADDED = (
  'head',
  'fc_norm',
  'hidden',
  'bias_table',
  'gamma_',
  'q_bias',
  'v_bias',
  'neck',
  'auxiliary',
  'rpn',
  'rel_pos_',
)


def initial_state(job: Job) -> state_lib.TrainState:
  """The state of step 0, or of another run's weights (config.init)."""
  init = job.config.init
  require_local(init.checkpoint, '--config.init.checkpoint')
  if init.checkpoint and init.part == 'backbone':
    weights = loading.load_for(job.config.model, init.checkpoint, init.which)
    return with_backbone(jobs.create_state(job), weights)
  step = job.horizon.steps_in(init.epoch)
  if init.checkpoint:
    parts = restore_parts(
      init.checkpoint, ('params', 'teacher', 'extra'), step or None
    )
    state = continue_from(jobs.create_state(job), parts)
    step = jax.device_put(jnp.int32(step), state.step.sharding)
    return state._replace(step=step)
  if init.epoch:
    raise UserError(
      f'this recipe adds the region task to a view-only run at epoch '
      f'{init.epoch}: train that first (the config variant ..._view), then '
      'pass --config.init.checkpoint=ITS_WORKDIR; or set '
      '--config.init.epoch=0 to train both from the start'
    )
  return jobs.create_state(job)


def with_backbone(state, weights: Weights):
  """`state` with the backbone of a finished network, all else fresh.

  Args:
    state: of step 0.
    weights: of a finished network.

  Raises:
    UserError: it is of another model.
  """
  variables = weights.variables()
  parts = {'params': {'backbone': variables['params']}, 'extra': {}}
  stats = {'backbone': variables.get('batch_stats', {})}
  if state.teacher is not None:
    parts['teacher'] = parts['params']
  parts['extra'] = dict.fromkeys(state.extra, stats)
  return continue_from(state, parts, ADDED)


def continue_from(state, parts: dict, fresh=FRESH) -> state_lib.TrainState:
  """`state` with another run's params, teacher and extra.

  As published, what that run lacks of the region task stays fresh, and so do
  centres; the optimiser starts from zero and the schedules go on. `fresh` are
  words of paths that may be missing.

  Raises:
    UserError: anything else is missing, or something is of another shape.
  """

  def merge(path, ours):
    node = parts
    try:
      for key in path:
        node = node[getattr(key, 'key', getattr(key, 'name', None))]
    except (KeyError, TypeError):
      name = jax.tree_util.keystr(path, simple=True, separator='.')
      if any(word in name for word in fresh):
        return ours
      raise UserError(
        f'{name} is not in that checkpoint: it is of another model'
      ) from None
    if np.shape(node) != ours.shape:
      name = jax.tree_util.keystr(path, simple=True, separator='.')
      raise UserError(
        f'{name} is {list(np.shape(node))} in that checkpoint, '
        f'{list(ours.shape)} here: it is of another model'
      )
    return jax.device_put(np.asarray(node, ours.dtype), ours.sharding)

  merged = jax.tree_util.tree_map_with_path(
    merge, {k: getattr(state, k) for k in parts}
  )
  return state._replace(**merged)
