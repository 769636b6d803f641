"""SiT: reconstruction of corrupted views, and a contrastive loss.

The student sees views with corrupted blocks (`group_masking`), its average the
clean ones. The student reconstructs the pixels and, as in MoCo-v3 but without a
predictor, identifies its image among all others (the code of 2022 that follows
2104.03602). Tasks of the first version (2104.03602v1, section 3) are options in
section `sit`: rotation prediction, SimCLR's contrast, and learned weights of
tasks. Unlike there, one class token serves all tasks, and corruption follows
the later code.
"""

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax import struct

from esvit_jax import models, schedules
from esvit_jax.augment import group_masking
from esvit_jax.errors import UserError
from esvit_jax.losses import collapse, contrastive
from esvit_jax.methods import method as shared
from esvit_jax.models import projector
from esvit_jax.models.layers import linear_init
from esvit_jax.state import Loss, Method, Run

CONTRASTS = ('momentum', 'simclr')
# Factors of s in exp(-s adjust) loss, for rotation, contrast, reconstruction.
ADJUST = (1.0, 1.0, 0.5)


class Outputs(struct.PyTreeNode):
  """Two views of B images.

  Attributes:
    pooled: backbone views f[B, 2, D].
    projected: f32[B, 2, P].
    reconstruction: views f32[B, 2, H, W, C], if requested.
    rotation: logits of the four rotations f32[B, 2, 4], if requested.
    balance: s of each task f32[3], if weights of tasks are learned.
  """

  pooled: jax.Array
  projected: jax.Array
  reconstruction: jax.Array | None = None
  rotation: jax.Array | None = None
  balance: jax.Array | None = None


