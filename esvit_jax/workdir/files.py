"""Files of a run: replaced as a whole, read without trust."""

import contextlib
import json
import os
import shutil
from collections.abc import Iterator

from esvit_jax.errors import UserError

DEEPEST = 32  # levels of JSON; nothing that is written here has more
LARGEST = 2**64  # of whole numbers in JSON


@contextlib.contextmanager
def writing(path: str, remedy: str = '') -> Iterator[None]:
  """Turns the errors of a full or broken disk into one line.

  Args:
    path: that is written.
    remedy: what to do; by default to make room and to resume.

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


@contextlib.contextmanager
def replacing(path: str, remedy: str = '') -> Iterator[str]:
  """A temporary path to write to, which replaces `path` at the end.

  Readers see the old file or directory, or the new one.

  Args:
    path: to replace.
    remedy: see `writing`.

  Raises:
    UserError: it cannot be written. The old one stays, nothing else is left.
  """
  part = f'{path.rstrip("/")}.{os.getpid()}.tmp'
  try:
    with writing(path, remedy):
      yield part
      os.replace(part, path)
  finally:
    shutil.rmtree(part, ignore_errors=True)
    with contextlib.suppress(OSError):
      os.remove(part)


def check_free(path: str) -> None:
  """Raises UserError if `path` exists, or its folder does not."""
  if os.path.isdir(path) and not os.listdir(path):
    return
  if os.path.lexists(path):
    raise UserError(f'{path} exists: name another, or remove it')
  folder = os.path.dirname(os.path.abspath(path))
  if not os.path.isdir(folder):
    raise UserError(f'there is no folder {folder} to write in')


def write_json(path: str, value) -> None:
  """Writes a JSON file; see `replacing`."""
  with replacing(path) as part, open(part, 'w', encoding='utf-8') as f:
    json.dump(value, f, indent=2)


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
