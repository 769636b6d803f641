"""Names of splits: one table for all sources."""

import re
from collections.abc import Sequence

from esvit_jax.errors import UserError

# kind -> how it is called, in any case
NAMES = {
  'train': ('train', 'training', 'trainval'),
  'validation': ('validation', 'valid', 'val', 'dev'),
  'test': ('test', 'testing'),
}
# Of sets that have both, such as ImageNet, the test labels are not public.
JUDGED = ('validation', 'test')


def kind(name: str) -> str:
  """The key of NAMES that a name stands for, or ''."""
  return next((k for k, v in NAMES.items() if name.lower() in v), '')


def resembles(name: str) -> bool:
  """Whether a word of a name is one of a split, as in 'train2017'."""
  return any(map(kind, re.findall('[a-z]+', name.lower())))


def match(split: str, names: Sequence[str]) -> str | None:
  """The name that means `split`: itself, or the only one of its kind.

  Raises:
    UserError: there are several.
  """
  if split in names:
    return split
  alike = [name for name in names if kind(split) and kind(name) == kind(split)]
  if len(alike) > 1:
    raise UserError(
      f'split {split!r} may be any of {", ".join(alike)}: name one of them'
    )
  return alike[0] if alike else None


def require(what: str, split: str, names: Sequence[str]) -> str:
  """`match`, or a UserError that lists the splits of `what`."""
  name = match(split, names)
  if name is None:
    raise UserError(
      f'{what} has no split {split!r}: use one of {", ".join(names)}'
    )
  return name
