"""Maps cut into square windows, and assembled again.

Axes: B images, V views, h w a map, W windows of all groups, n = window^2
tokens of a window.
"""

import math

import jax
import jax.numpy as jnp
import numpy as np


def stage_window(
  image_size: int, patch: int, window: int, stage: int
) -> tuple[int, int]:
  """Window side and shift of the odd blocks of a stage, in tokens.

  A map that fits into one window is one window and is never shifted.
  """
  side = math.ceil(image_size / patch)
  for _ in range(stage):
    side = math.ceil(side / 2)
  return (side, 0) if side <= window else (window, window // 2)


def padded(length: int, window: int) -> int:
  """The next multiple of `window`."""
  return math.ceil(length / window) * window


def pad(maps: jax.Array, window: int) -> jax.Array:
  """Maps [B, V, h, w, C] with zeros below and at the right: whole windows."""
  h, w = maps.shape[2:4]
  below, right = padded(h, window) - h, padded(w, window) - w
  return jnp.pad(maps, ((0, 0), (0, 0), (0, below), (0, right), (0, 0)))


def cut(maps, window: int):
  """Whole maps [..., H, W, C] -> windows [..., H/window, W/window, n, C]."""
  *axes, H, W, C = maps.shape
  x = maps.reshape(*axes, H // window, window, W // window, window, C)
  x = x.swapaxes(-4, -3)  # ... H/window W/window window window C
  return x.reshape(*x.shape[:-3], window**2, C)


def paste(windows: jax.Array) -> jax.Array:
  """Undoes `cut`."""
  *axes, r, c, n, C = windows.shape
  window = round(n**0.5)
  x = windows.reshape(*axes, r, c, window, window, C).swapaxes(-4, -3)
  return x.reshape(*axes, r * window, c * window, C)


def to_windows(maps, window: int, shift: int) -> jax.Array:
  """Maps [B, V, h, w, C] of each group -> windows [B, W, n, C].

  Zero pads at the bottom and right, rolls by `shift`, cuts row by row.
  """
  windows = []
  for x in maps:
    x = pad(x, window)
    if shift:
      x = jnp.roll(x, (-shift, -shift), (2, 3))
    windows.append(cut(x, window).reshape(len(x), -1, window**2, x.shape[-1]))
  return jnp.concatenate(windows, 1)


def from_windows(windows, shapes, window: int, shift: int) -> list[jax.Array]:
  """Undoes `to_windows` for maps of shapes (V, h, w)."""
  B, _, n, C = windows.shape
  grids = [
    (V, padded(h, window) // window, padded(w, window) // window)
    for V, h, w in shapes
  ]
  ends = np.cumsum([math.prod(grid) for grid in grids])[:-1]
  maps = []
  for x, grid, (_, h, w) in zip(jnp.split(windows, ends, 1), grids, shapes):
    x = paste(x.reshape(B, *grid, n, C))
    if shift:
      x = jnp.roll(x, (shift, shift), (2, 3))
    maps.append(x[:, :, :h, :w])
  return maps


def window_parts(shapes, window: int, shift: int) -> np.ndarray:
  """The part of the unrolled map that each token of each window comes from.

  Rolling brings opposite borders into one window; attention stays within a
  part. It is computed for each map: the first published code used the parts
  of a 224 px map for every crop.

  Returns:
    i32[W, n], labels 0 to 8.
  """

  def line(length):
    part = np.zeros(length, np.int32)
    part[-window:] = 1
    part[-shift:] = 2
    return part

  labels = []
  for V, h, w in shapes:
    H, W = padded(h, window), padded(w, window)
    x = 3 * line(H)[:, None] + line(W)[None]
    labels += [cut(x[..., None], window).reshape(-1, window**2)] * V
  return np.concatenate(labels)
