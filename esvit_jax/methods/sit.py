"""SiT: paint what is hidden, and know it for what it is.

The student sees crops with blocks painted over (gmml.py), its average the
clean ones. The student is to restore the pixels and, as in MoCo-v3 but
without a predictor, to tell its image from all others (the code of 2022 that
follows 2104.03602). The first SiT's tasks are options of section `sit`: to tell
how views were turned, SimCLR's contrast, and weights that are learned. Unlike
there one class token serves all tasks, and the corruption is today's.
"""

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax import struct

from esvit_jax import augment, models, optim
from esvit_jax.augment import group_masking as gmml
from esvit_jax.errors import UserError
from esvit_jax.losses import contrastive
from esvit_jax.methods.moco import features_of, forward, two_views
from esvit_jax.models import projector
from esvit_jax.models.layers import Features, linear_init
from esvit_jax.state import Horizon, Loss, Method

CONTRASTS = ('momentum', 'simclr')
# Of a learned s in exp(-s adjust) loss: of turns, contrast and pixels.
ADJUST = (1.0, 1.0, 0.5)


class Outputs(struct.PyTreeNode):
  """Two views of B images.

  Attributes:
    pooled: backbone views f[B, 2, D].
    projected: f32[B, 2, P].
    painted: restored views f32[B, 2, H, W, C], or None if not asked for.
    turn: logits of quarter turns f32[B, 2, 4], or None likewise.
    balance: s of each task f32[3], where the network has them.
  """

  pooled: jax.Array
  projected: jax.Array
  painted: jax.Array | None = None
  turn: jax.Array | None = None
  balance: jax.Array | None = None


class Network(nn.Module):
  """A backbone, a projector of views and a painter of regions.

  Batch norm spans both views.

  Attributes:
    rotation: a head that tells quarter turns, or None.
    balanced: whether there are weights of tasks to learn.
  """

  backbone: nn.Module
  head: nn.Module
  head_recons: nn.Module
  rotation: nn.Module | None = None
  balanced: bool = False

  def setup(self):
    if self.balanced:
      ones = nn.initializers.ones
      self.balance = self.param('balance', ones, (len(ADJUST),))

  def __call__(self, images, train: bool, paint: bool = True) -> Outputs:
    (features,) = self.backbone((images,), train=train)
    projected = self.head(features.view, train=train)
    if not paint:
      return Outputs(features.view, projected)
    return Outputs(
      features.view,
      projected,
      self.head_recons(features.grid),
      self.rotation(features.view) if self.rotation else None,
      self.balance if self.balanced else None,
    )


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
  side, tasks = groups[0].size, config.sit
  if tasks.contrast not in CONTRASTS:
    raise UserError(
      f"sit.contrast is '{tasks.contrast}': use {', '.join(CONTRASTS)}"
    )
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

  def corrupt(images, key):
    return gmml.corrupt(images, jax.random.fold_in(key, 3), corruption)

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
    images, turns = views['globals'], None
    if tasks.rotation:
      turns = jax.random.randint(
        jax.random.fold_in(key, 4), images.shape[:2], 0, 4
      )
      images = turned(images, turns)
    corrupted, mask = corrupt(images, key)
    s, stats = forward(student, params, state.extra['student'], corrupted, key)
    value, metrics = objective(s, t, images, mask, config, turns)
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
      'corruption': lambda state, views, key, done: corrupt(
        views['globals'], key
      ),
      'teacher': lambda state, views, key, done: targets(state, views, key)[0],
      'loss_and_gradient': gradient_stage,
    },
    show=show,
  )


def objective(s: Outputs, t: Outputs, clean, mask, config, turns=None):
  """The losses of one batch.

    contrast = L(s1, t2) + L(s2, t1)                      (contrastive.loss)
      or, with contrast='simclr', that of s alone      (contrastive.nt_xent)
    paint    = mean |painted - clean| over corrupted pixels
    turn     = mean CE(softmax(turn), turns), with turns
    loss     = turn + contrast + lmbda paint
      or, with learned weights s_i, sum_i exp(-s_i adjust_i) loss_i + s_i / 2

  The mean is one of all views, images and channels. Published code has one
  for each device and the mean of these, whose weights depend on devices.

  Args:
    s: the student's outputs on corrupted views.
    t: the teacher's on clean ones.
    clean: f32[B, 2, H, W, C].
    mask: what is corrupted, bool[B, 2, H, W].
    config: sections contrast and sit.
    turns: how the student's views were turned, i32[B, 2], or None.

  Returns:
    (loss, metrics)
  """
  c, temp = config.sit, config.contrast.temp
  if c.contrast == 'simclr':
    contrast, accuracy = contrastive.nt_xent(s.projected, temp)
  else:
    contrast, accuracy = contrastive.symmetric(s.projected, t.projected, temp)
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
  turn = jnp.float32(0)
  if turns is not None:
    log_p = jax.nn.log_softmax(s.turn.astype(jnp.float32))
    turn = -jnp.take_along_axis(log_p, turns[..., None], -1).mean()
    metrics['turn_loss'] = turn
  losses = (turn, contrast, c.lmbda * painted)
  if s.balance is None:
    return sum(losses), metrics
  return balanced(losses, s.balance), metrics


def balanced(losses, s) -> jax.Array:
  """sum_i exp(-s_i adjust_i) loss_i + s_i / 2: weights that are learned.

  Args:
    losses: of turns, contrast and pixels.
    s: f32[3].
  """
  weights = jnp.exp(-s * jnp.asarray(ADJUST))
  return (weights * jnp.stack(losses) + s / 2).sum()


def turned(images, turns) -> jax.Array:
  """Views after quarter turns clockwise.

  Args:
    images: f[B, V, H, H, C].
    turns: how many, i32[B, V], 0 to 3.
  """
  all_four = [jnp.rot90(images, -k, (2, 3)) for k in range(4)]
  which = jnp.broadcast_to(turns[:, :, None, None, None], images.shape)
  return jax.lax.select_n(which, *all_four)


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
    nn.Dense(4, kernel_init=linear_init(fields['init_scale']))
    if config.sit.rotation
    else None,
    config.sit.learned_weights,
  )
