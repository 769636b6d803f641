"""Runs a command as several processes on this machine, as a pod would.

  python launch/local_processes.py --processes=2 --devices=4 -- \\
      --config=configs/quickstart.py:debug --workdir=runs/two

Each process sees `--devices` virtual CPU devices; together they train one
model. All that differs from a TPU pod is the hardware. Signals are handed on
to all; where one process fails, the others end too.
"""

import argparse
import os
import signal
import socket
import subprocess
import sys
import time

GRACE = 10  # seconds that others have to fail in their own words


def main() -> int:
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument('--processes', type=int, default=2)
  parser.add_argument('--devices', type=int, default=4)
  parser.add_argument('flags', nargs='*', help='flags of main, after --')
  args = parser.parse_args()
  with socket.socket() as s:
    s.bind(('127.0.0.1', 0))
    port = s.getsockname()[1]
  environment = os.environ | {
    'JAX_PLATFORMS': 'cpu',
    'JAX_NUM_CPU_DEVICES': str(args.devices),
  }
  workers = [
    subprocess.Popen(
      [
        sys.executable,
        '-m',
        'main',
        *args.flags,
        f'--coordinator=127.0.0.1:{port}',
        f'--processes={args.processes}',
        f'--process={i}',
      ],
      env=environment,
      # Ctrl-C reaches them through this process alone, once.
      start_new_session=True,
    )
    for i in range(args.processes)
  ]

  def hand_on(number, frame):
    for worker in workers:
      worker.send_signal(number)

  for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
    signal.signal(number, hand_on)
  try:
    return exit_code(workers)
  finally:
    for worker in workers:
      worker.kill()


def exit_code(workers: list[subprocess.Popen]) -> int:
  """Waits for all; after the first failure not for long.

  Returns:
    The code of the first that failed, 128 + its number for a signal, or 0.
  """
  first, deadline = 0, None
  while None in (codes := [worker.poll() for worker in workers]):
    first = first or next(filter(None, codes), 0)
    if first and deadline is None:
      # A process that was killed says nothing that others could wait for.
      deadline = time.monotonic() + (GRACE if first > 0 else 0)
    if deadline is not None and time.monotonic() > deadline:
      break
    time.sleep(0.1)
  first = first or next(filter(None, codes), 0)
  return 128 - first if first < 0 else first


if __name__ == '__main__':
  sys.exit(main())
