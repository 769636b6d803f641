"""Layers that convolutional backbones share.

Maps are [B, V, h, w, C]: B images, V views of a group. Each group is a forward
pass of its own, because it has its own batch statistics.
"""

import jax.numpy as jnp
from flax import linen as nn

from esvit_jax.models.layers import DropPath, pack, unpack


class Pointwise(nn.Module):
  """A 1x1 convolution, computed as a matrix product."""

  features: int
  kernel_init: nn.initializers.Initializer
  use_bias: bool = True
  dtype: jnp.dtype = jnp.float32

  @nn.compact
  def __call__(self, x):
    shape = (1, 1, x.shape[-1], self.features)
    kernel = self.param('kernel', self.kernel_init, shape)
    y = x.astype(self.dtype) @ kernel[0, 0].astype(self.dtype)
    if self.use_bias:
      bias = self.param('bias', nn.initializers.zeros, (self.features,))
      y += bias.astype(self.dtype)[(None,) * (x.ndim - 1)]
    return y


def drop_path(rate: float, x, train: bool):
  """`DropPath` of maps [B, V, h, w, C]; for use in compact modules."""
  shapes = (x.shape[1:-1],)
  return unpack(DropPath(rate)(pack([x]), shapes, train), shapes)[0]


def channels_of(module: nn.Module, *path: str) -> int | None:
  """Input channels of the convolution at `path`; None before it is made."""
  if not module.has_variable('params', path[0]):
    return None
  layer = module.get_variable('params', path[0])
  for name in path[1:]:
    layer = layer[name]
  return layer['kernel'].shape[2]
