"""MoCo-v3: contrastive learning with a momentum encoder (2104.02057).

Queries come from one view, through an encoder with a predictor; keys from the
other view, through the encoder's average. Each query has to identify the key of
its image among those of the batch.
"""

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax import struct

from esvit_jax import models, schedules
from esvit_jax.losses import collapse, contrastive
from esvit_jax.methods import method as shared
from esvit_jax.models.projector import Projector
from esvit_jax.state import Loss, Method, Run


class Outputs(struct.PyTreeNode):
  """Two views of B images.

  Attributes:
    pooled: backbone views f[B, 2, D].
    projected: queries of a network with a predictor, else keys, f32[B, 2, P].
  """

  pooled: jax.Array
  projected: jax.Array


class Network(nn.Module):
  """A backbone, a projector and, optionally, a predictor.

  As published, the batch norms of the heads see one view at a time. The
  backbone takes both views at once, so its own batch norm, if any, spans both,
  unlike in MoCo-v3.
  """

  backbone: nn.Module
  head: nn.Module
  predictor: nn.Module | None = None

  def __call__(self, images, train: bool) -> Outputs:
    (features,) = self.backbone((images,), train=train)
    projected = []
    for v in range(images.shape[1]):
      x = self.head(features.view[:, v], train=train)
      if self.predictor is not None:
        x = self.predictor(x, train=train)
      projected.append(x)
    return Outputs(features.view, jnp.stack(projected, 1))


def build(config, run: Run) -> Method:
  """MoCo-v3 as a Method.

  Args:
    config: sections data, views, model, contrast and ema.
    run: facts about it.

  Raises:
    UserError: views are not two of one size, or settings are wrong.
  """
  groups = shared.view_groups(
    config.views, 'queries of one view look for keys of the other', 2
  )
  c, images = config.contrast, shared.images_to_contrast(config)
  student, teacher = _network(config, True), _network(config, False)
  decay = schedules.cosine(config.ema.start, config.ema.end, run.horizon.steps)

  def init(key):
    views = shared.blank_views(groups[0], config.data.channels)
    params, stats = shared.init_variables(student, key, views)
    extra = {'student': stats, 'teacher': _without_predictor(stats)}
    return params, _without_predictor(params), extra

  def momentum(step):
    # The published code updates the average between the queries and the keys
    # of a step. Here it is updated at the end of the step before.
    return decay(step + 1)

  def keys(state, views, key):
    return shared.teach(teacher, state, views['globals'], key)

  def loss(params, state, views, key) -> Loss:
    t, teacher_stats = keys(state, views, key)
    s, stats = shared.forward(
      student, params, state.extra['student'], views['globals'], key
    )
    value, accuracy = contrastive.symmetric(s.projected, t.projected, c.temp)
    extra = {'student': stats, 'teacher': teacher_stats}
    metrics = {
      'contrast_accuracy': 100 * accuracy,
      'feature_spread': collapse.feature_spread(s.pooled),
    }
    return Loss(value, extra, metrics)

  return shared.define(
    config,
    groups,
    student.backbone,
    init=init,
    loss=loss,
    momentum=momentum,
    stages={
      'teacher': lambda state, views, key, done: keys(state, views, key)[0]
    },
    network='student',
    chance=contrastive.chance(images, c.temp),
  )


def _network(config, predicts: bool) -> Network:
  """The base encoder with its predictor, or the momentum encoder."""
  c, model = config.contrast, config.model
  if not predicts:
    model = {**model, 'drop_path': 0.0}
  fields = {
    'hidden': c.hidden,
    'out_dim': c.dim,
    'dtype': jnp.dtype(config.model.dtype),
  }
  return Network(
    models.build(model),
    Projector(**fields),
    Projector(activations=('relu',), **fields) if predicts else None,
  )


def _without_predictor(tree):
  return {k: v for k, v in tree.items() if k != 'predictor'}
