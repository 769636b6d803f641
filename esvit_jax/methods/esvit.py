"""EsViT: self-distillation over views and over matched regions.

A student sees all views, its EMA teacher the two global ones. The targets are
the teacher's distributions over prototypes: for each view that of the other
global views, for each region that of the most similar region in them (arXiv
2106.09785, section 3). Without the region loss this is DINO (2104.14294).
"""

import functools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax import struct

from esvit_jax import models, schedules
from esvit_jax.losses import collapse, prototypes, tiles
from esvit_jax.losses.prototypes import Side
from esvit_jax.methods import method as shared
from esvit_jax.models.heads import DINOHead
from esvit_jax.state import Loss, Method, Run

TEACHER_VIEWS = 2


class Projected(NamedTuple):
  """Unit projections f[B, N, P] of a head, and its prototypes f[K, P]."""

  tokens: jax.Array
  prototypes: jax.Array


class Outputs(struct.PyTreeNode):
  """V views and T regions of B images, where T counts the regions of all views.

  Attributes:
    view: projections of V views.
    region: projections of T regions, or None.
    grid: backbone regions f[B, T, D], before any head.
    pooled: backbone views f[B, V, D].
    regions_per_view: number of regions of each view, with sum T.
  """

  view: Projected
  region: Projected | None
  grid: jax.Array
  pooled: jax.Array
  regions_per_view: tuple[int, ...] = struct.field(pytree_node=False)


class Network(nn.Module):
  """A backbone, a head for views and, optionally, a head for regions."""

  backbone: nn.Module
  head: nn.Module
  head_dense: nn.Module | None

  def __call__(self, groups, train: bool) -> Outputs:
    features = self.backbone(groups, train=train)
    pooled = jnp.concatenate([f.view for f in features], 1)  # B V D
    grid = jnp.concatenate(
      [f.grid.reshape(len(f.grid), -1, f.grid.shape[-1]) for f in features], 1
    )  # B T D
    view, region = Projected(*self.head(pooled, train=train)), None
    if self.head_dense is not None:
      region = Projected(*self.head_dense(grid, train=train))
    regions_per_view = tuple(
      f.grid.shape[2] * f.grid.shape[3]
      for f in features
      for _ in range(f.grid.shape[1])
    )
    return Outputs(view, region, grid, pooled, regions_per_view)


def build(config, run: Run) -> Method:
  """EsViT as a Method.

  Args:
    config: sections data, views, model, head, loss and ema (configs/common).
    run: facts about it.

  Raises:
    UserError: there are not two global views, or settings are wrong.
  """
  groups = shared.view_groups(
    config.views, 'the teacher sees two', TEACHER_VIEWS, others=True
  )
  student = _network(config)
  # As published, the teacher has no drop path.
  teacher = _network(config, drop_path=0.0)
  c, horizon = config.loss, run.horizon
  teacher_temp = schedules.teacher_temperature(
    c.teacher_temp_warmup,
    c.teacher_temp,
    c.teacher_temp_warmup_epochs,
    horizon.steps_per_epoch,
    horizon.epochs,
  )

  def init(key):
    views = tuple(shared.blank_views(g, config.data.channels) for g in groups)
    params, stats = shared.init_variables(student, key, views)
    centers = ('center', 'center_grid') if c.region_weight else ('center',)
    extra = {name: jnp.zeros(config.head.out_dim) for name in centers}
    return params, params, {'student': stats, 'teacher': stats, **extra}

  def targets(state, views, key):
    return shared.teach(teacher, state, (views['globals'],), key)

  def predictions(params, state, views, key):
    # JAX sorts the keys of dicts; the order of groups is kept here.
    views = tuple(views[g.name] for g in groups)
    stats = state.extra['student']
    return shared.forward(student, params, stats, views, key)

  def compare(s, t, state):
    temp = teacher_temp(state.step)
    out = objective(s, t, state.extra, temp, config, run.shards)
    return out._replace(metrics=out.metrics | {'teacher_temp': temp})

  def loss(params, state, views, key) -> Loss:
    t, teacher_stats = targets(state, views, key)
    s, stats = predictions(params, state, views, key)
    out = compare(s, t, state)
    stats = {'student': stats, 'teacher': teacher_stats}
    return out._replace(extra=out.extra | stats)

  def student_stage(state, views, key, done):
    forward = functools.partial(predictions, state=state, views=views, key=key)
    s, backward, _ = jax.vjp(forward, state.params, has_aux=True)
    return s, backward(s)

  def loss_stage(state, views, key, done):
    s, t = done['student'][0], done['teacher']
    return jax.value_and_grad(lambda s: compare(s, t, state).value)(s)

  return shared.define(
    config,
    groups,
    teacher.backbone,
    init=init,
    loss=loss,
    momentum=schedules.cosine(config.ema.start, config.ema.end, horizon.steps),
    stages={
      'teacher': lambda state, views, key, done: targets(state, views, key)[0],
      'student': student_stage,
      'loss': loss_stage,
    },
    chance=math.log(config.head.out_dim),
  )


