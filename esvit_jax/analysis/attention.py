"""Where attention looks: how widely, how far, and over which of the image.

Two kinds of backbones sow what is read here (spec of EsViT 9, of MAE-Lite 6):
ViTs their logits over all tokens, Swin its probabilities within windows. What
they sow is `intermediates` as flax returns it, of single images (one view).

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

EPS = 1e-6  # published: inside the logarithm of MAE-Lite's entropy
SCALE = 14.0  # published: pixels between patches, although they have 16
TOP_MASS = 0.6  # published: the share of attention that a map shows


class Block(NamedTuple):
  """Attention of one block to maps of height x width regions.

  Attributes:
    name: as in the parameters, such as 'block3'.
    logits: f[B, heads, n, n] of a ViT, the n - h w class tokens first.
    probs: f[B, W, heads, n, n] of windows, row by row; one of the two is None.
    height, width: of the map, without pads.
    window: side of a window; 0 for a ViT.
    shift: by which windows are displaced.
    spacing: between regions, in those of the first map.
  """

  name: str
  logits: jax.Array | None
  probs: jax.Array | None
  height: int
  width: int
  window: int = 0
  shift: int = 0
  spacing: float = 1.0


def blocks(
  features, intermediates: Mapping, side: int = 0, shifts: bool = True
) -> list[Block]:
  """What a backbone has sown, first block first.

  Args:
    features: of the same images.
    intermediates: of its blocks.
    side: of the first map of the images that the network is made for
      (image_size / patch), which alone decides what Swin shifts; 0 if these
      images are of that size.

  Raises:
    UserError: the backbone keeps no attention.
  """
  found = []
  for name in sorted(intermediates, key=_numbers):
    sown = intermediates[name].get('attn', {})
    if 'logits' in sown:
      h, w = features.grid.shape[-3:-1]
      found.append(Block(name, sown['logits'][0][:, 0], None, h, w))
    elif 'attention' in sown and name.startswith('stage'):
      probs = sown['attention'][0]
      found.append(_windowed(name, probs, features, side if shifts else 0))
  if not found:
    raise UserError(
      'this backbone keeps no attention: these analyses are for ViT and Swin'
    )
  return found


def _windowed(name: str, probs, features, side: int) -> Block:
  stage, number = _numbers(name)
  h, w = features.stages[stage].shape[-3:-1]
  window = math.isqrt(probs.shape[-1])
  for _ in range(stage):
    side = -(-side // 2)  # a map of one window is not shifted
  shift = window // 2 if number % 2 and side > window else 0
  spacing = features.stages[0].shape[-3] / h
  return Block(name, None, probs, h, w, window, shift, spacing)


def patch_attention(logits: jax.Array, others: int = 1) -> jax.Array:
  """Softmax over patches alone: class tokens neither ask nor answer.

  Args:
    logits: f[..., n, n].
    others: tokens in front that are no patches.

  Returns:
    f32[..., n - others, n - others]
  """
  patches = logits[..., others:, others:].astype(jnp.float32)
  return jax.nn.softmax(patches, -1)


def entropy(probs: jax.Array, eps: float = 0.0) -> jax.Array:
  """-sum_k p_k ln(p_k + eps), nats: f[..., k] -> f[...]."""
  if eps:
    return -(probs * jnp.log(probs + eps)).sum(-1)
  return jax.scipy.special.entr(probs).sum(-1)


def distances(height: int, width: int) -> np.ndarray:
  """Euclidean distances between the places of a grid: f32[h w, h w]."""
  y, x = np.divmod(np.arange(height * width), width)
  d = np.hypot(y[:, None] - y[None], x[:, None] - x[None])
  return d.astype(np.float32)


def per_head(
  features,
  intermediates: Mapping,
  scale: float = SCALE,
  base: float = math.e,
  side: int = 0,
  shifts: bool = True,
) -> dict[str, jax.Array]:
  """How widely and how far each head looks, in the mean over its queries.

  To be jitted together with the forward pass, so that logits never leave the
  device. ViTs are judged by patches alone, class tokens taken out before the
  softmax; of windows, queries that are pads do not count.

  Args:
    features: of B images.
    intermediates: of the same.
    scale: pixels between the regions of the first map.
    base: of the logarithm; published are e for ViTs and 2 for Swin.
    side, shifts: see `blocks`.

  Returns:
    block -> entropy and distance (pixels), f32[B, heads, 2].
  """
  found = {}
  for block in blocks(features, intermediates, side, shifts):
    if block.window:
      probs, eps = block.probs, 0.0
      grid = (block.window, block.window)
      real = places(block) >= 0  # W n
    else:
      grid = (block.height, block.width)
      others = block.logits.shape[-1] - math.prod(grid)
      probs, eps = patch_attention(block.logits, others)[:, None], EPS
      real = np.ones((1, math.prod(grid)), bool)
    weight = jnp.asarray(real / real.sum(), jnp.float32)
    far = jnp.asarray(distances(*grid)) * scale * block.spacing
    widths = entropy(probs, eps) / math.log(base)  # B W a n
    reaches = (probs * far[None, None, None]).sum(-1)
    both = jnp.stack([widths, reaches], -1)
    found[block.name] = jnp.einsum('BWant,Wn->Bat', both, weight)
  return found


def mean_per_head(
  stream: Iterable[tuple[Mapping[str, np.ndarray], np.ndarray]],
) -> dict[str, np.ndarray]:
  """The mean over all images of what `per_head` gives for batches of them.

  Args:
    stream: of each batch, what `per_head` gives and bool[B], its real rows.

  Returns:
    block -> entropy and distance, f64[heads, 2].
  """
  sums, count = {}, 0
  for found, mask in stream:
    mask = np.asarray(mask)
    count += int(mask.sum())
    for name, x in found.items():
      x = np.asarray(x, np.float64)[mask].sum(0)
      sums[name] = sums.get(name, 0) + x
  if not count:
    raise UserError('there are no images to read attention from')
  return {name: sums[name] / count for name in sorted(sums, key=_numbers)}


def figures(heads: Mapping[str, np.ndarray]) -> dict[str, dict[str, float]]:
  """For each block the mean over heads, and the least and the most of them."""
  return {
    name: {
      f'{quantity}{suffix}': float(take(x[:, i]))
      for i, quantity in enumerate(('entropy', 'distance'))
      for suffix, take in (('', np.mean), ('_least', min), ('_most', max))
    }
    for name, x in heads.items()
  }


def places(block: Block) -> np.ndarray:
  """Where in its map each token of each window lies.

  The map is padded at the bottom and right to whole windows, rolled by the
  shift, and cut row by row.

  Returns:
    Numbers of regions, row by row, and -1 for pads: i64[W, n].
  """
  n, h, w = block.window, block.height, block.width
  H, W = -(-h // n) * n, -(-w // n) * n
  index = np.full((H, W), -1)
  index[:h, :w] = np.arange(h * w).reshape(h, w)
  index = np.roll(index, (-block.shift, -block.shift), (0, 1))
  index = index.reshape(H // n, n, W // n, n).swapaxes(1, 2)
  return index.reshape(-1, n * n)


def maps(block: Block, query: tuple[int, int] | None = None) -> np.ndarray:
  """Attention over the whole map, windows put back where they were.

  Args:
    block: its arrays on the host or a device.
    query: row and column in the map of the region that looks; beyond its
      window it sees nothing. Without one, the class token looks; where there
      is none, it is how much each region is looked at, in the mean over the
      regions that can.

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
    logits = jnp.asarray(block.logits, jnp.float32)
    probs = np.asarray(jax.nn.softmax(logits, -1))  # B a n n
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
    maps: f[..., h, w], none negative.
    share: of the sum; regions that add less than the rest to it become 0.

  Returns:
    The same shape.
  """
  flat = np.asarray(maps, np.float64).reshape(*maps.shape[:-2], -1)
  flat = flat / np.maximum(flat.sum(-1, keepdims=True), 1e-12)
  order = np.argsort(flat, -1, kind='stable')
  held = np.cumsum(np.take_along_axis(flat, order, -1), -1)
  kept = np.zeros(flat.shape, bool)
  np.put_along_axis(kept, order, held > 1 - share, -1)
  return np.where(kept.reshape(maps.shape), maps, 0)


def widest_first(maps: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
  """Heads by the entropy of their maps, in the mean over images.

  Args:
    maps: f[B, heads, h, w].

  Returns:
    Order of heads i64[heads], and their entropies in bits, in that order.
  """
  x = np.asarray(maps, np.float64).reshape(*maps.shape[:2], -1)
  x = x / np.maximum(x.sum(-1, keepdims=True), 1e-12)
  bits = -(x * np.log2(np.maximum(x, 1e-30))).sum(-1).mean(0)
  order = np.argsort(-bits, kind='stable')
  return order, bits[order]


def short_names(names: Iterable[str]) -> Sequence[str]:
  """Names of blocks for an axis: 'block3' -> '3', 'stage1_block0' -> '1.0'."""
  numbers = {name: re.findall(r'\d+', name) for name in names}
  return ['.'.join(x) or name for name, x in numbers.items()]


def _numbers(name: str) -> tuple[int, ...]:
  """Sorts block2 before block10."""
  return tuple(int(x) for x in re.findall(r'\d+', name))
