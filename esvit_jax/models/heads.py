"""DINO's projection head: an MLP onto a sphere, and prototypes on it."""

import jax
import jax.numpy as jnp
from flax import linen as nn

from esvit_jax.errors import UserError
from esvit_jax.models.layers import (
  BatchNorm,
  gelu,
  l2_normalize,
  linear_init,
  torch_default_init,
)


class DINOHead(nn.Module):
  """Projects features; logits are `u @ prototypes.T`, computed by the loss.

  Attributes:
    out_dim: number of prototypes K.
    hidden, bottleneck: widths of the MLP and of its output P.
    layers: linear layers of the MLP, at least 2.
    norm_last_layer: keep the prototypes' lengths g at 1 (no gradient).
    use_bn: batch norm after each hidden layer.
    init_scale: see `layers.linear_init`.
    dtype: of the MLP; both outputs are float32.
  """

  out_dim: int
  hidden: int = 2048
  bottleneck: int = 256
  layers: int = 3
  norm_last_layer: bool = True
  use_bn: bool = False
  init_scale: str = 'published'
  dtype: jnp.dtype = jnp.float32

  def __post_init__(self):
    if self.layers < 2:
      raise UserError(f'layers is {self.layers} in the head: use 2 or more')
    super().__post_init__()

  @nn.compact
  def __call__(self, x, train: bool = False) -> tuple[jax.Array, jax.Array]:
    """Returns unit vectors u f[..., P] and prototypes f[K, P].

    Args:
      x: features f[..., D].
      train: batch norm uses (and keeps track of) the batch's statistics.
    """
    init = linear_init(self.init_scale)
    for i in range(self.layers):
      last = i == self.layers - 1
      width = self.bottleneck if last else self.hidden
      x = nn.Dense(width, kernel_init=init, dtype=self.dtype, name=f'fc{i}')(x)
      if last:
        break
      if self.use_bn:
        x = BatchNorm(dtype=self.dtype, name=f'norm{i}')(x, train)
      x = gelu(x)
    prototypes = Prototypes(
      self.out_dim, self.bottleneck, self.norm_last_layer, name='last_layer'
    )()
    return l2_normalize(x.astype(jnp.float32)), prototypes


class Prototypes(nn.Module):
  """Weight-normalised rows g v / |v| (arXiv 1602.07868)."""

  count: int
  dim: int
  fixed_length: bool

  @nn.compact
  def __call__(self) -> jax.Array:
    # As published, v keeps PyTorch's default initialisation, because it is
    # created after the others are initialised.
    v = self.param('v', torch_default_init(self.dim), (self.count, self.dim))
    g = self.param('g', nn.initializers.ones, (self.count, 1))
    if self.fixed_length:
      g = jax.lax.stop_gradient(g)
    return v * (g / jnp.linalg.norm(v, axis=-1, keepdims=True))
