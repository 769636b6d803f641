"""EsViT: self-distillation over views and over matched regions.

A student sees all views, its EMA teacher the two global ones. Views are told
to agree in their distribution over prototypes, and so is every student region
with the most similar region of each other global view (arXiv 2106.09785).
Without the region term this is DINO.
"""

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax import struct

from esvit_jax import augment, models, optim
from esvit_jax.errors import UserError
from esvit_jax.losses import prototypes
from esvit_jax.models.heads import DINOHead
from esvit_jax.models.layers import Features, l2_normalize
from esvit_jax.state import Horizon, Loss, Method

TEACHER_VIEWS = 2


class Outputs(struct.PyTreeNode):
  """V views and T regions of B images (all views' regions in a row).

  Attributes:
    view, region: unit projections f[B, V, P] and f[B, T, P].
    view_prototypes, region_prototypes: f[K, P].
    grid: backbone regions f[B, T, D], before any head.
    pooled: backbone views f[B, V, D].
    regions_per_view: T of each view.
  """

  view: jax.Array
  view_prototypes: jax.Array
  region: jax.Array | None
  region_prototypes: jax.Array | None
  grid: jax.Array
  pooled: jax.Array
  regions_per_view: tuple[int, ...] = struct.field(pytree_node=False)


class Network(nn.Module):
  """A backbone, a head for views and (or not) one for regions."""

  backbone: nn.Module
  head: nn.Module
  head_dense: nn.Module | None

  def __call__(self, groups, train: bool) -> Outputs:
    features = self.backbone(groups, train=train)
    pooled = jnp.concatenate([f.view for f in features], 1)  # B V D
    grid = jnp.concatenate(
      [f.grid.reshape(len(f.grid), -1, f.grid.shape[-1]) for f in features], 1
    )  # B T D
    view, view_prototypes = self.head(pooled, train=train)
    region = region_prototypes = None
    if self.head_dense is not None:
      region, region_prototypes = self.head_dense(grid, train=train)
    regions_per_view = tuple(
      f.grid.shape[2] * f.grid.shape[3]
      for f in features
      for _ in range(f.grid.shape[1])
    )
    return Outputs(
      view,
      view_prototypes,
      region,
      region_prototypes,
      grid,
      pooled,
      regions_per_view,
    )


def build(config, horizon: Horizon, shards: int = 1, **_) -> Method:
  """EsViT as a Method.

  Args:
    config: sections data, views, model, head, loss and ema (configs/common).
    horizon: length of the run.
    shards: number of devices the batch is split over.
    _: what other methods need.

  Raises:
    UserError: the teacher's two views are missing, or settings are wrong.
  """
  views = _globals_first(augment.view_groups(config.views))
  # Mappings of configs and of JAX come sorted, so names keep the order.
  names = [group.name for group in views]
  region_weight = config.loss.region_weight
  student = _network(config, config.model, region_weight > 0)
  # Published: the teacher runs in train mode, yet without drop path.
  teacher = _network(
    config, {**config.model, 'drop_path': 0.0}, region_weight > 0
  )
  teacher_temp = optim.teacher_temperature(
    config.loss.teacher_temp_warmup,
    config.loss.teacher_temp,
    config.loss.teacher_temp_warmup_epochs,
    horizon.steps_per_epoch,
    horizon.epochs,
  )
  momentum = optim.cosine(config.ema.start, config.ema.end, horizon.steps)

  def init(key):
    groups = tuple(
      jnp.zeros((1, len(g.views), g.size, g.size, config.data.channels))
      for g in views
    )
    variables = student.init(key, groups, train=False)
    params, stats = variables['params'], variables.get('batch_stats', {})
    extra = {'student': stats, 'teacher': stats}
    K = config.head.out_dim
    extra['center'] = jnp.zeros((K,))
    if region_weight > 0:
      extra['center_grid'] = jnp.zeros((K,))
    return params, params, extra

  def make_views(batch, keys):
    return augment.multi_crop(
      batch['image'],
      batch['size'],
      keys,
      views,
      config.data.mean,
      config.data.std,
    )

  def targets(state, views, key):
    stats, groups = state.extra['teacher'], (views['globals'],)
    # Teacher and student draw apart where training is random.
    key = jax.random.fold_in(key, 1)
    t, stats = _apply(teacher, state.teacher, stats, groups, key)
    return jax.lax.stop_gradient(t), stats

  def answers(params, state, views, key):
    stats, groups = state.extra['student'], tuple(views[n] for n in names)
    return _apply(student, params, stats, groups, key)

  def judged(s, t, state):
    temp = teacher_temp(state.step)
    value, extra, metrics = objective(s, t, state.extra, temp, config, shards)
    return value, extra, metrics | {'teacher_temp': temp}

  def loss(params, state, views, key) -> Loss:
    t, teacher_stats = targets(state, views, key)
    s, stats = answers(params, state, views, key)
    value, extra, metrics = judged(s, t, state)
    extra |= {'student': stats, 'teacher': teacher_stats}
    return Loss(value, extra, metrics)

  def features(params, stats, images) -> Features:
    stats = {'batch_stats': stats['backbone']} if 'backbone' in stats else {}
    (out,) = teacher.backbone.apply(
      {'params': params['backbone'], **stats}, (images[:, None],), train=False
    )
    return jax.tree.map(lambda x: x[:, 0], out)

  def student_stage(state, views, key, done):
    forward = functools.partial(answers, state=state, views=views, key=key)
    s, back, _ = jax.vjp(forward, state.params, has_aux=True)
    return s, back(s)

  def loss_stage(state, views, key, done):
    s, t = done['student'][0], done['teacher']
    return jax.value_and_grad(lambda s: judged(s, t, state)[0])(s)

  stages = {
    'teacher': lambda state, views, key, done: targets(state, views, key)[0],
    'student': student_stage,
    'loss': loss_stage,
  }
  return Method(
    init,
    make_views,
    loss,
    features,
    momentum,
    stages,
    chance=math.log(config.head.out_dim),
  )


