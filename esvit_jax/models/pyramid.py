"""Pyramids: maps of one width at strides that double, from a backbone's.

Maps are f[B, h, w, C]. Also the pieces that heads over maps share.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from flax import linen as nn

from esvit_jax.models.layers import torch_default_init


class Deconv(nn.Module):
  """A transposed convolution 2x2 of stride 2, as one product."""

  features: int
  dtype: jnp.dtype = jnp.float32

  @nn.compact
  def __call__(self, x):
    init = torch_default_init(4 * self.features)
    shape = (2, 2, x.shape[-1], self.features)
    kernel = self.param('kernel', init, shape).astype(self.dtype)
    bias = self.param('bias', init, (self.features,)).astype(self.dtype)
    y = jnp.einsum('Bhwc,abcd->Bhawbd', x.astype(self.dtype), kernel)
    B, h, _, w, _, _ = y.shape
    return y.reshape(B, 2 * h, 2 * w, -1) + bias[None, None, None]


class NormedConv(nn.Module):
  """A convolution without bias, then a norm of each pixel's channels."""

  features: int
  kernel: int
  dtype: jnp.dtype = jnp.float32

  @nn.compact
  def __call__(self, x):
    size = (self.kernel, self.kernel)
    init = torch_default_init(self.kernel**2 * x.shape[-1])
    x = nn.Conv(
      self.features,
      size,
      use_bias=False,
      kernel_init=init,
      dtype=self.dtype,
      name='conv',
    )(x)
    return channel_norm('norm', self.dtype)(x)


def channel_norm(name: str, dtype=jnp.float32, eps: float = 1e-6):
  """LayerNorm over the channels of each pixel."""
  return nn.LayerNorm(eps, dtype=dtype, use_fast_variance=False, name=name)


def nearest(x: jax.Array, size: tuple[int, int]) -> jax.Array:
  """Resizes f[B, h, w, C] to `size` as PyTorch's 'nearest'."""
  rows, columns = (
    jnp.arange(new) * old // new for new, old in zip(size, x.shape[1:3])
  )
  return x[:, rows[:, None], columns[None]]


def coarser(x: jax.Array) -> jax.Array:
  """Every second pixel, p6 of p5."""
  return x[:, ::2, ::2]


class FeaturePyramid(nn.Module):
  """FPN (1612.03144): laterals, added from the coarsest down, smoothed.

  Attributes:
    width: channels of all maps.
    norm: whether each map is normed first, as Swin's are.
    extra: maps beyond the coarsest, each every second pixel of the last.
    dtype: of the computation.
  """

  width: int = 256
  norm: bool = False
  extra: int = 1
  dtype: jnp.dtype = jnp.float32

  @nn.compact
  def __call__(
    self, maps: Sequence[jax.Array], train: bool = False
  ) -> tuple[jax.Array, ...]:
    """Maps f[B, h_l, w_l, C_l], the finest first -> maps of `width`."""

    def conv(name, size):
      return nn.Conv(
        self.width,
        (size, size),
        kernel_init=nn.initializers.xavier_uniform(),
        dtype=self.dtype,
        name=name,
      )

    laterals = []
    for i, x in enumerate(maps):
      if self.norm:
        x = channel_norm(f'norm{i}', self.dtype, eps=1e-5)(x)
      laterals.append(conv(f'lateral{i}', 1)(x))
    for i in reversed(range(len(maps) - 1)):
      # By size, for odd maps are no half of the finer one.
      laterals[i] += nearest(laterals[i + 1], laterals[i].shape[1:3])
    out = [conv(f'output{i}', 3)(x) for i, x in enumerate(laterals)]
    for _ in range(self.extra):
      out.append(coarser(out[-1]))
    return tuple(out)


class SimplePyramid(nn.Module):
  """ViTDet's (2203.16527): four maps from the last one of a plain ViT.

  Their strides are 1/4, 1/2, 1 and 2 times its own.

  Attributes:
    width, extra, dtype: see FeaturePyramid.
  """

  width: int = 256
  extra: int = 1
  dtype: jnp.dtype = jnp.float32

  @nn.compact
  def __call__(
    self, maps: Sequence[jax.Array], train: bool = False
  ) -> tuple[jax.Array, ...]:
    """Maps f[B, h, w, D], of which the last is used -> maps of `width`."""
    x = maps[-1]
    D, dtype = x.shape[-1], self.dtype
    half = Deconv(D // 2, dtype, name='up4_first')(x)
    half = channel_norm('up4_norm', dtype)(half)
    half = nn.gelu(half, approximate=False)
    scaled = (
      Deconv(D // 4, dtype, name='up4_second')(half),
      Deconv(D // 2, dtype, name='up2')(x),
      x,
      nn.max_pool(x, (2, 2), (2, 2)),
    )
    out = []
    for i, x in enumerate(scaled):
      x = NormedConv(self.width, 1, dtype, name=f'lateral{i}')(x)
      out.append(NormedConv(self.width, 3, dtype, name=f'output{i}')(x))
    for _ in range(self.extra):
      out.append(coarser(out[-1]))
    return tuple(out)
