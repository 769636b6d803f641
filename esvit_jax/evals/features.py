"""Features of a set of images, as evaluators take them."""

from collections.abc import Callable, Iterable, Mapping

import jax
import jax.numpy as jnp
import numpy as np

# Published: resize to 256, keep the central 224.
MARGIN = 256 / 224


def center_view(images, sizes, size: int, mean, std) -> jax.Array:
  """The middle of each image, resized once and normalised.

  The shorter side becomes size * 256 / 224 pixels and the centre is kept;
  images hardly larger than `size` are kept whole. Bicubic, antialiased.

  Args:
    images: u8[B, H, W, C], valid pixels top left.
    sizes: i32[B, 2], valid height and width.
    size: pixels of the view.
    mean, std: per channel, of pixels in 0..1.

  Returns:
    f32[B, size, size, C]
  """
  margin = MARGIN if min(images.shape[1:3]) >= MARGIN * size else 1.0
  C = images.shape[-1]

  def one(image, hw):
    hw = hw.astype(jnp.float32)
    scale = size * margin / hw.min()
    # Nothing beyond the valid pixels may come in: repeat the border.
    rows = jnp.minimum(jnp.arange(image.shape[0]), hw[0] - 1).astype(int)
    cols = jnp.minimum(jnp.arange(image.shape[1]), hw[1] - 1).astype(int)
    image = image[rows][:, cols].astype(jnp.float32)
    return jax.image.scale_and_translate(
      image,
      (size, size, C),
      (0, 1),
      jnp.stack([scale, scale]),
      (size - hw * scale) / 2,
      'cubic',
    )

  pixels = jnp.clip(jax.vmap(one)(images, sizes), 0, 255) / 255
  mean, std = (jnp.asarray(x)[None, None, None] for x in (mean, std))
  return (pixels - mean) / std


def extract(
  feature_fns: Mapping[str, Callable],
  batches: Iterable[dict],
  limit: int = 0,
) -> tuple[dict[str, np.ndarray], np.ndarray]:
  """Features of all images under several networks, in one reading.

  Args:
    feature_fns: name -> (batch -> [B, D]), jitted.
    batches: global batches with a `mask` of their real rows.
    limit: stop after this many images; 0 takes all.

  Returns:
    name -> f32[N, D], and labels i32[N].
  """
  features = {name: [] for name in feature_fns}
  labels, count = [], 0
  for batch in batches:
    mask = np.asarray(batch['mask'])
    for name, fn in feature_fns.items():
      features[name].append(np.asarray(fn(batch), np.float32)[mask])
    labels.append(np.asarray(batch['label'])[mask])
    count += mask.sum()
    if limit and count >= limit:
      break
  stop = limit or None
  return (
    {k: np.concatenate(v)[:stop] for k, v in features.items()},
    np.concatenate(labels)[:stop],
  )
