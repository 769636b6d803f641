"""python -m main --config=configs/quickstart.py --workdir=runs/quickstart

Flags and exit codes only: 0 done (or stopped on request, resumable), 2 for
what you can mend, said in one line. All logic is in `esvit_jax`, ready for
Colab: `esvit_jax.train.run(config, workdir)`.
"""

import pathlib
import re
import sys

from absl import flags
from ml_collections import config_flags

from esvit_jax.errors import UserError

CONFIG = config_flags.DEFINE_config_file(
  'config',
  None,
  'A file of configs/, with :variant where it has some. Its fields, listed in '
  'configs/common.py, are set by --config.FIELD=VALUE.',
)
WORKDIR = flags.DEFINE_string(
  'workdir', '', 'Run directory; the same command again resumes.'
)
MODE = flags.DEFINE_enum(
  'mode',
  'train',
  ['train', 'bench', 'report'],
  'bench: speed on synthetic images; report: report.html of --workdir, or a '
  'comparison of several, with commas.',
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
    if any(arg in ('--help', '-h', '-help') for arg in argv[1:]):
      print(f'{__doc__}\nFlags:\n{flags.FLAGS.main_module_help()}')
      return 0
    config = parse(argv)
    if DISTRIBUTED.value or COORDINATOR.value:
      from esvit_jax import sharding

      sharding.initialize(COORDINATOR.value, PROCESSES.value, PROCESS.value)
    if MODE.value == 'report':
      from esvit_jax import report

      print(report.build(WORKDIR.value.split(',')))
    elif MODE.value == 'bench':
      from esvit_jax import bench

      measure = bench.evaluation if 'task' in config else bench.run
      measure(config, WORKDIR.value)
    elif 'task' in config:
      from esvit_jax import evaluate

      evaluate.run(config, WORKDIR.value)
    else:
      from esvit_jax import train

      train.run(config, WORKDIR.value)
  except UserError as e:
    print(f'error: {e}', file=sys.stderr)
    return 2
  return 0


def parse(argv: list[str]):
  """The config; None where none is needed. Raises UserError for bad flags."""
  try:
    rest = flags.FLAGS(argv)
    config = CONFIG.value
    if config is not None:
      config.lock()
  except Exception as e:  # a config file can raise anything
    raise UserError(_explain(e, argv)) from e
  if rest[1:]:
    raise UserError(f"what is '{rest[1]}'? Flags look like --name=value")
  if MODE.value == 'report':
    if not WORKDIR.value:
      raise UserError('no --workdir; give the run directory to report on')
    return None
  if config is None:
    raise UserError('no --config; try --config=configs/quickstart.py')
  for field, value in flags.FLAGS['config'].override_values.items():
    if isinstance(value, tuple) and any(isinstance(x, str) for x in value):
      raise UserError(
        f"config.{field} is {value}: give numbers, such as '(0.5, 0.5)'"
      )
  if MODE.value == 'train' and not WORKDIR.value and 'task' not in config:
    raise UserError('no --workdir; try --workdir=runs/NAME')
  return config


KINDS = {'int': 'a whole number', 'float': 'a number', 'bool': 'True or False'}


def _explain(error: Exception, argv: list[str]) -> str:
  """What absl and ml_collections complain of, in one line of our own."""
  text = str(error).strip() or type(error).__name__
  if 'Traceback' in text:  # raised by a config file
    line = text.splitlines()[-1].removeprefix('ValueError: ')
    return f'{line} (see --help)'
  if isinstance(error, OSError):
    here = pathlib.Path(__file__).parent / 'configs'
    names = sorted(x.name for x in here.glob('[!_]*.py') if x.stem != 'common')
    given = re.search(r'--?config[= ](.*?)(:| |$)', ' '.join(argv))
    return (
      f"no config file '{given[1] if given else ''}': configs/ has "
      f'{", ".join(names)}'
    )
  if isinstance(error, (AttributeError, KeyError)):
    return unknown_field(text, argv)
  value = re.match('flag --(.*?)=(.*?): ', text)
  if value and (kind := KINDS.get(flags.FLAGS[value[1]].flag_type())):
    return f"--{value[1]} is '{value[2]}': give {kind}"
  if not isinstance(error, (ValueError, flags.Error)):
    text = f'the config file raised {type(error).__name__}: {text}'
  return f'{" ".join(text.split())} (see --help)'


def unknown_field(text: str, argv: list[str]) -> str:
  """Which field of the config there is not, and which may be meant."""
  from esvit_jax.workdir import RENAMED

  close = re.search('mean "(.*?)" instead of "(.*?)"', text)
  right, wrong = close.groups() if close else ('', text.split()[-1])
  wrong = wrong.strip('\'"')
  fields = [x.partition('=')[0].partition('config.')[2] for x in argv]
  field = next((x for x in fields if wrong in x.split('.')), wrong)
  if field in RENAMED:
    return f"config has no field '{field}': it is now '{RENAMED[field]}'"
  right = '.'.join(right if x == wrong else x for x in field.split('.'))
  hint = f"did you mean '{right}'? (see --help)" if close else 'see --help'
  return f"config has no field '{field}': {hint}"


if __name__ == '__main__':
  sys.exit(main(sys.argv))
