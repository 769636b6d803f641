"""Layers and initialisers that backbones share, and packing of groups.

Axes: B images, V views of a group, h w a map, T tokens of all groups, C
channels. Groups of views may differ in size; layers that act on single tokens
run on all groups at once, packed as [B, T, C]. Groups are concatenated along
axis 1, never along axis 0, which is split over devices.
"""

import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from esvit_jax.errors import UserError

# The shape of one group between batch and channels: views, then tokens (V h w
# of a map, or V n of a sequence).
Shape = tuple[int, ...]


def pack(groups: Sequence[jax.Array]) -> jax.Array:
  """Groups [B, *shape, C] -> tokens [B, T, C]."""
  return jnp.concatenate(
    [x.reshape(x.shape[0], -1, x.shape[-1]) for x in groups], 1
  )


def unpack(tokens: jax.Array, shapes: Sequence[Shape]) -> list[jax.Array]:
  """Tokens [B, T, C] -> groups [B, *shape, C]; undoes `pack`."""
  B, _, C = tokens.shape
  ends = np.cumsum([math.prod(s) for s in shapes])[:-1]
  parts = jnp.split(tokens, ends, 1)
  return [x.reshape(B, *s, C) for x, s in zip(parts, shapes)]


def layer_norm(name: str, dtype=jnp.float32, eps=1e-6) -> nn.LayerNorm:
  """LayerNorm, by default with the eps of Swin and ViT as EsViT trains them."""
  # The two-pass variance is as fast, since memory is the bottleneck, and more
  # accurate than E[x^2] - E[x]^2.
  return nn.LayerNorm(eps, dtype=dtype, use_fast_variance=False, name=name)


def linear_init(
  scale: str, parts: int = 1, depth: int = 0
) -> nn.initializers.Initializer:
  """Weights of linear layers.

  Args:
    scale: 'published' (std 0.02; the published truncation at +-2 is a hundred
      deviations away); 'fan_in' (std 1/sqrt(fan in), for networks too narrow
      for 0.02); 'mae' (Xavier uniform); 'moco' (the same for each part of a
      layer); 'rpe' (0.02, smaller in the last layers of deep blocks).
    parts: number of concatenated matrices: 3 for queries, keys and values.
    depth: number, from 1, of the block whose last layer this is; 0 otherwise.
  """
  if scale == 'published':
    return nn.initializers.normal(0.02)
  if scale == 'fan_in':
    return nn.initializers.variance_scaling(1.0, 'fan_in', 'normal')
  if scale == 'mae':
    return nn.initializers.xavier_uniform()
  if scale == 'moco':
    return lambda key, shape, dtype=jnp.float32: uniform_init(
      math.sqrt(6 / (shape[0] + shape[1] / parts))
    )(key, shape, dtype)
  if scale == 'rpe':
    return nn.initializers.normal(0.02 / math.sqrt(max(2 * depth, 1)))
  raise UserError(
    f"init_scale is '{scale}': use 'published' or 'fan_in' in the model "
    "config, or 'mae', 'moco' or 'rpe' for ViTs"
  )


def check_heads(dim: int, heads: int, fields: str) -> None:
  """Raises UserError, which names the `fields`, unless heads divide `dim`."""
  if heads < 1 or dim % heads:
    raise UserError(
      f'{dim} channels do not split into {heads} heads: change {fields}'
    )


def l2_normalize(x: jax.Array, eps: float = 1e-12) -> jax.Array:
  """x / max(|x|, eps) along the last axis; its gradient is finite at 0."""
  square = (x * x).sum(-1, keepdims=True)
  return x * jax.lax.rsqrt(jnp.maximum(square, eps**2))


def torch_default_init(fan_in: int) -> nn.initializers.Initializer:
  """U(-a, a) with a = 1/sqrt(fan in): PyTorch's default, weight and bias."""
  return uniform_init(1 / math.sqrt(fan_in))


def uniform_init(bound: float) -> nn.initializers.Initializer:
  """U(-bound, bound)."""

  def init(key, shape, dtype=jnp.float32):
    return jax.random.uniform(key, shape, dtype, -bound, bound)

  return init


