"""Detection by fine-tuning: a backbone and Mask R-CNN learn objects.

  image and objects resized, cropped, mirrored alike -> backbone -> pyramid ->
  `detection.mask_rcnn`

The recipes of ViTDet, Swin and detectron2's ResNet differ in numbers only
(configs/eval/detect.py).
"""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp

from esvit_jax import models
from esvit_jax.augment import jitter
from esvit_jax.detection import mask_rcnn
from esvit_jax.errors import UserError
from esvit_jax.methods import method as shared
from esvit_jax.models.detector import Detector
from esvit_jax.state import Loss, Method, Run


def build(config, run: Run) -> Method:
  """Detection as a Method.

  Args:
    config: sections data, views, model, detect and jitter
      (configs/eval/detect.py).
    run: facts about it: the classes of objects.

  Raises:
    UserError: no objects to learn, or settings are wrong.
  """
  if not run.object_classes:
    raise UserError(
      'detection learns boxes and masks of objects and this data has none: use '
      '--config.data.source=scenes or coco:PATH, and data.objects, how many of '
      'an image are learned'
    )
  groups = shared.view_groups(
    config.views, 'detection sees one view of an image', count=1
  )
  network = detector(config, run.object_classes)
  numbers = settings(config, network, groups[0].size)

  def loss(params, state, views, key) -> Loss:
    stats = state.extra['student']
    maps, _ = shared.forward(
      network, params, stats, views['globals'][:, 0], key, method='maps'
    )
    targets = mask_rcnn.Targets(
      views['boxes'], views['classes'], views['shapes'], views['frames']
    )
    numbered = jnp.arange(len(views['shown']))
    keys = jax.vmap(jax.random.fold_in, (None, 0))(key, numbered)
    losses = mask_rcnn.losses(
      heads(network, params), maps, targets, views['shown'], keys, numbers
    )
    return Loss(sum(losses.values()), {'student': stats}, losses)

  return shared.define(
    config,
    groups,
    network.backbone,
    init=shared.student_init(network, groups[0], config.data.channels),
    loss=loss,
    views=crops(config),
    momentum=None,
    network='student',
  )


def detector(config, classes: int) -> Detector:
  """The network of a config."""
  c = config.detect
  return Detector(
    models.build(config.model), classes, c.width, c.hidden, c.convs
  )


def heads(network: Detector, params) -> mask_rcnn.Heads:
  """The heads as functions."""

  def head(name):
    return lambda x: network.apply({'params': params}, x, method=name)

  return mask_rcnn.Heads(head('score'), head('box'), head('mask'))


def settings(
  config, network: Detector, size: tuple[int, int]
) -> mask_rcnn.Settings:
  """The numbers of a config, and the strides of a network's maps.

  Args:
    config: of the run.
    network: whose maps.
    size: height and width of images, pixels.

  Raises:
    UserError: there are more or fewer anchors than maps.
  """
  c = config.detect
  image = jnp.zeros((1, *size, config.data.channels))

  def maps(key):
    return network.init_with_output(key, image, method='maps')[0]

  shapes = [x.shape[1] for x in jax.eval_shape(maps, jax.random.key(0))]
  # Maps of odd sizes are rounded up or down.
  strides = tuple(2 ** round(math.log2(size[0] / side)) for side in shapes)
  if len(c.sizes) != len(strides):
    raise UserError(
      f'detect.sizes {tuple(c.sizes)} are for {len(c.sizes)} maps and this '
      f'network has {len(strides)}, of strides {strides}: give a size to each'
    )
  fields = {k: c[k] for k in mask_rcnn.Settings._fields if k in c}
  return mask_rcnn.Settings(
    **fields | {'strides': strides, 'sizes': tuple(c.sizes)}
  )


def crops(config) -> Callable:
  """(batch, keys[B]) -> a view of each image, and its objects.

  'globals' f32[B, 1, h, w, C], of which 'shown' i32[B, 2] is no padding, and
  the fields of `jitter.Objects`.
  """
  c = config.jitter
  (group,) = shared.view_groups(config.views, '', count=1)
  out = group.size
  reach = jitter.Reach(c.longest, c.shortest)
  mean, std = (
    jnp.asarray(x)[:, None, None] for x in (config.data.mean, config.data.std)
  )

  def view(image, size, boxes, classes, shapes, key):
    placing = jitter.draw(key, size, out, reach, tuple(c.scale), c.flip)
    planes = jnp.moveaxis(image.astype(jnp.float32), -1, 0)
    pixels = jitter.image(planes, size, placing, out)
    pixels = (pixels / 255 - mean) / std * jitter.inside(placing, out)[None]
    objects = jitter.objects(boxes, classes, shapes, size, placing, out)
    return {
      'globals': jnp.moveaxis(pixels, 0, -1)[None],
      'shown': placing.shown(out),
      **objects._asdict(),
    }

  def views(batch, keys):
    return jax.vmap(view)(
      batch['image'],
      jnp.maximum(batch['size'], 1),
      batch['boxes'],
      batch['classes'],
      batch['shapes'],
      keys,
    )

  return views
