"""Laws of the prototype loss and of the matching it is given."""

import functools
import math
import re
import zlib
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from esvit_jax.errors import UserError
from esvit_jax.losses import chunks, prototypes, tiles
from esvit_jax.losses.prototypes import Match, Side

GOLDEN = Path(__file__).parent / 'goldens/esvit/losses_synthetic.npz'
VIEWS = (16, 16, 4, 4, 4)  # regions per view of the golden
TEMPS = 0.1, 0.05551724137931035  # student, teacher at epoch 15


def unit(rng, *shape):
  x = rng.standard_normal(shape)
  return (x / np.linalg.norm(x, axis=-1, keepdims=True)).astype(np.float32)


@functools.cache
def example(B=6, views=(4, 4, 2, 1), K=37, P=16, seed=0):
  """Student, teacher and matching of a region loss."""
  rng = np.random.default_rng(seed)
  S, T = sum(views), sum(views[:2])
  weights = prototypes.pair_weights(views)
  match, _ = prototypes.matching(
    rng.standard_normal((B, S, 5)),
    rng.standard_normal((B, T, 5)),
    weights,
    views[:2],
  )
  center = 0.1 * rng.standard_normal(K).astype(np.float32)
  return (
    Side(unit(rng, B, S, P), unit(rng, K, P), 0.1),
    Side(unit(rng, B, T, P), 1.5 * unit(rng, K, P), 0.05, center),
    match,
  )


def value_and_grads(args, dtype=jnp.float32, **options):
  student, teacher, match = args

  def loss(u, w_s, temperature):
    return tiles.cross_entropy(
      Side(u, w_s, student.temperature),
      teacher._replace(temperature=temperature),
      match,
      **options,
    )

  u, w_s = jnp.asarray(student.tokens, dtype), jnp.asarray(student.prototypes)
  value, grads = jax.jit(jax.value_and_grad(loss, (0, 1)))(
    u, w_s, teacher.temperature
  )
  return value, *grads


@functools.cache
def plain_value_and_grads(views):
  return value_and_grads(example(views=views), form='plain')


@pytest.mark.parametrize(
  'views, options',
  [
    ((4, 4, 2, 1), {'form': 'images', 'chunk': 4}),  # 6 images in 2 chunks
    ((4, 4, 2, 1), {'form': 'images', 'chunk': 2, 'shards': 2}),  # 3 in 2
    ((4, 4, 2, 1), {'form': 'prototypes', 'chunk': 8}),  # 37 in 5
    ((4, 4, 2, 1), {'form': 'prototypes', 'chunk': 37, 'shards': 3}),
    ((1, 1, 1), {'form': 'images', 'chunk': 1}),
    ((1, 1, 1), {'form': 'prototypes'}),
    ((3, 3), {'form': 'images'}),
    ((3, 3), {'form': 'prototypes', 'chunk': 1}),
  ],
  ids=str,
)
def test_forms_give_the_numbers_of_plain(views, options):
  result = value_and_grads(example(views=views), **options)
  for x, y in zip(result, plain_value_and_grads(views)):
    assert x.dtype == y.dtype
    np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-5 * np.abs(y).max())


@pytest.mark.parametrize('form', ['plain', 'images', 'prototypes'])
def test_gradients_scale_with_what_comes_in(form):
  student, teacher, match = example()

  def loss(u, factor):
    s = student._replace(tokens=u)
    return factor * tiles.cross_entropy(s, teacher, match, form=form)

  grad = jax.jit(jax.grad(loss))
  once, thrice = (grad(student.tokens, x) for x in (1.0, 3.0))
  np.testing.assert_allclose(thrice, 3 * once, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
  'form, tolerance', [('images', 3e-3), ('prototypes', 0.01)]
)
def test_bfloat16_stays_near_float32(form, tolerance):
  args = example(B=8, K=300, P=64)
  value, *grads = value_and_grads(args, jnp.bfloat16, form=form, chunk=3)
  right, *right_grads = value_and_grads(args, form='plain')
  assert abs(value - right) < 2e-3 * right
  assert [g.dtype for g in grads] == [jnp.bfloat16, jnp.float32]
  for g, r in zip(grads, right_grads):
    error = jnp.linalg.norm(g.astype(jnp.float32) - r) / jnp.linalg.norm(r)
    assert error < tolerance


