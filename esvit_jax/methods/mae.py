"""MAE and MAE-Lite: masked auto-encoding, and distillation of its attention.

The encoder sees a random quarter of the patches; a small decoder predicts the
pixels of the others (2111.06377). With a frozen teacher, which sees the same
patches, attention logits are matched too: D-MAE (2205.14443) or, with a tail
and an early decoder, D2-MAE (2404.12210).
"""

import jax
import jax.numpy as jnp

from esvit_jax import models
from esvit_jax.errors import UserError
from esvit_jax.methods import method as shared
from esvit_jax.models import mae
from esvit_jax.models.patches import patchify, unpatchify
from esvit_jax.state import Loss, Method, Run


def build(config, run: Run) -> Method:
  """MAE as a Method; with a teacher, D-MAE or D2-MAE.

  Args:
    config: sections data, views, model, mae and distill.
    run: facts about it: the frozen teacher, a ViT, or none.

  Raises:
    UserError: settings do not fit each other, or the teacher.
  """
  groups = shared.view_groups(
    config.views, 'a masked auto-encoder sees one view', 1
  )
  c, (height, width), teacher = config.mae, groups[0].size, run.teacher
  network = _network(config, teacher)
  patch = network.backbone.patch
  if height % patch or width % patch:
    raise UserError(
      f'views.globals.size {height}x{width} is no multiple of the patch {patch}'
    )
  L = (height // patch) * (width // patch)
  k = visible(L, c.mask_ratio)

  def init(key):
    images = shared.blank_views(groups[0], config.data.channels)[:, 0]
    params = network.init(key, images, jnp.arange(L)[None], k)['params']
    frozen = None if teacher is None else {'encoder': teacher[1]['params']}
    return params, frozen, {'student': {}}

  def teacher_traces(state, images, order):
    if teacher is None:
      return None
    return teacher[0].apply(
      {'params': jax.lax.stop_gradient(state.teacher['encoder'])},
      images,
      order[:, :k],
      method='encode_visible',
    )

  def loss(params, state, views, key) -> Loss:
    images = views['globals'][:, 0]  # B H W channels
    order_key, drop_key = jax.random.split(key)
    order = patch_order(order_key, len(images), L)
    out = network.apply(
      {'params': _fixed_tables(params)},
      images,
      order,
      k,
      train=True,
      rngs={'drop_path': drop_key},
    )
    targets = teacher_traces(state, images, order)
    patches = patchify(images, patch)
    value, metrics = objective(out, patches, order, k, targets, config)
    return Loss(value, state.extra, metrics)

  @jax.jit
  def reconstruct(params, images, key):
    order = patch_order(key, len(images), L)
    out = network.apply({'params': params}, images, order, k)
    return pictures(images, out.pred, removed(order, k), patch, c.norm_pix)

  def show(state, views, key):
    columns = reconstruct(state.params, views['globals'][:, 0], key)
    titles = ('image', 'masked', 'reconstruction')
    return {'reconstruction': (titles, columns)}

  P = patch**2 * config.data.channels
  return shared.define(
    config,
    groups,
    network.backbone,
    init=init,
    loss=loss,
    momentum=None,
    stages={
      'loss': lambda state, views, key, done: (
        loss(state.params, state, views, key).value
      )
    },
    network='student',
    # Normed patches have a variance of (P - 1)/P: they are divided by the
    # unbiased deviation.
    chance=(P - 1) / P if c.norm_pix and teacher is None else None,
    show=show,
  )


def objective(out: mae.Outputs, patches, order, k: int, targets, config):
  """The losses of one batch.

    reconstruction = mean over removed patches |pred - patch|^2 / P
    attention = mean |adapter(student's logits) - teacher's logits|^2
    hidden    = mean over matched states of mean |adapter(s) - t|^2
    loss      = reconstruction + weight attention + hidden_weight hidden

  As in the published code, logits of one block are matched; the paper speaks
  of attention maps.

  Args:
    out: of the student.
    patches: of the images, see `patchify`, f32[B, L, P].
    order: i32[B, L].
    k: number of visible patches.
    targets: traces of the teacher's blocks, or None.
    config: sections mae and, with a teacher, distill.

  Returns:
    (loss, metrics)
  """
  if config.mae.norm_pix:
    mean, deviation = mae.patch_moments(patches)
    patches = (patches - mean) / deviation
  value = mae.reconstruction_loss(out.pred, patches, removed(order, k))
  metrics = {'reconstruction_loss': value}
  if targets is None:
    return value, metrics
  d = config.distill
  attention = jnp.square(out.logits - targets[d.layer - 1].logits).mean()
  value += d.weight * attention
  metrics['attention_loss'] = attention
  if d.hidden:
    hidden = sum(
      jnp.square(s - mae.hidden_state(targets, i)).mean()
      for s, i in zip(out.hidden, d.hidden)
    )
    value += d.hidden_weight * hidden
    metrics['hidden_loss'] = hidden
  return value, metrics


def visible(patches: int, mask_ratio: float) -> int:
  """The number of visible patches of an image.

  Raises:
    UserError: none, or all.
  """
  k = int(patches * (1 - mask_ratio))
  if not 0 < k < patches:
    raise UserError(
      f'mae.mask_ratio {mask_ratio} leaves {k} of {patches} patches: some must '
      'be seen and some masked'
    )
  return k


def patch_order(key, images: int, patches: int) -> jax.Array:
  """A random order of the patches of each image, i32[B, L].

  It is drawn for the global batch, so it does not depend on devices.
  """
  return jnp.argsort(jax.random.uniform(key, (images, patches)), 1)


def removed(order, k: int) -> jax.Array:
  """1 where a patch is not among the first k of its order, f32[B, L]."""
  return (jnp.argsort(order, 1) >= k).astype(jnp.float32)


def pictures(images, pred, mask, patch: int, norm_pix: bool) -> jax.Array:
  """Images, their visible patches, and these with the others predicted.

  Args:
    images: normalised f32[B, H, W, channels].
    pred: f32[B, L, P].
    mask: 1 where a patch was removed, f32[B, L].
    patch: pixels.
    norm_pix: whether predictions are of normed patches; mean and deviation are
      then those of the true patches.

  Returns:
    f32[B, 3, H, W, channels]; masked patches are 0, the mean colour.
  """
  patches = patchify(images, patch)
  if norm_pix:
    mean, deviation = mae.patch_moments(patches)
    pred = pred * deviation + mean
  mask = mask[:, :, None]
  size = (images.shape[1] // patch, images.shape[2] // patch)
  masked = patches * (1 - mask)
  columns = (patches, masked, masked + pred * mask)
  return jnp.stack([unpatchify(x, size, patch) for x in columns], 1)


def _network(config, teacher) -> mae.MAE:
  """The student."""
  c = config.mae
  backbone = models.build(config.model)
  if not isinstance(backbone, models.ViT):
    raise UserError(
      f"model.name is '{config.model.name}': a masked auto-encoder needs a "
      "ViT, such as 'mae_tiny'"
    )
  fields = {
    'decoder_dim': c.decoder_dim,
    'decoder_depth': c.decoder_depth,
    'decoder_heads': c.decoder_heads,
    'decode_at': c.decode_at,
  }
  if teacher is not None:
    fields |= _matching(config.distill, backbone, teacher[0])
  return mae.MAE(backbone, **fields)


def _matching(d, student, teacher) -> dict:
  """Fields of `mae.MAE` for distillation."""
  if student.side != teacher.side:
    raise UserError(
      f'the student cuts images into {student.side}x{student.side} patches, '
      f'the teacher of distill.checkpoint into {teacher.side}x{teacher.side}: '
      'set model.image_size or model.patch'
    )
  hidden = tuple(d.hidden)
  # The tail replaces the student's own block.
  depths = (teacher.depth, *([] if d.decoupled else [student.depth]))
  if not 0 <= d.layer <= min(depths):
    raise UserError(
      f'distill.layer is {d.layer}: the networks have {min(depths)} blocks; 0 '
      'is the last of each'
    )
  deepest = min(teacher.depth, student.depth)
  if any(not 0 <= i <= deepest for i in hidden):
    raise UserError(f'distill.hidden is {hidden}: use 0 to {deepest}')
  return {
    'tail': d.decoupled,
    'match': d.layer,
    'teacher_heads': teacher.heads,
    'teacher_dim': teacher.dim,
    'hidden': hidden,
  }


def _fixed_tables(params):
  """`params` with constant position tables."""
  fixed = jax.lax.stop_gradient
  return jax.tree_util.tree_map_with_path(
    lambda path, x: fixed(x) if path[-1].key == 'pos_embed' else x, params
  )
