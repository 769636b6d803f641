"""The set that comes with the package: 12,000 images of Fashion-MNIST."""

import pathlib

import numpy as np

from esvit_jax.data import splits
from esvit_jax.data.source import Request, Source

_FILE = pathlib.Path(__file__).with_name('fashion_mnist.npz')
_CLASSES = (
  't-shirt',
  'trouser',
  'pullover',
  'dress',
  'coat',
  'sandal',
  'shirt',
  'sneaker',
  'bag',
  'ankle boot',
)


def split_names(place: str, data_dir: str | None) -> tuple[str, ...]:
  """The splits there are."""
  return ('train', 'test')


def open_split(request: Request) -> Source:
  """Opens 'train' (10,000 images) or 'test' (2,000), 28x28 and grey."""
  names = split_names(request.place, request.data_dir)
  split = splits.require('the embedded set', request.split, names)
  with np.load(_FILE) as arrays:
    images = arrays[f'{split}_image'][..., None]  # N h w 1
    labels = arrays[f'{split}_label'].astype(np.int32)
  return Source(
    name=f'Fashion-MNIST (embedded), {split}',
    split=split,
    count=len(images),
    classes=_CLASSES,
    read=lambda i: (images[i], int(labels[i])),
    where=lambda i: f'{split}[{i}]',
    canvas=request.canvas or images.shape[1:3],
    channels=request.channels or 1,
    labels=labels,
  )
