"""Maps cut into square windows, and put together again.

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


def to_windows(maps, window: int, shift: int) -> jax.Array:
  """Maps [B, V, h, w, C] of each group -> windows [B, W, n, C].

  Zero pads at the bottom and right, rolls by `shift`, cuts row by row.
  """
  windows = []
  for x in maps:
    B, V, h, w, C = x.shape
    H, W = padded(h, window), padded(w, window)
    x = jnp.pad(x, ((0, 0), (0, 0), (0, H - h), (0, W - w), (0, 0)))
    if shift:
      x = jnp.roll(x, (-shift, -shift), (2, 3))
    x = x.reshape(B, V, H // window, window, W // window, window, C)
    x = x.swapaxes(3, 4)  # B V H/window W/window window window C
    windows.append(x.reshape(B, -1, window**2, C))
  return jnp.concatenate(windows, 1)


def from_windows(windows, shapes, window: int, shift: int) -> list[jax.Array]:
  """Undoes `to_windows` for maps of shapes (V, h, w); drops the pads."""
  B, _, _, C = windows.shape
  sides = [(padded(h, window), padded(w, window)) for _, h, w in shapes]
  counts = [V * H * W // window**2 for (V, _, _), (H, W) in zip(shapes, sides)]
  parts = jnp.split(windows, np.cumsum(counts)[:-1], 1)
  maps = []
  for x, (V, h, w), (H, W) in zip(parts, shapes, sides):
    x = x.reshape(B, V, H // window, W // window, window, window, C)
    x = x.swapaxes(3, 4).reshape(B, V, H, W, C)
    if shift:
      x = jnp.roll(x, (shift, shift), (2, 3))
    maps.append(x[:, :, :h, :w])
  return maps


def window_parts(shapes, window: int, shift: int) -> np.ndarray:
  """Which part of the unrolled map each token of each window comes from.

  Rolling brings opposite borders into one window; tokens see each other only
  within a part. Made for the map at hand: the first published code used the
  parts of a 224 px map for every crop.

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
    x = x.reshape(H // window, window, W // window, window).swapaxes(1, 2)
    labels += [x.reshape(-1, window**2)] * V
  return np.concatenate(labels)
