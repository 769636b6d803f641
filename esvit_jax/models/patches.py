"""Images cut into patches: checks, the cut, and its linear embedding."""

import math

import jax
import jax.numpy as jnp
from flax import linen as nn

from esvit_jax.errors import UserError
from esvit_jax.models.layers import Shape, torch_default_init, uniform_init


def check_images(
  groups, channels: int | None = None, patch: int = 1, least: int = 1
) -> None:
  """Raises UserError for images that a network cannot take.

  Args:
    groups: of images f[B, V, H, W, channels].
    channels: that the network was made for; None before it is made.
    patch: pixels that both sides must be multiples of.
    least: shortest side in pixels.
  """
  for x in groups:
    if x.ndim != 5:
      raise UserError(
        f'a group of images has shape {x.shape}: give '
        '[batch, views, height, width, channels]'
      )
    H, W, C = x.shape[2:]
    if H % patch or W % patch:
      near = f'{max(H // patch, 1) * patch}x{max(W // patch, 1) * patch}'
      raise UserError(
        f'images of {H}x{W} px do not split into patches of {patch} px: use '
        f'multiples of {patch}, such as {near}'
      )
    if min(H, W) < least:
      raise UserError(
        f'images of {H}x{W} px: this network takes {least} px or more'
      )
    if groups[0].shape[-1] != C:
      raise UserError(
        f'groups of images have {groups[0].shape[-1]} and {C} channels: they '
        'must agree'
      )
  if channels not in (None, groups[0].shape[-1]):
    raise UserError(
      f'images have {groups[0].shape[-1]} channels, the network was made for '
      f'{channels}: convert the images or start a new network'
    )


def patchify(images: jax.Array, patch: int) -> jax.Array:
  """Images f[..., H, W, C] -> patches f[..., h w, p p C], row by row.

  Inside a patch the order is (row, column, channel).
  """
  *axes, H, W, C = images.shape
  x = images.reshape(*axes, H // patch, patch, W // patch, patch, C)
  x = x.swapaxes(-4, -3)  # ... h w p p C
  return x.reshape(*axes, -1, patch * patch * C)


def unpatchify(patches, size: tuple[int, int], patch: int) -> jax.Array:
  """Patches f[B, L, P] of a grid `size` -> images; undoes `patchify`."""
  B, (h, w) = len(patches), size
  x = patches.reshape(B, h, w, patch, patch, -1).swapaxes(2, 3)  # B h p w p C
  return x.reshape(B, h * patch, w * patch, -1)


class PatchEmbed(nn.Module):
  """Images -> one token per patch: a stride-p convolution as one product."""

  dim: int
  patch: int
  dtype: jnp.dtype = jnp.float32
  init_scale: str = 'published'

  @nn.compact
  def __call__(self, groups) -> tuple[jax.Array, tuple[Shape, ...]]:
    """Returns tokens [B, T, dim] and the (V, h, w) of each group.

    Args:
      groups: images f[B, V, H, W, channels], one array per size.
    """
    made = self.has_variable('params', 'kernel')
    check_images(
      groups,
      self.get_variable('params', 'kernel').shape[2] if made else None,
      self.patch,
    )
    p, channels = self.patch, groups[0].shape[-1]
    fan_in = p * p * channels
    kernel_init, bias_init = patch_inits(self.init_scale, fan_in, self.dim)
    kernel = self.param('kernel', kernel_init, (p, p, channels, self.dim))
    bias = self.param('bias', bias_init, (self.dim,))
    patches, shapes = [], []
    for x in groups:
      B, V, H, W, _ = x.shape
      x = patchify(x.astype(self.dtype), p)  # B V h*w p*p*channels
      patches.append(x.reshape(B, -1, fan_in))
      shapes.append((V, H // p, W // p))
    kernel = kernel.reshape(fan_in, self.dim).astype(self.dtype)
    tokens = jnp.concatenate(patches, 1) @ kernel  # B T dim
    return tokens + bias.astype(self.dtype)[None, None], tuple(shapes)


def patch_inits(scale: str, fan_in: int, dim: int) -> tuple:
  """Initialisers of the kernel and bias; see `layers.linear_init`."""
  kernel = bias = torch_default_init(fan_in)
  if scale in ('mae', 'moco'):
    kernel = uniform_init(math.sqrt(6 / (fan_in + dim)))
  if scale == 'moco':
    bias = nn.initializers.zeros
  if scale == 'rpe':
    kernel = nn.initializers.normal(0.02)
  return kernel, bias
