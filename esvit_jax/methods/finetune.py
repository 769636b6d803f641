"""Fine-tuning of a pre-trained backbone and a head with labels.

  views -> RandAugment -> erasing -> mixing with the reversed batch
  -> cross-entropy with soft targets

For multi-label data it is the binary cross-entropy of each class.

The recipes of MAE-Lite, DeiT and of transfer to small sets differ in numbers
only (configs/eval/finetune.py). Layer-wise decay is part of the optimiser.
"""

import math

import jax
import jax.numpy as jnp

from esvit_jax import models
from esvit_jax import state as state_lib
from esvit_jax.augment import erasing, mixing
from esvit_jax.errors import UserError
from esvit_jax.methods import method as shared
from esvit_jax.models.classifier import Classifier
from esvit_jax.state import Loss, Method, Run


def build(config, run: Run) -> Method:
  """Fine-tuning as a Method.

  Several views of an image (`views.globals.count`) are DeiT's repeated
  augmentation. With `ema.decay` the teacher is an average of the weights.

  Args:
    config: sections data, views, model, finetune and ema
      (configs/eval/finetune.py).
    run: facts about it: the number of classes, and whether labels are
      multi-label.

  Raises:
    UserError: there are no labels, or settings are wrong.
  """
  c, decay = config.finetune, config.ema.decay
  classes = _classes(c.classes, run.classes)
  groups = shared.view_groups(config.views, 'fine-tuning sees no other views')
  _check(c, decay)
  network = Classifier(models.build(config.model), classes, c.pool, c.head_std)

  student_init = shared.student_init(network, groups[0], config.data.channels)

  def init(key):
    params, _, extra = student_init(key)
    if not decay:
      return params, None, extra
    return params, params, {**extra, 'teacher': extra['student']}

  def views(batch, keys):
    x = shared.crops(config, groups)(batch, keys)['globals']  # B V h w C
    # fold_in with numbers below the count is used by the crops of views.
    V = groups[0].count
    if c.erase:
      erase_keys = jax.vmap(
        lambda key: jax.random.split(jax.random.fold_in(key, V), V)
      )(keys)
      erase = jax.vmap(jax.vmap(erasing.erase, (0, 0, None)), (0, 0, None))
      x = erase(x, erase_keys, c.erase)
    mix = mixing.draw(
      jax.random.fold_in(keys[0], V + 1),
      groups[0].size,
      c.mixup,
      c.cutmix,
      c.mix_switch,
    )
    if c.mixup or c.cutmix:
      x = mixing.mix_views(x, mix)
    if run.multi_label:
      targets, counted = mixing.multi_label_targets(batch['label'], mix)
      return {'globals': x, 'targets': targets, 'counted': counted}
    targets = mixing.targets(batch['label'], classes, c.smoothing, mix)
    return {'globals': x, 'targets': targets}

  def loss(params, state, views, key) -> Loss:
    x = views['globals']
    logits, stats = shared.forward(
      network,
      params,
      state.extra['student'],
      x.reshape(-1, *x.shape[2:]),  # B*V h w C
      key=key,
    )
    logits = logits.reshape(*x.shape[:2], classes)  # B V classes
    if run.multi_label:
      value, metrics = binary_cross_entropy(
        logits, views['targets'], views['counted']
      )
    else:
      value, metrics = cross_entropy(logits, views['targets'])
    extra = {'student': stats}
    if decay:
      extra['teacher'] = state_lib.ema(state.extra['teacher'], stats, decay)
    return Loss(value, extra, metrics)

  def predict(params, stats, images):
    variables = {'params': params, 'batch_stats': stats}
    return network.apply(variables, images, train=False)

  return shared.define(
    config,
    groups,
    network.backbone,
    init=init,
    loss=loss,
    views=views,
    momentum=(lambda step: jnp.float32(decay)) if decay else None,
    network='teacher' if decay else 'student',
    chance=math.log(2 if run.multi_label else classes),
    predict=predict,
  )


def cross_entropy(logits: jax.Array, targets: jax.Array):
  """loss = -mean over images, views of sum_k targets_k log softmax(logits)_k

  Args:
    logits: f32[B, V, classes].
    targets: probabilities f32[B, classes], the same for all views.

  Returns:
    f32[], and {'accuracy': percent of views whose likeliest class is that of
    the target}
  """
  log_p = jax.nn.log_softmax(logits)
  value = -jnp.einsum('bvk,bk->bv', log_p, targets).mean()
  right = logits.argmax(-1) == targets.argmax(-1)[:, None]
  return value, {'accuracy': 100 * right.mean(dtype=jnp.float32)}


def binary_cross_entropy(
  logits: jax.Array, targets: jax.Array, counted: jax.Array
):
  """loss = -mean over counted t log sigmoid(x) + (1 - t) log sigmoid(-x)

  Args:
    logits: f32[B, V, classes].
    targets: probabilities f32[B, classes], the same for all views.
    counted: which of the targets are known, bool[B, classes].

  Returns:
    f32[], and {'accuracy': percent of counted entries told right}
  """
  t, counted = (
    jnp.broadcast_to(x[:, None], logits.shape) for x in (targets, counted)
  )
  loss = -t * jax.nn.log_sigmoid(logits)
  loss -= (1 - t) * jax.nn.log_sigmoid(-logits)
  count = jnp.maximum(counted.sum(), 1)
  right = counted & ((logits > 0) == (t > 0.5))
  accuracy = 100 * right.sum() / count
  return jnp.where(counted, loss, 0).sum() / count, {'accuracy': accuracy}


def _classes(asked: int, given: int) -> int:
  """The number of classes: the config's, or that of the data."""
  if not (asked or given):
    raise UserError(
      'fine-tuning needs labels and this data has none: use sub-folders for '
      'classes, another data.source, or set finetune.classes'
    )
  if asked and asked < given:
    raise UserError(
      f'finetune.classes is {asked} but the data has {given} classes: set '
      'it to 0 to take those of the data'
    )
  return asked or given


def _check(c, decay: float) -> None:
  """Raises UserError for numbers out of range."""
  for name in ('smoothing', 'erase', 'mix_switch'):
    if not 0 <= c[name] <= 1:
      raise UserError(f'finetune.{name} is {c[name]}: use 0 to 1')
  for name in ('mixup', 'cutmix'):
    if not c[name] >= 0:
      raise UserError(f'finetune.{name} is {c[name]}: use 0 (none) or more')
  if not 0 <= decay < 1:
    raise UserError(f'ema.decay is {decay}: use 0 (none) to below 1')
