"""Position embeddings: fixed tables, resizing, relative offsets."""

import jax
import jax.numpy as jnp
import numpy as np

from esvit_jax.errors import UserError
from esvit_jax.models.resize import resize_bicubic


def mae_table(dim: int, side: int) -> np.ndarray:
  """MAE's table f32[1, 1 + side^2, dim], the class token's row first.

    code(t) = [sin(t w_0), ..., sin(t w_J), cos(t w_0), ..., cos(t w_J)]
    row of a patch = [code(column) | code(row)],    w_j = 10000^(-j / (dim/4))

  It is computed in float64. The class token's row is zero.
  """
  code = _code(np.arange(side, dtype=np.float64), dim)
  return _table(code, first='column')


def moco_table(dim: int, side: int) -> np.ndarray:
  """MoCo-v3's table: MAE's with its halves swapped.

  It is computed in float32, so its last digits differ too.
  """
  code = _code(np.arange(side, dtype=np.float32), dim)
  return _table(code, first='row')


def position_init(kind: str, dim: int, side: int):
  """An initialiser of f[1, 1 + side^2, dim]: 'learned', 'mae' or 'moco'."""
  if kind == 'learned':
    return jax.nn.initializers.normal(0.02)
  table = {'mae': mae_table, 'moco': moco_table}[kind]
  return lambda key, shape: jnp.asarray(table(dim, side))


def resize_positions(
  embedding: jax.Array, size: tuple[int, int], extra: float = 0.0
) -> jax.Array:
  """The position embedding f[1, 1 + N, C] for a map of `size` (rows, columns).

  The class token's row stays, the others are resized as an image. `extra` is
  added to the sides of the map in the factor of resizing.
  """
  cls, patches = embedding[:, :1], embedding[0, 1:]
  side = round(len(patches) ** 0.5)
  image = patches.reshape(side, side, -1)
  if size != (side, side):
    scales = tuple((length + extra) / side for length in size)
    image = resize_bicubic(image, size, scales)
  return jnp.concatenate([cls, image.reshape(1, -1, image.shape[-1])], 1)


def offset_index(
  queries: np.ndarray, keys: np.ndarray, reach: int
) -> np.ndarray:
  """Row of a table of relative positions for each (query, key): i64[n, m].

  The table has a row for each offset of up to `reach` rows and columns,
  (2 reach + 1)^2 of them, row by row.

  Args:
    queries, keys: places (row, column), i64[n, 2] and i64[m, 2].
    reach: largest offset.
  """
  row, column = np.moveaxis(queries[:, None] - keys[None] + reach, -1, 0)
  return row * (2 * reach + 1) + column


def places(height: int, width: int) -> np.ndarray:
  """(row, column) of a map's regions, row by row: i64[h w, 2]."""
  return np.stack(np.divmod(np.arange(height * width), width), -1)


def window_index(side: int) -> np.ndarray:
  """`offset_index` among the tokens of a window: i64[side^2, side^2]."""
  tokens = places(side, side)
  return offset_index(tokens, tokens, side - 1)


def grid_index(side: int) -> np.ndarray:
  """`window_index` with a class token in front: i64[1 + side^2, 1 + side^2].

  The last three rows of the table are from the class token to regions, from
  regions to it, and from it to itself.
  """
  rows = (2 * side - 1) ** 2
  index = np.pad(window_index(side), ((1, 0), (1, 0)))
  index[0], index[:, 0], index[0, 0] = rows, rows + 1, rows + 2
  return index


def axis_offsets(table: jax.Array, side: int) -> jax.Array:
  """Rows of a table f[2 n - 1, d] for each (query, key): f[side, side, d].

  A table made for another side is resized linearly.
  """
  length = 2 * side - 1
  if len(table) != length:
    shape = (length, table.shape[1])
    table = jax.image.resize(table, shape, 'linear', antialias=False)
  at = np.arange(side)
  return table[at[:, None] - at[None] + side - 1]


def _code(t: np.ndarray, dim: int) -> np.ndarray:
  """Coordinates [side] -> codes [side, dim/2], in the dtype of `t`."""
  if dim % 4:
    raise UserError(
      f'{dim} channels do not split into sines and cosines of rows and '
      'columns: use a multiple of 4, or learned positions'
    )
  quarter = dim // 4
  j = np.arange(quarter, dtype=t.dtype)
  omega = 1 / t.dtype.type(10000) ** (j / quarter)
  angle = t[:, None] * omega[None]
  return np.concatenate([np.sin(angle), np.cos(angle)], 1)


def _table(code: np.ndarray, first: str) -> np.ndarray:
  """Codes [side, dim/2] -> table, `first` taking the first channels."""
  side = len(code)
  halves = [np.tile(code, (side, 1)), np.repeat(code, side, 0)]
  if first == 'row':
    halves.reverse()
  patches = np.concatenate(halves, 1)
  table = np.concatenate([np.zeros_like(patches[:1]), patches])
  return table[None].astype(np.float32)
