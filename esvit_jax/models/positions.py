"""Fixed position tables of sines and cosines over a square grid of patches."""

import numpy as np

from esvit_jax.errors import UserError


def mae_table(dim: int, side: int) -> np.ndarray:
  """MAE's table f32[1, 1 + side^2, dim], the class token's row first.

    code(t) = [sin(t w_0), ..., sin(t w_J), cos(t w_0), ..., cos(t w_J)]
    row of a patch = [code(column) | code(row)],    w_j = 10000^(-j / (dim/4))

  Found in float64. The class token's row is zero.
  """
  code = _code(np.arange(side, dtype=np.float64), dim)
  return _table(code, first='column')


def moco_table(dim: int, side: int) -> np.ndarray:
  """MoCo-v3's table: MAE's with the halves the other way round.

  Found in float32, so its last digits differ too.
  """
  code = _code(np.arange(side, dtype=np.float32), dim)
  return _table(code, first='row')


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
