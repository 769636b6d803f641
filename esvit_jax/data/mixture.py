"""Several sources in one, each with a share of every batch."""

import re
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from esvit_jax.data import splits
from esvit_jax.data.source import Request, Source
from esvit_jax.errors import UserError

_PART = re.compile(r'(.+?)\*(\d+\.?\d*|\.\d+)(?:\+|$)')


def parts(source: str) -> list[tuple[str, float]]:
  """'a*0.7+b*0.3' -> [('a', 0.7), ('b', 0.3)]; [] for a single source.

  Raises:
    UserError: a weight is 0.
  """
  matches = list(_PART.finditer(source))
  whole = ''.join(match[0] for match in matches) == source
  if len(matches) < 2 or not whole:
    return []
  if any(float(match[2]) == 0 for match in matches):
    raise UserError(f'data.source {source!r}: a weight is 0; leave it out')
  return [(match[1], float(match[2])) for match in matches]


class Part(NamedTuple):
  """A source of a mixture: its module, its place and its weight."""

  module: Any
  place: str
  weight: float


class Mixture:
  """Opens as a module of `data.SOURCES` does."""

  def __init__(self, members: Sequence[Part]):
    self._members = members

  def split_names(self, place: str, data_dir: str | None) -> tuple[str, ...]:
    """The splits that all parts have, by the names of the first."""
    first, *others = (
      part.module.split_names(part.place, data_dir) for part in self._members
    )
    return tuple(
      name for name in first if all(splits.match(name, x) for x in others)
    )

  def open_split(self, request: Request) -> Source:
    """Opens all parts, one after the other in one source.

    Classes of one name are one class; they are those of the first part where
    all have the same, else all names, sorted.

    Args:
      request: to each part, with a place of its own.

    Raises:
      UserError: as a part, or one has several labels an image or masks.
    """
    opened = [
      part.module.open_split(request._replace(place=part.place))
      for part in self._members
    ]
    for source in opened:
      if source.multi_label or source.segmentation:
        raise UserError(
          f'{source.name} has several labels an image, or masks: such a source '
          'is not mixed with others'
        )
    return joined(opened, [part.weight for part in self._members])


def joined(sources: Sequence[Source], weights: Sequence[float]) -> Source:
  """One source of all images; a pipeline draws from each part by weight."""
  total = sum(weights)
  shares = tuple(weight / total for weight in weights)
  sizes = [len(source) for source in sources]
  part = np.repeat(np.arange(len(sources), dtype=np.int32), sizes)
  first = np.cumsum(sizes) - sizes
  classes = _classes(sources)
  number = {name: k for k, name in enumerate(classes or ())}
  orders = [
    np.array([*(number[name] for name in source.classes or ()), -1], np.int32)
    for source in sources
  ]

  def read(i: int) -> tuple[bytes | np.ndarray, int]:
    k = part[i]
    record, label = sources[k].read(int(i - first[k]))
    return record, int(orders[k][label])

  def where(i: int) -> str:
    return sources[part[i]].where(int(i - first[part[i]]))

  labels = None
  if all(source.labels is not None for source in sources):
    labels = np.concatenate(
      [order[source.labels] for order, source in zip(orders, sources)]
    )
  notes = [note for source in sources for note in source.notes]
  if len({source.upright for source in sources}) > 1:
    notes.append('photographs of all parts are turned upright (EXIF)')
  mixed = ' + '.join(
    f'{100 * s:.3g} % {x.name}' for s, x in zip(shares, sources)
  )
  return Source(
    name=mixed,
    split=sources[0].split,
    count=sum(sizes),
    classes=classes,
    read=read,
    where=where,
    canvas=_canvas(sources),
    channels=_channels(sources),
    labels=labels,
    label_bytes=sum(source.label_bytes for source in sources),
    upright=any(source.upright for source in sources),
    notes=tuple(notes),
    part=part,
    shares=shares,
  )


def _classes(sources: Sequence[Source]) -> list[str] | None:
  lists = [list(source.classes) for source in sources if source.classes]
  if not lists:
    return None
  if all(names == lists[0] for names in lists):
    return lists[0]
  return sorted(set().union(*lists))


def _canvas(sources: Sequence[Source]) -> tuple[int, int] | None:
  """The larger of each side, or None where one is left open."""
  canvases = [source.canvas for source in sources]
  if None in canvases:
    return None
  return tuple(max(sides) for sides in zip(*canvases))


def _channels(sources: Sequence[Source]) -> int:
  channels = {source.channels for source in sources}
  if len(channels) > 1:
    raise UserError(
      f'the sources of a mixture have {sorted(channels)} channels: set '
      'data.channels'
    )
  return channels.pop()
