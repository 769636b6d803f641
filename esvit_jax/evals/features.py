"""Features of a set of images, as evaluators take them."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils

from esvit_jax import data, sharding

# Published: the shorter side becomes 256, the central 224 are kept.
MARGIN = 256 / 224
# Raw pixels are judged at this size: k-NN and a linear solve of 150,528
# numbers an image (224 px) would take longer than training.
PIXELS = 32


def center_view(
  images: jax.Array,
  sizes: jax.Array,
  size: int,
  mean: Sequence[float],
  std: Sequence[float],
) -> jax.Array:
  """The middle of each image, resized and normalised (spec 8).

  The shorter side becomes size * 256 / 224 pixels, or `size` where the canvas
  is too small for that, and the central square is kept: PIL's antialiased
  bicubic resize and torchvision's centre crop, within a grey level.

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
  shorter = round(MARGIN * size) if min(H, W) >= MARGIN * size else size
  view = jax.vmap(lambda image, hw: _center(image, hw, shorter, size))
  mean, std = (jnp.asarray(x)[None, None, None] for x in (mean, std))
  return (view(images, sizes) / 255 - mean) / std


def raw_pixels(
  images: jax.Array,
  sizes: jax.Array,
  size: int,
  mean: Sequence[float],
  std: Sequence[float],
) -> jax.Array:
  """The features of no network: `center_view` at 32 px or less, flattened."""
  view = center_view(images, sizes, min(size, PIXELS), mean, std)
  return view.reshape(len(view), -1)


def batches(
  source: data.Source,
  mesh: jax.sharding.Mesh,
  batch_size: int,
  workers: int = 8,
  max_unreadable: float = 0.01,
  unreadable_log: str | None = None,
) -> Iterator[dict]:
  """Each image of a source once, as global batches on a mesh.

  Args:
    source: the images.
    mesh: batches are split over it.
    batch_size: images, rounded up to a multiple of the devices.
    workers, max_unreadable, unreadable_log: as `data.epoch`.
  """
  feed = data.epoch(
    source,
    batch_size + -batch_size % mesh.size,
    jax.process_index(),
    jax.process_count(),
    workers,
    max_unreadable,
    unreadable_log,
  )
  with feed:
    for local in feed:
      batch = sharding.global_batch(mesh, local)
      if jax.process_count() > 1:
        for name in ('mask', 'label'):
          batch[name] = multihost_utils.process_allgather(
            local[name], tiled=True
          )
      yield batch


def _center(image, hw, shorter: int, size: int) -> jax.Array:
  """u8[H, W, C] -> whole grey levels f32[size, size, C]."""
  H, W, _ = image.shape
  # Padding rows of a batch have size 0; they may hold anything but NaN.
  hw = jnp.maximum(hw, 1)
  # Whole numbers, as torchvision cuts the longer side.
  lengths = shorter * hw // hw.min()
  rows = _middle(hw[0], lengths[0], size, H)
  cols = _middle(hw[1], lengths[1], size, W)
  image = image.astype(jnp.float32)
  precision = jax.lax.Precision.HIGH
  # PIL filters width, then height, and keeps whole grey levels after each.
  image = _whole(jnp.einsum('bw,hwc->hbc', cols, image, precision=precision))
  return _whole(jnp.einsum('ah,hbc->abc', rows, image, precision=precision))


def _middle(valid, length, size: int, canvas: int) -> jax.Array:
  """Weights f32[size, canvas] of the middle of `valid` pixels made `length`.

  The cubic (a = -1/2) is widened where it shrinks the image, and its taps
  stop at the last valid pixel.
  """
  first = jnp.round((length - size) / 2)
  step = valid / length
  centre = (first + jnp.arange(size) + 0.5) * step
  pixel = jnp.arange(canvas)
  t = jnp.abs(pixel[None] + 0.5 - centre[:, None])  # size canvas
  t /= jnp.maximum(step, 1)
  near = (1.5 * t - 2.5) * t * t + 1
  far = ((-0.5 * t + 2.5) * t - 4) * t + 2
  weights = jnp.where(t < 1, near, jnp.where(t < 2, far, 0))
  weights = jnp.where((pixel < valid)[None], weights, 0)
  return weights / weights.sum(1, keepdims=True)


def _whole(image: jax.Array) -> jax.Array:
  return jnp.clip(jnp.floor(image + 0.5), 0, 255)


def extract(
  feature_fns: Mapping[str, Callable],
  batches: Iterable[dict],
  limit: int = 0,
) -> tuple[dict[str, np.ndarray], np.ndarray]:
  """Features of all images under several networks, in one reading.

  Args:
    feature_fns: name -> (batch -> [B, D] or a tree of such), jitted, with its
      preprocessing.
    batches: batches with a `mask` of their real rows.
    limit: stop after this many images; 0 takes all.

  Returns:
    name -> f32[N, D] (or a tree of such), and labels i32[N].
  """
  features = {name: [] for name in feature_fns}
  labels, count = [], 0

  def fetch(outputs, mask):
    for name, x in outputs.items():
      rows = jax.tree.map(lambda a: np.asarray(a, np.float32)[mask], x)
      features[name].append(rows)

  in_flight = None
  for batch in batches:
    outputs = {name: fn(batch) for name, fn in feature_fns.items()}
    # Fetched one batch late, so that the device never waits for the host.
    if in_flight is not None:
      fetch(*in_flight)
    mask = np.asarray(batch['mask'])
    in_flight = outputs, mask
    labels.append(np.asarray(batch['label'])[mask])
    count += mask.sum()
    if limit and count >= limit:
      break
  if in_flight is None:
    raise ValueError('there are no batches to extract features from')
  fetch(*in_flight)
  stop = limit or None
  return (
    {
      name: jax.tree.map(lambda *a: np.concatenate(a)[:stop], *x)
      for name, x in features.items()
    },
    np.concatenate(labels)[:stop],
  )
