"""Files of a run: written in one stroke, read without trust."""

import contextlib
import json
import os
from collections.abc import Iterator

from esvit_jax.errors import UserError

DEEPEST = 32  # levels of JSON; nothing that is written here has more
LARGEST = 2**64  # of whole numbers in JSON


@contextlib.contextmanager
def writing(path: str, remedy: str = '') -> Iterator[None]:
  """Turns what a full or broken disk raises into one line.

  Args:
    path: what is written.
    remedy: what to do; by default to make room and to go on.

  Raises:
    UserError: instead of an OSError.
  """
  try:
    yield
  except OSError as e:
    remedy = remedy or (
      'make room or mend the disk or its permissions; the same command goes on'
    )
    raise UserError(f'cannot write {path} ({e.strerror or e}): {remedy}') from e


def write_json(path: str, value) -> None:
  """Writes in one stroke: readers see the old file or the new one.

  Raises:
    UserError: it cannot be written; the old file stays.
  """
  part = path + '.tmp'
  with writing(path):
    try:
      with open(part, 'w', encoding='utf-8') as f:
        json.dump(value, f, indent=2)
      os.replace(part, path)
    except OSError:
      with contextlib.suppress(OSError):
        os.remove(part)
      raise


def read_json(path: str) -> dict:
  """The object in a file.

  Raises:
    OSError: it cannot be read.
    ValueError: it is no JSON object, or none that was written here.
  """
  with open(path, encoding='utf-8') as f:
    value = parse_json(f.read())
  if not isinstance(value, dict):
    raise ValueError('it is no JSON object')
  return value


def parse_json(text: str):
  """The value of a JSON text.

  Raises:
    ValueError: it is no JSON, is nested more than DEEPEST levels, or holds a
      whole number beyond LARGEST.
  """
  try:
    value = json.loads(text, parse_int=_whole_number)
  except RecursionError:
    raise ValueError('it is nested too deeply') from None
  level = [value]
  for _ in range(DEEPEST):
    level = [x for node in level for x in _children(node)]
    if not level:
      return value
  raise ValueError('it is nested too deeply')


def flatten(tree: dict, prefix: str = '') -> dict:
  """{'a': {'b': 1}} -> {'a.b': 1}."""
  flat = {}
  for key, value in tree.items():
    if isinstance(value, dict) and value:
      flat |= flatten(value, f'{prefix}{key}.')
    else:
      flat[prefix + key] = value
  return flat


def _whole_number(text: str) -> int:
  if len(text) > 20 or abs(int(text)) > LARGEST:
    raise ValueError(f'it holds a whole number of {len(text)} digits')
  return int(text)


def _children(node):
  if isinstance(node, dict):
    return node.values()
  return node if isinstance(node, list) else ()
