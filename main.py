"""python -m main --config=configs/quickstart.py --workdir=runs/quickstart

Flags and exit codes only. 0: finished. 2: what you can mend, said in one line.
75: stopped by a signal, or by the loss of another process; the same command
goes on. 1: a bug. All logic is in `esvit_jax`, ready for Colab:
`esvit_jax.train.run(config, workdir)`.
"""

import ast
import difflib
import os
import pathlib
import re
import sys
import time
import traceback
from collections.abc import Callable

from absl import flags
from ml_collections import ConfigDict, config_flags

from esvit_jax.errors import Stopped, UserError, in_one_line, printable

LONGEST = 1500  # characters of an error; more is somebody's broken file

CONFIG = config_flags.DEFINE_config_file(
  'config',
  None,
  'A file of configs/, with :variant where it has some. Its fields are set by '
  '--config.FIELD=VALUE: configs/common.py lists those of every run, the file '
  'itself those of its method, models/ those of the network.',
  lock_config=False,
  accept_new_attributes=True,
)
WORKDIR = flags.DEFINE_string(
  'workdir', '', 'Run directory; the same command again resumes.'
)
MODE = flags.DEFINE_enum(
  'mode',
  'train',
  ['train', 'plan', 'bench', 'report', 'replay'],
  'plan: whether a run fits on a --target, and what it takes; bench: speed on '
  'synthetic images; report: report.html of --workdir, or a '
  'comparison of several, with commas; replay: which number of the step that '
  'stopped the run in --workdir was the first that is not finite.',
)
TARGET = flags.DEFINE_string(
  'target', 'h200', 'Of --mode=plan: h200, h100-8, v5e-8, v5p-64, ...'
)
AGAINST = flags.DEFINE_string(
  'against', '', 'Of --mode=bench: an earlier bench.json to compare with.'
)
DISTRIBUTED = flags.DEFINE_bool(
  'distributed', False, 'Join other processes (TPU pods, Slurm: detected).'
)
COORDINATOR = flags.DEFINE_string(
  'coordinator', '', 'host:port of process 0, where it is not detected.'
)
PROCESSES = flags.DEFINE_integer('processes', 0, 'How many processes.')
PROCESS = flags.DEFINE_integer('process', -1, 'Index of this process.')
CACHE = flags.DEFINE_string(
  'compilation_cache',
  'auto',
  'Where compiled programs are kept for the next command: auto is '
  '~/.cache/esvit_jax/xla, empty keeps none; JAX_COMPILATION_CACHE_DIR comes '
  'first.',
)


def main(argv: list[str]) -> int:
  """Runs the command line; returns the exit code."""
  for stream in (sys.stdout, sys.stderr):
    if hasattr(stream, 'reconfigure'):  # names that the terminal cannot show
      stream.reconfigure(errors='backslashreplace')
  if any(arg in ('--help', '-h', '-help') for arg in argv[1:]):
    return guarded(lambda: print(help_text()))
  return guarded(lambda: command(parse(argv)))


def guarded(call: Callable[[], object]) -> int:
  """Calls; says what went wrong, and returns the exit code."""
  try:
    call()
  except UserError as e:
    print(f'error: {printable(str(e))[:LONGEST]}', file=sys.stderr)
    return 2
  except (Stopped, BrokenPipeError):
    return 75
  except (MemoryError, OSError) as e:
    # Of the machine: where it matters, a path and a remedy are said.
    print(f'error: {in_one_line(e)}', file=sys.stderr)
    return 2
  except KeyboardInterrupt:
    print('stopped; the same command goes on', file=sys.stderr)
    return 75
  except Exception as e:
    if not of_processes(e):
      traceback.print_exc()
      return 1
    print(
      f'error: lost the other processes ({in_one_line(e)}); the same command '
      'goes on from the last checkpoint',
      file=sys.stderr,
      flush=True,
    )
    os._exit(75)
  return 0


def prepare_memory() -> None:
  """Starts the process again if that makes memory quicker."""
  from esvit_jax.run import startup

  startup.use_huge_pages()


def command(config) -> None:
  """What the flags ask for."""
  from esvit_jax.run import signals, startup

  with signals.ends_at_once():
    if problem := startup.keep_programs(CACHE.value):
      print(f'note: {problem}', file=sys.stderr)
    if DISTRIBUTED.value or COORDINATOR.value:
      from esvit_jax import sharding

      sharding.initialize(COORDINATOR.value, PROCESSES.value, PROCESS.value)
    if config is not None and config.get('budget'):
      from esvit_jax.run import recipe

      given = flags.FLAGS['config'].override_values
      config = recipe.derive(config, given, WORKDIR.value)
    if MODE.value == 'report':
      from esvit_jax import report

      print(report.build(WORKDIR.value.split(',')))
    elif MODE.value == 'replay':
      from esvit_jax.run import replay

      replay.recompute(WORKDIR.value)
    elif MODE.value == 'plan':
      from esvit_jax import plan

      plan.run(config, TARGET.value)
    elif MODE.value == 'bench':
      from esvit_jax import bench

      if 'task' in config:
        bench.evaluation(config, WORKDIR.value)
      else:
        bench.run(config, WORKDIR.value, AGAINST.value)
    elif 'experiment' in config:
      from esvit_jax import experiment

      experiment.run(config, WORKDIR.value)
    elif 'task' in config:
      from esvit_jax import evaluate

      evaluate.run(config, WORKDIR.value)
    else:
      from esvit_jax import train

      train.finish(config, WORKDIR.value)


