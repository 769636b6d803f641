"""Corruption in groups of patches: published statistics, and its laws."""

import collections
import functools

import golden_mae_sit
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from esvit_jax import sharding
from esvit_jax.augment import blocks as blocks_lib
from esvit_jax.augment import group_masking as gmml
from esvit_jax.errors import UserError

KEY = jax.random.key(0)
IMAGES = 256


def keys(n: int):
  return jax.random.split(jax.random.key(7), n)


@functools.cache
def drawn(share: float, align: int) -> dict[str, np.ndarray]:
  """What the golden has of each image, of ours."""
  s = gmml.Settings(share=share, align=align, replace_prob=0.0)
  shape = (224, 224)

  def one(key):
    area, where = jax.random.split(key)
    pixels = 224**2 * jax.random.uniform(area, (), None, min(0.5, share), share)
    count = blocks_lib.enough(shape, share, align, s.max_block)
    blocks = blocks_lib.draw(where, count, shape, align, s.max_block)
    mask, used = blocks_lib.cover(blocks, pixels, shape)
    patches = mask.reshape(14, 16, 14, 16)
    return {
      'fraction': mask.mean(),
      'blocks': used,
      'patch_any': patches.any((1, 3)).mean(),
      'patch_full': patches.all((1, 3)).mean(),
    }

  return jax.device_get(jax.jit(jax.vmap(one))(keys(IMAGES)))


def assert_same_law(ours, theirs, what):
  """Means and spreads within four standard errors, and no far-off shape."""
  ours, theirs = np.asarray(ours, float), np.asarray(theirs, float)
  error = np.hypot(stats.sem(ours), stats.sem(theirs))
  assert abs(ours.mean() - theirs.mean()) < 4 * error + 1e-12, what
  ratio = np.log(ours.std() / theirs.std())
  # The deviation of n draws is known to about sqrt((kurtosis - 1) / 4n).
  tails = stats.kurtosis(np.concatenate([ours, theirs]), fisher=False)
  error = np.sqrt((tails - 1) / 4 * (1 / len(ours) + 1 / len(theirs)))
  assert abs(ratio) < 4 * error, what
  assert stats.ks_2samp(ours, theirs).pvalue > 1e-4, what


@pytest.mark.parametrize(
  ('name', 'share', 'align'),
  [
    ('zeros_p50_a1', 0.5, 1),
    ('noise_p70_a1', 0.7, 1),
    ('noise_p70_a16', 0.7, 16),
    ('zeros_p50_a16', 0.5, 16),
    ('self_p50_a1', 0.5, 1),
    ('alien_p30_a1', 0.3, 1),
  ],
)
def test_published_statistics(name, share, align):
  golden, _ = golden_mae_sit.load('gmml_stats')
  for what, values in drawn(share, align).items():
    assert_same_law(values, golden[f'{name}.{what}'], f'{name}.{what}')


@pytest.mark.parametrize(
  ('name', 'fields'),
  [
    ('zeros_p50_a1', {'fill': 'zeros', 'share': 0.5}),
    ('noise_p70_a1', {'fill': 'noise', 'share': 0.7}),
    ('self_p50_a1', {'fill': 'own', 'share': 0.5}),
  ],
)
def test_published_changes(name, fields):
  """Nearly every covered pixel gets another value, and no other pixel."""
  golden, _ = golden_mae_sit.load('gmml_stats')
  s = gmml.settings(fields | {'replace_prob': 0.0}, (224, 224))
  images = jax.random.normal(KEY, (64, 1, 224, 224, 1))
  corrupted, mask = jax.jit(lambda x, key: gmml.corrupt(x, key, s))(images, KEY)
  changed = np.asarray(corrupted != images).any(-1)
  assert not (changed & ~np.asarray(mask)).any()
  found = changed.mean((1, 2, 3))
  error = np.hypot(stats.sem(found), stats.sem(golden[f'{name}.changed']))
  assert abs(found.mean() - golden[f'{name}.changed'].mean()) < 4 * error


