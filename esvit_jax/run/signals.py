"""Requests to stop: SIGTERM, SIGINT (Ctrl-C) and SIGHUP.

Until its first step a command has nothing to save and ends at once. A run in
training saves itself first, and ends at once on a second signal.
"""

import contextlib
import os
import signal
import threading
import time

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
# `timeout` and a terminal that closes send several signals for one request;
# what comes later, in seconds, is another request.
ANOTHER = 0.3
STOPPED = 75  # exit code: EX_TEMPFAIL, the same command goes on


class StopRequest:
  """Whether a run in training was asked to stop.

  A context manager, so that the handlers from before come back.
  """

  def __init__(self):
    self._asked = None
    self._before = {}

  def __bool__(self) -> bool:
    return self._asked is not None

  def __enter__(self) -> 'StopRequest':
    return self

  def __exit__(self, *unused) -> None:
    for number, handler in self._before.items():
      signal.signal(number, handler)

  def arm(self) -> None:
    """From here on, signals are requests: there is something to save."""
    if threading.current_thread() is threading.main_thread():
      self._before = {x: signal.signal(x, self._receive) for x in SIGNALS}

  def _receive(self, number, frame) -> None:
    now = time.monotonic()
    if self._asked is None:
      self._asked = now
    elif self._before[number] is not _leave_it_to_the_thread and (
      now - self._asked > ANOTHER
    ):
      raise KeyboardInterrupt


@contextlib.contextmanager
def ends_at_once():
  """Ends a command on a signal, unless a run takes it as a request to stop.

  By a thread: the main one may be inside a compiler for minutes.
  """
  read, write = os.pipe()
  os.set_blocking(write, False)
  before = {x: signal.signal(x, _leave_it_to_the_thread) for x in SIGNALS}
  fd = signal.set_wakeup_fd(write, warn_on_full_buffer=False)
  threading.Thread(target=_watch, args=(read,), daemon=True).start()
  try:
    yield
  finally:
    signal.set_wakeup_fd(fd)
    os.close(write)  # ends the thread
    for number, handler in before.items():
      signal.signal(number, handler)


def _leave_it_to_the_thread(number, frame) -> None:
  pass


def _watch(read: int) -> None:
  first = None
  with open(read, 'rb', buffering=0) as stream:
    while byte := stream.read(1):
      if byte[0] not in SIGNALS:
        continue
      now = time.monotonic()
      taken = signal.getsignal(byte[0]) is not _leave_it_to_the_thread
      if not taken or (first is not None and now - first > ANOTHER):
        name = signal.Signals(byte[0]).name
        text = f'stopped at once by {name}; the same command goes on\n'
        with contextlib.suppress(OSError):
          os.write(2, text.encode())
        os._exit(STOPPED)
      first = now if first is None else first
