"""ResNet with bottlenecks (arXiv 1512.03385), torchvision's v1.5.

As published, each group of views is a forward pass of its own, with its own
batch statistics; running statistics are updated once for each group, in order.

Axes: B images, V views of a group, h w a map, C channels.
"""

from typing import ClassVar

import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from esvit_jax.errors import UserError
from esvit_jax.models.backbone import Backbone, Features, features_of_groups
from esvit_jax.models.convolutions import Pointwise, channels_of, drop_path
from esvit_jax.models.layers import BatchNorm, linear_init
from esvit_jax.models.patches import check_images
from esvit_jax.models.stages import stage_layer_ids

EXPANSION = 4  # channels of a bottleneck's output over those inside

# name -> fields, as `models.BACKBONES` lists them
SIZES = {'resnet50': {'depths': (3, 4, 6, 3)}}


class ResNet(Backbone, kw_only=True):
  """ResNet of any depths: (3, 4, 6, 3) is ResNet-50.

  Regions are the last map, after its ReLU; there is no final norm.

  Attributes:
    depths: bottlenecks of each stage.
    width: channels inside the first stage's bottlenecks; they double with
      each stage.
    image_size: side in pixels of the images it is made for. Nothing depends on
      it.
    init_scale: 'published' is Kaiming's, normal by fan out, for ReLU.
  """

  depths: tuple[int, ...]
  width: int = 64
  image_size: int = 224

  DEBUG: ClassVar = {'depths': (1, 1), 'width': 8, 'image_size': 28}

  def check(self):
    if not self.depths or min(self.depths) < 1 or self.width < 1:
      raise UserError(
        f'depths {self.depths} and width {self.width} of the model: use 1 or '
        'more bottlenecks in each stage, of 1 or more channels'
      )

  @property
  def num_features(self) -> int:
    return EXPANSION * self.width * 2 ** (len(self.depths) - 1)

  @property
  def layer_ids(self) -> dict[str, int]:
    return stage_layer_ids(self.depths, ('stem', 'stem_norm'))

  @nn.compact
  def __call__(self, groups, train: bool = False) -> tuple[Features, ...]:
    """Returns Features for each group; see `Backbone`.

    `blocks` holds the mean of the map after each bottleneck.
    """
    check_images(groups, channels_of(self, 'stem'))
    block_type = nn.remat(Block, static_argnums=(2,)) if self.remat else Block
    rates = iter(np.linspace(0, self.drop_path, sum(self.depths)))
    blocks, stages = [], []

    shared = (self.init_scale, self.dtype)
    conv = _conv(self.width, 7, 2, *shared, 'stem')
    norm = BatchNorm(dtype=self.dtype, name='stem_norm')
    maps = [nn.relu(norm(conv(x), train)) for x in groups]
    maps = [
      nn.max_pool(x, (1, 3, 3), (1, 2, 2), ((0, 0), (1, 1), (1, 1)))
      for x in maps
    ]
    for i, depth in enumerate(self.depths):
      for j in range(depth):
        block = block_type(
          self.width * 2**i,
          2 if i > 0 and j == 0 else 1,
          float(next(rates)),
          *shared,
          name=f'stage{i}_block{j}',
        )
        maps = [block(x, train) for x in maps]
        blocks.append([x.mean((2, 3), jnp.float32) for x in maps])
      stages.append(maps)
    grids = [x.astype(jnp.float32) for x in maps]  # compared by cosine
    return features_of_groups(blocks, grids, stages)


class Block(nn.Module):
  """relu(x + bottleneck(x)); x is projected where the shape changes.

  v1.5: the 3x3 convolution strides, not the 1x1 before it.
  """

  width: int
  stride: int
  drop_path: float
  init_scale: str
  dtype: jnp.dtype

  @nn.compact
  def __call__(self, x, train: bool):
    C, s = EXPANSION * self.width, self.stride
    shared = (self.init_scale, self.dtype)
    y = _pointwise(self.width, *shared, 'conv1')(x)
    y = nn.relu(BatchNorm(dtype=self.dtype, name='norm1')(y, train))
    y = _conv(self.width, 3, s, *shared, 'conv2')(y)
    y = nn.relu(BatchNorm(dtype=self.dtype, name='norm2')(y, train))
    y = _pointwise(C, *shared, 'conv3')(y)
    y = BatchNorm(dtype=self.dtype, name='norm3')(y, train)
    y = drop_path(self.drop_path, y, train)
    if s > 1 or x.shape[-1] != C:
      x = _pointwise(C, *shared, 'skip')(x[:, :, ::s, ::s])
      x = BatchNorm(dtype=self.dtype, name='skip_norm')(x, train)
    return nn.relu(x + y)


def _conv(
  width: int, kernel: int, stride: int, init_scale: str, dtype, name: str
) -> nn.Conv:
  return nn.Conv(
    width,
    (kernel, kernel),
    stride,
    kernel // 2,
    use_bias=False,
    kernel_init=_init(init_scale),
    dtype=dtype,
    name=name,
  )


def _pointwise(width: int, init_scale: str, dtype, name: str) -> Pointwise:
  init = _init(init_scale)
  return Pointwise(width, init, use_bias=False, dtype=dtype, name=name)


def _init(scale: str) -> nn.initializers.Initializer:
  if scale == 'published':
    return nn.initializers.variance_scaling(2.0, 'fan_out', 'normal')
  return linear_init(scale)
