"""What is not a bug: mistakes that the user can mend, and requests to stop."""


class UserError(ValueError):
  """Bad input. Its text is one clear line: what, where, what to do.

  `main.py` prints the text without a traceback and exits with code 2.
  """


class Stopped(Exception):  # noqa: N818 - no error
  """A run was asked to stop; it has saved itself and said so."""
