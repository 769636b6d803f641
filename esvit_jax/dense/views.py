"""What a network sees when every pixel counts: the whole image."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp

from esvit_jax.augment import crops


def whole(
  images: jax.Array,
  sizes: jax.Array,
  size: int,
  mean: Sequence[float],
  std: Sequence[float],
) -> jax.Array:
  """Each image, resized so that its longer side fills the view.

  Antialiased bicubic, as `evals.center_view`. The rest of the view, right or
  below, is zero: the mean.

  Args:
    images: u8[B, H, W, C], valid pixels top left.
    sizes: valid height and width, i32[B, 2].
    size: side of the view, pixels.
    mean: per channel, of pixels in 0..1.
    std: per channel.

  Returns:
    f32[B, size, size, C]
  """
  _, H, W, _ = images.shape
  sizes = jnp.maximum(sizes, 1)  # padding rows of a batch have size 0
  shown = shown_size(sizes, size)
  mean, std = (jnp.asarray(x)[:, None, None] for x in (mean, std))

  def view(image, hw, shown):
    rows, columns = (
      crops.sampling_matrix(jnp.int32(0), hw[i], size, n, made=shown[i])
      for i, n in enumerate((H, W))
    )
    planes = jnp.moveaxis(image.astype(jnp.float32), -1, 0)
    pixels = (crops.separable(planes, rows, columns) / 255 - mean) / std
    inside = jnp.arange(size)[None] < shown[:, None]
    pixels *= (inside[0][:, None] & inside[1][None])[None]
    return jnp.moveaxis(pixels, 0, -1)

  return jax.vmap(view)(images, sizes, shown)


def steps(sizes: jax.Array, size: int) -> jax.Array:
  """Height and width of a pixel of the canvas, as shares of the view's sides.

  Args:
    sizes: valid height and width of images, i32[B, 2].
    size: side of the view, pixels.

  Returns:
    f32[B, 2]
  """
  sizes = jnp.maximum(sizes, 1)
  return shown_size(sizes, size) / (sizes * size)


def shown_size(sizes: jax.Array, size: int) -> jax.Array:
  """Height and width i32[B, 2] that images have in their views."""
  longest = sizes.max(1, keepdims=True)
  return jnp.maximum((2 * size * sizes + longest) // (2 * longest), 1)