def objective(s: Outputs, t: Outputs, extra, temp, config, shards=1) -> Loss:
  """The view and the region loss of a batch, and the new centres.

    loss = (1 - w) view + w region                             (w = 1/2)

  The paper (section 3.2) has L_V + L_R; the published code, followed here, has
  half of it.

  Args:
    s: the student's outputs on all views.
    t: the teacher's on the global views; no gradient.
    extra: holds the two centres.
    temp: teacher temperature.
    config: section `loss`, and `model.dtype`, in which logits are computed.
    shards: see tiles.cross_entropy.

  Returns:
    Loss, whose `extra` holds the new centres.
  """
  c = config.loss
  compare = functools.partial(tiles.cross_entropy, form=c.form, shards=shards)

  def sides(s: Projected, t: Projected, center) -> tuple[Side, Side]:
    tokens = s.tokens.astype(config.model.dtype)
    return (
      Side(tokens, s.prototypes, c.student_temp),
      Side(*t, temp, extra[center]),
    )

  student, teacher = sides(s.view, t.view, 'center')
  view = view_loss(student, teacher, compare)
  centers = {'center': prototypes.update_center(teacher, c.center_momentum)}
  metrics = {
    'view_loss': view,
    **collapse.teacher_entropy(teacher),
    'feature_spread': collapse.feature_spread(t.pooled),
  }
  if c.region_weight == 0:
    return Loss(view, centers, metrics)

  student, teacher = sides(s.region, t.region, 'center_grid')
  region, nearest = region_loss(s, t, student, teacher, compare)
  centers['center_grid'] = prototypes.update_center(teacher, c.center_momentum)
  distinct = collapse.distinct_matches(nearest, s.regions_per_view[0])
  metrics |= {'region_loss': region, 'distinct_matches': distinct}
  value = (1 - c.region_weight) * view + c.region_weight * region
  return Loss(value, centers, metrics)


def view_loss(student: Side, teacher: Side, compare) -> jax.Array:
  """Mean over images and pairs (q, v != q) of CE(teacher q, student v).

  Args:
    student: of V views, f[B, V, P].
    teacher: of the two global ones, f[B, 2, P].
    compare: (student, teacher, match) -> f32[], see tiles.cross_entropy.
  """
  B, V, _ = student.tokens.shape
  weights = prototypes.pair_weights((1,) * V, TEACHER_VIEWS)  # V Q
  return compare(student, teacher, prototypes.view_matching(B, weights))


def region_loss(
  s: Outputs, t: Outputs, student: Side, teacher: Side, compare
) -> tuple[jax.Array, jax.Array]:
  """Cross-entropy of regions with the most similar ones of other global views.

  Of one image, with z a view's regions before the heads and p, p' their
  softmax over prototypes, of student and teacher:

    loss = 0
    for q in (0, 1):                                  # the teacher's views
      for v in range(V):                              # the student's
        if v != q:
          for i in range(T[v]):
            j = argmax([cos(z[v][i], z'[q][j]) for j in range(T[q])])
            loss -= sum(p'[q][j] * log(p[v][i])) / T[v]
    loss /= 2 * (V - 1)                               # number of pairs

  As a formula (arXiv 2106.09785, section 3.2), the mean over images of

    -1/|P| sum_(q, v) in P 1/T_v sum_i <p'_{q, j*(i)}, log p_{v, i}>
    j*(i) = argmax_j cos(z_{v, i}, z'_{q, j})

  Args:
    s, t: hold the regions z before the heads.
    student: of T regions, f[B, T, P].
    teacher: of the regions of the global views.
    compare: see view_loss.

  Returns:
    The loss f32[], and j* of each region in each teacher view, i32[B, T, 2].
  """
  match, nearest = prototypes.matching(
    s.grid,
    t.grid,
    prototypes.pair_weights(s.regions_per_view, TEACHER_VIEWS),  # T Q
    t.regions_per_view,
  )
  return compare(student, teacher, match), nearest


def _network(config, **changes) -> Network:
  model = {**config.model, **changes}
  head = {**config.head, 'dtype': jnp.dtype(model['dtype'])}
  return Network(
    models.build(model),
    DINOHead(**head),
    DINOHead(**head) if config.loss.region_weight else None,
  )
