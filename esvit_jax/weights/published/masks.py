"""Swin's `attn_mask`, a constant that upstream Swin stores with its weights.

Files of upstream Swin, and of code derived from it, have one for every block
with shifted windows. EsViT's code computes them for each map.
"""

import re
from collections.abc import Collection

import numpy as np

from esvit_jax.errors import UserError
from esvit_jax.models import Swin
from esvit_jax.models.window_attention import MASKED
from esvit_jax.models.windows import stage_window, window_parts
from esvit_jax.weights.published import families
from esvit_jax.weights.tables import Arrays

KEY = 'attn_mask'
_PATTERN = re.compile(r'layers\.(\d+)\.blocks\.(\d+)\.attn_mask')


def mask(side: int, window: int, shift: int) -> np.ndarray:
  """0 between tokens of a shifted window that are neighbours, else -100.

  Args:
    side: of the map, in tokens.
    window, shift: in tokens.

  Returns:
    f32[W, n, n] for W windows of n = window^2 tokens.
  """
  part = window_parts(((1, side, side),), window, shift)  # W n
  same = part[:, :, None] == part[:, None]
  return np.where(same, 0, MASKED).astype(np.float32)


def of(module: Swin) -> Arrays:
  """The masks of a network, by published key."""
  arrays, side = {}, module.image_size // module.patch
  for i, depth in enumerate(module.depths):
    window, shift = stage_window(
      module.image_size, module.patch, module.window, i
    )
    for j in range(1, depth, 2):
      if shift:
        arrays[f'layers.{i}.blocks.{j}.{KEY}'] = mask(side, window, shift)
    side = -(-side // 2)
  return arrays


def taken_out(arrays: Arrays) -> tuple[Arrays, set[str]]:
  """Checks and removes masks; returns the other arrays, and the masks' keys.

  Raises:
    UserError: a mask is not the one of its windows.
  """
  masked = {k: v for k, v in arrays.items() if _PATTERN.fullmatch(k)}
  for key, value in masked.items():
    windows, tokens = value.shape[0], value.shape[-1]
    window = round(tokens**0.5)
    side = round(windows**0.5) * window
    if value.shape != (windows, tokens, tokens) or not np.array_equal(
      value, mask(side, window, window // 2)
    ):
      raise UserError(f'{key} is not the mask of shifted windows')
  return {k: v for k, v in arrays.items() if k not in masked}, {*masked}


def check(keys: Collection[str], module: Swin) -> None:
  """Raises OpenError if these are not the masks of `module`."""
  if set(keys) != of(module).keys():
    raise families.ask(
      f'it has {len(keys)} {KEY}, not the {len(of(module))} of '
      f'{module.image_size} px images',
      'image_size',
    )
