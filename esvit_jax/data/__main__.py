"""Mean and standard deviation of images, as fields of a config.

python -m esvit_jax.data folder:/data/scans --channels=5
"""

import argparse
import sys

import numpy as np

from esvit_jax import data
from esvit_jax.data.source import spread
from esvit_jax.errors import UserError


def statistics(source: data.Source, images: int = 1000) -> np.ndarray:
  """Mean and standard deviation of each channel, of pixels in 0..1.

  Args:
    source: the images.
    images: at most so many, spread over the source.

  Returns:
    f64[2, C]
  """
  sums, pixels = np.zeros((2, source.channels)), 0
  for i in spread(len(source), images):
    try:
      x = source[i]['image'].reshape(-1, source.channels) / 255
    except data.Unreadable:
      continue
    sums += [x.sum(0), np.square(x).sum(0)]
    pixels += len(x)
  if not pixels:
    raise UserError(f'{source.name}: no image of it can be read')
  mean, square = sums / pixels
  return np.stack([mean, np.sqrt(np.maximum(square - mean**2, 0))])


def main(argv: list[str]) -> int:
  parser = argparse.ArgumentParser(
    'python -m esvit_jax.data', description=__doc__.splitlines()[0]
  )
  parser.add_argument('source', help="as data.source: 'folder:/path', ...")
  parser.add_argument('--channels', type=int, default=3)
  parser.add_argument('--split', default='train')
  parser.add_argument('--data_dir', default='')
  try:
    source = data.open_source(vars(parser.parse_args(argv)))
    for name, row in zip(('mean', 'std'), statistics(source)):
      print(f'--config.data.{name}={",".join(f"{x:.4f}" for x in row)}')
  except UserError as e:
    print(f'error: {e}', file=sys.stderr)
    return 2
  return 0


if __name__ == '__main__':
  sys.exit(main(sys.argv[1:]))
