"""ViL's sparse attention over chunks of a map, against dense attention."""

import functools
import itertools

import golden_weights
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from esvit_jax.models import chunks, longformer, windows

KEY = jax.random.key(0)


def test_chunks_come_back_as_maps():
  maps = [
    jax.random.normal(KEY, (2, 3, 7, 5, 4)),
    jax.random.normal(KEY, (2, 1, 2, 9, 4)),
  ]
  pieces = [windows.cut(windows.pad(x, 3), 3) for x in maps]
  assert [x.shape for x in pieces] == [(2, 3, 3, 2, 9, 4), (2, 1, 1, 3, 9, 4)]
  row = jnp.concatenate([x.reshape(2, -1, 9, 4) for x in pieces], 1)
  abstract = [x.shape[1:4] for x in maps]
  again = windows.from_windows(row, abstract, 3, 0)
  for x, y, piece in zip(maps, again, pieces):
    np.testing.assert_array_equal(x, y)
    h, w = x.shape[2:4]
    np.testing.assert_array_equal(x, windows.paste(piece)[:, :, :h, :w])


def test_chunks_around_are_those_of_the_map():
  # Every token holds its own place, so keys tell where they come from.
  place = jnp.stack(jnp.mgrid[1:8, 1:6], -1)[None, None].astype(jnp.float32)
  pieces = windows.cut(windows.pad(place, 3), 3)
  near = np.array(chunks.around(pieces, chunks.ALL))[0, 0]  # r c 81 2
  on_map = np.array(chunks.on_map((7, 5), 3, chunks.ALL)).reshape(3, 2, 81)
  index = chunks.relative_position_index(3)
  for r, c in np.ndindex(3, 2):
    for m, (dy, dx) in enumerate(itertools.product((-1, 0, 1), repeat=2)):
      for t, (y, x) in enumerate(np.ndindex(3, 3)):
        row, column = 3 * (r + dy) + y, 3 * (c + dx) + x
        inside = 0 <= row < 7 and 0 <= column < 5
        assert on_map[r, c, 9 * m + t] == inside
        want = (row + 1, column + 1) if inside else (0, 0)
        assert tuple(near[r, c, 9 * m + t]) == want
        # The query at (1, 2) of the chunk.
        offset = (1 - 3 * dy - y + 5) * 11 + (2 - 3 * dx - x + 5)
        assert index[5, 9 * m + t] == offset
  assert index.min() == 0 and index.max() == 11**2 - 1


WINDOW, GLOBAL, HEADS = 3, 2, 2
SHAPES = ((2, 7, 5), (1, 3, 8))  # (V, h, w), pads in both


def attention(mode: int = 0):
  """A layer, its weights and tokens of 3 images."""
  module = longformer.SparseAttention(
    HEADS, GLOBAL, WINDOW, mode, 'fan_in', jnp.float32
  )
  T = sum(V * (GLOBAL + h * w) for V, h, w in SHAPES)
  tokens = jax.random.normal(KEY, (3, T, 8))
  abstract = jax.eval_shape(
    functools.partial(module.init, shapes=SHAPES, train=False), KEY, tokens
  )
  params = golden_weights.random_variables(abstract)
  return module, params, tokens


def dense(params, tokens, offsets) -> np.ndarray:
  """The same with (N, N) matrices: masks and biases from coordinates.

  Args:
    params: of the layer.
    tokens: f[B, T, C].
    offsets: (rows, columns) of the chunks that a chunk sees.
  """
  p = jax.tree.map(np.array, params['params'])

  def linear(x, name):
    return x @ p[name]['kernel'] + p[name]['bias']

  outputs, start = [], 0
  for V, h, w in SHAPES:
    places = list(np.ndindex(h, w))
    N, g = GLOBAL + h * w, GLOBAL
    bias = np.zeros((HEADS, N, N), np.float32)
    bias[:, :g, :g] = p['g2g_bias']
    bias[:, :g, g:] = p['g2l_bias'][0][:, :, None]
    bias[:, g:, :g] = p['g2l_bias'][1][:, None]
    for (i, a), (j, b) in itertools.product(enumerate(places), repeat=2):
      ca, cb = np.array(a) // WINDOW, np.array(b) // WINDOW
      if tuple(cb - ca) in offsets:
        dy, dx = np.array(a) - b + 2 * WINDOW - 1
        row = p['bias_table'][dy * (4 * WINDOW - 1) + dx]
        bias[:, g + i, g + j] = row
      else:
        bias[:, g + i, g + j] = -np.inf
    for _ in range(V):
      x = np.array(tokens[:, start : start + N])
      q = linear(x, 'query').reshape(-1, N, HEADS, 4)
      kv = linear(x, 'kv').reshape(-1, N, 2, HEADS, 4)
      k, v = kv[:, :, 0], kv[:, :, 1]
      logits = np.einsum('bqad,bkad->baqk', q, k) / 2 + bias[None]
      probs = np.exp(logits - logits.max(-1, keepdims=True))
      probs /= probs.sum(-1, keepdims=True)
      out = np.einsum('baqk,bkad->bqad', probs, v).reshape(-1, N, 8)
      outputs.append(linear(out, 'proj'))
      start += N
  return np.concatenate(outputs, 1)


def offset(neighbour) -> tuple[int, int]:
  return int(neighbour) // 3 - 1, int(neighbour) % 3 - 1


@pytest.mark.parametrize('mode', [0, -1])
def test_sparse_attention_is_masked_dense_attention(mode):
  module, params, tokens = attention(mode)
  out = jax.jit(functools.partial(module.apply, shapes=SHAPES, train=True))(
    params, tokens
  )
  seen = chunks.ALL if mode == 0 else [chunks.OWN]
  want = dense(params, tokens, {offset(i) for i in seen})
  np.testing.assert_allclose(out, want, atol=1e-5)


def test_a_random_neighbour_is_drawn_by_key_in_training_only():
  module, params, tokens = attention(1)
  wants = {
    i: dense(params, tokens, {(0, 0), offset(i)})
    for i in range(9)
    if i != chunks.OWN
  }
  train = jax.jit(functools.partial(module.apply, shapes=SHAPES, train=True))
  drawn = []
  for seed in range(8):
    out = train(params, tokens, rngs={'neighbour': jax.random.key(seed)})
    drawn += [i for i, x in wants.items() if np.allclose(out, x, atol=1e-5)]
  assert len(drawn) == 8 and len(set(drawn)) > 2

  keys = jax.random.split(KEY, 300)
  assert set(np.array(jax.vmap(longformer.draw_neighbour)(keys))) == set(wants)

  def jaxpr(module):
    apply = functools.partial(module.apply, shapes=SHAPES, train=False)
    return str(jax.make_jaxpr(apply)(params, tokens))

  assert jaxpr(module) == jaxpr(attention(0)[0])


def test_biases_of_other_sizes_are_resized_as_an_image():
  table = jax.random.normal(KEY, (9, 2))
  same = longformer.expanded_bias(table, 2, 4)
  # Tokens 0 and 3 are apart by one row and one column.
  np.testing.assert_array_equal(same[:, 0, 3], table[0])
  np.testing.assert_array_equal(same[:, 3, 0], table[8])
  for count in (1, 6, 9):
    flat = longformer.expanded_bias(jnp.full((9, 2), 3.0), 2, count)
    assert flat.shape == (2, count, count)
    np.testing.assert_allclose(flat, 3, rtol=1e-5)