@jax.custom_vjp
def gelu(x: jax.Array) -> jax.Array:
  """x Phi(x), exactly (1606.08415); keeps x alone for the backward pass.

  Phi is of erf, as in PyTorch: erfc, of which jax.nn.gelu is made, costs twice
  as much on a CPU, for digits where the value vanishes.
  """
  y = x.astype(jnp.float32)
  return (y * _normal_cdf(y)).astype(x.dtype)


def _normal_cdf(x):
  return 0.5 * (1 + jax.lax.erf(x * np.float32(np.sqrt(0.5))))


def _gelu_backward(x, upstream):
  y = x.astype(jnp.float32)
  density = jnp.exp(-0.5 * y * y) * np.float32(1 / np.sqrt(2 * np.pi))
  slope = _normal_cdf(y) + y * density
  return ((upstream.astype(jnp.float32) * slope).astype(x.dtype),)


gelu.defvjp(lambda x: (gelu(x), x), _gelu_backward)


class DropPath(nn.Module):
  """Drops a residual branch in random views (stochastic depth, 1603.09382).

  Views of an image are dropped independently; kept ones are scaled by 1/keep.
  """

  rate: float

  @nn.compact
  def __call__(self, tokens, shapes: Sequence[Shape], train: bool):
    if not train or self.rate == 0:
      return tokens
    owner = np.repeat(
      np.arange(sum(s[0] for s in shapes)),
      [math.prod(s[1:]) for s in shapes for _ in range(s[0])],
    )  # T: the view a token belongs to
    keep = 1 - self.rate
    kept = jax.random.bernoulli(
      self.make_rng('drop_path'), keep, (len(tokens), owner[-1] + 1)
    )
    scale = (kept / keep).astype(tokens.dtype)[:, owner]  # B T
    # Looked up once for a token, not again for each of its channels.
    return tokens * jax.lax.optimization_barrier(scale)[..., None]


class Mlp(nn.Module):
  """Two linear layers with the exact (erf) GELU between them."""

  hidden: int
  init_scale: str = 'published'
  dtype: jnp.dtype = jnp.float32
  depth: int = 0  # see `linear_init`

  @nn.compact
  def __call__(self, x):
    first = linear_init(self.init_scale)
    last = linear_init(self.init_scale, depth=self.depth)
    y = nn.Dense(self.hidden, kernel_init=first, dtype=self.dtype, name='fc1')(
      x
    )
    y = gelu(y)
    return nn.Dense(
      x.shape[-1], kernel_init=last, dtype=self.dtype, name='fc2'
    )(y)


class BatchNorm(nn.Module):
  """Batch norm like PyTorch's, over all axes but the last.

  Under jit on a mesh the statistics are those of the global batch. The running
  variance is unbiased, unlike that of flax's BatchNorm.
  """

  affine: bool = True
  momentum: float = 0.9
  eps: float = 1e-5
  dtype: jnp.dtype = jnp.float32

  @nn.compact
  def __call__(self, x, train: bool):
    C = x.shape[-1]
    running_mean = self.variable('batch_stats', 'mean', jnp.zeros, (C,))
    running_var = self.variable('batch_stats', 'var', jnp.ones, (C,))
    mean, var = running_mean.value, running_var.value
    y = x.astype(jnp.float32)
    if train:
      axes = tuple(range(x.ndim - 1))
      mean, var = y.mean(axes), y.var(axes)
      if not self.is_initializing():
        n, m = x.size // C, self.momentum
        unbiased = var * (n / max(n - 1, 1))
        running_mean.value = m * running_mean.value + (1 - m) * mean
        running_var.value = m * running_var.value + (1 - m) * unbiased
    row = (None,) * (x.ndim - 1)
    y = (y - mean[row]) * jax.lax.rsqrt(var + self.eps)[row]
    if self.affine:
      y *= self.param('scale', nn.initializers.ones, (C,))[row]
      y += self.param('bias', nn.initializers.zeros, (C,))[row]
    return y.astype(self.dtype)
