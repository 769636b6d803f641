"""Weighted k-nearest neighbours, the protocol of DINO and EsViT."""

import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from esvit_jax.errors import UserError

QUERIES = 256  # test images at a time


def knn(
  train_x,
  train_y,
  test_x,
  test_y,
  ks: Sequence[int] = (10, 20, 100, 200),
  temperature: float = 0.07,
) -> dict[int, tuple[float, float]]:
  """Classifies by the k most similar training images.

    vote(c) = sum over the k nearest of class c of exp(cosine / temperature)

  Memory: the training features, and QUERIES x N similarities.

  Args:
    train_x, test_x: f32[N, D], f32[M, D]; normalised here.
    train_y, test_y: i32 labels from 0.
    ks: how many neighbours; more than N means N.
    temperature: of the votes.

  Returns:
    k -> (top-1, top-5) in percent.

  Raises:
    UserError: there are images without a label.
  """
  train_y, test_y = np.asarray(train_y), np.asarray(test_y)
  if min(train_y.min(), test_y.min()) < 0:
    raise UserError('k-NN needs labels: this set has images without one')
  classes = int(max(train_y.max(), test_y.max())) + 1
  ks = {k: min(k, len(train_y)) for k in ks}
  bank = _unit(jnp.asarray(train_x))
  labels = jnp.asarray(train_y)
  hits = {k: np.zeros(2) for k in ks}
  M = len(test_y)
  for start in range(0, M, QUERIES):
    rows = np.arange(start, start + QUERIES)
    x = _unit(jnp.asarray(test_x[np.minimum(rows, M - 1)]))
    real = rows < M
    y = test_y[np.minimum(rows, M - 1)]
    votes = _votes(bank, labels, x, tuple(ks.values()), classes, temperature)
    for k, ranked in zip(ks, votes):
      right = np.asarray(ranked) == y[:, None]  # q 5
      hits[k] += right[real, :1].sum(), right[real].sum()
  return {k: tuple(float(h) for h in 100 * hit / M) for k, hit in hits.items()}


@functools.partial(jax.jit, static_argnums=(3, 4, 5))
def _votes(bank, labels, x, ks, classes, temperature):
  """For each k the five classes with most votes: i32[q, 5]."""
  similar = jnp.einsum('qd,nd->qn', x, bank)
  nearest, index = jax.lax.top_k(similar, max(ks))
  weight = jnp.exp(nearest / temperature)
  member = jax.nn.one_hot(labels[index], classes)  # q k c
  return [
    jax.lax.top_k(
      jnp.einsum('qk,qkc->qc', weight[:, :k], member[:, :k]), min(5, classes)
    )[1]
    for k in ks
  ]


def _unit(x):
  return x / jnp.maximum(jnp.linalg.norm(x, axis=-1, keepdims=True), 1e-12)
