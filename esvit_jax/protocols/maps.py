"""Maps of a network over whole images, and of two that have learned nothing.

For tasks in which every pixel counts. The last map is taken after the
network's final norm, as published evaluations take it, the others before any.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from esvit_jax import models, sharding
from esvit_jax.dense import resize
from esvit_jax.errors import UserError
from esvit_jax.models.layers import l2_normalize
from esvit_jax.protocols.setup import Setup
from esvit_jax.weights import networks as networks_lib

PRE_TRAINED = 'pre-trained'
RANDOM = 'random init'
RAW = 'raw patches'
ALL = 'all'  # maps side by side
# A raw patch of more numbers stands beside no map: 768 are 16 x 16 x 3.
_LONGEST_PATCH = 1024


class Network(NamedTuple):
  """What gives maps.

  Attributes:
    variables: on every device.
    maps: (variables, images f32[B, size, size, C]) -> maps f32[B, h, w, D],
      the finest first.
  """

  variables: Any
  maps: Callable


def networks(setup: Setup, size: tuple[int, int]) -> dict[str, Network]:
  """The network, the same before it learned, and patches of pixels.

  Args:
    setup: whose network.
    size: height and width of the images.

  Returns:
    Name -> network, those of `networks` in the config if it names some.

  Raises:
    UserError: a map's tokens are not whole pixels at this size.
  """
  whole = sharding.replicated(setup.mesh)
  channels = setup.weights.about['channels']
  module = setup.backbone
  forward = networks_lib.forward(module)

  def maps(variables, images):
    features = forward(variables, images)
    return (*features.stages[:-1], features.grid)

  trained = setup.variables
  fresh = models.initial(module, channels)
  fresh = fresh(jax.random.key(setup.config.seed))
  fresh = {k: v for k, v in fresh.items() if k in trained}
  images = jax.ShapeDtypeStruct((1, *size, channels), jnp.float32)
  patches = [
    _patch(size, x.shape[1:3]) for x in jax.eval_shape(maps, trained, images)
  ]
  chosen = setup.config.networks
  raw = [p for p in patches if p[0] * p[1] * channels <= _LONGEST_PATCH]
  found = {
    PRE_TRAINED: Network(jax.device_put(trained, whole), maps),
    RANDOM: Network(jax.device_put(fresh, whole), maps),
  }
  if raw:
    found[RAW] = Network(
      {}, lambda _, images: tuple(_patches(images, p) for p in raw)
    )
  for name in chosen:
    if name not in (PRE_TRAINED, RANDOM, RAW):
      raise UserError(
        f"config.networks names '{name}': use {PRE_TRAINED}, {RANDOM}, {RAW}"
      )
  return {
    k: v
    for k, v in found.items()
    if k == PRE_TRAINED or not chosen or k in chosen
  }


def named(maps, images_height: int) -> dict[str, tuple]:
  """'4 px' and so on -> that map alone; ALL -> all of several."""
  single = {f'{images_height // x.shape[1]} px': (x,) for x in maps}
  return single | ({ALL: tuple(maps)} if len(maps) > 1 else {})


def by_network(rows: list[dict]) -> dict:
  """Rows of a table as network -> features -> figures."""
  found = {}
  for row in rows:
    figures = {k: v for k, v in row.items() if isinstance(v, float)}
    found.setdefault(row['network'], {})[row['features']] = figures
  return found


def unit(maps) -> jax.Array:
  """Maps side by side, each token of each of unit length: f32[B, h, w, D].

  So the cosine of two tokens is the mean of their cosines in each map.
  """
  return l2_normalize(resize.side_by_side([l2_normalize(x) for x in maps]))


def replicated_by(setup: Setup) -> Callable:
  """Decorates functions: jitted, their outputs whole on every device."""
  everywhere = sharding.replicated(setup.mesh)
  return lambda function: jax.jit(function, out_shardings=everywhere)


def _patch(size, grid) -> tuple[int, int]:
  """Pixels of a token; raises UserError unless they are whole."""
  if any(n % k for n, k in zip(size, grid)):
    raise UserError(
      f'views of {size[1]} x {size[0]} pixels do not divide into maps of '
      f'{grid[1]} x {grid[0]} tokens: set --config.size to a multiple of the '
      'coarsest stride (32 pixels of most networks) or of the patch'
    )
  return tuple(n // k for n, k in zip(size, grid))


def _patches(images: jax.Array, patch: tuple[int, int]) -> jax.Array:
  """f32[B, H, W, C] -> f32[B, h, w, pixels of a patch]."""
  B, H, W, C = images.shape
  p, q = patch
  x = images.reshape(B, H // p, p, W // q, q, C)
  return x.swapaxes(2, 3).reshape(B, H // p, W // q, p * q * C)
