"""Attention of heads as published, and windows put back in their places."""

import functools
import math

import golden_mae_sit
import golden_weights
import jax
import jax.numpy as jnp
import mae_runs
import numpy as np
import pytest
from PIL import Image

from esvit_jax import models
from esvit_jax.analysis import attention
from esvit_jax.analysis.plots.attention import attention_png, heads_png
from esvit_jax.errors import UserError
from esvit_jax.models import windows as windows_lib
from esvit_jax.weights import tables

GRID = (14, 14)
SWIN = {
  'name': 'swin',
  'dims': (8, 16),
  'depths': (2, 2),
  'heads': (2, 4),
  'window': 3,
  'patch': 2,
  'image_size': 16,
  'init_scale': 'fan_in',
}


@functools.cache
def published():
  """The golden's ViT-Tiny: sown logits and features -> `per_head`, jitted."""
  golden, entry = golden_mae_sit.load('analysis')
  backbone = models.build({'name': 'mae_tiny', 'final_norm': False})
  state = mae_runs.published(entry['keys'])
  state = {
    k: v
    for k, v in state.items()
    if k.partition('.')[0] not in ('fc_norm', 'head')
  }
  variables = tables.from_published(
    state, 'vit', models.abstract_variables(backbone)
  )

  @jax.jit
  def heads(images):
    features, sown = inspect(backbone, variables, images)
    return attention.per_head(features, sown, 224)

  return golden, heads


def inspect(backbone, variables, images):
  (features,), sown = backbone.apply(
    variables, (images[:, None],), mutable=['intermediates']
  )
  return jax.tree.map(lambda x: x[:, 0], features), sown['intermediates']


def test_entropy_and_distance_are_the_published_ones():
  golden, heads = published()
  images = [mae_runs.image(f'ana_img{i}', 8) for i in range(2)]
  found = attention.mean_per_head((heads(x), np.ones(8, bool)) for x in images)
  assert list(found) == [f'block{i}' for i in range(12)]
  found = np.stack(list(found.values()))
  np.testing.assert_allclose(found[..., 0], golden['entropy'], rtol=1e-4)
  np.testing.assert_allclose(found[..., 1], golden['distance'], rtol=1e-4)


def manhattan():
  y, x = np.divmod(np.arange(196), 14)
  return np.abs(y[:, None] - y) + np.abs(x[:, None] - x)


@pytest.mark.parametrize('local', [False, True])
def test_formulas_give_the_published_values(local):
  golden, _ = golden_mae_sit.load('analysis')
  tag = 'probe_local' if local else 'probe'
  logits = golden_mae_sit.normal('probe_attn', (2, 3, 196, 196))
  logits = logits - local * manhattan()[None, None]
  probs = attention.region_attention(jax.nn.softmax(logits), 0)
  far = 14 * attention.distances(*GRID)
  entropy = attention.entropy(probs, attention.EPS).mean((0, 2))
  distance = (probs * far[None, None]).sum(-1).mean((0, 2))
  np.testing.assert_allclose(entropy, golden[f'{tag}_entropy'], rtol=1e-5)
  np.testing.assert_allclose(distance, golden[f'{tag}_distance'], rtol=1e-5)


def test_distances_are_the_published_ones():
  golden, _ = golden_mae_sit.load('analysis')
  for row in (0, 30):
    np.testing.assert_allclose(
      14 * attention.distances(*GRID)[row],
      golden[f'dist_matrix_row{row}'],
      rtol=1e-6,
    )


def test_uniform_attention_gives_the_values_of_the_specification():
  sown = {'block0': attends(jnp.zeros((1, 1, 2, 197, 197)))}
  (found,) = attention.per_head(grid_of(14, 14), sown, 224).values()
  np.testing.assert_allclose(found[0], [[5.278, 101.93]] * 2, rtol=2e-4)
  (bits,) = attention.per_head(grid_of(14, 14), sown, 224, base=2).values()
  np.testing.assert_allclose(bits[..., 0], math.log2(196), rtol=2e-4)


def attends(logits):
  """What a block of a ViT sows."""
  return {'attn': {'attention': (jax.nn.softmax(jnp.asarray(logits)),)}}


def grid_of(h, w):
  """Features of one image of which only the grid's shape is read."""
  grid = jnp.zeros((1, h, w, 4))
  return models.backbone.Features(None, grid, (grid,), ())


def test_what_a_class_token_sees_and_tells_does_not_count():
  rng = np.random.default_rng(0)
  logits = rng.standard_normal((1, 1, 2, 7, 7)).astype(np.float32)
  other = logits.copy()
  other[..., 0, :] += 5
  other[..., :, 0] -= 3
  found = [
    attention.per_head(grid_of(2, 3), {'block0': attends(x)}, 32)['block0']
    for x in (logits, other)
  ]
  np.testing.assert_allclose(*found, rtol=1e-6)


