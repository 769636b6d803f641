"""Chunks of maps and the nine around each: Vision Longformer's geometry.

Chunks are the windows of `windows.cut`.

Axes: B images, V views, h w a map, r c its rows and columns of chunks,
n = window^2 tokens of a chunk.
"""

import jax
import jax.numpy as jnp
import numpy as np

from esvit_jax.models.positions import offset_index, places
from esvit_jax.models.windows import padded

# The 3x3 chunks around a chunk are numbered 0 to 8, row by row.
ALL = np.arange(9)
OWN = 4


def around(chunks: jax.Array, which: jax.Array) -> jax.Array:
  """The tokens of some of the nine chunks around each chunk.

  Args:
    chunks: [B, V, r, c, n, C]; tokens beyond the border are zero.
    which: numbers of chunks i32[k], NumPy or traced.

  Returns:
    [B, V, r, c, k n, C].
  """
  x = jnp.pad(chunks, [(0, 0)] * 2 + [(1, 1)] * 2 + [(0, 0)] * 2)
  parts = [
    jax.lax.dynamic_slice(x, (0, 0, i // 3, i % 3, 0, 0), chunks.shape)
    for i in which
  ]
  return jnp.concatenate(parts, 4)


def on_map(shape: tuple[int, int], window: int, which: jax.Array) -> jax.Array:
  """Which tokens of `around` lie on a map of `shape` (h, w): bool[r c, k n]."""

  def line(length, offset):
    chunk = np.arange(padded(length, window) // window)[:, None] + offset[None]
    at = window * chunk[:, :, None] + np.arange(window)[None, None]
    return (at >= 0) & (at < length)  # r k window

  rows, columns = line(shape[0], which // 3 - 1), line(shape[1], which % 3 - 1)
  both = rows[:, None, :, :, None] & columns[None, :, :, None]
  return both.reshape(len(rows) * len(columns), -1)


def relative_position_index(window: int) -> np.ndarray:
  """Row of the bias table for each query of a chunk and key of its nine.

  The table has (4 window - 1)^2 rows, one for each offset.

  Returns:
    i64[n, 9 n].
  """
  own = places(window, window)  # n 2
  corners = window * (places(3, 3) - 1)  # 9 2
  keys = (corners[:, None] + own[None]).reshape(-1, 2)
  return offset_index(own, keys, 2 * window - 1)
