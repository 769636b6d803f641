"""Images as evaluations see them: resized, and their central squares."""

import dataclasses

from esvit_jax.data.headers import sizes
from esvit_jax.data.source import Source

# Published: the shorter side becomes 256, the central 224 are kept.
MARGIN = 256 / 224


def center_cropped(source: Source, size: int) -> Source:
  """The same images as central squares of `size` px, whatever the canvas.

  The shorter side becomes size * 256 / 224 px, or `size` where images are too
  small for that; PIL's bicubic from the file, then torchvision's CenterCrop.

  Args:
    source: its canvas, or the longest side of 64 images, decides whether they
      are too small.
    size: pixels.
  """
  longest = min(source.canvas)
  if longest < MARGIN * size:
    longest = max((max(x) for x in sizes(source)), default=0)
  shorter = round(MARGIN * size) if longest >= MARGIN * size else size
  return dataclasses.replace(
    source,
    canvas=(size, size),
    shorter=shorter,
    segmentation=None,
    objects=None,
  )


def enlarged(source: Source) -> str:
  """Says how many of the cropped images are enlarged; '' where none is."""
  sampled = sizes(source)
  small = sum(min(x) < source.shorter for x in sampled)
  if not small:
    return ''
  return (
    f'{small} of {len(sampled)} sampled {source.split} images are smaller than '
    f'{source.shorter} px on their shorter side: they are enlarged'
  )
