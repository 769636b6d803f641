"""The PNG files of a run as data URLs, with titles and captions."""

import base64
import os
import struct
from typing import NamedTuple

from esvit_jax.report.records import Record

# File name -> title and caption, in the order of the page.
CAPTIONS = {
  'views': (
    'What the network sees',
    'A row for each image: its augmented views, as they enter the network.',
  ),
  'reconstruction': (
    'Reconstruction',
    'The image, the image as masked, and what the network reconstructed.',
  ),
  'corrupted': (
    'Corruption',
    'The image, the corrupted image that the student sees, and its '
    'reconstruction.',
  ),
  'matches': (
    'Matched regions',
    'The regions of two views of one image whose features are most similar.',
  ),
  'copies': (
    'Matches in a mirrored copy',
    'The regions of an image and of its mirrored, recoloured copy whose '
    'features are most similar.',
  ),
  'attention': (
    'Attention',
    'Where the heads of the last block attend, from the widest map to the '
    'narrowest.',
  ),
  'pca': (
    'Principal components of regions',
    'The first three principal components of region features as red, green '
    'and blue. Regions of one colour have similar features.',
  ),
  'neighbours': (
    'Nearest neighbours',
    'An image at the left, then the images of most similar features. Where '
    'there are labels, blue frames the same class and orange another.',
  ),
  'map': (
    'Map of images',
    'Features in two dimensions: neighbours are similar, distances between '
    'groups mean little.',
  ),
  'segmentation': (
    'Segmentation of frozen features',
    'Images, their masks, and what a linear read-out of the features makes '
    'of them.',
  ),
  'propagation': (
    'Propagated masks',
    'Frames of a video, their masks, and the masks propagated from the first '
    'frame.',
  ),
  'heads': (
    'Attention heads',
    'Entropy and distance of the attention of each head, block by block.',
  ),
  'cka': (
    'Similarity of layers',
    'CKA of the features of each pair of layers: 1 where they are the same up '
    'to a rotation and a scale.',
  ),
}

WIDE = 2  # pictures wider than this times their height get their own row


class Picture(NamedTuple):
  """A picture as a data URL; `url` is empty if the file is incomplete."""

  file: str
  title: str
  caption: str
  url: str = ''
  width: int = 0
  height: int = 0

  @property
  def wide(self) -> bool:
    """Whether it gets its own row."""
    return self.width > WIDE * self.height


def of_run(run: Record) -> list[Picture]:
  """All pictures, those of CAPTIONS first."""
  paths = {os.path.splitext(os.path.basename(x))[0]: x for x in run.pictures}
  order = [x for x in CAPTIONS if x in paths]
  order += [x for x in paths if x not in CAPTIONS]
  return [_picture(name, paths[name]) for name in order]


def _picture(name: str, path: str) -> Picture:
  title, caption = CAPTIONS.get(name, (f'{name}.png', ''))
  picture = Picture(f'{name}.png', title, caption)
  try:
    with open(path, 'rb') as f:
      data = f.read()
  except OSError:
    return picture
  # It may be being written at this moment.
  if data[:8] != b'\x89PNG\r\n\x1a\n' or b'IEND' not in data[-12:]:
    return picture
  width, height = struct.unpack('>II', data[16:24])
  url = f'data:image/png;base64,{base64.b64encode(data).decode()}'
  return picture._replace(url=url, width=width, height=height)