def test_images_count_alike_in_batches_of_any_size():
  rng = np.random.default_rng(0)
  x = rng.random((5, 3, 2))
  junk = np.full((1, 3, 2), np.nan)
  stream = [
    ({'block0': x[:4]}, np.ones(4, bool)),
    ({'block0': np.concatenate([x[4:], junk])}, np.array([True, False])),
  ]
  found = attention.mean_per_head(stream)['block0']
  np.testing.assert_allclose(found, x.mean(0))
  told = attention.figures({'block0': found})['block0']
  assert told['entropy'] == pytest.approx(x[..., 0].mean())
  assert told['distance_least'] == pytest.approx(x[..., 1].mean(0).min())
  with pytest.raises(UserError, match='no images'):
    attention.mean_per_head([])


def test_a_backbone_without_attention_has_no_blocks_of_it():
  assert attention.blocks(grid_of(2, 2), {'layer1': {}}) == []
  assert attention.per_head(grid_of(2, 2), {}, 32) == {}


def test_attention_is_found_by_what_is_sown_not_by_names():
  probs = jax.nn.softmax(jnp.zeros((1, 1, 2, 5, 5)))
  sown = {
    'mixer10': {'inner': {'attention': (probs,)}},
    'mixer9': {'attention': (probs,)},
    'pool': {'attention': (probs[..., :1, :],)},  # one query: no map of regions
  }
  found = attention.blocks(grid_of(2, 2), sown)
  assert [x.name for x in found] == ['mixer9', 'mixer10']
  assert [x.probs.shape for x in found] == [(1, 2, 5, 5)] * 2


# Windows


@functools.cache
def windows():
  """A small Swin's attention of 18x14 px: pads, shifts, two stages."""
  backbone = models.build(SWIN)
  variables = jax.tree.map(
    lambda x: jax.random.normal(jax.random.key(x.size), x.shape) * 0.5,
    models.abstract_variables(backbone),
  )
  images = jax.random.normal(jax.random.key(1), (2, 18, 14, 3))
  return jax.jit(functools.partial(inspect, backbone))(variables, images)


