"""Weighted k-nearest neighbours: the protocol of DINO and EsViT (spec 8)."""

import functools
import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, PartitionSpec

from esvit_jax import sharding
from esvit_jax.data import fewshot
from esvit_jax.errors import UserError
from esvit_jax.models.layers import l2_normalize

KS = (10, 20, 100, 200)
HEADLINE_K = 20  # the k whose top-1 stands for k-NN in tables
TEMPERATURE = 0.07
MAJORITY = math.inf  # the temperature at which every vote weighs 1
QUERIES = 256  # test images at a time
ROWS = 2**16  # training images at a time, on each device


def figures(train_x, train_y, test_x, test_y, mesh=None) -> dict[str, float]:
  """`knn` as an evaluator: top-1 and top-5 at k 20, top-1 at every k.

  'majority_k10' and so on are top-1 when every neighbour's vote weighs 1.
  """
  found = _found(train_x, train_y, test_x, test_y, KS, mesh)
  scores = _scores(*found, KS, TEMPERATURE)
  plain = _scores(*found, KS, MAJORITY)
  top1, top5 = scores[HEADLINE_K]
  every = {f'top1_k{k}': first for k, (first, _) in scores.items()}
  majority = {f'majority_k{k}': first for k, (first, _) in plain.items()}
  return {'top1': top1, 'top5': top5, **every, **majority}


def knn(
  train_x: np.ndarray,
  train_y: np.ndarray,
  test_x: np.ndarray,
  test_y: np.ndarray,
  ks: Sequence[int] = KS,
  temperature: float = TEMPERATURE,
  mesh: Mesh | None = None,
) -> dict[int, tuple[float, float]]:
  """Classifies by a vote of the k most similar training images.

    vote(c) = sum over the k nearest, of class c, of exp(cosine / temperature)

  Of classes with equally many votes the smaller one wins.

  Args:
    train_x: of any length, f[N, D]; memory as `neighbours` says.
    train_y: classes from 0, i32[N].
    test_x: f[M, D].
    test_y: i32[M].
    ks: how many neighbours; more than N means N.
    temperature: of the votes; MAJORITY makes them all weigh 1.
    mesh: devices that share the search, by default all.

  Returns:
    k -> (top-1, top-5) in percent.

  Raises:
    UserError: there are images without a label, or no images.
  """
  found = _found(train_x, train_y, test_x, test_y, ks, mesh)
  return _scores(*found, ks, temperature)


