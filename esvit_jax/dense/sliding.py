"""Windows over an image larger than what a network is tested on."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np


def starts(length: int, crop: int, step: int) -> list[int]:
  """Where windows begin along a side; the last one ends at the border."""
  count = max(-(-(length - crop) // step), 0) + 1
  return [max(min(i * step, length - crop), 0) for i in range(count)]


def counts(length: int, crop: int, step: int) -> np.ndarray:
  """How many windows each place of a side lies in, i64[length]."""
  count = np.zeros(length, int)
  for start in starts(length, crop, step):
    count[start : start + crop] += 1
  return count


def mean_over_windows(
  predict: Callable, images: jax.Array, crop: int, step: int
) -> jax.Array:
  """Logits f32[B, H, W, C], the mean of those of all windows at each pixel.

  Args:
    predict: images f[B, crop, crop, channels] -> logits f[B, crop, crop, C].
    images: f[B, H, W, channels], no side under `crop`.
    crop: side of a window, pixels.
    step: between windows, at most `crop`.
  """
  B, H, W, _ = images.shape
  places = [
    (y, x) for y in starts(H, crop, step) for x in starts(W, crop, step)
  ]
  window = jax.eval_shape(predict, images[:, :crop, :crop])
  total = jnp.zeros((B, H, W, window.shape[-1]), jnp.float32)

  def add(total, place):
    y, x = place
    zero = jnp.zeros_like(y)
    part = jax.lax.dynamic_slice(
      images, (zero, y, x, zero), (B, crop, crop, images.shape[-1])
    )
    corner = (zero, y, x, zero)
    logits = predict(part).astype(jnp.float32)
    here = jax.lax.dynamic_slice(total, corner, logits.shape)
    return jax.lax.dynamic_update_slice(total, here + logits, corner), None

  total, _ = jax.lax.scan(add, total, jnp.array(places, jnp.int32))
  count = np.outer(counts(H, crop, step), counts(W, crop, step))
  return total / count[None, :, :, None].astype(np.float32)
