"""Runs a command as several processes on this machine, as a pod would.

  python launch/local_processes.py --processes=2 --devices=4 -- \\
      --config=configs/quickstart.py:debug --workdir=runs/two

Each process sees `--devices` virtual CPU devices; together they train one
model. All that differs from a TPU pod is the hardware.
"""

import argparse
import os
import socket
import subprocess
import sys


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
    )
    for i in range(args.processes)
  ]
  try:
    return max(worker.wait() for worker in workers)
  finally:
    for worker in workers:
      worker.kill()


if __name__ == '__main__':
  sys.exit(main())
