"""Attention: entropy and distance of heads, and maps over the image.

Entropy and distance follow MAE-Lite (arXiv 2205.14443), section 4.2; maps
follow EsViT (arXiv 2106.09785), appendix. The input is what a backbone sows as
'attention' for single images (one view): probabilities over all tokens of a
view, or models.backbone.Windows. `intermediates` are as flax returns them.

Axes: B images, W windows, a head, n tokens of a window, h w a map.
"""

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from esvit_jax.errors import UserError
from esvit_jax.models.backbone import Windows

EPS = 1e-6  # published: inside the logarithm of MAE-Lite's entropy
# Stride of patches in pixels -> the published one. MAE-Lite's code counts 14
# pixels between patches of 16.
PUBLISHED_STRIDE = {16: 14.0}
TOP_MASS = 0.6  # published: share of the attention that a map shows


class Block(NamedTuple):
  """Attention of one block to a map of height x width regions.

  Attributes:
    name: as in the parameters, such as 'block3'.
    probs: f[B, heads, n, n] over all tokens, where the first n - h w are not
      regions; or f[B, W, heads, n, n] of windows, see Windows.
    height, width: of the map, without pads.
    window: side of a window; 0 where all tokens attend to all.
    shift: by which windows are displaced.
  """

  name: str
  probs: jax.Array
  height: int
  width: int
  window: int = 0
  shift: int = 0


def blocks(features, intermediates: Mapping) -> list[Block]:
  """The attention that the blocks of a backbone sowed, first block first.

  Args:
    features: of the same images.
    intermediates: of its blocks.

  Returns:
    An empty list for a backbone without attention. Blocks with other kinds of
    attention are left out.
  """
  h, w = features.grid.shape[-3:-1]
  attention = []
  for name in sorted(intermediates, key=block_numbers):
    for sown in _sown(intermediates[name]):
      if isinstance(sown, Windows):
        geometry = (sown.height, sown.width, sown.window, sown.shift)
        attention.append(Block(name, sown.probs, *geometry))
      elif sown.shape[-1] == sown.shape[-2] >= h * w:
        attention.append(Block(name, sown[:, 0], h, w))
  return attention


def _sown(tree: Mapping) -> list:
  """All values under the key 'attention', at any depth."""
  sown = list(tree.get('attention', ()))
  for key, x in tree.items():
    if isinstance(x, Mapping) and key != 'attention':
      sown += _sown(x)
  return sown


def region_attention(probs: jax.Array, others: int = 1) -> jax.Array:
  """Attention among regions only, renormalised.

  It equals a softmax over the logits of the regions.

  Args:
    probs: f[..., n, n].
    others: number of tokens in front that are not regions.

  Returns:
    f32[..., n - others, n - others]
  """
  among = probs[..., others:, others:].astype(jnp.float32)
  return among / jnp.maximum(among.sum(-1, keepdims=True), 1e-30)


def entropy(probs: jax.Array, eps: float = 0.0) -> jax.Array:
  """-sum_k p_k ln(p_k + eps), nats: f[..., k] -> f[...]."""
  if eps:
    return -(probs * jnp.log(probs + eps)).sum(-1)
  return jax.scipy.special.entr(probs).sum(-1)


def distances(height: int, width: int) -> np.ndarray:
  """Euclidean distances between the cells of a grid: f32[h w, h w]."""
  y, x = np.divmod(np.arange(height * width), width)
  d = np.hypot(y[:, None] - y[None], x[:, None] - x[None])
  return d.astype(np.float32)


