"""Dense tasks against reference numbers, and laws."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from golden_dense import Case

from esvit_jax.dense import (
  VOID,
  in_context,
  linear,
  metrics,
  resize,
  tokens,
  views,
)
from esvit_jax.evals import neighbours

RNG = np.random.default_rng


@pytest.mark.parametrize('name', ['up4', 'down'])
def test_bilinear(name):
  case = Case('bilinear', name)
  size = tuple(case.params['after'])

  def planes(x):
    return jnp.moveaxis(resize.bilinear(jnp.moveaxis(x, 1, -1), size), -1, 1)

  y, back = jax.vjp(planes, jnp.asarray(case.inputs['x']))
  case.check(y=y, grad_x=back(jnp.asarray(case.inputs['cotangent']))[0])


@pytest.mark.parametrize('name', ['up4', 'down'])
def test_a_whole_canvas_is_the_bilinear_of_pytorch(name):
  case = Case('bilinear', name)
  x = jnp.moveaxis(jnp.asarray(case.inputs['x']), 1, -1)
  size = tuple(case.params['after'])
  steps = 1 / jnp.array([size], jnp.float32)
  y = resize.onto_canvas(x, steps, size)
  case.check(y=jnp.moveaxis(y, -1, 1))


@pytest.mark.parametrize('name', ['a', 'absent_class'])
def test_scores_of_a_confusion_matrix(name):
  case = Case('seg_metrics', name)
  x = case.inputs
  found = metrics.confusion(
    jnp.asarray(x['labels']),
    jnp.asarray(x['predictions']),
    case.params['classes'],
  )
  scores = metrics.scores(np.asarray(found, np.int64))
  case.check(
    confusion=found,
    iou=scores.iou / 100,
    **{
      k: getattr(scores, k) / 100
      for k in ('miou', 'pixel_accuracy', 'mean_accuracy')
    },
  )


def test_class_shares():
  case = Case('in_context', 'patch_labels')
  labels = case.inputs['labels']
  # A view of 32 px that shows 24 x 32 pixels as they are.
  steps = views.steps(jnp.array([labels.shape]), 32)
  shares, counted = tokens.class_shares(
    jnp.asarray(labels)[None], steps, (4, 4), case.params['classes']
  )
  case.check(share=shares[0, :3], counted=counted[0, :3] / 64)
  assert not counted[0, 3].any() and not shares[0, 3].any()


def test_labels_from_the_context():
  case = Case('in_context', 'a')
  x, k = case.inputs, case.params['k']
  cosine, nearest = neighbours.nearest(x['memory'], x['queries'], k)
  labels = in_context.vote(
    jnp.asarray(cosine), jnp.asarray(x['memory_labels'][nearest]), 0.02
  )
  up = resize.bilinear(labels.reshape(4, 4, -1), (16, 16))
  case.check(nearest=nearest, labels=labels, argmax_x4=up.argmax(-1))


def test_patches_of_rare_classes_are_remembered_first():
  shares = np.zeros((12, 3), np.float32)
  shares[:9, 0], shares[9, 1], shares[10, 2] = 1, 0.5, 1
  keys = jax.random.split(jax.random.key(0), 200)
  chosen = jax.vmap(lambda k: in_context.rare_first(shares, k, 11))(keys)
  assert (chosen != 11).all()  # it has no class
  first = np.asarray(chosen[:, 0])
  assert np.isin(first, [9, 10]).mean() > 0.5  # of 2 in 11
  assert len(set(first.tolist())) > 2  # but not always


def test_one_solve_is_ridge_regression():
  rng = RNG(0)
  x = rng.standard_normal((3, 4, 5, 6)).astype(np.float32) * 3 + 2
  x[..., 5] = 7  # constant
  t = rng.dirichlet(np.ones(3), (3, 4, 5)).astype(np.float32)
  t += 0.2 * x[..., :3]
  w = rng.integers(0, 2, (3, 4, 5)).astype(np.float32)
  parts = [
    jax.tree.map(np.float64, linear.sums(x[rows], t[rows], w[rows]))
    for rows in (slice(2), slice(2, 3))
  ]
  found = linear.solve(*parts)
  n = w.sum()
  mean = (x * w[..., None]).sum((0, 1, 2)) / n
  z, target = x[w > 0] - mean, t[w > 0]
  scale = z.std(0)
  z = z / np.where(scale > 1e-3, scale, 1) * (scale > 1e-3)
  W = np.linalg.solve(
    z.T @ z / n + found.penalty * np.eye(6), z.T @ (target - target.mean(0)) / n
  )
  np.testing.assert_allclose(
    found(jnp.asarray(x))[w > 0], z @ W + target.mean(0), atol=1e-4
  )


def test_more_noise_asks_for_more_penalty():
  rng = RNG(0)
  truth = rng.standard_normal((40, 2))

  def penalty(noise):
    x = rng.standard_normal((60, 40)).astype(np.float32)
    t = x @ truth + noise * rng.standard_normal((60, 2))
    parts = [
      jax.tree.map(np.float64, linear.sums(x[a], t[a], np.ones(len(x[a]))))
      for a in (slice(50), slice(50, 60))
    ]
    return linear.solve(*parts).penalty

  assert penalty(0.01) < penalty(30.0)


def test_a_view_shows_the_whole_image():
  rng = RNG(0)
  images = np.zeros((2, 48, 64, 3), np.uint8)
  images[0] = rng.integers(256, size=(48, 64, 3))
  images[1, :, :24] = 200
  sizes = jnp.array([[48, 64], [48, 24]])
  plain = {'mean': (0.0,) * 3, 'std': (1.0,) * 3}
  same = views.whole(jnp.asarray(images), sizes, 64, **plain)
  np.testing.assert_allclose(same[0, :48], images[0] / 255, atol=1e-6)
  assert not same[0, 48:].any()
  np.testing.assert_allclose(same[1, :, :32], 200 / 255, atol=1e-6)
  assert not same[1, :, 32:].any()
  half = views.whole(jnp.asarray(images), sizes, 32, **plain)
  from PIL import Image

  small = Image.fromarray(images[0]).resize((32, 24), Image.Resampling.BICUBIC)
  off = np.abs(half[0, :24] * 255 - np.asarray(small))
  assert off.max() < 1.01


def test_truth_and_prediction_meet_on_the_canvas():
  """Shares of the truth, put back onto the canvas, give the truth."""
  labels = np.full((2, 48, 64), VOID, np.uint8)
  labels[0, :, :32], labels[0, :, 32:] = 0, 1
  labels[1, :24, :32], labels[1, 24:48, :32] = 1, 0
  sizes = jnp.array([[48, 64], [48, 32]])
  steps = views.steps(sizes, 32)
  shares, _ = tokens.class_shares(jnp.asarray(labels), steps, (8, 8), 2)
  found = resize.onto_canvas(shares, steps, (48, 64)).argmax(-1)
  right = np.asarray(found == labels)[labels != VOID]
  assert right.mean() > 0.95
