"""MoCo-v3: tell one's own image from all others (2104.02057).

Queries of one view, made by an encoder with a predictor, are to find the keys
of the other view, made by the encoder's average, among those of all images.
"""

from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax import struct

from esvit_jax import augment, models, optim
from esvit_jax.errors import UserError
from esvit_jax.losses import contrastive
from esvit_jax.models.layers import Features
from esvit_jax.models.projector import Projector
from esvit_jax.state import Horizon, Loss, Method


class Outputs(struct.PyTreeNode):
  """Two views of B images.

  Attributes:
    pooled: backbone views f[B, 2, D].
    projected: queries of a network with a predictor, else keys, f32[B, 2, P].
  """

  pooled: jax.Array
  projected: jax.Array


class Network(nn.Module):
  """A backbone, its projector and (or not) a predictor after that.

  As published the heads' batch norms see one view at a time. The backbone
  sees both at once: where it has batch norm itself, as a ResNet, that spans
  both, unlike MoCo-v3's.
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


def build(config, horizon: Horizon, shards: int = 1, **_) -> Method:
  """MoCo-v3 as a Method.

  Args:
    config: sections data, views, model, contrast and ema.
    horizon: length of the run.
    shards: nothing here depends on it.
    _: what other methods need.

  Raises:
    UserError: views are not two of one size, or settings are wrong.
  """
  groups = two_views(config.views)
  side, c = groups[0].size, config.contrast
  student, teacher = _network(config, True), _network(config, False)
  decay = optim.cosine(config.ema.start, config.ema.end, horizon.steps)

  def init(key):
    images = jnp.zeros((1, 2, side, side, config.data.channels))
    variables = student.init(key, images, train=False)
    params, stats = variables['params'], variables.get('batch_stats', {})
    extra = {'student': stats, 'teacher': _without_predictor(stats)}
    return params, _without_predictor(params), extra

  def make_views(batch, keys):
    return augment.multi_crop(
      batch['image'],
      batch['size'],
      keys,
      groups,
      config.data.mean,
      config.data.std,
    )

  def momentum(step):
    # Published: the average moves between queries and keys of a step, with
    # what the step before learned. Here it moves at the end of that step.
    return decay(step + 1)

  def keys(state, views, key):
    stats = state.extra['teacher']
    t, stats = forward(
      teacher,
      state.teacher,
      stats,
      views['globals'],
      jax.random.fold_in(key, 1),
    )
    return jax.lax.stop_gradient(t), stats

  def queries(params, state, views, key):
    stats = state.extra['student']
    return forward(student, params, stats, views['globals'], key)

  def loss(params, state, views, key) -> Loss:
    t, teacher_stats = keys(state, views, key)
    s, stats = queries(params, state, views, key)
    value, accuracy = contrastive.symmetric(s.projected, t.projected, c.temp)
    extra = {'student': stats, 'teacher': teacher_stats}
    metrics = {
      'contrast_accuracy': accuracy,
      'feature_spread': contrastive.spread(s.pooled),
    }
    return Loss(value, extra, metrics)

  def features(params, stats, images) -> Features:
    return features_of(student.backbone, params, stats, images)

  def student_stage(state, views, key, done):
    return jax.grad(lambda p: loss(p, state, views, key).value)(state.params)

  return Method(
    init,
    make_views,
    loss,
    features,
    momentum,
    stages={
      'teacher': lambda state, views, key, done: keys(state, views, key)[0],
      'loss_and_gradient': student_stage,
    },
    network='student',
    chance=contrastive.chance(config.batch_size // config.accumulate, c.temp),
  )


def two_views(config) -> tuple[augment.Group, ...]:
  """The one group of views, which has two.

  Raises:
    UserError: it is not so.
  """
  groups = augment.view_groups(config)
  if [(g.name, g.count) for g in groups] != [('globals', 2)]:
    raise UserError(
      'views: queries of one view look for keys of the other: set '
      'views.globals.count=2 and no other group'
    )
  return groups


def forward(network, params, stats, images, key, **options) -> tuple[Any, Any]:
  """One forward in train mode; returns outputs and new batch statistics."""
  out, changed = network.apply(
    {'params': params, 'batch_stats': stats},
    images,
    train=True,
    **options,
    rngs={'drop_path': key, 'neighbour': jax.random.fold_in(key, 2)},
    mutable=['batch_stats'],
  )
  return out, changed['batch_stats']


def features_of(backbone, params, stats, images) -> Features:
  """Features of images f[N, H, W, C], of the backbone alone."""
  stats = {'batch_stats': stats['backbone']} if 'backbone' in stats else {}
  (out,) = backbone.apply(
    {'params': params['backbone'], **stats}, (images[:, None],), train=False
  )
  return jax.tree.map(lambda x: x[:, 0], out)


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