def per_head(
  features,
  intermediates: Mapping,
  size: int,
  stride: float = 0.0,
  base: float = math.e,
) -> dict[str, jax.Array]:
  """Entropy and distance of the attention of each head, averaged over queries.

  Jit it together with the forward pass, so that attention stays on the device.
  Global attention is restricted to regions. In windows, padded queries do not
  count.

  Args:
    features: of B images.
    intermediates: of the same.
    size: height of the images in pixels.
    stride: pixels between the regions of the first map; 0 derives it from
      `size` and PUBLISHED_STRIDE.
    base: of the logarithm; published are e for ViTs and 2 for Swin.

  Returns:
    block -> entropy and distance (pixels), f32[B, heads, 2]; empty for a
    backbone without attention.
  """
  heads = {}
  for block in blocks(features, intermediates):
    if block.window:
      probs, eps = block.probs, 0.0
      grid = (block.window, block.window)
      real = places(block) >= 0  # W n
    else:
      grid = (block.height, block.width)
      others = block.probs.shape[-1] - math.prod(grid)
      probs, eps = region_attention(block.probs, others)[:, None], EPS
      real = np.ones((1, math.prod(grid)), bool)
    if not heads:
      first = block.height
      stride = stride or PUBLISHED_STRIDE.get(size // first, size / first)
    weight = jnp.asarray(real / real.sum(), jnp.float32)
    pixels = jnp.asarray(distances(*grid)) * stride * first / block.height
    entropies = entropy(probs, eps) / math.log(base)  # B W a n
    means = (probs * pixels[None, None, None]).sum(-1)
    both = jnp.stack([entropies, means], -1)
    heads[block.name] = jnp.einsum('BWant,Wn->Bat', both, weight)
  return heads


def mean_per_head(
  stream: Iterable[tuple[Mapping[str, np.ndarray], np.ndarray]],
) -> dict[str, np.ndarray]:
  """The mean of `per_head` over all images.

  Args:
    stream: for each batch the result of `per_head`, and its real rows bool[B].

  Returns:
    block -> entropy and distance, f64[heads, 2].
  """
  sums, count = {}, 0
  for heads, mask in stream:
    mask = np.asarray(mask)
    count += int(mask.sum())
    for name, x in heads.items():
      x = np.asarray(x, np.float64)[mask].sum(0)
      sums[name] = sums.get(name, 0) + x
  if not count:
    raise UserError('there are no images to read attention from')
  return {name: sums[name] / count for name in sorted(sums, key=block_numbers)}


def figures(heads: Mapping[str, np.ndarray]) -> dict[str, dict[str, float]]:
  """The mean, minimum and maximum over heads for each block."""
  return {
    name: {
      f'{quantity}{suffix}': float(take(x[:, i]))
      for i, quantity in enumerate(('entropy', 'distance'))
      for suffix, take in (('', np.mean), ('_least', min), ('_most', max))
    }
    for name, x in heads.items()
  }


def places(block: Block) -> np.ndarray:
  """The position in its map of each token of each window.

  The map is padded at the bottom and right to whole windows, rolled by -shift,
  and cut row by row.

  Returns:
    Indices of regions, row by row, and -1 for pads: i64[W, n].
  """
  n, h, w = block.window, block.height, block.width
  H, W = -(-h // n) * n, -(-w // n) * n
  index = np.full((H, W), -1)
  index[:h, :w] = np.arange(h * w).reshape(h, w)
  index = np.roll(index, (-block.shift, -block.shift), (0, 1))
  index = index.reshape(H // n, n, W // n, n).swapaxes(1, 2)
  return index.reshape(-1, n * n)


def maps(block: Block, query: tuple[int, int] | None = None) -> np.ndarray:
  """Attention as maps; windows return to their places.

  Args:
    block: its arrays on the host or a device.
    query: row and column of the querying region; outside its window the map is
      0. By default the class token is the query. Without a class token the
      map is the mean over all queries that can attend to a region.

  Returns:
    f32[B, heads, h, w]
  """
  h, w = block.height, block.width
  if query is not None and not (0 <= query[0] < h and 0 <= query[1] < w):
    raise UserError(
      f'there is no region {tuple(query)} in a map of {h}x{w}: rows and '
      'columns count from 0'
    )
  number = None if query is None else query[0] * w + query[1]
  if not block.window:
    probs = np.asarray(block.probs, np.float32)  # B a n n
    others = probs.shape[-1] - h * w
    if query is not None:
      row = probs[:, :, others + number]
    elif others:
      row = probs[:, :, 0]
    else:
      row = probs.mean(2)
    return row[..., others:].reshape(*row.shape[:2], h, w)

  probs, index = np.asarray(block.probs, np.float32), places(block)
  B, _, heads, _, _ = probs.shape
  if query is None:
    real = (index >= 0).astype(np.float32)
    real /= np.maximum(real.sum(1, keepdims=True), 1)
    seen = np.einsum('BWaqk,Wq->BWak', probs, real)
  else:
    (window,), (place,) = np.nonzero(index == number)
    seen = np.zeros((B, len(index), heads, index.shape[1]), np.float32)
    seen[:, window] = probs[:, window, :, place]
  out = np.zeros((B, heads, h * w), np.float32)
  # W B a n and W n, without the pads
  out[:, :, index[index >= 0]] = seen.swapaxes(1, 2)[:, :, index >= 0]
  return out.reshape(B, heads, h, w)


def top_mass(maps: np.ndarray, share: float = TOP_MASS) -> np.ndarray:
  """Keeps the most attended regions that hold a share of a map's sum.

  Args:
    maps: f[..., h, w], not negative.
    share: of the sum; the other regions become 0.

  Returns:
    The same shape.
  """
  flat = np.asarray(maps, np.float64).reshape(*maps.shape[:-2], -1)
  flat = flat / np.maximum(flat.sum(-1, keepdims=True), 1e-12)
  order = np.argsort(flat, -1, kind='stable')
  mass = np.cumsum(np.take_along_axis(flat, order, -1), -1)
  kept = np.zeros(flat.shape, bool)
  np.put_along_axis(kept, order, mass > 1 - share, -1)
  return np.where(kept.reshape(maps.shape), maps, 0)


def widest_first(maps: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
  """Heads in order of the entropy of their maps, averaged over images.

  Args:
    maps: f[B, heads, h, w].

  Returns:
    The order of heads i64[heads], and their entropies in bits in that order.
  """
  x = np.asarray(maps, np.float64).reshape(*maps.shape[:2], -1)
  x = x / np.maximum(x.sum(-1, keepdims=True), 1e-12)
  bits = -(x * np.log2(np.maximum(x, 1e-30))).sum(-1).mean(0)
  order = np.argsort(-bits, kind='stable')
  return order, bits[order]


def short_names(names: Iterable[str]) -> Sequence[str]:
  """Short names of blocks: 'block3' -> '3', 'stage1_block0' -> '1.0'."""
  numbers = {name: re.findall(r'\d+', name) for name in names}
  return ['.'.join(x) or name for name, x in numbers.items()]


def block_numbers(name: str) -> tuple[int, ...]:
  """A sort key that puts block2 before block10."""
  return tuple(int(x) for x in re.findall(r'\d+', name))
