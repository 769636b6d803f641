"""Anchors: boxes of fixed sizes and shapes at every place of every map."""

from collections.abc import Sequence

import numpy as np

RATIOS = (0.5, 1.0, 2.0)  # height over width


def at_origin(
  sizes: Sequence[float], ratios: Sequence[float] = RATIOS, whole: bool = False
) -> np.ndarray:
  """Anchors of one place around (0, 0): f64[sizes * ratios, 4].

  Args:
    sizes: square root of the area, pixels.
    ratios: height over width; the fastest.
    whole: corners in whole pixels, as torchvision has them.
  """
  anchors = []
  for size in sizes:
    for ratio in ratios:
      w = size / ratio**0.5
      h = w * ratio
      anchors.append([-w / 2, -h / 2, w / 2, h / 2])
  return np.round(anchors) if whole else np.array(anchors)


def of_map(
  shape: tuple[int, int],
  stride: int,
  sizes: Sequence[float],
  ratios: Sequence[float] = RATIOS,
  offset: float = 0.0,
  whole: bool = False,
) -> np.ndarray:
  """Anchors of a map of (h, w): f32[h w sizes ratios, 4], row by row.

  Args:
    shape: of the map.
    stride: pixels between its places.
    sizes, ratios, whole: see `at_origin`.
    offset: of the first place, in strides.
  """
  y, x = (stride * (np.arange(n) + offset) for n in shape)
  corners = np.stack(
    [*np.broadcast_arrays(x[None], y[:, None])] * 2, -1
  )  # h w 4
  anchors = corners[:, :, None] + at_origin(sizes, ratios, whole)[None, None]
  return anchors.reshape(-1, 4).astype(np.float32)
