"""python -m main --config=configs/quickstart.py --workdir=runs/quickstart

Flags and exit codes only: 0 done (or stopped on request, resumable), 2 for
what you can mend, said in one line. All logic is in `esvit_jax`, ready for
Colab: `esvit_jax.train.run(config, workdir)`.
"""

import sys

from absl import flags
from ml_collections import config_flags

from esvit_jax.errors import UserError

CONFIG = config_flags.DEFINE_config_file(
  'config', None, 'A file of configs/, with :variant where it has some.'
)
WORKDIR = flags.DEFINE_string(
  'workdir', '', 'Run directory; the same command again resumes.'
)
MODE = flags.DEFINE_enum(
  'mode', 'train', ['train', 'bench'], 'bench: speed on synthetic images.'
)
DISTRIBUTED = flags.DEFINE_bool(
  'distributed', False, 'Join other processes (TPU pods, Slurm: detected).'
)
COORDINATOR = flags.DEFINE_string(
  'coordinator', '', 'host:port of process 0, where it is not detected.'
)
PROCESSES = flags.DEFINE_integer('processes', 0, 'How many processes.')
PROCESS = flags.DEFINE_integer('process', -1, 'Index of this process.')


def main(argv: list[str]) -> int:
  """Runs the command line; returns the exit code."""
  try:
    config = parse(argv)
    if config is None:
      return 0
    if DISTRIBUTED.value or COORDINATOR.value:
      from esvit_jax import sharding

      sharding.initialize(COORDINATOR.value, PROCESSES.value, PROCESS.value)
    if MODE.value == 'bench':
      from esvit_jax import bench

      bench.run(config, WORKDIR.value)
    else:
      from esvit_jax import train

      train.run(config, WORKDIR.value)
  except UserError as e:
    print(f'error: {e}', file=sys.stderr)
    return 2
  return 0


def parse(argv: list[str]):
  """The config, or None after --help. Raises UserError for bad flags."""
  if any(arg in ('--help', '-h', '-help') for arg in argv[1:]):
    print(f'{__doc__}\nFlags:\n{flags.FLAGS.main_module_help()}')
    return None
  try:
    rest = flags.FLAGS(argv)
    config = CONFIG.value
    if rest[1:]:
      raise UserError(f"what is '{rest[1]}'? Flags look like --name=value")
    if config is None:
      raise UserError('no --config; try --config=configs/quickstart.py')
    config.lock()
  except UserError:
    raise
  except Exception as e:  # a config file can raise anything
    lines = str(e).strip().splitlines() or [type(e).__name__]
    # A config file that raises comes with its whole traceback.
    text = lines[-1] if 'Traceback' in str(e) else ' '.join(lines)
    raise UserError(f'{text.strip()} (see --help)') from e
  if MODE.value == 'train' and not WORKDIR.value:
    raise UserError('no --workdir; try --workdir=runs/NAME')
  return config


if __name__ == '__main__':
  sys.exit(main(sys.argv))
