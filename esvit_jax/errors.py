"""Errors that are no bugs: mistakes of the user, and requests to stop."""

import difflib
import os
from collections.abc import Iterable


class UserError(ValueError):
  """Bad input. Its text is one clear line: what, where, what to do.

  `main.py` prints the text without a traceback and exits with code 2.
  """


# Of URLs that a shell or a library has left one slash: gs:/bucket/run.
_SCHEMES = (
  *('abfs', 'abfss', 'az', 'file', 'ftp', 'gcs', 'gs', 'hdfs', 'http'),
  *('https', 's3', 's3a', 'wasb', 'wasbs', 'webhdfs'),
)


def require_local(path: str, field: str) -> str:
  """The path of a file or folder; `field` is how the user gave it.

  Raises:
    UserError: it is a URL such as gs://bucket/run. Locks, metrics and pages are
      written as files, and images are read as such.
  """
  scheme = path.partition(':/')[0]
  if '://' in path or (scheme != path and scheme.lower() in _SCHEMES):
    raise UserError(
      f'{field} is {path}: buckets and other URLs are not opened directly. '
      'Mount it (gcsfuse, mountpoint-s3, hdfs-fuse) or copy it, and name the '
      'folder'
    )
  return path


def suggestion(word: object, choices: Iterable[str]) -> str:
  """ "did you mean 'close'?" or, if no choice is close, all of them."""
  choices = list(choices)
  close = difflib.get_close_matches(str(word), choices, 1)
  if close:
    return f"did you mean '{close[0]}'?"
  return f'choose from {", ".join(choices)}'


def in_one_line(error: Exception) -> str:
  """'TypeError: what it says', at most 300 characters of it."""
  return printable(' '.join(f'{type(error).__name__}: {error}'.split())[:300])


def printable(text: str) -> str:
  r"""A name that can be shown anywhere: what is no character is escaped.

  Bytes that are not UTF-8, which Python reads as lone surrogates, become \xe9;
  control, escape and direction characters \x1b or \u202e.
  """
  return ''.join(x if x.isprintable() else _escaped(x) for x in os.fspath(text))


def _escaped(character: str) -> str:
  code = ord(character)
  if 0xDC80 <= code <= 0xDCFF:
    code -= 0xDC00
  if code < 0x100:
    return f'\\x{code:02x}'
  return character.encode('unicode_escape', 'surrogatepass').decode()


class Stopped(Exception):  # noqa: N818 - no error
  """A run was asked to stop; it has saved itself and said so."""