def test_published_pipeline():
  """Half of the images lose 50 % to zeros, half 30 % to another image."""
  golden, _ = golden_mae_sit.load('gmml_stats')
  s = gmml.settings({}, (224, 224))
  images = jnp.ones((IMAGES, 1, 224, 224, 1))
  corrupted, mask = jax.jit(lambda x, key: gmml.corrupt(x, key, s))(images, KEY)
  fraction = np.asarray(mask.mean((1, 2, 3)))
  zeros = np.asarray((corrupted == 0).any((1, 2, 3, 4)))
  theirs, kept = golden['pipeline.fraction'], golden['pipeline.kept_zeros']
  both = np.concatenate([zeros, kept])
  error = np.sqrt(0.25 / IMAGES + 0.25 / len(kept))
  assert abs(zeros.mean() - kept.mean()) < 4 * error and both.any()
  assert_same_law(fraction[zeros], theirs[kept], 'zeros')
  assert_same_law(fraction[~zeros], theirs[~kept], 'another image')


@pytest.mark.parametrize(
  ('length', 'align'), [(224, 1), (224, 16), (28, 4), (30, 4)]
)
def test_blocks_are_drawn_as_published(length, align):
  """Each start and side as often as its share of all cases, counted out."""
  longest, cases = int(length * 0.3), collections.Counter()
  for start in range(length - align):
    for side in range(align, longest):
      at = start // align * align
      cases[at, round(min(side, length - at) / align) * align] += 1
  blocks = jax.jit(
    lambda key: blocks_lib.draw(key, 40_000, (length, 50), align, 0.3)
  )(KEY)
  top, height = np.asarray(blocks.top), np.asarray(blocks.height)
  counts = collections.Counter(zip(top.tolist(), height.tolist()))
  assert set(counts) <= set(cases)
  total = sum(cases.values())
  rare = {pair for pair, n in cases.items() if n / total * 40_000 < 5}
  common = [pair for pair in cases if pair not in rare]
  observed = [counts[pair] for pair in common]
  expected = [cases[pair] / total * 40_000 for pair in common]
  if rare:
    observed.append(sum(counts[pair] for pair in rare))
    expected.append(sum(cases[pair] for pair in rare) / total * 40_000)
  assert stats.chisquare(observed, expected).pvalue > 1e-4
  left = np.asarray(blocks.left)
  assert abs(np.corrcoef(top, left)[0, 1]) < 0.03


def test_covering_stops_at_the_first_block_that_is_enough():
  """Against one block after the other; more than one word of blocks."""
  shape = (30, 22)
  run = jax.jit(lambda b, pixels: blocks_lib.cover(b, pixels, shape))
  draw = jax.jit(lambda key: blocks_lib.draw(key, 70, shape, 1, 0.3))
  for i, share in enumerate((0.0, 0.1, 0.5, 0.61, 0.9, 1.0)):
    blocks = jax.device_get(draw(jax.random.key(i)))
    mask, used = np.zeros(shape, bool), 0
    while mask.sum() < share * mask.size and used < 70:
      t, l, h, w = (x[used] for x in blocks)
      mask[t : t + h, l : l + w] = True
      used += 1
    found, n = run(blocks, share * mask.size)
    assert n == used and np.array_equal(found, mask), share


@pytest.mark.parametrize(
  ('side', 'share', 'align'),
  [(224, 0.5, 1), (224, 0.3, 1), (224, 0.7, 16), (28, 0.5, 1), (28, 0.5, 4)],
)
def test_blocks_are_enough(side, share, align):
  count = blocks_lib.enough((side, side), share, align, 0.3)

  def one(key):
    blocks = blocks_lib.draw(key, 2 * count, (side, side), align, 0.3)
    return blocks_lib.cover(blocks, share * side**2, (side, side))[1]

  used = jax.jit(jax.vmap(one))(keys(500))
  used = np.asarray(used)
  assert used.max() < 0.9 * count
  assert used.mean() + 6 * used.std() < count
  # It was found by a formula: what is needed on average is about half.
  assert abs(used.mean() - (count - 16) / 2) < 0.1 * used.mean()


