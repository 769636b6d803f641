"""Arrays cut into chunks of one size."""

import jax
import jax.numpy as jnp


def even(size: int, chunk: int) -> tuple[int, int]:
  """Number and length of equal chunks of about `chunk`.

  A length that divides `size` is taken where there is one near: nothing has
  to be filled up then.
  """
  near = [
    c
    for c in range(1, size + 1)
    if size % c == 0 and chunk / 2 <= c <= 1.5 * chunk
  ]
  if near:
    c = min(near, key=lambda c: abs(c - chunk))
    return size // c, c
  n = -(-size // chunk)
  return n, -(-size // n)


def cut(tree, chunk: int):
  """Arrays [size, ...] -> [n, c, ...], filled up with zeros."""
  n, c = even(jax.tree.leaves(tree)[0].shape[0], chunk)

  def split(x):
    missing = n * c - x.shape[0]
    if missing:
      x = jnp.pad(x, [(0, missing)] + [(0, 0)] * (x.ndim - 1))
    return x.reshape(n, c, *x.shape[1:])

  return jax.tree.map(split, tree)
