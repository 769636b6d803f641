"""Exact nearest neighbours by cosine, on any number of devices."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, PartitionSpec

from esvit_jax import sharding
from esvit_jax.errors import UserError
from esvit_jax.models.layers import l2_normalize

QUERIES = 256  # at a time
ROWS = 2**16  # images of the bank at a time, on each device


class Neighbours(NamedTuple):
  """The images of a bank most similar to each query, most similar first.

  Attributes:
    similarity: cosine, f32[Q, k].
    index: rows of the bank, i32[Q, k].
  """

  similarity: np.ndarray
  index: np.ndarray


def nearest(
  bank: np.ndarray,
  queries: np.ndarray,
  k: int,
  mesh: Mesh | None = None,
) -> Neighbours:
  """The k images of a bank whose features point most nearly the same way.

  The bank comes to the devices in chunks, R = min(65,536, N / devices) rows
  to each, and the k best so far are carried from chunk to chunk. So a device
  holds, in bytes,

    2 R D 4 (a chunk, as it came and of unit length) + R 256 4 (similarities)

  whatever N is: 1.26 GB for 1.3 M x 2304 on one device. (Measured on a CPU at
  400,000 x 768, the chunk on the host included: 0.53 GB, of which the formula
  explains 0.50.) The host holds the features as they are given (12 GB in
  float32, half in float16, none of a memory-mapped file), one chunk of them
  and 8 Q k bytes of results. Every process that has a device of the mesh must
  call this, with the same features.

  Args:
    bank: of any length, f[N, D].
    queries: f[Q, D].
    k: at most N.
    mesh: devices that share the search, by default all.

  Returns:
    Neighbours; of equally similar rows the smaller comes first.

  Raises:
    UserError: there are fewer than k rows, or lengths differ.
  """
  N, Q = len(bank), len(queries)
  if not 0 < k <= N:
    raise UserError(f'cannot find {k} neighbours among {N} images')
  if bank.shape[1:] != queries.shape[1:]:
    raise UserError(
      f'training features have shape {bank.shape} and test features '
      f'{queries.shape}: both must come from one network'
    )
  mesh = sharding.mesh() if mesh is None else mesh
  split, whole = sharding.data(mesh), sharding.replicated(mesh)
  chunks = -(-N // (ROWS * mesh.size))
  rows = -(-N // (chunks * mesh.size)) * mesh.size
  best = Neighbours(
    np.full((Q, k), -np.inf, np.float32), np.zeros((Q, k), np.int32)
  )
  for first in range(0, N, rows):
    chunk = _unit(_placed(bank, np.arange(first, first + rows), split))
    span = np.array([first, N], np.int32)
    for start in range(0, Q, QUERIES):
      # One shape for all, so one compilation: the last row fills up.
      at = np.arange(start, start + QUERIES)
      so_far = Neighbours(*(_placed(x, at, whole) for x in best))
      asked = _unit(_placed(queries, at, whole))
      closer = jax.device_get(_merge(so_far, chunk, asked, span, mesh=mesh))
      for x, new in zip(best, closer):
        x[start : start + QUERIES] = new[: Q - start]
    del chunk  # before the next one comes
  return best


def nearest_others(
  features: np.ndarray, rows: np.ndarray, k: int, mesh: Mesh | None = None
) -> Neighbours:
  """The k images most similar to some of them; none is its own neighbour.

  Args:
    features: f[N, D].
    rows: the images asked for, i[Q].
    k: fewer than N.
    mesh: as for `nearest`.

  Raises:
    UserError: there are not k others.
  """
  near = nearest(features, features[rows], k + 1, mesh)
  other = near.index != np.asarray(rows)[:, None]
  # Among more than k equal images an image itself may not be found.
  other[other.all(1), -1] = False
  return Neighbours(*(x[other].reshape(len(x), k) for x in near))


@functools.partial(jax.jit, static_argnames='mesh')
def _merge(so_far, chunk, queries, span, mesh) -> Neighbours:
  """The k best of those so far and of a chunk.

  chunk f32[n, D] and queries f32[q, D] are unit vectors; span holds the row of
  the bank at which the chunk begins, and the number of rows that are real.
  """
  k = so_far.index.shape[1]
  axis = mesh.axis_names[0]

  def on_one_device(chunk, queries, span):
    n = len(chunk)
    row = span[0] + n * jax.lax.axis_index(axis) + jnp.arange(n)
    # Neighbours differ by less than TF32 or bfloat16 can tell.
    similar = jnp.einsum('qd,nd->qn', queries, chunk, precision='highest')
    similar = jnp.where((row < span[1])[None], similar, -jnp.inf)
    similar, at = jax.lax.top_k(similar, min(k, n))
    return similar, row[at]

  split, whole = PartitionSpec(axis), PartitionSpec()
  columns = PartitionSpec(None, axis)
  in_chunk = jax.shard_map(
    on_one_device,
    mesh=mesh,
    in_specs=(split, whole, whole),
    out_specs=(columns, columns),
  )(chunk, queries, span)
  # In order of rows, so that of equal ones the smaller row stays first.
  similarity, index = (
    jnp.concatenate(pair, 1) for pair in zip(so_far, in_chunk)
  )
  similarity, best = jax.lax.top_k(similarity, k)
  merged = Neighbours(similarity, jnp.take_along_axis(index, best, 1))
  return jax.lax.with_sharding_constraint(merged, sharding.replicated(mesh))


@jax.jit
def _unit(x: jax.Array) -> jax.Array:
  """Unit vectors; scaled first, as squares may overflow or underflow."""
  x = x.astype(jnp.float32)
  _, exponent = jnp.frexp(jnp.abs(x).max(-1, keepdims=True))
  return l2_normalize(jnp.ldexp(x, -exponent))


def _placed(x, rows: np.ndarray, place) -> jax.Array:
  """Those rows of x on devices; rows beyond its end repeat the last."""
  rows = np.minimum(rows, len(x) - 1)
  return jax.make_array_from_callback(
    (len(rows), *x.shape[1:]),
    place,
    lambda index: np.asarray(x[rows[index[0]]]),
  )
