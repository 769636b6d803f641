"""Segmentation by fine-tuning: a backbone and a head learn masks.

  image and mask resized, cropped, mirrored alike -> distortion -> backbone ->
  head -> cross-entropy of the pixels that count

The recipes of MAE-Lite (Semantic FPN) and of Swin (UPerNet) differ in numbers
only (configs/eval/segment.py).
"""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp

from esvit_jax import models
from esvit_jax.augment import jitter
from esvit_jax.dense import VOID
from esvit_jax.dense.cross_entropy import cross_entropy
from esvit_jax.errors import UserError
from esvit_jax.methods import method as shared
from esvit_jax.models.segmenter import Segmenter
from esvit_jax.state import Loss, Method, Run


def build(config, run: Run) -> Method:
  """Segmentation as a Method.

  Args:
    config: sections data, views, model, segment and jitter
      (configs/eval/segment.py).
    run: facts about it: the classes of pixels.

  Raises:
    UserError: no masks to learn, or settings are wrong.
  """
  c = config.segment
  if not run.pixel_classes:
    raise UserError(
      'segmentation learns masks and this data has none: use '
      '--config.data.source=scenes or masks:PATH'
    )
  groups = shared.view_groups(
    config.views, 'segmentation sees one crop of an image', count=1
  )
  network = segmenter(config, run.pixel_classes)

  def loss(params, state, views, key) -> Loss:
    (logits, auxiliary), stats = shared.forward(
      network, params, state.extra['student'], views['globals'][:, 0], key
    )
    labels = views['segmentation']
    main = cross_entropy(logits, labels, c.over)
    value, metrics = main, {'cross_entropy': main}
    if auxiliary is not None:
      value += c.auxiliary_weight * cross_entropy(auxiliary, labels, c.over)
    return Loss(value, {'student': stats}, metrics)

  return shared.define(
    config,
    groups,
    network.backbone,
    init=shared.student_init(network, groups[0], config.data.channels),
    loss=loss,
    views=crops(config),
    momentum=None,
    network='student',
    chance=math.log(run.pixel_classes),
  )


def segmenter(config, classes: int) -> Segmenter:
  """The network of a config."""
  c = config.segment
  return Segmenter(
    models.build(config.model),
    classes,
    c.head,
    c.width,
    c.neck_width,
    c.auxiliary_width if c.auxiliary_weight else 0,
    c.maps,
  )


def crops(config) -> Callable:
  """(batch, keys[B]) -> 'globals' f32[B, 1, h, w, C], 'segmentation' u8[B,h,w].

  The padding of an image is the mean, that of its mask void.
  """
  c = config.jitter
  (group,) = shared.view_groups(config.views, '', count=1)
  out = group.size
  reach = jitter.Reach(c.longest, c.shortest)
  mean, std = (
    jnp.asarray(x)[:, None, None] for x in (config.data.mean, config.data.std)
  )

  def view(image, classes, size, key):
    keys = jax.random.split(key, 3)
    placing = jitter.draw(keys[0], size, out, reach, tuple(c.scale), c.flip)
    if c.vary:
      placing = jitter.varied(keys[1], classes, size, placing, out, VOID)
    planes = jnp.moveaxis(image.astype(jnp.float32), -1, 0)
    planes = jitter.image(planes, size, placing, out)
    planes = jitter.distort(planes, keys[2], c.distort)
    pixels = (planes / 255 - mean) / std
    pixels *= jitter.inside(placing, out)[None]
    labels = jitter.labels(classes, size, placing, out, VOID)
    return jnp.moveaxis(pixels, 0, -1)[None], labels

  def views(batch, keys):
    pixels, labels = jax.vmap(view)(
      batch['image'],
      batch['segmentation'],
      jnp.maximum(batch['size'], 1),
      keys,
    )
    return {'globals': pixels, 'segmentation': labels}

  return views
