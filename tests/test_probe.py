"""Linear probes against plain loops, optax, and scikit-learn."""

import itertools
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from sklearn.linear_model import LogisticRegression

from esvit_jax import optim, sharding
from esvit_jax.errors import UserError
from esvit_jax.evals import finite, heads, probe
from esvit_jax.evals.heads import Recipe

SET = Path(__file__).parent.parent / 'esvit_jax/data/fashion_mnist.npz'
SHORT = Recipe(lrs=(0.1, 1.0), norms=('none', 'batch'), epochs=3, batch_size=16)


def blobs(count, classes=4, dim=6, spread=0.7, seed=0):
  rng = np.random.default_rng(seed)
  centres = np.random.default_rng(9).standard_normal((classes, dim))
  y = rng.integers(0, classes, count).astype(np.int32)
  x = centres[y] + spread * rng.standard_normal((count, dim))
  return x.astype(np.float32), y


def stream(x, y, size, epochs=100):
  """Batches in order, again and again, under two names."""
  for _ in range(epochs):
    for i in range(0, len(x) - size + 1, size):
      at = slice(i, i + size)
      yield {'x': x[at], 'half': x[at, :3]}, y[at]


def run(recipe, data=None, **rest):
  x, y = data or blobs(64)
  given = {'held_out': None, 'test': ({'x': x, 'half': x[:, :3]}, y)} | rest
  C = y.shape[1] if y.ndim == 2 else 4
  return probe.sweep(stream(x, y, 16), len(x) // 16, C, recipe=recipe, **given)


def ce(logits, y):
  return optax.softmax_cross_entropy_with_integer_labels(logits, y).mean()


def bce(logits, y):
  each = optax.sigmoid_binary_cross_entropy(logits, jnp.maximum(y, 0))
  return jnp.where(y < 0, 0, each).mean()


def by_optax(x, y, loss, tx, lrs, start):
  """Weights after training on batches of 16 in order, lr after lr."""
  state = tx.init(start)
  params = start

  @jax.jit
  def step(params, state, x, y, lr):
    def value(p):
      return loss(x @ p['kernel'] + p['bias'][None], y)

    move, state = tx.update(jax.grad(value)(params), state, params)
    return jax.tree.map(lambda p, m: p - lr * m, params, move), state

  for lr, i in zip(lrs, itertools.cycle(range(0, len(x), 16))):
    at = slice(i, i + 16)
    params, state = step(params, state, x[at], y[at], lr)
  return jax.device_get(params)


def zero(D, C):
  return {'kernel': jnp.zeros((D, C)), 'bias': jnp.zeros(C)}


MULTI = np.random.default_rng(1).integers(-1, 2, (64, 3)).astype(np.int32)


@pytest.mark.parametrize('y, loss', [(None, ce), (MULTI, bce)])
def test_published_recipe_is_sgd_with_momentum_on_the_cross_entropy(y, loss):
  x = blobs(64)[0]
  y = blobs(64)[1] if y is None else y
  recipe = Recipe(lrs=(2.0,), epochs=3, init_std=0.0)
  metric = 'top1' if y.ndim == 1 else 'map_11'
  ours = run(recipe, (x, y), metric=metric)
  # Per 256 images; the rate falls after each epoch, to 0 after the last.
  lrs = np.repeat(2.0 * 16 / 256 * np.array([1, 0.75, 0.25]), 4)
  C = 4 if y.ndim == 1 else 3
  theirs = by_optax(x, y, loss, optax.trace(0.9), lrs, zero(6, C))
  assert ours.name == 'x'
  np.testing.assert_allclose(ours.weight, theirs['kernel'], atol=2e-6)
  np.testing.assert_allclose(ours.bias, theirs['bias'], atol=2e-6)


def test_maes_recipe_is_batch_norm_and_lars():
  x, y = blobs(64)
  recipe = heads.MAE._replace(epochs=4, warmup_epochs=2, lrs=(300.0,))
  ours = run(recipe, (x, y))
  normed = np.concatenate(
    [(b - b.mean(0)) / np.sqrt(b.var(0) + 1e-6) for b in np.split(x, 4)]
  )
  t = np.arange(16) / 4
  rising, falling = t / 2, 0.5 * (1 + np.cos(np.pi * (t - 2) / 2))
  lrs = 300 * 16 / 256 * np.where(t < 2, rising, falling)
  start = zero(6, 4)
  start['kernel'] = 0.01 * jax.random.normal(jax.random.key(0), (6, 1, 4))[:, 0]
  lars = optim.build({'name': 'lars'}, start, lambda t: -1.0, lambda t: 0.0)
  theirs = by_optax(normed, y, ce, lars, lrs, start)
  # What it does to an image: running statistics, then the head.
  mean, var = np.zeros(6), np.ones(6)
  for t, b in enumerate(np.split(x, 4) * 4):
    new = max(0.1, 1 / (t + 1))
    mean += new * (b.mean(0) - mean)
    var += new * (b.var(0, ddof=1) - var)
  expected = (x - mean) / np.sqrt(var + 1e-6) @ theirs['kernel']
  np.testing.assert_allclose(
    x @ ours.weight + ours.bias, expected + theirs['bias'], atol=1e-4
  )


def test_a_head_learns_the_same_in_any_company():
  x, y = blobs(64)
  held = {'x': x, 'half': x[:, :3]}, y
  together = run(SHORT, (x, y), held_out=held)
  assert len(together.table) == 2 * 2 * 2
  for row in together.table:
    alone = SHORT._replace(lrs=(row['lr'],), norms=(row['norm'],))
    table = run(alone, (x, y), held_out=held).table
    same = [r for r in table if r['features'] == row['features']]
    assert same == [row]


def test_packs_do_not_show(monkeypatch):
  whole = run(SHORT)
  monkeypatch.setattr(heads, 'PACK', 16 * 9 * 4 * 5)  # 5 batches of 12
  packed = run(SHORT)
  np.testing.assert_allclose(packed.weight, whole.weight, atol=1e-6)


def test_eight_devices_do_what_one_does():
  one, eight = run(SHORT), run(SHORT, mesh=sharding.mesh())
  np.testing.assert_allclose(eight.weight, one.weight, atol=1e-5)
  np.testing.assert_allclose(eight.bias, one.bias, atol=1e-5)
  train, test = blobs(90), blobs(40, seed=1)
  data = [({'x': x}, y) for x, y in (train, test)]
  recipe = SHORT._replace(batch_size=20)  # of which eight devices take 16
  small = probe.probe(*data, SHORT)
  large = probe.probe(*data, recipe, mesh=sharding.mesh())
  assert large.figures == pytest.approx(small.figures, abs=5)


def test_the_best_is_chosen_on_train_and_never_on_test():
  train, test = blobs(300, spread=1.5), blobs(100, spread=1.5, seed=1)
  recipe = SHORT._replace(lrs=(1e-6, 0.3, 1e6))
  wrong = test[0], (test[1] + 1) % 4
  ours, theirs = (
    probe.probe(({'x': train[0]}, train[1]), ({'x': t[0]}, t[1]), recipe)
    for t in (test, wrong)
  )
  np.testing.assert_array_equal(ours.weight, theirs.weight)
  assert ours.table == theirs.table
  assert ours.table[0]['lr'] == 0.3
  held = [row['held_out'] for row in ours.table]
  assert held == sorted(held, reverse=True)
  scores = test[0] @ ours.weight + ours.bias
  top1 = 100 * (scores.argmax(1) == test[1]).mean()
  assert ours.figures['top1'] == pytest.approx(top1)


def test_refit_sees_all_of_train():
  data = [({'x': x}, y) for x, y in (blobs(200), blobs(100, seed=1))]
  part = probe.probe(*data, SHORT, refit=False)
  whole = probe.probe(*data, SHORT)
  assert part.table == whole.table
  alone = SHORT._replace(
    lrs=(whole.table[0]['lr'],), norms=(whole.table[0]['norm'],)
  )
  again = probe.probe(*data, alone)
  np.testing.assert_array_equal(again.weight, whole.weight)
  assert not np.array_equal(part.weight, whole.weight)


def test_it_reaches_logistic_regression():
  """Within 0.5 points, on features of a part of the embedded set."""
  with np.load(SET) as g:
    images = [g['train_image'][:2000], g['test_image']]
    train_y, test_y = (
      y.astype(np.int32) for y in (g['train_label'][:2000], g['test_label'])
    )
  project = np.random.default_rng(0).standard_normal((784, 64)) / 28
  train_x, test_x = (
    np.maximum(x.reshape(-1, 784) / 255 @ project, 0).astype(np.float32)
    for x in images
  )
  model = LogisticRegression(max_iter=2000).fit(train_x, train_y)
  theirs = 100 * model.score(test_x, test_y)
  # Fewer heads and epochs, for the suite's sake.
  recipe = heads.SWEEP._replace(lrs=(0.3, 1.0, 3.0), epochs=30)
  figures = probe.figures(train_x, train_y, test_x, test_y, recipe)
  assert figures['top1'] > theirs - 0.5
  assert figures['top5'] > 97
  assert figures['mean_per_class'] == pytest.approx(figures['top1'], abs=1)


def test_several_labels_are_judged_by_precision():
  x, y = blobs(400, classes=5)
  labels = np.stack([y == 0, y >= 2, y == 3], 1).astype(np.int32)
  labels[::7, 1] = -1
  data = [({'x': x[s]}, labels[s]) for s in (slice(300), slice(300, 400))]
  found = probe.probe(*data, SHORT, metric='map_11')
  assert set(found.figures) == {'map_11'}
  assert found.figures['map_11'] > 80


def test_metric_of_the_set_chooses_and_is_reported():
  x, y = blobs(200, classes=2)
  found = probe.probe(({'x': x}, y), ({'x': x}, y), SHORT, metric='roc_auc')
  assert found.figures['roc_auc'] > 99
  assert {'top1', 'mean_per_class'} < set(found.figures)


def test_one_image_of_each_class_is_enough_to_go_on():
  x, y = blobs(100)
  rows = np.unique(y, return_index=True)[1]
  found = probe.probe(({'x': x[rows]}, y[rows]), ({'x': x}, y), SHORT)
  assert np.isnan(found.table[0]['held_out'])
  assert found.figures['top1'] > 25


def test_gaps_in_labels_are_no_classes():
  train, test = blobs(200), blobs(100, seed=1)
  close = probe.figures(*train, *test, SHORT)
  gaps = probe.figures(train[0], 3 * train[1], test[0], 3 * test[1], SHORT)
  assert gaps['top1'] == pytest.approx(close['top1'], abs=3)


@pytest.mark.parametrize(
  'call, says',
  [
    (lambda x, y: probe.figures(x, np.where(y == 1, -1, y), x, y), 'label'),
    (lambda x, y: probe.figures(x, y, x, y - 1), 'label'),
    (lambda x, y: run(SHORT, (x, y + 1)), 'label 4'),
    (lambda x, y: run(SHORT, (x, y - 1)), 'label'),
    (lambda x, y: run(SHORT, (x[:9], y[:9])), 'at least one batch'),
    (lambda x, y: run(SHORT._replace(epochs=0)), 'epochs=0'),
    (lambda x, y: run(SHORT._replace(lrs=(0.0,))), 'rates above 0'),
    (lambda x, y: run(SHORT, metric='top2'), 'top1, top5'),
    (lambda x, y: run(SHORT._replace(norms=('layer',))), 'norm'),
    (lambda x, y: run(SHORT._replace(optimizer='adam')), 'sgd, lars'),
    (lambda x, y: run(SHORT._replace(cosine='no')), 'epoch, step'),
    (lambda x, y: run(SHORT._replace(epochs=101)), 'ended 4 batches early'),
  ],
)
def test_what_cannot_be_probed_is_said_in_a_line(call, says):
  with pytest.raises(UserError, match=says) as e:
    call(*blobs(64))
  assert '\n' not in str(e.value)


def test_a_stream_leaves_out_what_is_not_finite():
  x = np.arange(8.0).reshape(4, 2)
  x[[1, 2]] = np.nan, np.inf
  batch = {'x': x}, np.arange(4), np.array([7, 8, 9, 5])
  stream = finite.Stream([batch, batch], 1000)
  for features, labels in stream:
    assert labels.tolist() == [0, 3, 0, 3]
    assert features['x'][:, 0].tolist() == [0, 6, 0, 6]
  assert stream.bad == {8, 9}
  with pytest.raises(UserError, match='2 of 4 training images are not finite'):
    next(iter(finite.Stream([batch], 4)))