@pytest.mark.parametrize('dtype', [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize('length', [1e-3, 1.0, 1e4])
def test_prototypes_of_any_length(dtype, length, monkeypatch):
  """Their lengths may be learned; float16 ends at 65,504.

  As on an accelerator, where maximum and sums are found in one pass.
  """
  student, teacher, match = example(B=4, K=300, P=64)
  args = (
    student._replace(prototypes=length * student.prototypes, temperature=0.1),
    teacher._replace(prototypes=length * teacher.prototypes),
    match,
  )
  # Rounded beforehand: logits as large as 10^5 would show nothing else.
  tokens = jnp.asarray(student.tokens, dtype).astype(jnp.float32)
  rounded = args[0]._replace(tokens=np.asarray(tokens)), *args[1:]
  right, *right_grads = value_and_grads(rounded, form='plain')
  monkeypatch.setattr(jax, 'default_backend', lambda: 'gpu')
  value, *grads = value_and_grads(args, dtype, form='images', chunk=3)
  tolerance = 1e-5 if dtype == jnp.float32 else 5e-3
  assert abs(value - right) < (tolerance if length <= 1 else 1e-3) * right
  if length <= 1:  # beyond it all is decided by the nearest two prototypes
    for g, r in zip(grads, right_grads):
      error = jnp.linalg.norm(g.astype(jnp.float32) - r) / jnp.linalg.norm(r)
      assert error < tolerance


@pytest.mark.parametrize('form', ['plain', 'images', 'prototypes'])
def test_teacher_gets_no_gradient(form):
  student, teacher, match = example()

  def loss(teacher, weights):
    followed = match._replace(weights=weights)
    return tiles.cross_entropy(student, teacher, followed, form=form)

  grads = jax.grad(loss, (0, 1))(teacher, match.weights)
  assert not any(np.any(g) for g in jax.tree.leaves(grads))


@pytest.mark.parametrize('form', ['plain', 'images', 'prototypes'])
def test_an_indifferent_student_pays_ln_k(form):
  student, teacher, match = example()
  student = student._replace(tokens=0 * student.tokens)
  value = tiles.cross_entropy(student, teacher, match, form=form, chunk=5)
  K = len(student.prototypes)
  np.testing.assert_allclose(value, math.log(K), rtol=1e-6)


@pytest.mark.parametrize('form', ['plain', 'images', 'prototypes'])
def test_the_best_student_says_what_the_teacher_says(form):
  # The loss ends at the entropy of the teacher, where nothing pulls.
  rng = np.random.default_rng(1)
  u, w = unit(rng, 2, 2, 8), unit(rng, 30, 8)
  match = Match(np.tile([[0], [1]], (2, 1, 1)), np.full((2, 1), 0.5))
  teacher = Side(u, w, 0.1)

  def loss(u):
    return tiles.cross_entropy(
      Side(u, w, 0.1), teacher, match, form=form, chunk=7
    )

  log_p = jax.nn.log_softmax(jnp.einsum('bnp,kp->bnk', u, w) / 0.1)
  entropy = -jnp.mean(jnp.sum(jnp.exp(log_p) * log_p, -1))
  value, grad = jax.jit(jax.value_and_grad(loss))(u)
  np.testing.assert_allclose(value, entropy, rtol=1e-5)
  assert np.abs(grad).max() < 1e-5


def test_unknown_form_is_named():
  with pytest.raises(UserError, match="no form 'imgs'"):
    tiles.cross_entropy(*example(), form='imgs')
  with pytest.raises(ValueError, match='6 images do not split over 4'):
    tiles.cross_entropy(*example(), form='images', shards=4)


# --- eight devices


def compiled(form, w_split=False):
  """Loss and gradients of 64 images over 8 devices."""
  mesh = jax.make_mesh((8,), ('data',), axis_types=(AxisType.Auto,))
  split = NamedSharding(mesh, PartitionSpec('data'))
  whole = NamedSharding(mesh, PartitionSpec())
  args = example(B=64, views=(4, 4, 2, 2), K=1024, P=16)
  stored = split if w_split else whole
  side = Side(split, stored, whole, whole)
  args = jax.device_put(args, (side, side, Match(split, whole)))

  def loss(tokens, w_s, student, teacher, match):
    # Split prototypes are brought together before the scan, not in it.
    w_s, w_t = jax.lax.with_sharding_constraint(
      (w_s, teacher.prototypes), whole
    )
    return tiles.cross_entropy(
      student._replace(tokens=tokens, prototypes=w_s),
      teacher._replace(prototypes=w_t),
      match,
      form=form,
      chunk={'images': 2, 'prototypes': 128, 'plain': 0}[form],
      shards=8,
    )

  step = jax.jit(
    jax.value_and_grad(loss, (0, 1)), out_shardings=(whole, (split, stored))
  )
  args = args[0].tokens, args[0].prototypes, *args
  return step.lower(*args).compile(), args


def collectives(hlo, kinds):
  """(computation, kind) of the collectives in optimised HLO."""
  found, computation = [], ''
  for line in hlo.splitlines():
    if start := re.match(r'(?:ENTRY )?%?([\w.\-]+) \(', line):
      computation = start[1]
      entry = line.startswith('ENTRY')
    if op := re.search(rf' ({"|".join(kinds)})(?:-start)?\(', line):
      found.append(('entry' if entry else computation, op[1]))
  return found


MOVES = 'all-gather', 'collective-permute', 'all-to-all', 'reduce-scatter'


@pytest.mark.parametrize('form', ['images', 'prototypes'])
def test_devices_meet_once_and_hold_no_tokens_by_k(form):
  tiled, args = compiled(form)
  assert collectives(tiled.as_text(), MOVES) == []
  assert collectives(tiled.as_text(), ['all-reduce']) == [
    ('entry', 'all-reduce')
  ]
  plain, _ = compiled('plain')
  whole_logits = r'f32\[(8,12|96|64,12|768),1024\]'
  assert re.search(whole_logits, plain.as_text())
  assert not re.search(whole_logits, tiled.as_text())
  sizes = [x.memory_analysis().temp_size_in_bytes for x in (tiled, plain)]
  assert sizes[0] < sizes[1] / 2

  value, grads = tiled(*args)
  right = value_and_grads(jax.tree.map(np.asarray, args[2:]), form='plain')
  for x, y in zip((value, *grads), right):
    np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-5 * np.abs(y).max())


@pytest.mark.parametrize('form', ['images', 'prototypes'])
def test_split_prototypes_come_together_outside_the_loop(form):
  tiled, _ = compiled(form, w_split=True)
  found = collectives(tiled.as_text(), (*MOVES, 'all-reduce'))
  assert {where for where, _ in found} == {'entry'}


# --- matching and weights


@pytest.mark.parametrize(
  'views', [(1, 1), (1,) * 10, (49, 49, 9, 9), (49, 49, 16, 9, 4)], ids=str
)
def test_every_pair_of_views_weighs_the_same(views):
  weights = prototypes.pair_weights(views)
  ends = np.cumsum(views)
  by_view = np.stack([x.sum(0) for x in np.split(weights, ends[:-1])])
  pairs = 2 * len(views) - 2
  own = np.eye(len(views), 2, dtype=bool)
  np.testing.assert_allclose(by_view[~own], 1 / pairs, rtol=1e-6)
  assert not by_view[own].any()
  np.testing.assert_allclose(weights.sum(), 1, rtol=1e-6)


def test_one_view_alone_is_refused():
  with pytest.raises(UserError, match='one view alone'):
    prototypes.pair_weights((49,), 1)


def test_regions_find_their_own_copies():
  # Teacher regions are the student's, shuffled within each view and scaled.
  rng = np.random.default_rng(2)
  f = rng.standard_normal((3, 8, 6)).astype(np.float32)
  order = np.stack([rng.permutation(8) for _ in range(3)])
  lengths = rng.uniform(0.1, 10, (3, 8, 1)).astype(np.float32)
  f_t = np.take_along_axis(f, order[..., None], 1) * lengths
  f_t = np.concatenate([rng.standard_normal((3, 5, 6)), f_t], 1)
  weights = np.full((8, 2), 1 / 16, np.float32)
  match, best = prototypes.matching(f, f_t, weights, (5, 8))
  match = match.dense(13)
  np.testing.assert_array_equal(best[..., 1], np.argsort(order))
  np.testing.assert_allclose(match.sum(-1), 1 / 8)
  np.testing.assert_allclose(
    np.take_along_axis(match[..., 5:], np.argsort(order)[..., None], 2),
    1 / 16,
  )


def test_center_is_the_moving_mean_of_logits():
  _, teacher, _ = example()
  logits = np.einsum('bnp,kp->bnk', teacher.tokens, teacher.prototypes)
  np.testing.assert_allclose(
    prototypes.update_center(teacher, 0.9),
    0.9 * teacher.center + 0.1 * logits.mean((0, 1)),
    atol=1e-6,
  )


@pytest.mark.parametrize(
  'size, chunk, expected',
  [(64, 13, (4, 16)), (64, 8, (8, 8)), (6, 4, (2, 3)), (37, 8, (5, 8))],
)
def test_chunks_divide_where_they_can(size, chunk, expected):
  assert chunks.even(size, chunk) == expected


def test_default_form_is_one_of_the_tiled():
  assert tiles.default_form(4, 170, 65536) == 'images'
  assert tiles.default_chunk('images', 10_000) == 1


# --- published numbers


def golden_input(name, views, B=3):
  """[crop-major rows, n] of the published code -> [B, tokens, n]."""
  key = f'input:synth_{name}'
  rng = np.random.Generator(np.random.PCG64(zlib.crc32(key.encode())))
  n = 5 if name.endswith('fea') else 12
  x = 0.2 * rng.standard_normal((B * sum(views), n)).astype(np.float32)
  return torch_rows_to_images(x, views, B)


def torch_rows_to_images(x, views, B=3):
  parts = np.split(x, B * np.cumsum(views)[:-1])
  return np.concatenate(
    [part.reshape(B, n, -1) for part, n in zip(parts, views)], 1
  )


def golden_center(name):
  key = f'input:synth_{name}'
  rng = np.random.Generator(np.random.PCG64(zlib.crc32(key.encode())))
  return 0.2 * rng.standard_normal((1, 12)).astype(np.float32)[0]


@functools.cache
def golden_parts():
  """Sides and matching of both losses; prototypes are the axes."""
  W = np.eye(12, dtype=np.float32)
  ones = (1,) * 5
  pairs = prototypes.pair_weights(ones)

  def sides(level, views, center):
    return (
      Side(golden_input(f's_{level}', views), W, TEMPS[0]),
      Side(
        golden_input(f't_{level}', views[:2]),
        W,
        TEMPS[1],
        golden_center(center),
      ),
    )

  match = prototypes.view_matching(3, pairs)
  view = *sides('cls', ones, 'center'), match
  match, _ = prototypes.matching(
    golden_input('s_fea', VIEWS),
    golden_input('t_fea', VIEWS[:2]),
    prototypes.pair_weights(VIEWS),
    VIEWS[:2],
  )
  return view, (*sides('reg', VIEWS, 'center_grid'), match)


def close(x, y):
  np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize('form', ['plain', 'images', 'prototypes'])
def test_published_losses_gradients_and_centers(form):
  golden = np.load(GOLDEN)

  def loss(args):
    student, *others = args

    def value(u):
      return tiles.cross_entropy(
        student._replace(tokens=u), *others, form=form, chunk=2
      )

    return jax.jit(jax.value_and_grad(value))(student.tokens)

  view, region = golden_parts()
  (view_loss, view_grad), (region_loss, region_grad) = loss(view), loss(region)
  close(view_loss, golden['dino_loss_epoch15'])
  close(0.5 * (view_loss + region_loss), golden['ddino_loss_epoch15'])
  close(view_grad, torch_rows_to_images(golden['dino_grad_s_cls'], (1,) * 5))
  close(0.5 * view_grad, torch_rows_to_images(golden['grad_s_cls'], (1,) * 5))
  close(0.5 * region_grad, torch_rows_to_images(golden['grad_s_reg'], VIEWS))
  for name, (_, teacher, _) in (('center', view), ('center_grid', region)):
    close(prototypes.update_center(teacher, 0.9), golden[name][0])


@pytest.mark.parametrize('form', ['plain', 'images', 'prototypes'])
def test_published_mixup_is_a_matching_across_images(form):
  # All images together are one: token (v, b) follows teacher token (q, b').
  (student, teacher, pairs), _ = golden_parts()
  B, V = student.tokens.shape[:2]
  match = np.zeros((V, B, 2, B), np.float32)
  for v in range(V):
    key = f'input:synth_mix{v}'
    rng = np.random.Generator(np.random.PCG64(zlib.crc32(key.encode())))
    mix = jax.nn.softmax(rng.standard_normal((B, B)).astype(np.float32))
    for q in range(2):
      match[v, :, q] = pairs.weights[v, q] * mix.T / B
  student, teacher = (
    x._replace(tokens=np.swapaxes(x.tokens, 0, 1).reshape(1, -1, 12))
    for x in (student, teacher)
  )
  everyone = np.broadcast_to(np.arange(2 * B), (1, V * B, 2 * B))
  loss = tiles.cross_entropy(
    student,
    teacher,
    Match(everyone, match.reshape(1, V * B, 2 * B)),
    form=form,
    chunk=5,
  )
  expected = np.load(GOLDEN)['dino_loss_mixup_epoch15']
  np.testing.assert_allclose(loss, expected, rtol=1e-5)