class Network(nn.Module):
  """A backbone, a projector of views and a reconstruction of regions.

  Batch norm spans both views.

  Attributes:
    rotation: a head that classifies rotations, or None.
    balanced: whether the weights of the tasks are learned.
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

  def __call__(self, images, train: bool, reconstruct: bool = True) -> Outputs:
    (features,) = self.backbone((images,), train=train)
    projected = self.head(features.view, train=train)
    if not reconstruct:
      return Outputs(features.view, projected)
    return Outputs(
      features.view,
      projected,
      self.head_recons(features.grid),
      self.rotation(features.view) if self.rotation else None,
      self.balance if self.balanced else None,
    )


def build(config, run: Run) -> Method:
  """SiT as a Method.

  Args:
    config: sections data, views, model, contrast, gmml, sit and ema.
    run: facts about it.

  Raises:
    UserError: views are not two of one size, or settings are wrong.
  """
  groups = shared.view_groups(
    config.views, 'queries of one view look for keys of the other', 2
  )
  size, tasks = groups[0].size, config.sit
  shared.images_to_contrast(config)
  _check(tasks, size)
  corruption = group_masking.settings(config.gmml, size)
  student = _network(config, config.model, size)
  # As published, the teacher has no drop path.
  teacher = _network(config, {**config.model, 'drop_path': 0.0}, size)

  def init(key):
    views = shared.blank_views(groups[0], config.data.channels)
    params, stats = shared.init_variables(student, key, views)
    return params, params, {'student': stats, 'teacher': stats}

  def corrupt(images, key):
    key = jax.random.fold_in(key, 3)
    return group_masking.corrupt(images, key, corruption)

  def targets(state, views, key):
    images = views['globals']
    return shared.teach(teacher, state, images, key, reconstruct=False)

  def loss(params, state, views, key) -> Loss:
    t, teacher_stats = targets(state, views, key)
    images, turns = views['globals'], None
    if tasks.rotation:
      turns = jax.random.randint(
        jax.random.fold_in(key, 4), images.shape[:2], 0, 4
      )
      images = rotate(images, turns)
    corrupted, mask = corrupt(images, key)
    s, stats = shared.forward(
      student, params, state.extra['student'], corrupted, key
    )
    value, metrics = objective(s, t, images, mask, config, turns)
    extra = {'student': stats, 'teacher': teacher_stats}
    return Loss(value, extra, metrics)

  @jax.jit
  def pictures(params, stats, images, key):
    corrupted, _ = group_masking.corrupt(images, key, corruption)
    out = teacher.apply(
      {'params': params, 'batch_stats': stats}, corrupted, train=False
    )
    return jnp.stack([images, corrupted, out.reconstruction], 2)[:, 0]

  def show(state, views, key):
    # The student is shown, since the teacher never saw corrupted images.
    stats = state.extra['student']
    columns = pictures(state.params, stats, views['globals'], key)
    titles = ('clean', 'corrupted', 'reconstructed')
    return {'reconstruction': (titles, columns)}

  return shared.define(
    config,
    groups,
    teacher.backbone,
    init=init,
    loss=loss,
    momentum=schedules.cosine(
      config.ema.start, config.ema.end, run.horizon.steps
    ),
    stages={
      'corruption': lambda state, views, key, done: corrupt(
        views['globals'], key
      ),
      'teacher': lambda state, views, key, done: targets(state, views, key)[0],
    },
    show=show,
  )


def objective(s: Outputs, t: Outputs, clean, mask, config, turns=None):
  """The losses of one batch.

    contrast = L(s1, t2) + L(s2, t1)                      (contrastive.loss)
      or, with contrast='simclr', that of s alone      (contrastive.nt_xent)
    reconstruction = mean |reconstruction - clean| over corrupted pixels
    rotation = mean CE(softmax(rotation), turns), with turns
    loss     = rotation + contrast + reconstruction_weight reconstruction
      or, with learned weights s_i, sum_i exp(-s_i adjust_i) loss_i + s_i / 2

  The mean of the reconstruction is over the global batch. The published code
  averages the means of devices, which depends on their number.

  Args:
    s: the student's outputs on corrupted views.
    t: the teacher's on clean ones.
    clean: f32[B, 2, H, W, C].
    mask: corrupted pixels, bool[B, 2, H, W].
    config: sections contrast and sit.
    turns: quarter turns of the student's views, i32[B, 2], or None.

  Returns:
    (loss, metrics)
  """
  c, temp = config.sit, config.contrast.temp
  if c.contrast == 'simclr':
    contrast, accuracy = contrastive.nt_xent(s.projected, temp)
  else:
    contrast, accuracy = contrastive.symmetric(s.projected, t.projected, temp)
  error = jnp.abs(s.reconstruction - clean).mean(-1)  # B 2 H W
  pixels = jnp.maximum(mask.sum(), 1)
  reconstruction = jnp.where(mask, error, 0).sum() / pixels
  metrics = {
    'contrast_loss': contrast,
    'reconstruction_loss': reconstruction,
    'contrast_accuracy': 100 * accuracy,
    'corrupted': mask.mean(),
    'feature_spread': collapse.feature_spread(t.pooled),
  }
  rotation = jnp.float32(0)
  if turns is not None:
    log_p = jax.nn.log_softmax(s.rotation.astype(jnp.float32))
    rotation = -jnp.take_along_axis(log_p, turns[..., None], -1).mean()
    metrics['rotation_loss'] = rotation
  losses = (rotation, contrast, c.reconstruction_weight * reconstruction)
  if s.balance is None:
    return sum(losses), metrics
  return balanced(losses, s.balance), metrics


def balanced(losses, s) -> jax.Array:
  """sum_i exp(-s_i adjust_i) loss_i + s_i / 2, with learned weights.

  Args:
    losses: of rotation, contrast and reconstruction.
    s: f32[3].
  """
  weights = jnp.exp(-s * jnp.asarray(ADJUST))
  return (weights * jnp.stack(losses) + s / 2).sum()


def rotate(images, turns) -> jax.Array:
  """Views after quarter turns clockwise.

  Args:
    images: f[B, V, H, H, C].
    turns: number of quarter turns, i32[B, V], 0 to 3.
  """
  all_four = [jnp.rot90(images, -k, (2, 3)) for k in range(4)]
  chosen = jnp.broadcast_to(turns[:, :, None, None, None], images.shape)
  return jax.lax.select_n(chosen, *all_four)


def _check(tasks, size: tuple[int, int]) -> None:
  """Raises UserError for settings of section `sit` that cannot be used."""
  if tasks.contrast not in CONTRASTS:
    raise UserError(
      f"sit.contrast is '{tasks.contrast}': use {', '.join(CONTRASTS)}"
    )
  if tasks.rotation and size[0] != size[1]:
    raise UserError(
      f'sit.rotation turns views by 90 degrees, which {size[0]}x{size[1]} px '
      'do not allow: set views.globals.size to one number'
    )


def _network(config, model, size: tuple[int, int]) -> Network:
  c, backbone = config.contrast, models.build(model)
  channels = config.data.channels
  fields = {
    'init_scale': backbone.init_scale,
    'dtype': jnp.dtype(model['dtype']),
  }
  return Network(
    backbone,
    projector.Projector(
      c.hidden, c.dim, activations=('relu', 'gelu'), use_bias=True, **fields
    ),
    projector.ReconstructionHead(
      channels, projector.stride(backbone, size, channels), **fields
    ),
    nn.Dense(4, kernel_init=linear_init(fields['init_scale']))
    if config.sit.rotation
    else None,
    config.sit.learned_weights,
  )