def neighbours(
  train_x: np.ndarray,
  test_x: np.ndarray,
  k: int,
  mesh: Mesh | None = None,
) -> tuple[np.ndarray, np.ndarray]:
  """The k training images most similar to each test image, exactly.

  Training images come to the devices in chunks, R = min(65,536, N / devices)
  to each, and the k best so far are carried from chunk to chunk. So a device
  holds, in bytes,

    2 R D 4 (a chunk, as it came and of unit length) + R 256 4 (similarities)

  whatever N is: 1.26 GB for 1.3 M x 2304 on one device. (Read off a CPU at
  400,000 x 768, the chunk on the host included: 0.53 GB, of which the formula
  explains 0.50.) The host holds the features as they are given (12 GB in
  float32, half in float16, none of a memory-mapped file), one chunk of them
  and 8 M k bytes of results. Every process of a run must call this, with the
  same features.

  Args:
    train_x: of any length, f[N, D].
    test_x: f[M, D].
    k: at most N.
    mesh: devices that share the search, by default all.

  Returns:
    Cosines f32[M, k] and rows of train_x i32[M, k], most similar first, of
    equal ones the smaller row first.

  Raises:
    UserError: there are fewer than k training images, or lengths differ.
  """
  N, M = len(train_x), len(test_x)
  if not 0 < k <= N:
    raise UserError(f'{k} neighbours are asked for among {N} images')
  if train_x.shape[1:] != test_x.shape[1:]:
    raise UserError(
      f'training features have shape {train_x.shape} and test features '
      f'{test_x.shape}: both must come from one network'
    )
  mesh = sharding.mesh() if mesh is None else mesh
  split, whole = sharding.data(mesh), sharding.replicated(mesh)
  chunks = -(-N // (ROWS * mesh.size))
  rows = -(-N // (chunks * mesh.size)) * mesh.size
  cosine = np.full((M, k), -np.inf, np.float32)
  index = np.zeros((M, k), np.int32)
  for first in range(0, N, rows):
    bank = _unit(_placed(train_x, np.arange(first, first + rows), split))
    span = np.array([first, N], np.int32)
    for start in range(0, M, QUERIES):
      # One shape for all, so one compilation: the last row fills up.
      at = np.arange(start, start + QUERIES)
      so_far = (_placed(x, at, whole) for x in (cosine, index))
      queries = _unit(_placed(test_x, at, whole))
      best = _closer(*so_far, bank, queries, span, mesh=mesh)
      real = min(QUERIES, M - start)
      for x, new in zip((cosine, index), jax.device_get(best)):
        x[start : start + real] = new[:real]
    del bank  # before the next one comes
  return cosine, index


def _found(train_x, train_y, test_x, test_y, ks, mesh):
  """Cosines and classes [M, k] of the neighbours, the truth, class count."""
  train_y, test_y = np.asarray(train_y), np.asarray(test_y)
  fewshot.require_labels('k-NN', train_y, test_y)
  classes = int(max(train_y.max(), test_y.max())) + 1
  k = min(max(ks), len(train_y))
  cosine, index = neighbours(train_x, test_x, k, mesh)
  return cosine, train_y[index], test_y, classes


def _scores(cosine, label, test_y, classes, ks, temperature):
  """k -> (top-1, top-5) in percent."""
  M, hits = len(test_y), np.zeros((len(ks), 2))
  for start in range(0, M, QUERIES):
    at = np.minimum(np.arange(start, start + QUERIES), M - 1)
    ranked = _vote(cosine[at], label[at], tuple(ks), classes, temperature)
    right = np.asarray(ranked) == test_y[at][None, :, None]  # k q 5
    right = right[:, : M - start]
    hits += np.stack([right[..., 0].sum(1), right.any(2).sum(1)], 1)
  percent = 100 * hits / M
  return {k: (float(a), float(b)) for k, (a, b) in zip(ks, percent)}


@functools.partial(jax.jit, static_argnames='mesh')
def _closer(cosine, index, bank, queries, span, mesh):
  """The best of those so far and those of a chunk, each [q, k].

  bank f32[n, D] and queries f32[q, D] are unit vectors; span holds the row at
  which the bank begins, and the number of rows that are real.
  """
  k = cosine.shape[1]
  axis = mesh.axis_names[0]

  def on_one_device(bank, queries, span):
    n = len(bank)
    row = span[0] + n * jax.lax.axis_index(axis) + jnp.arange(n)
    # Neighbours differ by less than TF32 or bfloat16 can tell.
    similar = jnp.einsum('qd,nd->qn', queries, bank, precision='highest')
    similar = jnp.where((row < span[1])[None], similar, -jnp.inf)
    nearest, at = jax.lax.top_k(similar, min(k, n))
    return nearest, row[at]

  split, whole = PartitionSpec(axis), PartitionSpec()
  columns = PartitionSpec(None, axis)
  found = jax.shard_map(
    on_one_device,
    mesh=mesh,
    in_specs=(split, whole, whole),
    out_specs=(columns, columns),
  )(bank, queries, span)
  # In order of rows, so that of equal ones the smaller row stays first.
  cosine, index = (
    jnp.concatenate(pair, 1) for pair in zip((cosine, index), found)
  )
  cosine, best = jax.lax.top_k(cosine, k)
  best = cosine, jnp.take_along_axis(index, best, 1)
  return jax.lax.with_sharding_constraint(best, sharding.replicated(mesh))


@functools.partial(jax.jit, static_argnums=(2, 3, 4))
def _vote(cosine, label, ks, classes, temperature) -> jax.Array:
  """The five classes with most votes, best first, i32[k, q, 5]."""
  weight = jnp.exp(cosine / temperature)
  row = jnp.arange(len(cosine))[:, None]
  nobody = jnp.zeros((len(cosine), classes))

  def rank(k):
    votes = nobody.at[row, label[:, :k]].add(weight[:, :k])
    return jax.lax.top_k(votes, min(5, classes))[1]

  return jnp.stack([rank(k) for k in ks])


@jax.jit
def _unit(x: jax.Array) -> jax.Array:
  return l2_normalize(x.astype(jnp.float32))


def _placed(x, rows: np.ndarray, place) -> jax.Array:
  """Those rows of x on devices; rows beyond its end repeat the last."""
  rows = np.minimum(rows, len(x) - 1)
  return jax.make_array_from_callback(
    (len(rows), *x.shape[1:]),
    place,
    lambda index: np.asarray(x[rows[index[0]]]),
  )
