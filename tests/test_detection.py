"""Boxes, anchors, regions and masks against detectron2 and torchvision."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from golden_dense import Case

from esvit_jax.detection import (
  anchors,
  boxes,
  matching,
  nms,
  proposals,
  regions,
  roi_align,
  shapes,
)


@pytest.mark.parametrize('name', ['standard', 'two_sizes_offset', 'rounded'])
def test_anchors(name):
  case = Case('anchors', name)
  p = case.params
  h, w = p['image']
  case.check(
    **{
      f'level{i}': anchors.of_map(
        (-(-h // stride), -(-w // stride)),
        stride,
        sizes,
        p['ratios'],
        p.get('offset', 0.0),
        whole=name == 'rounded',
      )
      for i, (stride, sizes) in enumerate(zip(p['strides'], p['sizes']))
    }
  )


@pytest.mark.parametrize('kind', ['rpn', 'roi'])
def test_codes_of_boxes(kind):
  case = Case('boxcode', f'encode_{kind}')
  weights = case.params['weights']
  x = {k: jnp.asarray(v) for k, v in case.inputs.items()}
  deltas = boxes.encode(x['boxes'], x['anchors'], weights)
  case.check(deltas=deltas)
  np.testing.assert_allclose(
    boxes.decode(deltas, x['anchors'], weights), x['boxes'], atol=1e-3
  )
  case = Case('boxcode', f'decode_{kind}')
  classes = case.params['classes']
  x = {k: jnp.asarray(v) for k, v in case.inputs.items()}
  deltas = x['deltas'].reshape(-1, classes, 4)
  decoded = boxes.decode(deltas, x['anchors'], weights)
  case.check(boxes=decoded.reshape(-1, 4 * classes))


@pytest.mark.parametrize('name', ['a', 'degenerate'])
def test_iou(name):
  case = Case('iou', name)
  case.check(iou=boxes.iou(*(jnp.asarray(case.inputs[k]) for k in 'ab')))


@pytest.mark.parametrize('name', ['rpn', 'rpn_ties', 'roi'])
def test_matching(name):
  case = Case('matcher', name)
  p = case.params
  # Padding changes nothing.
  gt = np.pad(case.inputs['gt'], ((0, 3), (0, 0)))
  there = jnp.arange(len(gt)) < len(gt) - 3
  overlap = boxes.iou(jnp.asarray(gt), jnp.asarray(case.inputs['anchors']))
  found = matching.match(overlap, there, p['thresholds'], p['low_quality'])
  case.check(match=found.object, label=found.label, iou=overlap[:-3])


def test_a_sample_is_random_and_keeps_its_share():
  label = jnp.array([1] * 30 + [0] * 50 + [-1] * 20)
  sample = jax.jit(matching.sample, static_argnums=(2, 3))
  draw = jax.vmap(lambda key: sample(label, key, 24, 0.25))
  chosen = draw(jax.random.split(jax.random.key(0), 50))
  counts = [(chosen & (label == k)[None]).sum(1) for k in (1, 0, -1)]
  assert [set(c.tolist()) for c in counts] == [{6}, {18}, {0}]
  assert (chosen.any(0) == (label >= 0)).all()  # each at some time
  few = jnp.array([1] * 2 + [0] * 50)
  assert sample(few, jax.random.key(0), 24, 0.5).sum() == 24
  assert sample(few[:9], jax.random.key(0), 24, 0.5).sum() == 9


suppress = jax.jit(nms.nms, static_argnums=2)


@pytest.mark.parametrize('name', ['a', 'b', 'exact_threshold', 'batched'])
def test_suppression(name):
  case = Case('nms', name)
  x = {k: jnp.asarray(v) for k, v in case.inputs.items()}
  keep = suppress(
    x['boxes'],
    x['scores'],
    case.params['threshold'],
    groups=x.get('group'),
  )
  order = jnp.argsort(-x['scores'], stable=True)
  case.check(keep=order[keep[order]])


def test_padding_suppresses_nothing():
  case = Case('nms', 'a')
  x = {k: jnp.asarray(v) for k, v in case.inputs.items()}
  pad = jnp.tile(jnp.array([[0.0, 0, 500, 500]]), (7, 1))
  keep = suppress(
    jnp.concatenate([pad, x['boxes']]),
    jnp.concatenate([jnp.full(7, 9.0), x['scores']]),
    case.params['threshold'],
    jnp.arange(127) >= 7,
  )
  assert not keep[:7].any()
  alone = suppress(x['boxes'], x['scores'], case.params['threshold'])
  np.testing.assert_array_equal(keep[7:], alone)


@pytest.mark.parametrize(
  'name', ['adaptive_aligned', 'two_aligned', 'adaptive_legacy', 'two_legacy']
)
def test_roi_align(name):
  case = Case('roi_align', name)
  p, x = case.params, {k: jnp.asarray(v) for k, v in case.inputs.items()}
  image = x['rois'][:, 0].astype(int)

  def pooled(features):
    def of_box(i, box):
      return roi_align.roi_align(
        jnp.moveaxis(features[i], 0, -1),
        box[None],
        p['size'],
        p['scale'],
        p['sampling'],
        p['aligned'],
      )[0]

    return jnp.moveaxis(jax.vmap(of_box)(image, x['rois'][:, 1:]), -1, 1)

  out, back = jax.vjp(jax.jit(pooled), x['features'])
  case.check(pooled=out, grad_features=back(x['cotangent'])[0])


def test_regions_are_pooled_from_their_level():
  case = Case('roi_align', 'pooler')
  p = case.params
  import zlib

  rng = np.random.Generator(np.random.PCG64(zlib.crc32(b'roi_align/pooler')))
  h, w = p['image']
  maps = [
    np.moveaxis(
      rng.standard_normal((2, 2, h // s, w // s)).astype(np.float32), 1, -1
    )
    for s in p['strides']
  ]
  x = jnp.asarray(case.inputs['boxes'])
  pool = functools.partial(
    roi_align.pool,
    strides=p['strides'],
    size=p['size'],
    sampling=p['sampling'],
    chunk=4,
  )
  out = jax.vmap(lambda maps, boxes: pool(maps, boxes=boxes))(maps, x)
  level = jax.vmap(lambda b: roi_align.level_of(b, 2, 5))(x)
  pooled = jnp.moveaxis(out.reshape(-1, *out.shape[2:]), -1, 1)
  case.check(level=level.ravel() - 2, pooled=pooled)


def test_masks_are_pasted():
  case = Case('paste', 'a')
  x = {k: jnp.asarray(v) for k, v in case.inputs.items()}
  paste = jax.jit(shapes.paste, static_argnums=2)
  soft = paste(x['masks'], x['boxes'], tuple(case.params['image']))
  case.check(soft=soft, hard=soft >= case.params['threshold'])


def per_level(case, x):
  p = case.params
  h, w = p['image']
  fixed = [
    anchors.of_map((h // s, w // s), s, size, p['ratios'])
    for s, size in zip(p['strides'], p['sizes'])
  ]
  return np.concatenate(fixed)


def test_losses_of_proposals():
  case = Case('rpn', 'losses')
  x = {k: jnp.asarray(v) for k, v in case.inputs.items()}
  fixed = per_level(case, x)
  there = jnp.arange(x['gt'].shape[1])[None] < x['gt_count'][:, None]
  count = case.params['samples_per_image'] * 2

  def losses(logits, deltas):
    def of_image(logits, deltas, label, gt, there):
      overlap = boxes.iou(gt, fixed)
      matches = matching.match(overlap, there, (0.3, 0.7), True)
      return proposals.losses(logits, deltas, label, fixed, gt[matches.object])

    cls, loc = jax.vmap(of_image)(
      jnp.concatenate(logits, 1),
      jnp.concatenate(deltas, 1),
      x['labels'],
      x['gt'],
      there,
    )
    cls, loc = cls.sum() / count, loc.sum() / count
    return cls + loc, (cls, loc)

  (_, (cls, loc)), grads = jax.value_and_grad(
    jax.jit(losses), (0, 1), has_aux=True
  )([x['logits0'], x['logits1']], [x['deltas0'], x['deltas1']])
  names = [f'grad_{k}{i}' for k in ('logits', 'deltas') for i in range(2)]
  case.check(cls=cls, loc=loc, **dict(zip(names, [*grads[0], *grads[1]])))


def test_an_image_without_objects():
  case = Case('rpn', 'no_objects')
  x = {k: jnp.asarray(v) for k, v in case.inputs.items()}
  there = jnp.arange(x['gt'].shape[1])[None] < x['gt_count'][:, None]
  count = case.params['samples_per_image'] * 2

  def losses(logits, deltas):
    def of_image(logits, deltas, gt, there):
      found = proposals.targets(
        x['anchors'], gt, there, jax.random.key(0), 1000, 1.0
      )
      return found.label, proposals.losses(
        logits, deltas, found.label, x['anchors'], gt[found.object]
      )

    label, (cls, loc) = jax.vmap(of_image)(logits, deltas, x['gt'], there)
    cls, loc = cls.sum() / count, loc.sum() / count
    return cls + loc, (label, cls, loc)

  (_, (label, cls, loc)), grads = jax.value_and_grad(
    jax.jit(losses), (0, 1), has_aux=True
  )(x['logits'], x['deltas'])
  case.check(
    labels=label, cls=cls, loc=loc, grad_logits=grads[0], grad_deltas=grads[1]
  )


propose = jax.jit(proposals.propose, static_argnums=(3, 4, 5))


def test_proposals():
  case = Case('rpn', 'proposals')
  p, x = case.params, {k: jnp.asarray(v) for k, v in case.inputs.items()}
  for i in range(2):
    found = propose(
      [x[f'boxes{level}'][i] for level in range(2)],
      [x[f'logits{level}'][i] for level in range(2)],
      jnp.array(p['image']),
      p['pre_per_level'],
      p['post'],
      p['nms'],
    )
    assert found.there.all()
    # The reference leaves the order of equal logits open.
    ours, theirs = (
      rows[np.lexsort(rows.T[::-1])]
      for rows in (
        np.concatenate([-x[:, None], np.asarray(b).round(2)], 1)
        for x, b in (
          (found.logits, found.boxes),
          (case.outputs[f'logits{i}'], case.outputs[f'boxes{i}']),
        )
      )
    )
    np.testing.assert_allclose(ours, theirs, atol=0.011)
    case.check(**{f'logits{i}': found.logits})


def test_fewer_proposals_than_asked_for_are_padded():
  some = jnp.array([[0.0, 0, 9, 9], [0, 0, 9, 9], [-5, -5, 0, 0]])
  found = propose(
    [some], [jnp.array([1.0, 2, 3])], jnp.array([20, 20]), 5, 4, 0.7
  )
  np.testing.assert_array_equal(found.there, [True, False, False, False])
  assert found.logits[0] == 2 and not found.boxes[1:].any()


def test_losses_of_regions():
  case = Case('roi_loss', 'losses')
  x = {k: jnp.asarray(v) for k, v in case.inputs.items()}
  K = case.params['classes']
  # Padding changes nothing.
  pad = {
    k: jnp.pad(v, ((0, 5),) + ((0, 0),) * (v.ndim - 1)) for k, v in x.items()
  }
  classes = pad['classes'].at[-5:].set(-1)

  def losses(scores, deltas):
    cls, box = regions.box_losses(
      scores,
      deltas.reshape(-1, K, 4),
      classes,
      pad['proposals'],
      pad['gt'],
    )
    return cls + box, (cls, box)

  (_, (cls, box)), grads = jax.value_and_grad(
    jax.jit(losses), (0, 1), has_aux=True
  )(pad['scores'], pad['deltas'])
  assert not any(g[-5:].any() for g in grads)
  case.check(
    cls=cls, box=box, grad_scores=grads[0][:-5], grad_deltas=grads[1][:-5]
  )


def test_no_region_is_an_object():
  case = Case('roi_loss', 'no_foreground')
  x = {k: jnp.asarray(v) for k, v in case.inputs.items()}
  K = case.params['classes']
  masks = jnp.zeros((10, 4, 4, K))

  def losses(scores, deltas):
    cls, box = regions.box_losses(
      scores,
      deltas.reshape(-1, K, 4),
      x['classes'],
      x['proposals'],
      jnp.zeros_like(x['proposals']),
    )
    mask = regions.mask_loss(masks, x['classes'], jnp.zeros((10, 4, 4), bool))
    return cls + box, (cls, box, mask)

  (_, (cls, box, mask)), grads = jax.value_and_grad(
    jax.jit(losses), (0, 1), has_aux=True
  )(x['scores'], x['deltas'])
  case.check(
    cls=cls, box=box, mask=mask, grad_scores=grads[0], grad_deltas=grads[1]
  )


def test_targets_and_loss_of_masks():
  case = Case('roi_loss', 'mask')
  p, x = case.params, {k: jnp.asarray(v) for k, v in case.inputs.items()}
  S = p['mask_size']
  from_bitmaps = jax.jit(shapes.from_bitmaps, static_argnums=2)
  target = from_bitmaps(x['masks'], x['proposals'], S)
  h, w = p['image']
  frames = jnp.tile(jnp.array([[0.0, 0, w, h]]), (len(target), 1))
  composed = jax.jit(shapes.from_shapes, static_argnums=3)(
    x['masks'].astype(jnp.float32), frames, x['proposals'], S
  )
  np.testing.assert_array_equal(target, composed)

  def loss(logits):
    logits = jnp.moveaxis(logits, 1, -1)
    return regions.mask_loss(logits, x['classes'], target)

  value, grad = jax.value_and_grad(jax.jit(loss))(x['logits'])
  case.check(target=target, loss=value, grad_logits=grad)


def test_a_shape_in_its_own_box_is_the_mask():
  y, x = np.mgrid[:60, :80]
  mask = (np.hypot(y - 30, (x - 40) / 1.5) < 17)[None]
  box = np.array([[40 - 25.5, 13.5, 40 + 26.5, 47.5]], np.float32)
  from_bitmaps = jax.jit(shapes.from_bitmaps, static_argnums=2)
  shape = from_bitmaps(jnp.asarray(mask), jnp.asarray(box), 56)
  paste = jax.jit(shapes.paste, static_argnums=2)
  back = paste(shape.astype(jnp.float32), jnp.asarray(box), (60, 80))
  assert ((back >= 0.5) != mask).mean() < 0.003


@pytest.mark.parametrize('name', ['detections', 'nothing_found'])
def test_detections(name):
  case = Case('roi_loss', name)
  p, x = case.params, {k: jnp.asarray(v) for k, v in case.inputs.items()}
  K = x['probs'].shape[1] - 1
  detect = jax.jit(regions.detect, static_argnums=(4, 5, 6))
  found = detect(
    x['boxes'].reshape(-1, K, 4),
    x['probs'],
    jnp.ones(len(x['probs']), bool),
    jnp.array(p.get('image', (100, 100))),
    p['score'],
    p.get('nms', 0.5),
    p.get('top', 10),
  )
  if name == 'nothing_found':
    case.check(count=(found.classes >= 0).sum())
    return
  case.check(
    boxes=found.boxes,
    scores=found.scores,
    classes=found.classes,
    roi=found.region,
  )