def test_own_blocks_are_copied_one_after_the_other():
  """Against plain copying; blocks of blocks of blocks occur."""
  shape = (40, 36)
  image = np.random.default_rng(0).random((*shape, 2), np.float32)
  blocks = blocks_lib.draw(KEY, 60, shape, 2, 0.5)
  rows, columns = jax.random.split(jax.random.key(3))
  top = jax.random.randint(rows, (60,), 0, shape[0] - blocks.height)
  left = jax.random.randint(columns, (60,), 0, shape[1] - blocks.width)
  expected = image.copy()
  for t, l, h, w, y, x in zip(*blocks, top // 2 * 2, left // 2 * 2):
    expected[t : t + h, l : l + w] = expected[y : y + h, x : x + w].copy()
  found = jax.jit(
    lambda image: gmml._own(jax.random.key(3), image, blocks, 60, 2)
  )(image)
  np.testing.assert_array_equal(found, expected)
  assert not np.array_equal(found, image)
  np.testing.assert_array_equal(
    gmml._own(jax.random.key(3), image, blocks, 0, 2), image
  )


def test_other_images_lend_the_same_place_of_the_same_view():
  n = 64
  at = jnp.arange(n * 2 * 16 * 16, dtype=jnp.float32)
  images = at.reshape(n, 2, 16, 16, 1)
  s = gmml.settings({'replace_prob': 1.0, 'replace': 0.4}, (16, 16))
  corrupted, mask = jax.jit(lambda x: gmml.corrupt(x, KEY, s))(images)
  shift = np.asarray(corrupted - images)[..., 0]
  mask = np.asarray(mask)
  lenders = set()
  for i, v in np.ndindex(n, 2):
    (found,) = set(shift[i, v][mask[i, v]])
    assert found % (2 * 256) == 0  # one view of another image, same pixels
    lenders.add((i + found // 512, v))
    assert not shift[i, v][~mask[i, v]].any()
  whole = {(i, v) for i in range(n) for v in range(2)}
  assert lenders <= whole and len(lenders) > n / 2
  # Views draw for themselves.
  assert not np.array_equal(mask[:, 0], mask[:, 1])


def test_fills():
  images = jnp.full((64, 1, 20, 20, 3), 5.0)
  run = jax.jit(lambda x, key, s: gmml.corrupt(x, key, s), static_argnames='s')

  def fill(name):
    s = gmml.settings({'fill': name, 'replace_prob': 0.0}, (20, 20))
    corrupted, mask = jax.device_get(run(images, KEY, s))
    assert (corrupted[~mask] == 5).all() and mask.mean() > 0.5
    return corrupted, mask

  corrupted, mask = fill('zeros')
  assert (corrupted[mask] == 0).all()
  corrupted, mask = fill('own')
  assert (corrupted == 5).all()
  corrupted, mask = fill('noise')
  assert abs(corrupted[mask].mean()) < 0.03
  assert abs(corrupted[mask].std() - 1) < 0.03
  flat = corrupted[mask]
  assert abs(np.corrcoef(flat[:, 0], flat[:, 1])[0, 1]) < 0.05
  corrupted, mask = fill('zeros-noise-own')
  kinds = collections.Counter(
    'zeros' if not v.any() else 'own' if (v == 5).all() else 'noise'
    for v in (x[m] for x, m in zip(corrupted, mask))
  )
  assert set(kinds) == set(gmml.FILLS) and min(kinds.values()) > 8


def test_nothing_asked_for_is_nothing_done():
  images = jax.random.normal(KEY, (2, 2, 20, 20, 3))
  s = gmml.settings({'share': 0.0, 'replace_prob': 0.0}, (20, 20))
  corrupted, mask = jax.jit(lambda x: gmml.corrupt(x, KEY, s))(images)
  assert not mask.any() and np.array_equal(corrupted, images)


@pytest.mark.parametrize('fill', ['zeros', 'noise-own'])
def test_eight_devices_are_one(fill):
  images = jax.random.normal(KEY, (16, 2, 20, 20, 1))
  s = gmml.settings({'fill': fill}, (20, 20))
  run = jax.jit(lambda x, key: gmml.corrupt(x, key, s))
  data = sharding.data(sharding.mesh())
  one, eight = run(images, KEY), run(jax.device_put(images, data), KEY)
  jax.tree.map(np.testing.assert_array_equal, one, eight)


@pytest.mark.parametrize(
  ('fields', 'words'),
  [
    ({'shared': 0.5}, "no field 'shared'"),
    ({'share': 0.95}, 'gmml.share is 0.95: use 0 up to 0.9'),
    ({'replace_prob': -1}, 'gmml.replace_prob is -1'),
    ({'fill': 'zeros-pink'}, "gmml.fill is 'zeros-pink'"),
    ({'align': 0}, 'gmml.align is 0'),
    ({'max_block': 1.5}, 'gmml.max_block'),
    ({'align': 8}, 'sides of up to 6 px in images of 20 px'),
  ],
)
def test_settings_that_make_no_sense(fields, words):
  with pytest.raises(UserError, match=words):
    gmml.settings(fields, (20, 20))
