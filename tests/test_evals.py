"""Evaluators against published numbers, PIL, NumPy and scikit-learn."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image
from sklearn.linear_model import RidgeClassifier

from esvit_jax import evals, sharding
from esvit_jax.errors import UserError
from esvit_jax.evals.knn import MAJORITY, figures, knn
from esvit_jax.evals.linear import linear
from esvit_jax.evals.neighbours import nearest, nearest_others

GOLDEN = Path(__file__).parent / 'goldens/esvit/knn.npz'
NO_CHANGE = {'mean': (0.0,), 'std': (1.0,)}


def blobs(count, classes=4, dim=6, spread=0.5, seed=0):
  """Points around `classes` centres, in random order."""
  rng = np.random.default_rng(seed)
  centres = np.random.default_rng(9).standard_normal((classes, dim))
  y = rng.integers(0, classes, count).astype(np.int32)
  x = centres[y] + spread * rng.standard_normal((count, dim))
  return x.astype(np.float32), y


# raw pixels


@pytest.mark.parametrize('size', [28, 32])
def test_raw_pixels_are_the_normalised_image(size):
  rng = np.random.default_rng(0)
  images = rng.integers(0, 256, (2, size, size, 2), np.uint8)
  x = evals.raw_pixels(images, (0.1, 0.2), (0.5, 2.0))
  expected = (images / 255 - [0.1, 0.2]) / [0.5, 2.0]
  np.testing.assert_allclose(x, expected.reshape(2, -1), atol=1e-6)


def test_raw_pixels_of_large_images_are_pils_at_32():
  rng = np.random.default_rng(0)
  images = rng.integers(0, 256, (2, 96, 96, 3), np.uint8)
  x = 255 * np.asarray(evals.raw_pixels(images, (0.0,) * 3, (1.0,) * 3))
  for ours, image in zip(x.reshape(2, 32, 32, 3), images):
    small = Image.fromarray(image).resize((32, 32), Image.Resampling.BICUBIC)
    assert np.abs(ours - np.asarray(small)).max() < 1.01


# extract


def batches(x, y, size):
  """As data.epoch gives them: the last one padded."""
  for start in range(0, len(x), size):
    rows = np.arange(start, start + size)
    inside = np.minimum(rows, len(x) - 1)
    mask = rows < len(x)
    label = np.where(mask, y[inside], -1)
    yield {'x': x[inside], 'label': label, 'mask': mask, 'index': rows}


def test_extract_keeps_each_image_once_and_in_order():
  x, y = blobs(23)
  fns = {'same': lambda b: jnp.asarray(b['x']), 'twice': lambda b: 2 * b['x']}
  features, labels, index = evals.extract(fns, batches(x, y, 8))
  np.testing.assert_array_equal(features['same'], x)
  np.testing.assert_array_equal(features['twice'], 2 * x)
  np.testing.assert_array_equal(labels, y)
  np.testing.assert_array_equal(index, np.arange(23))


def test_extract_from_arrays_on_all_devices():
  mesh = sharding.mesh()
  x, y = blobs(29)
  fn = jax.jit(lambda b: b['x'] + 1, out_shardings=sharding.replicated(mesh))
  on_mesh = (sharding.global_batch(mesh, b) for b in batches(x, y, 16))
  features, labels, _ = evals.extract({'f': fn}, on_mesh)
  np.testing.assert_allclose(features['f'], x + 1)
  np.testing.assert_array_equal(labels, y)


# k-NN


KINDS = ('features', 'labels')


def test_knn_gives_the_published_numbers():
  g = np.load(GOLDEN)
  scores = knn(*(g[f'{s}_{k}'] for s in ('train', 'test') for k in KINDS))
  for k in (10, 20, 100, 200):
    np.testing.assert_allclose(scores[k], g[f'top1_top5_k{k}'], atol=1e-4)


def knn_by_loops(train_x, train_y, test_x, test_y, k, temperature=0.07):
  unit = lambda x: x / np.linalg.norm(x, axis=1, keepdims=True)  # noqa: E731
  hits = np.zeros(2)
  for x, y in zip(unit(test_x), test_y):
    cosine = unit(train_x) @ x
    votes = np.zeros(train_y.max() + 1)
    for i in np.argsort(-cosine)[:k]:
      votes[train_y[i]] += np.exp(cosine[i] / temperature)
    ranked = np.argsort(-votes)
    hits += ranked[0] == y, y in ranked[:5]
  return 100 * hits / len(test_y)


@pytest.mark.parametrize('tests', [1, 37, 300])
def test_knn_equals_its_definition_for_any_number_of_queries(tests):
  data = *blobs(90, 8, spread=1.5), *blobs(tests, 8, spread=1.5, seed=1)
  scores = knn(*data, ks=(1, 40))
  # One neighbour votes for one class: what comes second is no one's choice.
  assert scores[1][0] == pytest.approx(knn_by_loops(*data, 1)[0])
  np.testing.assert_allclose(scores[40], knn_by_loops(*data, 40), atol=1e-4)


def test_knn_takes_all_neighbours_when_there_are_fewer_than_k():
  data = *blobs(15), *blobs(20, seed=1)
  scores = knn(*data, ks=(15, 200))
  assert scores[200] == scores[15]


def test_knn_counts_classes_itself_and_ignores_length():
  train_x, train_y = blobs(40, classes=3)
  test_x, test_y = blobs(30, classes=3, seed=1)
  scores = knn(train_x, train_y, test_x, test_y)
  assert scores[20][1] == 100.0  # three classes: the right one is in five
  lengths = np.linspace(0.1, 9, 40, dtype=np.float32)[:, None]
  assert knn(train_x * lengths, train_y, 5 * test_x, test_y) == scores
  # Labels with gaps are labels too.
  assert knn(train_x, 50 * train_y, test_x, 50 * test_y) == scores


def test_knn_of_features_on_devices_is_the_same():
  mesh = sharding.mesh()
  train_x, train_y = blobs(64)
  test = blobs(50, seed=1)
  sharded = jax.device_put(train_x, sharding.data(mesh))
  assert knn(sharded, train_y, *test) == knn(train_x, train_y, *test)


def of_equal_length(count, seed=0):
  """Points of length 4 on a coarse lattice, so that many cosines tie."""
  rng = np.random.default_rng(seed)
  x = rng.choice([-1.0, 1.0], (count, 16)).astype(np.float32)
  x[:, 6:] = 1  # 64 different points
  return x


@pytest.mark.parametrize('devices', [1, 8])
@pytest.mark.parametrize('rows', [2**16, 7, 40])
def test_neighbours_are_exact_in_any_chunks(monkeypatch, devices, rows):
  """Also for ties, as in one stable sort of everything."""
  monkeypatch.setattr(evals.neighbours, 'ROWS', rows)
  train, test = of_equal_length(413), of_equal_length(300, 1)
  mesh = sharding.mesh(jax.devices()[:devices])
  cosine, index = nearest(train, test, 30, mesh)
  exact = test @ train.T / 16
  order = np.argsort(-exact, 1, kind='stable')[:, :30]
  np.testing.assert_array_equal(index, order)
  np.testing.assert_allclose(cosine, np.take_along_axis(exact, order, 1))
  # More than a chunk has.
  _, every = nearest(train[:100], test[:3], 100, mesh)
  order = np.argsort(-exact[:3, :100], 1, kind='stable')
  np.testing.assert_array_equal(every, order)


def test_eight_devices_find_what_one_finds():
  data = *blobs(301, 9, spread=1.5), *blobs(150, 9, spread=1.5, seed=1)
  one = figures(*data, mesh=sharding.mesh(jax.devices()[:1]))
  assert figures(*data) == figures(*data, mesh=sharding.mesh()) == one


def test_features_may_be_half_and_lie_in_a_file(tmp_path):
  x, y = blobs(200, spread=1.0)
  test = blobs(50, spread=1.0, seed=1)
  np.save(tmp_path / 'x.npy', x.astype(np.float16))
  mapped = np.load(tmp_path / 'x.npy', mmap_mode='r')
  same = x.astype(np.float16).astype(np.float32)
  assert knn(mapped, y, *test) == knn(same, y, *test)


def test_majority_counts_heads_and_ties_share():
  data = *blobs(90, 8, spread=1.5), *blobs(60, 8, spread=1.5, seed=1)
  scores = knn(*data, ks=(1, 25), temperature=MAJORITY)
  _, index = nearest(data[0], data[2], 25)
  votes = np.stack([np.bincount(data[1][i], minlength=8) for i in index])
  best = votes == votes.max(1, keepdims=True)
  right = best[np.arange(60), data[3]] / best.sum(1)
  assert (best.sum(1) > 1).any()
  assert scores[25][0] == pytest.approx(100 * right.mean())
  assert scores[1] == knn(*data, ks=(1,))[1]
  every = figures(*data)
  assert every['majority_k10'] == knn(*data, temperature=MAJORITY)[10][0]
  assert every['top1'] == every['top1_k20'] == knn(*data)[20][0]


def test_a_class_without_votes_is_no_answer():
  x, _ = blobs(40)
  y = np.full(40, 9)
  test_y = np.arange(40) % 10  # one in ten is the class there is
  for k in (1, 20):
    assert knn(x, y, x, test_y, ks=(k,))[k] == (10.0, 10.0)
  y = np.where(np.arange(40) < 20, 9, 3)
  same = np.ones_like(x)  # all tie: both classes have half the votes
  assert knn(same, y, same, test_y, ks=(40,))[40] == (10.0, 20.0)


def test_no_image_is_its_own_neighbour():
  x = np.repeat(np.random.default_rng(0).standard_normal((4, 6)), 2, 0)
  near = nearest_others(x, np.arange(2, 5), 7)
  assert near.index.shape == (3, 7)
  np.testing.assert_array_equal(near.index[:, 0], [3, 2, 5])
  np.testing.assert_allclose(near.similarity[:, 0], 1, rtol=1e-6)
  with pytest.raises(UserError, match='2 neighbours among 1'):
    nearest_others(x[:1], np.array([0]), 1)
  # Among equals it may be beyond the last that is looked at.
  near = nearest_others(np.ones((9, 3)), np.array([8, 0]), 2)
  np.testing.assert_array_equal(near.index, [[0, 1], [1, 2]])


def test_knn_of_what_does_not_fit_is_refused():
  x, y = blobs(20)
  with pytest.raises(UserError, match='21 neighbours'):
    nearest(x, x, 21)
  with pytest.raises(UserError, match='one network'):
    knn(x, y, x[:, :3], y)
  with pytest.raises(UserError, match='none'):
    knn(x, y, x[:0], y[:0])


# linear


def test_linear_equals_scikit_learn_at_the_penalty_it_chose(monkeypatch):
  train = blobs(200, 5, dim=12, spread=2.5)
  test = blobs(300, 5, dim=12, spread=2.5, seed=1)
  monkeypatch.setattr(evals.linear, 'PENALTIES', (0.1,))
  mean, std = train[0].mean(0), train[0].std(0)
  model = RidgeClassifier(alpha=0.1 * 200).fit(
    (train[0] - mean) / std, train[1]
  )
  # scikit-learn codes targets as -1 and 1: the same arg max.
  theirs = 100 * model.score((test[0] - mean) / std, test[1])
  assert linear(*train, *test) == pytest.approx(theirs)


def test_linear_chooses_its_penalty_on_train_alone(monkeypatch):
  """Among much noise a large penalty is best, and train can tell."""
  rng = np.random.default_rng(0)

  def noisy(count, seed):
    x, y = blobs(count, 3, dim=4, spread=1.0, seed=seed)
    noise = rng.standard_normal((count, 300), np.float32)
    return np.concatenate([x, noise], 1), y

  train, test = noisy(400, 0), noisy(300, 1)
  chosen = linear(*train, *test)
  # Another half of the test set, with wrong labels, changes no answer.
  doubled = np.tile(test[0], (2, 1)), np.append(test[1], (test[1] + 1) % 3)
  shifted = linear(*train, test[0], (test[1] + 1) % 3)
  assert linear(*train, *doubled) == pytest.approx((chosen + shifted) / 2)
  monkeypatch.setattr(evals.linear, 'PENALTIES', (1e-4,))
  assert chosen > linear(*train, *test) + 5


def test_linear_survives_constant_and_equal_features():
  train_x, train_y = blobs(100)
  test_x, test_y = blobs(100, seed=1)
  before = linear(train_x, train_y, test_x, test_y)

  def more(x):
    return np.concatenate([x, x[:, :1], np.full((len(x), 2), 1e3)], 1).astype(
      np.float32
    )

  after = linear(more(train_x), train_y, more(test_x), test_y)
  assert after == pytest.approx(before, abs=3)


# both


@pytest.mark.parametrize('evaluator', [knn, linear])
@pytest.mark.parametrize('split', [1, 3])
def test_unlabelled_images_are_refused(evaluator, split):
  data = [*blobs(20), *blobs(10)]
  data[split] = np.where(np.arange(len(data[split])) == 3, -1, data[split])
  with pytest.raises(UserError, match='label'):
    evaluator(*data)


def test_figures_are_named_and_extract_reads_once():
  train, test = blobs(50), blobs(33, seed=1)
  calls = []

  def good(batch):
    calls.append('good')
    return batch['x']

  fns = {'good': good, 'bad': lambda batch: 0 * batch['x']}
  features = evals.extract(fns, batches(*train, 16))
  scores = evals.figures(
    evals.EVALS, features, evals.extract(fns, batches(*test, 16))
  )
  scores = {name: figures['top1'] for name, figures in scores.items()}
  assert set(scores) == {
    f'{name}/{network}' for name in evals.EVALS for network in ('good', 'bad')
  }
  assert len(calls) == 4 + 3
  assert scores['knn/good'] == knn(*train, *test)[20][0]
  assert scores['linear/good'] == linear(*train, *test)
  for name in ('linear', 'probe'):
    assert scores[f'{name}/bad'] < 50 < 90 < scores[f'{name}/good']


@pytest.mark.parametrize('name', evals.EVALS)
def test_features_that_are_not_finite_are_left_out_and_counted(name):
  train, test = blobs(100), blobs(40, seed=1)
  clean = evals.EVALS[name](*train, *test)
  assert 'non_finite' not in clean
  x, y = train
  bad_x = np.insert(x, [3, 50], [[np.nan], [np.inf]], 0)
  bad_y = np.insert(y, [3, 50], [0, 1])
  bad_test = np.insert(test[0], 7, np.nan, 0), np.insert(test[1], 7, 2)
  figures = evals.EVALS[name](bad_x, bad_y, *bad_test)
  assert figures.pop('non_finite') == 3
  assert figures == pytest.approx(clean)
  x = np.where(np.arange(100)[:, None] < 6, np.nan, x)
  with pytest.raises(UserError, match='6 of 100 training images') as e:
    evals.EVALS[name](x, y, *test)
  assert '\n' not in str(e.value)


@pytest.mark.parametrize('scale', [1e-30, 1e30])
@pytest.mark.parametrize('name', ['knn', 'linear'])
def test_features_of_any_size(name, scale):
  """Squares of these leave float32: constant features, 33 % without a word."""
  train, test = blobs(100), blobs(40, seed=1)
  clean = evals.EVALS[name](*train, *test)
  train, test = ((scale * x, y) for x, y in (train, test))
  figures = evals.EVALS[name](
    train[0].astype('f4'), train[1], test[0].astype('f4'), test[1]
  )
  assert figures == pytest.approx(clean)


@pytest.mark.parametrize('how', [{'ks': (-1,)}, {'temperature': 0.0}])
def test_neighbours_that_there_cannot_be(how):
  train = blobs(20)
  with pytest.raises(UserError, match='use k of 1 or more'):
    knn(*train, *train, **how)
