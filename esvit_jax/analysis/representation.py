"""Similarity of layers: centred kernel alignment (CKA) from batches.

arXiv 2010.15327, section 2: the unbiased HSIC is averaged over batches, so the
result does not depend on the batch size. Used in MAE-Lite (arXiv 2205.14443),
section 4.1.

Axes: B images of which n are real, L layers.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from esvit_jax.analysis.attention import block_numbers
from esvit_jax.errors import UserError

MIN_IMAGES = 4  # of a batch, which the unbiased estimate needs
OUTPUT = 'output'


class Similarity(NamedTuple):
  """Similarity of the layers of two networks, or of one with itself.

  Attributes:
    rows, columns: names of the layers of the first and the second network.
    cka: f64[L, L']; NaN where a layer is constant over images.
    hsic: means of HSIC(K, K), HSIC(K, L) and HSIC(L, L), f64[L, L', 3].
  """

  rows: tuple[str, ...]
  columns: tuple[str, ...]
  cka: np.ndarray
  hsic: np.ndarray


def layer_names(features, intermediates: Mapping) -> list[str]:
  """Names of the entries of `layers` in order; takes arrays or shapes.

  jit and eval_shape sort the keys of dictionaries, so the order of `layers` is
  lost there.
  """
  blocks = [x for x in intermediates if 'normed' in intermediates[x]]
  stages = [f'stage{i}' for i in range(len(features.stages))]
  return [*(sorted(blocks, key=block_numbers) or stages), OUTPUT]


def layers(features, intermediates: Mapping) -> dict[str, jax.Array]:
  """The layers to compare, with all regions of an image concatenated.

  For a ViT these are the inputs of its blocks after their first norm, without
  class tokens, then the output after the final norm; for other backbones the
  maps after each stage, then the output.

  Args:
    features: of B images.
    intermediates: of the same images, one view each.

  Returns:
    name -> f[B, D]
  """
  grid = features.grid
  count = grid.shape[-3] * grid.shape[-2]
  *names, output = layer_names(features, intermediates)
  if names[0] in intermediates:
    arrays = [intermediates[name]['normed'][0] for name in names]
    arrays = [x[:, 0, x.shape[2] - count :] for x in arrays]
  else:
    arrays = features.stages
  named = dict(zip((*names, output), (*arrays, grid)))
  return {name: x.reshape(len(x), -1) for name, x in named.items()}


def grams(layers: Mapping[str, jax.Array]) -> jax.Array:
  """Inner products of all images, layer by layer: f32[L, B, B].

  Jit it together with the forward pass. Subtracting the mean does not change
  the estimate but makes float32 more accurate.
  """

  def gram(x):
    x = x.astype(jnp.float32)
    x -= x.mean(0, keepdims=True)
    return jnp.einsum('id,jd->ij', x, x, precision='highest')

  return jnp.stack([gram(x) for x in layers.values()])


def hsic(K: np.ndarray, L: np.ndarray) -> np.ndarray:
  """Unbiased HSIC_1 of all pairs of Gram matrices, ignoring diagonals.

    (tr(K L) + 1'K1 1'L1 / ((n-1)(n-2)) - 2 / (n-2) 1'K L1) / (n (n-3))

  Args:
    K: f[L, n, n], symmetric.
    L: f[L', n, n].

  Returns:
    f64[L, L']
  """
  K, L = _hollow(K), _hollow(L)
  n = K.shape[-1]
  k, l = K.sum(-1), L.sum(-1)  # L n
  trace = np.einsum('aij,bij->ab', K, L, optimize=True)
  sums = np.outer(k.sum(-1), l.sum(-1)) / ((n - 1) * (n - 2))
  return (trace + sums - 2 / (n - 2) * (k @ l.T)) / (n * (n - 3))


def compare(
  stream: Iterable[tuple[np.ndarray, np.ndarray, np.ndarray]],
  rows: Sequence[str],
  columns: Sequence[str],
) -> Similarity:
  """CKA of all pairs of layers, from batches of images.

  A last batch of fewer than 4 images is left out.

  Args:
    stream: for each batch the Gram matrices of the first network f[L, B, B],
      those of the second (or the first again) f[L', B, B], and its real rows
      bool[B].
    rows: names of the layers of the first.
    columns: of the second.

  Raises:
    UserError: no batch has 4 images.
  """
  total, count = 0.0, 0
  for first, second, mask in stream:
    real = np.flatnonzero(np.asarray(mask))
    if len(real) < MIN_IMAGES:
      continue
    K, L = (np.asarray(x)[:, real][:, :, real] for x in (first, second))
    own = [np.array([hsic(x[None], x[None])[0, 0] for x in y]) for y in (K, L)]
    both = hsic(K, L)
    total = total + np.stack(
      [
        np.broadcast_to(own[0][:, None], both.shape),
        both,
        np.broadcast_to(own[1][None], both.shape),
      ],
      -1,
    )
    count += 1
  if not count:
    raise UserError(
      f'CKA needs batches of at least {MIN_IMAGES} images: raise '
      '--config.batch_size, or take a larger set'
    )
  mean = total / count
  return Similarity(tuple(rows), tuple(columns), cka(mean), mean)


def cka(hsic: np.ndarray) -> np.ndarray:
  """HSIC(K, L) / sqrt(HSIC(K, K) HSIC(L, L)): f64[..., 3] -> f64[...]."""
  scale = np.sqrt(np.maximum(hsic[..., 0], 0) * np.maximum(hsic[..., 2], 0))
  return np.where(
    scale > 0, hsic[..., 1] / np.where(scale > 0, scale, 1), np.nan
  )


def figures(similarity: Similarity) -> dict[str, float | None]:
  """A heat map in a few numbers.

  `next_layer` is the mean similarity of consecutive layers, `same_layer` that
  of layers of equal depth.
  """
  x = similarity.cka
  figures = {'first_to_last': x[0, -1], 'least': _least(x)}
  if x.shape[0] == x.shape[1]:
    figures['same_layer'] = np.diag(x).mean()
    if len(x) > 1:
      figures['next_layer'] = np.diag(x, 1).mean()
  return {name: _number(value) for name, value in figures.items()}


def table(similarity: Similarity) -> list[dict[str, str | float | None]]:
  """The heat map as a table, a row for each layer of the first network."""
  return [
    {'layer': name, **{c: _number(x) for c, x in zip(similarity.columns, row)}}
    for name, row in zip(similarity.rows, similarity.cka)
  ]


def _hollow(x: np.ndarray) -> np.ndarray:
  x = np.array(x, np.float64)
  i = np.arange(x.shape[-1])
  x[..., i, i] = 0
  return x


def _least(x: np.ndarray) -> float:
  x = x[np.isfinite(x)]
  return x.min() if len(x) else np.nan


def _number(x: float) -> float | None:
  return float(x) if np.isfinite(x) else None
