"""Arrays by the names of other libraries, in and out.

A layer above the published names: a file of another library becomes one with
the published keys and is then read as such, and an export takes the way back.
"""

from collections.abc import Mapping
from typing import NamedTuple

from esvit_jax.errors import UserError
from esvit_jax.weights.libraries import rows
from esvit_jax.weights.libraries.names import LIBRARIES, MARKS, TITLES
from esvit_jax.weights.libraries.rows import Arrays

__all__ = ['LIBRARIES', 'TITLES', 'recognise', 'translate']

# Wrappers of Hugging Face's models with heads, and a head that is not ours.
_WRAPPERS = ('vit.', 'swin.', 'resnet.')
_POOLER = 'pooler.'


# What shapes do not tell of a library's networks: fields of the backbone.
FIELDS = {'swin': {'norm_eps': 1e-5}}


class Recognised(NamedTuple):
  """Arrays by published key.

  Attributes:
    arrays: as they were if they had the published names.
    note: whose names they had, '' if the published.
    fields: of the backbone, that shapes do not tell.
  """

  arrays: Arrays
  note: str = ''
  fields: Mapping = {}


def recognise(arrays: Mapping) -> Recognised:
  """The arrays by published key, whatever library named them.

  Raises:
    UserError: arrays of a library, with some beside them that the network here
      does not have.
  """
  state = _unwrapped(arrays)
  library, kind = _origin(state)
  if not library:
    return Recognised(dict(arrays))
  names = LIBRARIES[library][kind]
  published, unknown = rows.inward(state, names)
  pooler = [key for key in unknown if key.startswith(_POOLER)]
  unknown = [key for key in unknown if key not in pooler]
  if unknown:
    more = f' and {len(unknown) - 4} more' if len(unknown) > 4 else ''
    raise UserError(
      f"it has {TITLES[library]}'s names of a {kind}, and others that this "
      f'network does not have: {", ".join(unknown[:4])}{more}'
    )
  note = f"{TITLES[library]}'s names of a {kind}"
  if pooler:
    note += f'; left out: {", ".join(pooler)}'
  return Recognised(published, note, FIELDS.get(kind, {}))


def _unwrapped(arrays: Mapping) -> Arrays:
  """Without the prefix that all but the head have."""
  for word in _WRAPPERS:
    outside = ('classifier.', 'decoder.')
    body = [key for key in arrays if not key.startswith(outside)]
    if body and all(key.startswith(word) for key in body):
      return {key.removeprefix(word): x for key, x in arrays.items()}
  return dict(arrays)


def _origin(arrays: Mapping) -> tuple[str, str]:
  """(library, kind), or two empty texts for the published names."""
  for origin, mark in MARKS.items():
    if mark in arrays:
      return origin
  # A Swin of timm's without a head is known by where it merges tokens.
  merges = {
    key.split('.')[1] for key in arrays if '.downsample.reduction.' in key
  }
  is_swin = 'layers.0.blocks.0.norm1.weight' in arrays
  if is_swin and merges and '0' not in merges:
    return 'timm', 'swin'
  return '', ''


def translate(arrays: Mapping, library: str, kind: str) -> Arrays:
  """Published arrays of one network by the keys of a library.

  Args:
    arrays: by published key, without prefixes.
    library: a key of LIBRARIES.
    kind: 'swin', 'vit', 'mae' or 'resnet'.

  Raises:
    UserError: the library has no such network, or not all of its arrays.
  """
  table = LIBRARIES[library]
  if kind not in table:
    raise UserError(
      f'{TITLES[library]} has no network like this {kind}: --to={library} '
      f'takes {", ".join(table)}'
    )
  out, unknown = rows.outward(arrays, table[kind])
  if unknown:
    more = f' and {len(unknown) - 4} more' if len(unknown) > 4 else ''
    raise UserError(
      f"{TITLES[library]}'s {kind} has no place for {len(unknown)} arrays: "
      f'{", ".join(unknown[:4])}{more}'
    )
  return out
