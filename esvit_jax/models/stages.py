"""Backbones of several stages: checks of sizes, and layers of parameters."""

from collections.abc import Sequence

from esvit_jax.errors import UserError
from esvit_jax.models.layers import check_heads

# Sizes for images of 28 px.
DEBUG = {'dims': (16, 32), 'depths': (1, 2), 'heads': (1, 2), 'image_size': 28}


def check_stages(
  dims: Sequence[int], depths: Sequence[int], heads: Sequence[int]
) -> None:
  """Raises UserError unless every stage has valid sizes."""
  if not len(dims) == len(depths) == len(heads) > 0:
    raise UserError(
      f'dims {dims}, depths {depths} and heads {heads} of the model need one '
      'entry per stage each'
    )
  for dim, count in zip(dims, heads):
    check_heads(dim, count, 'dims or heads of the model')
  if min(depths) < 1:
    raise UserError(f'depths of the model is {depths}: use 1 or more')


def stage_layer_ids(
  depths: Sequence[int], stem: Sequence[str], between: Sequence[str] = ()
) -> dict[str, int]:
  """`Backbone.layer_ids` if blocks are called stage0_block0 and so on.

  Args:
    depths: number of blocks of each stage.
    stem: names of the modules that make tokens.
    between: names of modules between stages, if any; they belong to the block
      after them.
  """
  ids = dict.fromkeys(stem, 0)
  block = 0
  for i, depth in enumerate(depths):
    if i and between:
      ids[between[i - 1]] = block + 1
    for j in range(depth):
      block += 1
      ids[f'stage{i}_block{j}'] = block
  return ids
