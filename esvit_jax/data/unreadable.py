"""The error of an image that cannot be read."""


class Unreadable(Exception):  # noqa: N818 - says what it is of an image
  """An image cannot be read; the text is the cause, on one line."""

  def __init__(self, cause: Exception | str):
    if isinstance(cause, Exception):
      cause = f'{type(cause).__name__}: {cause}'
    super().__init__(' '.join(cause.split()))
