"""Features of a set of images, as evaluators take them."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils

from esvit_jax import augment, data, sharding
from esvit_jax.augment import crops

# Raw pixels are judged at this size: k-NN and a linear solve of 150,528
# numbers an image (224 px) would take longer than training.
PIXELS = 32


class Extracted(NamedTuple):
  """Features of N images under several networks.

  Attributes:
    features: network -> f32[N, D], or a tree of such.
    labels: i32[N], or i32[N, C] of several labels each.
    index: of each image in its source, i32[N]; unreadable ones are missing.
  """

  features: dict[str, Any]
  labels: np.ndarray
  index: np.ndarray


def raw_pixels(
  images: jax.Array, mean: Sequence[float], std: Sequence[float]
) -> jax.Array:
  """The features of no network: normalised pixels, at 32 px or less.

  Args:
    images: squares u8[B, s, s, C].
    mean: per channel, of pixels in 0..1.
    std: per channel.

  Returns:
    f32[B, min(s, 32)^2 C]
  """
  B, s, _, _ = images.shape
  if s > PIXELS:
    planes = images.transpose(0, 3, 1, 2).astype(jnp.float32)
    box = jnp.array([0, 0, s, s])
    shrink = jax.vmap(lambda x: crops.crop_resize(x, box, (PIXELS, PIXELS)))
    images = shrink(planes).transpose(0, 2, 3, 1)
  return augment.normalize(images, mean, std).reshape(B, -1)


def batches(
  source: data.Source,
  mesh: jax.sharding.Mesh,
  batch_size: int,
  reading: data.Reading,
) -> Iterator[dict]:
  """Each image of a source once, as global batches on a mesh.

  Args:
    source: the images.
    mesh: batches are split over it.
    batch_size: images, rounded up to a multiple of the devices.
    reading: how.
  """
  feed = data.epoch(
    source,
    batch_size + -batch_size % mesh.size,
    jax.process_index(),
    jax.process_count(),
    reading,
  )
  with feed:
    for local in feed:
      batch = sharding.global_batch(mesh, local)
      if jax.process_count() > 1:
        for name in ('mask', 'label', 'index'):
          batch[name] = multihost_utils.process_allgather(
            local[name], tiled=True
          )
      yield batch


def extract(
  feature_fns: Mapping[str, Callable], batches: Iterable[dict]
) -> Extracted:
  """Features of all images under several networks, in one reading.

  Args:
    feature_fns: network -> (batch -> [B, D] or a tree of such), jitted, with
      its preprocessing.
    batches: batches with a `mask` of their real rows.
  """
  features = {name: [] for name in feature_fns}
  labels, index = [], []

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
    index.append(np.asarray(batch['index'])[mask])
  if in_flight is None:
    raise ValueError('there are no batches to extract features from')
  fetch(*in_flight)
  joined = {
    name: jax.tree.map(lambda *a: np.concatenate(a), *x)
    for name, x in features.items()
  }
  return Extracted(joined, np.concatenate(labels), np.concatenate(index))
