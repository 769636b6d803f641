"""Maps to pixels and back: bilinear, never antialiased."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp

from esvit_jax.models.resize import bilinear


def side_by_side(maps: Sequence[jax.Array]) -> jax.Array:
  """Maps f[B, h_i, w_i, D_i] at the size of the first, channels joined."""
  size = maps[0].shape[1:3]
  return jnp.concatenate([bilinear(x, size) for x in maps], -1)


def onto_canvas(
  x: jax.Array, steps: jax.Array, canvas: tuple[int, int]
) -> jax.Array:
  """A map of `views.whole` -> values at each pixel of the canvas, bilinear.

  Args:
    x: f[B, h, w, C].
    steps: height and width of a pixel of the canvas, in views, f32[B, 2]; see
      `views.steps`.
    canvas: (height, width) in pixels.

  Returns:
    f32[B, H, W, C]; outside of an image it holds what lies there in the view.
  """
  _, h, w, _ = x.shape
  rows = jax.vmap(lambda step: weights(h, canvas[0], h * step))(steps[:, 0])
  columns = jax.vmap(lambda step: weights(w, canvas[1], w * step))(steps[:, 1])
  return jnp.einsum('byh,bhwc,bxw->byxc', rows, x, columns, precision='highest')


def classes_at_pixels(
  x: jax.Array, steps: jax.Array, canvas: tuple[int, int]
) -> jax.Array:
  """The largest channel of `onto_canvas` at each pixel, u8[B, H, W].

  One image after another, since a float for each class and pixel is much.
  """

  def of_one(image):
    x, step = image
    return onto_canvas(x[None], step[None], canvas)[0].argmax(-1)

  return jax.lax.map(of_one, (x, steps)).astype(jnp.uint8)


def nearest(labels: jax.Array, size: tuple[int, int]) -> jax.Array:
  """Resizes [H, W] to `size`: the pixel each middle falls into, as PIL's."""
  rows, columns = (
    jnp.minimum(((jnp.arange(made) + 0.5) * (n / made)).astype(int), n - 1)
    for n, made in zip(labels.shape, size)
  )
  return labels[rows[:, None], columns[None]]


def weights(n: int, out: int, step: jax.Array) -> jax.Array:
  """Linear interpolation of n samples at (i + 1/2) step - 1/2, f32[out, n]."""
  centre = jnp.clip((jnp.arange(out) + 0.5) * step - 0.5, 0, n - 1)
  distance = jnp.abs(centre[:, None] - jnp.arange(n)[None])
  return jnp.maximum(0, 1 - distance)
