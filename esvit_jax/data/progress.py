"""How far a long look at files is: a line now and then, on stderr."""

import sys
import threading
import time

EVERY = 10.0  # seconds between lines


class Progress:
  """Counts work done; safe for many threads. Short work prints nothing."""

  def __init__(self, what: str, total: float):
    """Starts the clock.

    Args:
      what: is done, such as 'indexing 147 shards'.
      total: of the work, in any unit.
    """
    self._what, self._total, self._done = what, max(total, 1), 0.0
    self._began = self._last = time.monotonic()
    self._lock = threading.Lock()

  def add(self, amount: float) -> None:
    """Notes work done, in the unit of the total."""
    with self._lock:
      self._done += amount
      now = time.monotonic()
      if now - self._last < EVERY:
        return
      self._last = now
      share = min(self._done / self._total, 1.0)
      left = (now - self._began) * (1 - share) / max(share, 1e-9)
    print(
      f'{self._what}: {100 * share:.0f} %, ETA {left:.0f} s',
      file=sys.stderr,
      flush=True,
    )
