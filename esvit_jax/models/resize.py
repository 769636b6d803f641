"""Resizing as PyTorch does it: maps bilinear, position tables bicubic."""

import jax
import jax.numpy as jnp
import numpy as np


def bicubic_matrix(
  n_in: int, n_out: int, scale: float | None = None
) -> np.ndarray:
  """The matrix f64[n_out, n_in] that resizes a line as PyTorch's bicubic does.

  Cubic convolution with a = -0.75, half-pixel centres (align_corners False),
  no antialiasing, borders repeated.

  Args:
    n_in: samples before.
    n_out: samples after.
    scale: the factor that maps coordinates; n_out / n_in by default.
  """
  a = -0.75
  # PyTorch finds coordinates in float32: past 100 samples one sees it.
  step = np.float32(1 / (scale or n_out / n_in))
  centre = step * (np.arange(n_out, dtype=np.float32) + 0.5) - 0.5
  first = np.floor(centre).astype(int)
  matrix = np.zeros((n_out, n_in))
  for offset in (-1, 0, 1, 2):
    x = np.abs(centre - (first + offset))
    near = ((a + 2) * x - (a + 3)) * x * x + 1
    far = a * (((x - 5) * x + 8) * x - 4)
    column = np.clip(first + offset, 0, n_in - 1)
    np.add.at(matrix, (np.arange(n_out), column), np.where(x <= 1, near, far))
  return matrix


def resize_bicubic(
  x: jax.Array,
  size: tuple[int, int],
  scales: tuple[float | None, float | None] = (None, None),
) -> jax.Array:
  """Resizes f[h, w, C] to `size` (rows, columns); see `bicubic_matrix`."""
  rows, columns = (
    bicubic_matrix(before, after, scale).astype(np.float32)
    for before, after, scale in zip(x.shape, size, scales)
  )
  return jnp.einsum('ah,hwc,bw->abc', rows, x, columns, precision='highest')


def bilinear(x: jax.Array, size: tuple[int, int]) -> jax.Array:
  """Resizes f[..., h, w, C] to `size`, align_corners False.

  Half-pixel centres, borders repeated, no antialiasing when it shrinks.
  """
  if x.shape[-3:-1] == tuple(size):
    return x
  shape = (*x.shape[:-3], *size, x.shape[-1])
  return jax.image.resize(x, shape, 'linear', antialias=False)
