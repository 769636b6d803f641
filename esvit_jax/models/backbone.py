"""The contract of backbones.

Training, layer-wise learning rates, fine-tuning, analyses, pictures and weights
rely on what is defined here and on nothing else.
"""

from collections.abc import Mapping, Sequence
from typing import ClassVar, NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax import struct

# Side in pixels of the images for a backbone without an `image_size`.
IMAGE_SIZE = 224


class Features(NamedTuple):
  """The output of a backbone for one group of views.

  Attributes:
    view: pooled feature f[B, V, D].
    grid: region features after the final norm f[B, V, h, w, D].
    stages: map after each stage, before downsampling, f[B, V, h_i, w_i, C_i];
      the last is `grid` before the final norm.
    blocks: one pooled feature per block f[B, V, C_b]; published linear
      evaluations concatenate the last n of them.
  """

  view: jax.Array
  grid: jax.Array
  stages: tuple[jax.Array, ...]
  blocks: tuple[jax.Array, ...]


class Backbone(nn.Module, kw_only=True):
  """A linen module that turns views into features; a subclass is one family.

  Variables are in the collections 'params' and, with batch norm,
  'batch_stats', which is mutable in training. In training a backbone may draw
  from the rngs 'drop_path' and 'neighbour'. For analyses its blocks may sow
  'attention' into 'intermediates': f[B, V, heads, n, n] over all tokens of a
  view, its regions last and row by row, or `Windows`.

  Attributes:
    drop_path: rate at which the residual branch of the last block is dropped
      in training; it rises linearly from 0 at the first.
    init_scale: see `layers.linear_init`.
    dtype: of the computation; parameters are float32.
    remat: recompute blocks in the backward pass to save memory.
    image_size: side in pixels of the images that the weights are made for;
      None if any size will do. Usually a field of the subclass.
    DEBUG: fields of a network for images of 28 px that trains in seconds,
      used where a config says `model.debug`.
  """

  drop_path: float = 0.0
  init_scale: str = 'published'
  dtype: jnp.dtype = jnp.float32
  remat: bool = False

  image_size: ClassVar[int | None] = None
  DEBUG: ClassVar[Mapping] = {}

  def __post_init__(self):
    self.check()
    super().__post_init__()

  def check(self) -> None:
    """Raises UserError for fields that do not make a network."""

  @property
  def num_features(self) -> int:
    """Width D of the view and region features."""
    raise NotImplementedError

  @property
  def layer_ids(self) -> Mapping[str, int]:
    """Names at the top of `params` -> layer, for layer-wise learning rates.

    0 is what makes tokens, 1 to n are the blocks in order. Parameters that
    are not named come after the last block.
    """
    raise NotImplementedError

  def __call__(
    self, groups: Sequence[jax.Array], train: bool = False
  ) -> tuple[Features, ...]:
    """Returns Features for each group.

    Args:
      groups: normalised images f[B, V, H, W, channels], one array per size of
        view. Channels and the least size follow from the first call.
      train: use random paths and the batch's statistics.

    Raises:
      UserError: images that the network cannot take.
    """
    raise NotImplementedError


def features_of_groups(blocks, grids, stages) -> tuple[Features, ...]:
  """Features of each group of views; see `Features` for the shapes.

  Args:
    blocks: of each block, the pooled features of all groups.
    grids: the region features of all groups.
    stages: of each stage, the maps of all groups.
  """
  return tuple(
    Features(views[-1], grid, maps, views)
    for views, grid, maps in zip(zip(*blocks), grids, zip(*stages))
  )


@struct.dataclass
class Windows:
  """Attention in windows of a single view, as backbones sow it.

  Attributes:
    probs: f[B, W, heads, n, n]; the map is padded at the bottom and right to
      whole windows, rolled by -shift, and cut row by row.
    height, width: of the map in regions, without pads.
    window: side of a window in regions.
    shift: by which the windows are displaced.
  """

  probs: jax.Array
  height: int = struct.field(pytree_node=False)
  width: int = struct.field(pytree_node=False)
  window: int = struct.field(pytree_node=False)
  shift: int = struct.field(pytree_node=False)
