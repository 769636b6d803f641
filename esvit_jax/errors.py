"""What is not a bug: mistakes that the user can mend, and requests to stop."""


class UserError(ValueError):
  """Bad input. Its text is one clear line: what, where, what to do.

  `main.py` prints the text without a traceback and exits with code 2.
  """


def in_one_line(error: Exception) -> str:
  """'TypeError: what it says', at most 300 characters of it."""
  return ' '.join(f'{type(error).__name__}: {error}'.split())[:300]


class Stopped(Exception):  # noqa: N818 - no error
  """A run was asked to stop; it has saved itself and said so."""
