"""SiT: paint what is hidden, and know it for what it is.

The student sees crops with blocks painted over (gmml.py), its average the
clean ones. The student is to restore the pixels and, as in MoCo-v3 but
without a predictor, to tell its image from all others (the code of 2022 that
follows 2104.03602).
"""

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax import struct

from esvit_jax import augment, contrastive, gmml, models, optim
from esvit_jax.methods.moco import features_of, forward, two_views
from esvit_jax.models import projector
from esvit_jax.models.layers import Features
from esvit_jax.state import Horizon, Loss, Method


class Outputs(struct.PyTreeNode):
  """Two views of B images.

  Attributes:
    pooled: backbone views f[B, 2, D].
    projected: f32[B, 2, P].
    painted: restored views f32[B, 2, H, W, C], or None if not asked for.
  """

  pooled: jax.Array
  projected: jax.Array
  painted: jax.Array | None


class Network(nn.Module):
  """A backbone, a projector of views and a painter of regions.

  Batch norm spans both views.
  """

  backbone: nn.Module
  head: nn.Module
  head_recons: nn.Module

  def __call__(self, images, train: bool, paint: bool = True) -> Outputs:
    (features,) = self.backbone((images,), train=train)
    projected = self.head(features.view, train=train)
    painted = self.head_recons(features.grid) if paint else None
    return Outputs(features.view, projected, painted)


def build(config, horizon: Horizon, shards: int = 1, **_) -> Method:
  """SiT as a Method.

  Args:
    config: sections data, views, model, contrast, gmml, sit and ema.
    horizon: length of the run.
    shards: nothing here depends on it.
    _: what other methods need.

  Raises:
    UserError: views are not two of one size, or settings are wrong.
  """
  groups = two_views(config.views)
  side = groups[0].size
  corruption = gmml.settings(config.gmml, side)
  student = _network(config, config.model, side)
  # Published: the teacher runs in train mode, yet without drop path.
  teacher = _network(config, {**config.model, 'drop_path': 0.0}, side)
  momentum = optim.cosine(config.ema.start, config.ema.end, horizon.steps)

  def init(key):
    images = jnp.zeros((1, 2, side, side, config.data.channels))
    variables = student.init(key, images, train=False)
    params, stats = variables['params'], variables['batch_stats']
    return params, params, {'student': stats, 'teacher': stats}

  def make_views(batch, keys):
    return augment.multi_crop(
      batch['image'],
      batch['size'],
      keys,
      groups,
      config.data.mean,
      config.data.std,
    )

  def corrupt(views, key):
    return gmml.corrupt(
      views['globals'], jax.random.fold_in(key, 3), corruption
    )

  def targets(state, views, key):
    t, stats = forward(
      teacher,
      state.teacher,
      state.extra['teacher'],
      views['globals'],
      jax.random.fold_in(key, 1),
      paint=False,
    )
    return jax.lax.stop_gradient(t), stats

  def loss(params, state, views, key) -> Loss:
    t, teacher_stats = targets(state, views, key)
    corrupted, mask = corrupt(views, key)
    s, stats = forward(student, params, state.extra['student'], corrupted, key)
    value, metrics = objective(s, t, views['globals'], mask, config)
    extra = {'student': stats, 'teacher': teacher_stats}
    return Loss(value, extra, metrics)

  def features(params, stats, images) -> Features:
    return features_of(teacher.backbone, params, stats, images)

  @jax.jit
  def pictures(params, stats, images, key):
    corrupted, _ = gmml.corrupt(images, key, corruption)
    out = teacher.apply(
      {'params': params, 'batch_stats': stats}, corrupted, train=False
    )
    return jnp.stack([images, corrupted, out.painted], 2)[:, 0]

  def show(state, views, key):
    # The student has seen corrupted images, so it is the one to show.
    stats = state.extra['student']
    columns = pictures(state.params, stats, views['globals'], key)
    titles = ('clean', 'corrupted', 'reconstructed')
    return {'reconstruction': (titles, columns)}

  def gradient_stage(state, views, key, done):
    return jax.grad(lambda p: loss(p, state, views, key).value)(state.params)

  return Method(
    init,
    make_views,
    loss,
    features,
    momentum,
    stages={
      'corruption': lambda state, views, key, done: corrupt(views, key),
      'teacher': lambda state, views, key, done: targets(state, views, key)[0],
      'loss_and_gradient': gradient_stage,
    },
    show=show,
  )


def objective(s: Outputs, t: Outputs, clean, mask, config):
  """The losses of one batch.

    contrast = L(s1, t2) + L(s2, t1)                      (contrastive.loss)
    paint    = mean |painted - clean| over corrupted pixels
    loss     = contrast + lmbda paint

  The mean is one of all views, images and channels. Published code has one
  for each device and the mean of these, whose weights depend on devices.

  Args:
    s: the student's outputs on corrupted views.
    t: the teacher's on clean ones.
    clean: f32[B, 2, H, W, C].
    mask: what is corrupted, bool[B, 2, H, W].
    config: sections contrast and sit.

  Returns:
    (loss, metrics)
  """
  contrast, accuracy = contrastive.symmetric(
    s.projected, t.projected, config.contrast.temp
  )
  error = jnp.abs(s.painted - clean).mean(-1)  # B 2 H W
  pixels = jnp.maximum(mask.sum(), 1)
  painted = jnp.where(mask, error, 0).sum() / pixels
  metrics = {
    'contrast_loss': contrast,
    'paint_loss': painted,
    'contrast_accuracy': accuracy,
    'corrupted': mask.mean(),
    'feature_spread': contrastive.spread(t.pooled),
  }
  return contrast + config.sit.lmbda * painted, metrics


def _network(config, model, side: int) -> Network:
  c, backbone = config.contrast, models.build(model)
  channels = config.data.channels
  fields = {
    'init_scale': model.get('init_scale', 'published'),
    'dtype': jnp.dtype(model['dtype']),
  }
  return Network(
    backbone,
    projector.Projector(
      c.hidden, c.dim, activations=('relu', 'gelu'), use_bias=True, **fields
    ),
    projector.Painter(
      channels, projector.stride(backbone, side, channels), **fields
    ),
  )
