"""Weighted k-nearest neighbours: the protocol of DINO and EsViT (spec 8)."""

import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from esvit_jax.errors import UserError

KS = (10, 20, 100, 200)
HEADLINE_K = 20  # the k whose top-1 stands for k-NN in tables
QUERIES = 256  # test images at a time


def figures(train_x, train_y, test_x, test_y) -> dict[str, float]:
  """`knn` as an evaluator: top-1 and top-5 at k 20, top-1 at every k."""
  scores = knn(train_x, train_y, test_x, test_y)
  top1, top5 = scores[HEADLINE_K]
  every = {f'top1_k{k}': first for k, (first, _) in scores.items()}
  return {'top1': top1, 'top5': top5, **every}


def knn(
  train_x: np.ndarray,
  train_y: np.ndarray,
  test_x: np.ndarray,
  test_y: np.ndarray,
  ks: Sequence[int] = KS,
  temperature: float = 0.07,
) -> dict[int, tuple[float, float]]:
  """Classifies by a vote of the k most similar training images.

    vote(c) = sum over the k nearest, of class c, of exp(cosine / temperature)

  Memory on the device: the training features, and 256 x N similarities.

  Args:
    train_x: f32[N, D], of any length; may be a jax array, sharded or not.
    train_y: classes from 0, i32[N].
    test_x: f32[M, D].
    test_y: i32[M].
    ks: how many neighbours; more than N means N.
    temperature: of the votes.

  Returns:
    k -> (top-1, top-5) in percent.

  Raises:
    UserError: there are images without a label.
  """
  train_y, test_y = np.asarray(train_y), np.asarray(test_y)
  if min(train_y.min(), test_y.min()) < 0:
    raise UserError(
      'k-NN needs a label for every image and some have none: use a labelled '
      'set, or set data.test_split to an empty string to do without'
    )
  classes = int(max(train_y.max(), test_y.max())) + 1
  bank, labels = _unit(jnp.asarray(train_x)), jnp.asarray(train_y)
  counts = tuple(min(k, len(train_y)) for k in ks)
  M, hits = len(test_y), np.zeros((len(ks), 2))
  for start in range(0, M, QUERIES):
    rows = np.arange(start, start + QUERIES)
    real = rows < M
    rows = np.minimum(rows, M - 1)  # one shape for all, so one compilation
    queries = _unit(jnp.asarray(test_x[rows]))
    ranked = _vote(bank, labels, queries, counts, classes, temperature)
    right = np.asarray(ranked) == test_y[rows][None, :, None]  # k q 5
    right = right[:, real]
    hits += np.stack([right[..., 0].sum(1), right.any(2).sum(1)], 1)
  percent = 100 * hits / M
  return {k: (float(a), float(b)) for k, (a, b) in zip(ks, percent)}


@functools.partial(jax.jit, static_argnums=(3, 4, 5))
def _vote(bank, labels, queries, counts, classes, temperature) -> jax.Array:
  """The five classes with most votes, best first, for each count.

  bank f32[N, D] and queries f32[q, D] are unit vectors; i32[k, q, 5].
  """
  # Neighbours differ by less than TF32 or bfloat16 can tell.
  cosine = jnp.einsum('qd,nd->qn', queries, bank, precision='highest')
  nearest, index = jax.lax.top_k(cosine, max(counts))
  weight = jnp.exp(nearest / temperature)
  label = labels[index]  # q k
  row = jnp.arange(len(queries))[:, None]
  nobody = jnp.zeros((len(queries), classes))

  def rank(k):
    votes = nobody.at[row, label[:, :k]].add(weight[:, :k])
    return jax.lax.top_k(votes, min(5, classes))[1]

  return jnp.stack([rank(k) for k in counts])


def _unit(x: jax.Array) -> jax.Array:
  return x / jnp.maximum(jnp.linalg.norm(x, axis=-1, keepdims=True), 1e-12)