def of_processes(error: Exception) -> bool:
  """Whether it is one of several processes that failed to reach another."""
  return processes() > 1 and type(error).__name__ == 'JaxRuntimeError'


def processes() -> int:
  """How many work together."""
  if not flags.FLAGS.is_parsed() or not (
    DISTRIBUTED.value or COORDINATOR.value
  ):
    return 1
  import jax

  return jax.process_count()


def leave(code: int) -> None:
  """Ends the process.

  One of several that fails does not wait for the others, as jax would.
  """
  try:
    sys.stdout.flush()
  except BrokenPipeError:
    # The interpreter flushes once more.
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
  if code not in (0, 75) and processes() > 1:
    time.sleep(1)  # so that answers on their way are heard
    os._exit(code)
  sys.exit(code)


def parse(argv: list[str]):
  """The config; None where none is needed. Raises UserError for bad flags."""
  try:
    rest = flags.FLAGS(argv)
    config, unknown = CONFIG.value, None
    if config is not None:
      unknown = unknown_field(argv)
      config.lock()
  except Exception as e:  # a config file can raise anything
    raise UserError(_explain(e, argv)) from e
  if rest[1:]:
    raise UserError(f"what is '{rest[1]}'? Flags look like --name=value")
  if MODE.value in ('report', 'replay'):
    if not WORKDIR.value:
      raise UserError(f'no --workdir; give the run directory to {MODE.value}')
    return None
  if config is None:
    raise UserError('no --config; try --config=configs/quickstart.py')
  if unknown:
    raise UserError(unknown)
  for field, value in flags.FLAGS['config'].override_values.items():
    if isinstance(value, tuple) and any(isinstance(x, str) for x in value):
      raise UserError(
        f"config.{field} is {value}: give numbers, such as '(0.5, 0.5)'"
      )
  if MODE.value != 'train' and 'experiment' in config:
    raise UserError(f'an experiment has no --mode={MODE.value}: leave it out')
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
    return no_file(config_path(argv))
  wrong_type = isinstance(error, (AttributeError, KeyError, TypeError))
  if wrong_type and (unknown := unknown_field(argv)):
    return unknown
  value = re.match('flag --(.*?)=(.*?): ', text)
  if value and (kind := KINDS.get(flags.FLAGS[value[1]].flag_type())):
    return f"--{value[1]} is '{value[2]}': give {kind}"
  if not isinstance(error, (ValueError, flags.Error)):
    text = f'the config file raised {type(error).__name__}: {text}'
  return f'{" ".join(text.split())} (see --help)'


def config_path(argv: list[str]) -> str:
  """What --config says: a file, perhaps with :variant."""
  given = re.search(r'--?config[= ](\S*)', ' '.join(argv))
  return given[1] if given else ''


def unknown_field(argv: list[str]) -> str | None:
  """Says which overridden field the config does not have, if there is one.

  The network's own fields are checked where it is built.
  """
  from esvit_jax.workdir import RENAMED

  config = flags.FLAGS['config'].parser.parse(config_path(argv))
  for argument in argv[1:]:
    given = re.match(r'--?(?:no)?config\.([\w.]+)', argument)
    parts, section = given[1].split('.') if given else [], config
    for i, part in enumerate(parts):
      names = list(section) if isinstance(section, ConfigDict) else []
      if part in names:
        section = section[part]
        continue
      if parts[i - 1 :] == ['model', part] and names:
        break
      if given[1] in RENAMED:
        hint = f"it is now '{RENAMED[given[1]]}'"
      elif close := difflib.get_close_matches(part, names, 1):
        right = '.'.join([*parts[:i], *close, *parts[i + 1 :]])
        hint = f"did you mean '{right}'? (see --help)"
      else:
        hint = 'see --help'
      return f"config has no field '{given[1]}': {hint}"
  return None


def config_files() -> dict[str, pathlib.Path]:
  """Path below this file -> file, of all that --config takes."""
  root = pathlib.Path(__file__).parent
  return {
    str(file.relative_to(root)): file
    for folder in ('configs', 'configs/eval', 'configs/experiments')
    for file in sorted((root / folder).glob('[!_]*.py'))
    if file.stem != 'common'
  }


def no_file(path: str) -> str:
  """Says that --config names no file, and which may be meant."""
  file, comma, variant = path.partition(',')
  files = config_files()
  if comma and file in files:
    return f"no config file '{path}': variants follow a colon, {file}:{variant}"
  file = path.partition(':')[0]
  stems = {pathlib.Path(name).stem: name for name in files}
  close = difflib.get_close_matches(pathlib.Path(file).stem, stems, 1)
  if close:
    return f"no config file '{file}': did you mean {stems[close[0]]}?"
  return f"no config file '{file}': choose from {', '.join(files)}"


def help_text() -> str:
  """What --help prints: the command, its flags, and all configs."""
  lines = [__doc__, 'Flags:', flags.FLAGS.main_module_help(), '', 'Configs:']
  for name, file in config_files().items():
    doc = ast.get_docstring(ast.parse(file.read_text(encoding='utf-8')))
    lines += [f'  {name}', f'    {doc.splitlines()[0]}']
  return '\n'.join(lines)


if __name__ == '__main__':
  prepare_memory()
  leave(main(sys.argv))