def test_geometry_is_that_of_the_backbone():
  found = attention.blocks(*windows())
  assert [x.name for x in found] == [
    f'stage{i}_block{j}' for i in range(2) for j in range(2)
  ]
  assert [(x.height, x.width) for x in found] == [(9, 7)] * 2 + [(5, 4)] * 2
  for i, block in enumerate(found):
    window, shift = windows_lib.stage_window(16, 2, 3, i // 2)
    assert (block.window, block.shift) == (window, shift if i % 2 else 0)


def test_a_stage_of_one_window_is_not_shifted():
  # Made for images of 6 px, whose second map is one window of 3 and less.
  backbone = models.build(SWIN | {'image_size': 6})
  images = jnp.zeros((1, 6, 6, 3))
  variables = models.abstract_variables(backbone)
  variables = golden_weights.random_variables(variables)
  run = jax.jit(functools.partial(inspect, backbone))
  found = attention.blocks(*run(variables, images))
  assert [x.shift for x in found] == [0] * 4


@pytest.mark.parametrize('shift', [0, 1, 2])
@pytest.mark.parametrize(('h', 'w'), [(6, 6), (7, 5), (3, 4)])
def test_places_undo_the_cutting_into_windows(shift, h, w):
  block = attention.Block('x', None, h, w, 3, shift)
  numbers = 1.0 + jnp.arange(h * w).reshape(1, 1, h, w, 1)
  cut = windows_lib.to_windows((numbers,), 3, shift)[0, ..., 0]
  np.testing.assert_array_equal(attention.places(block), cut - 1)


def test_a_query_sees_what_its_window_gives_it():
  """Attention times values, put back by the backbone's own geometry."""
  for block in attention.blocks(*windows()):
    h, w = block.height, block.width
    rng = np.random.default_rng(0)
    values = rng.standard_normal((1, 1, h, w, 1)).astype(np.float32)
    cut = windows_lib.to_windows(
      (values,), block.window, block.shift
    )  # 1 W n 1
    for head in range(block.probs.shape[2]):
      out = jnp.einsum('BWqk,WkC->BWqC', block.probs[:, :, head], cut[0])
      (out,) = windows_lib.from_windows(
        out, ((1, h, w),), block.window, block.shift
      )
      for query in ((0, 0), (h - 1, w - 1), (h // 2, 1)):
        seen = attention.maps(block, query)[:, head]
        total = (seen * values[0, 0, ..., 0]).sum((1, 2))
        np.testing.assert_allclose(total, out[:, 0, *query, 0], atol=1e-5)


def test_maps_hold_all_attention_that_is_not_on_pads():
  first, *_ = attention.blocks(*windows())
  exact = attention.Block('x', first.probs[:, :3], 9, 3, 3, 0)
  seen = attention.maps(exact, (4, 1))
  np.testing.assert_allclose(seen.sum((2, 3)), 1, rtol=1e-5)
  assert (seen[:, :, 3:6] > 0).all()
  assert (seen[:, :, :3] == 0).all() and (seen[:, :, 6:] == 0).all()
  # Each window hands out one unit to its own regions.
  looked_at = attention.maps(exact)
  for row in range(3):
    window = looked_at[:, :, 3 * row : 3 * row + 3]
    np.testing.assert_allclose(window.sum((2, 3)), 1, rtol=1e-5)


def test_pads_ask_nothing():
  """A window's mean entropy is that of its real queries."""
  features, sown = windows()
  found = attention.per_head(features, sown, 18, base=2)  # 9 rows of regions
  for block in attention.blocks(features, sown):
    sums = np.zeros((2, block.probs.shape[2], 2))
    places = attention.places(block)
    for window, query in zip(*np.nonzero(places >= 0)):
      p = np.asarray(block.probs[:, window, :, query], np.float64)
      y, x = np.divmod(np.arange(9), 3)
      far = np.hypot(y - y[query], x - x[query]) * 2 * 9 / block.height
      logs = np.log2(np.where(p > 0, p, 1))
      sums += np.stack([-(p * logs).sum(-1), (p * far).sum(-1)], -1)
    np.testing.assert_allclose(
      found[block.name], sums / (block.height * block.width), rtol=1e-4
    )


# ViT maps


def test_class_token_and_patches_look_over_the_map():
  rng = np.random.default_rng(0)
  logits = rng.standard_normal((1, 2, 7, 7)).astype(np.float32)
  probs = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
  block = attention.Block('block0', probs, 2, 3)
  np.testing.assert_allclose(
    attention.maps(block)[0, 1].ravel(), probs[0, 1, 0, 1:], rtol=1e-5
  )
  np.testing.assert_allclose(
    attention.maps(block, (1, 2))[0, 0].ravel(), probs[0, 0, 6, 1:], rtol=1e-5
  )
  with pytest.raises(UserError, match='no region'):
    attention.maps(block, (2, 0))


# Pictures


def test_top_mass_keeps_the_least_regions_that_hold_it():
  x = np.array([[[0.4, 0.3], [0.2, 0.1]], [[0, 0], [0, 7.0]]])
  kept = attention.top_mass(x, 0.6)
  np.testing.assert_array_equal(
    kept, [[[0.4, 0.3], [0, 0]], [[0, 0], [0, 7.0]]]
  )
  np.testing.assert_array_equal(attention.top_mass(x, 1.0), x)


def test_heads_are_sorted_by_entropy():
  flat, peak, half = np.ones((2, 2)), np.eye(2) * [1, 0], np.eye(2)
  order, bits = attention.widest_first(np.stack([[peak, flat, half]] * 2))
  assert list(order) == [1, 2, 0]
  np.testing.assert_allclose(bits, [2, 1, 0], atol=1e-6)


def read(path):
  with Image.open(path) as image:
    return np.asarray(image.convert('RGB')).astype(int)


@pytest.mark.parametrize('channels', [1, 3])
def test_light_falls_where_attention_is(tmp_path, channels):
  images = np.full((2, 32, 32, channels), 0.5, np.float32)
  maps = np.zeros((2, 1, 4, 4), np.float32)
  maps[0, 0, :, 0] = 1  # left
  maps[1, 0, :, 3] = 1  # right
  path = tmp_path / 'attention.png'
  attention_png(path, images, maps)
  lit = np.ptp(read(path), axis=2) > 90
  height, width = lit.shape
  assert not lit[:, : width // 2].any()
  quarter = 3 * width // 4
  upper, lower = lit[: height // 2], lit[height // 2 + 20 :]
  assert upper[:, width // 2 : quarter].sum() > 10 * upper[:, quarter:].sum()
  assert lower[:, quarter:].sum() > 10 * lower[:, width // 2 : quarter].sum()


def test_boxes_are_drawn_for_each_block(tmp_path):
  rng = np.random.default_rng(0)
  heads = {f'block{i}': rng.random((3, 2)) for i in range(12)}
  path = tmp_path / 'heads.png'
  heads_png(path, heads, math.e)
  picture = read(path)
  for color in ((0, 114, 178), (230, 159, 0)):
    assert (np.abs(picture - color).max(2) < 12).sum() > 150
  assert attention.short_names(['block3', 'stage1_block0']) == ['3', '1.0']
