"""Heads of MoCo-v3 and SiT: projectors, and the reconstruction of pixels."""

import math

import jax
import jax.numpy as jnp
from flax import linen as nn

from esvit_jax.errors import UserError
from esvit_jax.models.layers import (
  BatchNorm,
  linear_init,
  torch_default_init,
)

ACTIVATIONS = {
  'relu': nn.relu,
  'gelu': lambda x: nn.gelu(x, approximate=False),
}


class Projector(nn.Module):
  """Linear layers, each with batch norm; the last norm has no gain.

  Attributes:
    hidden, out_dim: widths of the hidden layers and of the output.
    activations: 'relu' or 'gelu' for each hidden layer. MoCo-v3 has two of
      'relu', and one in its predictor; SiT, as published, 'relu' and 'gelu'.
    use_bias: whether linear layers have biases, which batch norm cancels.
    init_scale: see `layers.linear_init`; or 'torch' for PyTorch's default.
    dtype: of the products.
  """

  hidden: int = 4096
  out_dim: int = 256
  activations: tuple[str, ...] = ('relu', 'relu')
  use_bias: bool = False
  init_scale: str = 'torch'
  dtype: jnp.dtype = jnp.float32

  @nn.compact
  def __call__(self, x, train: bool = False) -> jax.Array:
    """Features f[..., D] -> projections f32[..., out_dim], not normalised.

    Args:
      x: features; batch statistics are over all axes but the last.
      train: batch norm uses (and keeps track of) the batch's statistics.
    """
    for i in range(len(self.activations) + 1):
      last = i == len(self.activations)
      init = torch_default_init(x.shape[-1])
      if self.init_scale != 'torch':
        init = linear_init(self.init_scale)
      x = nn.Dense(
        self.out_dim if last else self.hidden,
        use_bias=self.use_bias,
        kernel_init=init,
        dtype=self.dtype,
        name=f'fc{i}',
      )(x)
      dtype = jnp.float32 if last else self.dtype
      x = BatchNorm(affine=not last, dtype=dtype, name=f'norm{i}')(x, train)
      if not last:
        x = ACTIVATIONS[self.activations[i]](x)
    return x


class ReconstructionHead(nn.Module):
  """SiT's head: predicts the pixels of each region from its feature.

  Three linear layers with GELU, then a transposed convolution of stride p:
  out[p i + a, p j + b] = x[i, j] . kernel[a, b] + bias.

  Attributes:
    channels: of the images.
    patch: stride p of regions in pixels.
    init_scale: see `layers.linear_init`.
    dtype: of the products.
  """

  channels: int = 3
  patch: int = 16
  init_scale: str = 'published'
  dtype: jnp.dtype = jnp.float32

  @nn.compact
  def __call__(self, grid) -> jax.Array:
    """Regions f[B, V, h, w, D] -> images f32[B, V, p h, p w, channels]."""
    B, V, h, w, D = grid.shape
    p, C, x = self.patch, self.channels, grid
    for i in range(3):
      init = linear_init(self.init_scale)
      x = nn.Dense(D, kernel_init=init, dtype=self.dtype, name=f'fc{i}')(x)
      x = nn.gelu(x, approximate=False)
    # PyTorch's default, with its fan-in for this layer.
    init = torch_default_init(p * p * C)
    kernel = self.param('kernel', init, (D, p, p, C))
    bias = self.param('bias', init, (C,))
    x = jnp.einsum(
      'BVijd,dabc->BViajbc',
      x,
      kernel.astype(self.dtype),
      preferred_element_type=jnp.float32,
    )
    x = x.reshape(B, V, h * p, w * p, C)
    return x + bias[None, None, None, None]


def stride(backbone: nn.Module, size: tuple[int, int], channels: int) -> int:
  """Stride of a backbone's regions in pixels.

  Args:
    backbone: any.
    size: height and width of the images, pixels.
    channels: of the images.

  Raises:
    UserError: regions do not tile the images.
  """
  image = jax.ShapeDtypeStruct((1, 1, *size, channels), jnp.float32)
  (features,), _ = jax.eval_shape(
    lambda key, x: backbone.init_with_output(key, (x,)),
    jax.random.key(0),
    image,
  )
  (height, width), (h, w) = size, features.grid.shape[2:4]
  step = math.ceil(height / h)
  if (step * h, step * w) != (height, width):
    raise UserError(
      f'images of {height}x{width} px give {h}x{w} regions, which do not tile '
      f'them: take {step * h}x{step * w} px, or another backbone'
    )
  return step
