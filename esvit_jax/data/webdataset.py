"""Tar shards as WebDataset writes them: members of one name are one sample."""

import os

import numpy as np

from esvit_jax.data import formats, shards, splits
from esvit_jax.data.source import Request, Source
from esvit_jax.data.tar_index import Tars
from esvit_jax.errors import UserError


def split_names(place: str, data_dir: str | None) -> tuple[str, ...]:
  """The splits that names of shards tell, see `shards.by_split`."""
  return tuple(shards.by_split(shards.expand(place, ('.tar',))))


def open_split(request: Request) -> Source:
  """Opens the samples of shards, in the order of the shards.

  The members KEY.ENDING of one KEY are one sample. One of them is an image;
  KEY.cls holds its label, a number or a name, or KEY.json has it as `label`.
  Names of numbered classes stand in classes.txt beside the shards, one a line
  from class 0, or else are their numbers.

  Args:
    request: its place is '/data/{0000..0146}.tar', a folder, or a pattern with
      *; names of shards tell splits, see `shards.by_split`.

  Raises:
    UserError: a shard is missing or no tar, there is no such split, no image
      in it, or a label has no name.
  """
  place = request.place
  by_split = shards.by_split(shards.expand(place, ('.tar',)))
  split = splits.require(f'wds:{place}', request.split, tuple(by_split))
  tars = Tars(by_split[split])
  members, texts, left_out = _samples(tars)
  if not members:
    raise UserError(
      f'wds:{place}: none of {len(tars.names):,} members of {split!r} is an '
      f'image by its ending; wanted {", ".join(formats.endings())}'
    )
  classes, labels = _classes(os.path.dirname(by_split[split][0]), texts)
  notes = list(tars.notes)
  if left_out:
    notes.append(f'{left_out:,} samples have no image and are left out')
  bare = int((labels < 0).sum())
  if classes and bare:
    notes.append(
      f'{bare:,} samples have no label: they train but are not judged'
    )
  return Source(
    name=f'wds {place}',
    split=split,
    count=len(members),
    classes=classes,
    read=lambda i: (tars.read(members[i]), int(labels[i])),
    where=lambda i: tars.where(members[i]),
    canvas=request.canvas,
    channels=request.channels or 3,
    labels=labels,
    upright=True,
    notes=tuple(notes),
  )


def _samples(tars: Tars) -> tuple[list[int], list[str], int]:
  """The member that is the image, and the label's text, of each sample.

  The third is the number of samples without an image.
  """
  endings = formats.endings()
  images, labels = {}, {}
  for k, name in enumerate(tars.names):
    folder, file = os.path.split(name)
    key, _, ending = file.partition('.')
    key = (int(tars.shard[k]), folder, key)
    labels[key] = labels.get(key) or tars.labels[k]
    # The first image: a sample may hold others, such as masks.
    if ending.lower().rpartition('.')[2] in endings:
      images.setdefault(key, k)
  texts = [labels[key] for key in images]
  return list(images.values()), texts, len(labels) - len(images)


def _classes(folder: str, texts: list[str]) -> tuple[list | None, np.ndarray]:
  """Names of classes (None without labels), and the label of each text."""
  named = {text for text in texts if text}
  if not named:
    return None, np.full(len(texts), -1, np.int32)
  if not all(text.isdecimal() for text in named):
    classes = sorted(named)
    number = {name: k for k, name in enumerate(classes)}
  else:
    number = {text: int(text) for text in named}
    classes = _names(folder, max(number.values()) + 1)
  return classes, np.array([number.get(x, -1) for x in texts], np.int32)


def _names(folder: str, count: int) -> list[str]:
  """The lines of classes.txt, or numbers where there is none."""
  path = os.path.join(folder, 'classes.txt')
  if not os.path.exists(path):
    return [str(k) for k in range(count)]
  with open(path, encoding='utf-8') as file:
    names = [line.strip() for line in file if line.strip()]
  if len(names) < count:
    raise UserError(
      f'{path} names {len(names)} classes, but there are labels up to '
      f'{count - 1}'
    )
  return names
