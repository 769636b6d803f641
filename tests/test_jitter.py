"""Images and targets that move together."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from golden_dense import Case

from esvit_jax.augment import jitter

VOID = 255


def placing(case):
  """The placing that a golden case was made with."""
  p, x = case.params, case.inputs
  h, w, _ = x['image'].shape
  side = p['canvas']
  made = jitter.resized(
    jnp.array([h, w]), jitter.Reach(side, np.inf), p['scale']
  )
  left, top = x['offset_xy']
  return jitter.Placing(
    jnp.bool_(p['flip']), made, jnp.array([top, left], jnp.int32)
  )


@pytest.mark.parametrize('name', ['shrink', 'enlarge'])
def test_large_scale_jitter(name):
  case = Case('jitter', name)
  x, out = case.inputs, (case.params['canvas'],) * 2
  place = placing(case)
  h, w, _ = x['image'].shape
  size = jnp.array([h, w])
  # A larger canvas, on which the image lies top left.
  canvas = np.zeros((3, 60, 64), np.float32)
  canvas[:, :h, :w] = np.moveaxis(x['image'], -1, 0)
  moved = jitter.image(jnp.asarray(canvas), size, place, out)
  shown = np.asarray(place.shown(out))
  uncut = jitter.boxes(jnp.asarray(x['boxes']), size, place)
  limit = np.array([*shown[::-1]] * 2)
  case.check(
    resized_hw=place.made,
    boxes_uncut=uncut,
    boxes=np.clip(uncut, 0, limit),
  )
  # PIL's weights are whole numbers: a half may fall to either side.
  shown_part = np.moveaxis(moved[:, : shown[0], : shown[1]], 0, -1)
  far = np.abs(shown_part - np.float32(case.outputs['image']))
  assert far.max() <= 1 and (far > 0).mean() < 0.03
  np.testing.assert_array_equal(jitter.inside(place, out).sum(), shown.prod())


def squares(rng, size, count):
  """A map of squares that overlap nowhere, and their boxes."""
  classes, boxes = np.zeros(size, np.uint8), []
  for k in range(count):
    y, x = 24 * (k // 3) + rng.integers(0, 8), 24 * (k % 3) + rng.integers(0, 8)
    classes[y : y + 14, x : x + 11] = k + 1
    boxes.append([x, y, x + 11, y + 14])
  return classes, np.array(boxes, np.float32)


def test_boxes_shapes_and_labels_agree_with_the_image():
  rng = np.random.default_rng(0)
  size, out = (60, 76), (64, 64)
  classes, boxes = squares(rng, size, 6)
  shapes = np.full((7, 56, 56), 255, np.uint8)
  boxes = np.pad(boxes, ((0, 1), (0, 0)))
  kinds = jnp.array([1, 2, 3, 4, 5, 6, -1])
  hw = jnp.array(size)

  @jax.jit
  def moved(key):
    place = jitter.draw(
      key, hw, out, jitter.Reach(64, jnp.inf), (0.5, 2.0), 0.5
    )
    found = jitter.objects(jnp.asarray(boxes), kinds, shapes, hw, place, out)
    grey = jitter.image(jnp.asarray(classes * 40.0)[None], hw, place, out)
    kept = jitter.labels(jnp.asarray(classes), hw, place, out, VOID)
    return place, found, grey, kept

  flips, cuts = set(), 0
  for i in range(12):
    place, found, grey, kept = moved(jax.random.key(i))
    flips.add(bool(place.flip))
    inner = np.asarray(kept)
    # Where a class is far from others the image shows it.
    near = np.abs(grey[0] - 40.0 * inner) < 3
    assert near[inner != VOID].mean() > 0.75
    assert (inner == VOID).sum() == (~jitter.inside(place, out)).sum()
    for k in range(1, 7):
      mask = inner == k
      if found.classes[k - 1] < 0:
        assert mask.sum() < 40
        continue
      y, x = np.nonzero(mask)
      truth = [x.min(), y.min(), x.max() + 1, y.max() + 1]
      np.testing.assert_allclose(found.boxes[k - 1], truth, atol=1.6)
      frame = np.asarray(found.frames[k - 1])
      cuts += (frame < 0).any() or (frame > 64).any()
    assert found.classes[6] == -1
  assert flips == {True, False} and cuts > 5


def test_a_cut_box_is_drawn_around_what_is_left_of_the_mask():
  shape = np.zeros((1, 56, 56), np.uint8)
  shape[0, :28, :28] = shape[0, 28:, 28:] = 255  # two corners
  place = jitter.Placing(
    jnp.bool_(False), jnp.array([64, 64]), jnp.array([0, 20])
  )
  found = jitter.objects(
    jnp.array([[10.0, 10, 30, 30]]),
    jnp.array([4]),
    shape,
    jnp.array([64, 64]),
    place,
    (64, 64),
  )
  # Only the lower right corner is left: rows from 20, columns 0 to 10.
  np.testing.assert_allclose(found.boxes[0], [0, 20, 10, 30], atol=0.4)
  np.testing.assert_array_equal(found.frames[0], [-10, 10, 10, 30])


def test_crops_that_one_class_fills_are_drawn_again():
  classes = np.zeros((200, 200), np.uint8)
  classes[:, 150:] = 1
  hw, out = jnp.array([200, 200]), (64, 64)

  def share(key):
    place = jitter.draw(key, hw, out, jitter.Reach(200, 200), (1.0, 1.0), 0.0)
    better = jitter.varied(
      jax.random.fold_in(key, 1), jnp.asarray(classes), hw, place, out, VOID
    )
    return [
      jnp.mean(
        jitter.labels(jnp.asarray(classes), hw, p, out, VOID),
        dtype=jnp.float32,
      )
      for p in (place, better)
    ]

  keys = jax.random.split(jax.random.key(0), 60)
  plain, better = (np.asarray(x) for x in jax.jit(jax.vmap(share))(keys))
  mixed = [((x > 0.25) & (x < 0.75)).mean() for x in (plain, better)]
  assert mixed[0] < 0.35 < 0.8 < mixed[1]


def test_distortion_keeps_grey_levels():
  x = jax.random.uniform(jax.random.key(0), (3, 9, 9)) * 255
  keys = jax.random.split(jax.random.key(1), 40)
  out = jax.vmap(lambda k: jitter.distort(x, k, 1.0))(keys)
  assert out.min() >= 0 and out.max() <= 255
  assert len(np.unique(np.asarray(out.mean((1, 2, 3))).round(3))) > 20
  assert jitter.distort(x, keys[0], 0.0) is x
  grey = jitter.distort(x[:1], keys[0], 1.0)
  assert grey.shape == (1, 9, 9)