def objective(s: Outputs, t: Outputs, extra, temp, config, shards=1):
  """The view and the region loss of one batch, and what they change.

    view   = mean over pairs (q, v != q) of CE(teacher view q, student view v)
    region = the same over regions i of v, each against the region of q that
             is most like it: j*(i) = argmax_j cos(s.grid_i, t.grid_j)
    loss   = (1 - w) view + w region                             (w = 1/2)

  Published code and paper differ in scale: L_V + L_R in the paper, halves in
  the code, which are kept here.

  Args:
    s: the student's outputs on all views.
    t: the teacher's on the global views; no gradient.
    extra: holds the two centres.
    temp: teacher temperature.
    config: section `loss`, and `model.dtype`, that of the logits' products.
    shards: see prototypes.cross_entropy.

  Returns:
    (loss, {'center': ..., 'center_grid': ...}, metrics)
  """
  c = config.loss
  B, V = s.view.shape[:2]

  def cross_entropy(u, w_s, targets, w_t, center, match):
    form = c.form
    if form == 'auto':
      form = prototypes.default_form(B // shards, u.shape[1], len(w_s))
    return prototypes.cross_entropy(
      u.astype(config.model.dtype),
      w_s,
      targets,
      w_t,
      center,
      match,
      c.student_temp,
      temp,
      form=form,
      shards=shards,
    )

  pairs = prototypes.pair_weights((1,) * V, TEACHER_VIEWS)  # V Q
  match = jnp.broadcast_to(pairs, (B, *pairs.shape))
  view = cross_entropy(
    s.view,
    s.view_prototypes,
    t.view,
    t.view_prototypes,
    extra['center'],
    match,
  )
  new = {
    'center': prototypes.update_center(
      extra['center'], t.view_prototypes, t.view, c.center_momentum
    )
  }
  metrics = {'view_loss': view, **_signals(t, extra['center'], temp)}
  if c.region_weight == 0:
    return view, new, metrics

  weights = prototypes.pair_weights(s.regions_per_view, TEACHER_VIEWS)  # T Q
  match, best = prototypes.matching(
    jax.lax.stop_gradient(s.grid), t.grid, weights, t.regions_per_view
  )
  region = cross_entropy(
    s.region,
    s.region_prototypes,
    t.region,
    t.region_prototypes,
    extra['center_grid'],
    match,
  )
  new['center_grid'] = prototypes.update_center(
    extra['center_grid'], t.region_prototypes, t.region, c.center_momentum
  )
  value = (1 - c.region_weight) * view + c.region_weight * region
  metrics |= {
    'region_loss': region,
    'distinct_matches': _distinct(best, s.regions_per_view),
  }
  return value, new, metrics


def _signals(t: Outputs, center, temp, sample: int = 64) -> dict:
  """Signs of collapse, from the teacher's views of up to 64 images."""
  B = len(t.view)
  n = max(n for n in range(1, sample + 1) if B % n == 0)
  # Striding takes images from every device and moves none.
  u = t.view.reshape(n, B // n, *t.view.shape[1:])[:, 0]  # n 2 P
  logits = jnp.einsum(
    'nvp,kp->nvk', u, t.view_prototypes, preferred_element_type=jnp.float32
  )
  log_p = jax.nn.log_softmax((logits - center[None, None]) / temp)
  p = jnp.exp(log_p)
  mean = p.mean((0, 1))
  x = l2_normalize(t.pooled.astype(jnp.float32))  # B 2 D
  return {
    'teacher_entropy': -(p * log_p).sum(-1).mean(),
    'teacher_kl_uniform': (
      math.log(len(mean)) + (mean * jnp.log(mean + 1e-12)).sum()
    ),
    # |x| = 1, so the variances add up to 1 - |mean|^2: one pass, one reduce.
    'feature_spread': jnp.sqrt(1 - jnp.square(x.mean((0, 1))).sum()),
  }


def _distinct(best, regions_per_view) -> jax.Array:
  """Share of distinct regions among those one global view picks in the other.

  best i32[B, T, Q]: for each student region the region of teacher view q.
  """
  n = regions_per_view[0]
  picks = jnp.stack([best[:, n : 2 * n, 0], best[:, :n, 1]], 1)  # B 2 n
  picked = jax.nn.one_hot(picks, n).max(2)  # B 2 n
  return picked.mean()


def _globals_first(groups) -> list[augment.Group]:
  """The teacher's group of views, then all others."""
  globals_ = [g for g in groups if g.name == 'globals']
  count = sum(g.count for g in globals_)
  if count != TEACHER_VIEWS:
    raise UserError(
      f'views.globals has {count} views: the teacher wants {TEACHER_VIEWS}, '
      'set views.globals.count'
    )
  return globals_ + [g for g in groups if g.name != 'globals']


def _network(config, model, regions: bool) -> Network:
  head = {
    **config.head,
    'dtype': jnp.dtype(model['dtype']),
  }
  return Network(
    models.build(model),
    DINOHead(**head),
    DINOHead(**head) if regions else None,
  )


def _apply(network, params, stats, groups, key) -> tuple[Outputs, Any]:
  """One forward in train mode; returns outputs and new batch statistics."""
  variables = {'params': params, **({'batch_stats': stats} if stats else {})}
  out, changed = network.apply(
    variables,
    groups,
    train=True,
    rngs={'drop_path': key, 'neighbour': jax.random.fold_in(key, 2)},
    mutable=['batch_stats'],
  )
  return out, changed.get('batch_stats', stats)
