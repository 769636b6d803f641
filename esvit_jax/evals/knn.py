"""Weighted k nearest neighbours: the protocol of DINO and EsViT.

DINO, section 4.1 (2104.14294); EsViT, section 4.1 (2106.09785).
"""

import functools
import math
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from esvit_jax.data import fewshot
from esvit_jax.errors import UserError
from esvit_jax.evals.finite import counted, only_finite
from esvit_jax.evals.neighbours import nearest

KS = (10, 20, 100, 200)
HEADLINE_K = 20  # the k whose top-1 stands for k-NN in tables
TEMPERATURE = 0.07
MAJORITY = math.inf  # the temperature at which every vote weighs 1
QUERIES = 256  # test images at a time


def figures(train_x, train_y, test_x, test_y, mesh=None) -> dict[str, float]:
  """`knn` as an evaluator: top-1 and top-5 at k 20, top-1 at every k.

  'majority_k10' and so on are top-1 when every neighbour's vote weighs 1.
  """
  near = _neighbours(train_x, train_y, test_x, test_y, KS, mesh)
  weighted = _scores(near, KS, TEMPERATURE)
  majority = _scores(near, KS, MAJORITY)
  top1, top5 = weighted[HEADLINE_K]
  figures = {
    'top1': top1,
    'top5': top5,
    **{f'top1_k{k}': score for k, (score, _) in weighted.items()},
    **{f'majority_k{k}': score for k, (score, _) in majority.items()},
  }
  return counted(figures, near.left_out)


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

  A class without votes is no answer, also where fewer than five classes have
  votes. Of n classes with equally many votes each is the answer with
  probability 1 / n, so no class gains by its number.

  Args:
    train_x: of any length, f[N, D]; memory as `neighbours.nearest` says.
    train_y: classes from 0, i32[N].
    test_x: f[M, D].
    test_y: i32[M].
    ks: how many neighbours; more than N means N.
    temperature: of the votes; MAJORITY makes them all weigh 1.
    mesh: devices that share the search, by default all.

  Returns:
    k -> (top-1, top-5) in percent.

  Raises:
    UserError: there are images without a label or no images, many features
      are not finite, or there is no such k or temperature.
  """
  if min(ks) < 1 or not temperature > 0:
    raise UserError(
      f'k-NN with k {tuple(ks)} and temperature {temperature:g}: use k of 1 or '
      'more, and a temperature above 0'
    )
  near = _neighbours(train_x, train_y, test_x, test_y, ks, mesh)
  return _scores(near, ks, temperature)


class _Voters(NamedTuple):
  """The neighbours of M test images, nearest first.

  similarity f32[M, k] and label i[M, k] are theirs, truth i[M] the classes of
  the images themselves.
  """

  similarity: np.ndarray
  label: np.ndarray
  truth: np.ndarray
  classes: int
  left_out: int


def _neighbours(train_x, train_y, test_x, test_y, ks, mesh) -> _Voters:
  fewshot.require_labels('k-NN', train_y, test_y)
  train_x, train_y, test_x, test_y, left_out = only_finite(
    train_x, train_y, test_x, test_y
  )
  near = nearest(train_x, test_x, min(max(ks), len(train_y)), mesh)
  classes = int(max(train_y.max(), test_y.max())) + 1
  label = train_y[near.index]
  return _Voters(near.similarity, label, test_y, classes, left_out)


def _scores(near: _Voters, ks, temperature) -> dict[int, tuple[float, float]]:
  """k -> (top-1, top-5) in percent."""
  M, right = len(near.truth), np.zeros((len(ks), 2))
  for start in range(0, M, QUERIES):
    # One shape for all, so one compilation.
    at = np.minimum(np.arange(start, start + QUERIES), M - 1)
    share = _right(
      near.similarity[at],
      near.label[at],
      near.truth[at],
      tuple(ks),
      near.classes,
      temperature,
    )
    right += np.asarray(share)[:, : M - start].sum(1)
  percent = 100 * right / M
  return {k: (float(a), float(b)) for k, (a, b) in zip(ks, percent)}


@functools.partial(jax.jit, static_argnums=(3, 4, 5))
def _right(similarity, label, truth, ks, classes, temperature) -> jax.Array:
  """How probably each image's own class is the answer, f32[k, q, 2].

  Once for the one best answer, once for the five best.
  """
  weight = jnp.exp(similarity / temperature)
  row = jnp.arange(len(similarity))
  nobody = jnp.zeros((len(similarity), classes))

  def right(k):
    votes = nobody.at[row[:, None], label[:, :k]].add(weight[:, :k])
    own = votes[row, truth][:, None]
    above, tied = (votes > own).sum(1), (votes == own).sum(1)
    places = jnp.array([1, 5])[None] - above[:, None]
    return jnp.where(own > 0, jnp.clip(places / tied[:, None], 0, 1), 0)

  return jnp.stack([right(k) for k in ks])
