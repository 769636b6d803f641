"""The one exception that means: the user can mend this."""


class UserError(ValueError):
  """Bad input. Its text is one clear line: what, where, what to do.

  `main.py` prints the text without a traceback and exits with code 2.
  """
