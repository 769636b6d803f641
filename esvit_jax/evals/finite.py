"""Features that are not finite: counted, left out, refused where many."""

import numpy as np

from esvit_jax.data.source import tolerable
from esvit_jax.errors import UserError

SHARE = 0.01  # of the images, whose features may be non-finite
ROWS = 2**14  # looked at together


def finite_rows(x: np.ndarray, what: str = 'the') -> np.ndarray:
  """Which images have finite features only, bool[N].

  Args:
    x: f[N, D].
    what: of which images, for the message.

  Raises:
    UserError: more than a hundredth, and more than five, have not.
  """
  rows = np.ones(len(x), bool)
  for start in range(0, len(x), ROWS):
    part = np.asarray(x[start : start + ROWS])
    rows[start : start + ROWS] = np.isfinite(part).all(1)
  bad, allowed = int((~rows).sum()), tolerable(len(x), SHARE)
  if bad > allowed:
    raise UserError(
      f'the features of {bad:,} of {len(x):,} {what} images are not finite, '
      f'more than the {allowed:,} that may be left out: the network has '
      'diverged, or overflows in its dtype (try float32)'
    )
  return rows


def only_finite(train_x, train_y, test_x, test_y):
  """Labelled features without the rows that are not finite.

  Args:
    train_x: f[N, D].
    train_y: labels of N images.
    test_x: f[M, D].
    test_y: labels of M images.

  Returns:
    The four, and how many images were left out of both.

  Raises:
    UserError: as `finite_rows`.
  """
  kept = []
  for x, y, what in ((train_x, train_y, 'training'), (test_x, test_y, 'test')):
    rows, y = finite_rows(x, what), np.asarray(y)
    kept += [x, y] if rows.all() else [np.asarray(x)[rows], y[rows]]
  left_out = len(train_x) - len(kept[0]) + len(test_x) - len(kept[2])
  return *kept, left_out


def counted(figures: dict, left_out: int) -> dict:
  """`figures` with 'non_finite', where features were left out."""
  return figures | ({'non_finite': left_out} if left_out else {})
