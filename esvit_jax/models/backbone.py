"""The contract between a backbone and all that takes one.

Training, layer-wise learning rates, fine-tuning, analyses, pictures and weights
ask a backbone for what stands here and for nothing else.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import jax
from flax import struct

# Where a network does not say which images it is made for, pixels.
IMAGE_SIZE = 224


class Features(NamedTuple):
  """What a backbone returns for one group of views.

  Attributes:
    view: pooled feature f[B, V, D].
    grid: region features after the final norm f[B, V, h, w, D].
    stages: map after each stage, before downsampling, f[B, V, h_i, w_i, C_i];
      the last is `grid` before the final norm.
    blocks: one pooled feature per block f[B, V, C_b]; the last n of them side
      by side are what published linear evaluations use.
  """

  view: jax.Array
  grid: jax.Array
  stages: tuple[jax.Array, ...]
  blocks: tuple[jax.Array, ...]


class Backbone(Protocol):
  """A linen module that turns views into features.

  Its variables are in the collections 'params' and, with batch norm,
  'batch_stats'. In train mode it may draw from the rngs 'drop_path' and
  'neighbour', and `batch_stats` is mutable. For analyses its blocks may sow
  'attention' into 'intermediates': f[B, V, heads, n, n] over all tokens of a
  view, its regions last and row by row, or `Windows`.

  Attributes:
    drop_path: rate at which residual branches are dropped in training; 0.0.
    init_scale: see `layers.linear_init`; 'published' by default.
    dtype: of the computation; parameters are float32.
    remat: recompute blocks in the backward pass to save memory; False.
    image_size: side in pixels of the images that the weights are made for;
      None if any size will do.
    DEBUG: fields of a network for images of 28 px that trains in seconds: a
      ClassVar, used where a config says `model.debug`.
    num_features: width D of the view and region features.
    layer_ids: names at the top of `params` -> layer, for layer-wise learning
      rates: 0 for what makes tokens, 1 to n for the blocks in order. What is
      not named comes after the last block.
  """

  drop_path: float
  init_scale: str
  dtype: Any
  remat: bool
  image_size: int | None
  DEBUG: Mapping[str, Any]

  @property
  def num_features(self) -> int: ...

  @property
  def layer_ids(self) -> Mapping[str, int]: ...

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


@struct.dataclass
class Windows:
  """What a backbone of windows sows as 'attention', of a single view.

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
