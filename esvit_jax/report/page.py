"""report.html: a self-contained page of a run, or of several.

  from esvit_jax import report
  report.build(['runs/quickstart'])            # runs/quickstart/report.html
  report.build(['runs/a', 'runs/b'])           # runs/comparison.html
  report.stages(['runs/c/pretrain', 'runs/c/finetune'], 'runs/c/report.html')

It only reads run directories, so any run can be shown at any time.
"""

import os
import re
import time
from collections.abc import Sequence

import jinja2

from esvit_jax.errors import UserError, printable
from esvit_jax.report import (
  charts,
  commands,
  comparison,
  curves,
  evaluations,
  pictures,
  records,
  tables,
)
from esvit_jax.report.records import Record
from esvit_jax.workdir import flatten
from esvit_jax.workdir.files import replacing

MOST_FILES = 100  # unreadable images that are listed


def build(
  directories: Sequence[str],
  out: str | None = None,
  running: bool | None = None,
) -> str:
  """Writes the page of one run, or of several side by side.

  Args:
    directories: of runs.
    out: path to write; by default report.html in the run's directory, or
      comparison.html in the common folder of several.
    running: whether they still train; by default, whether a process holds
      them.

  Returns:
    The path written.

  Raises:
    UserError: a directory is not that of a run or has a broken file, or `out`
      cannot be written.
  """
  if not directories:
    raise UserError('no run to report: give the --workdir of one or more')
  runs = [records.read(x, running) for x in directories]
  if len(runs) == 1:
    out = out or os.path.join(directories[0], 'report.html')
    return _write(out, 'run.html', runs[0].name, runs=[_run(runs[0])])
  common = os.path.commonpath([os.path.abspath(x) for x in directories])
  out = out or os.path.join(common, 'comparison.html')
  return _write(out, 'comparison.html', f'{len(runs)} runs', **_compared(runs))


def stages(directories: Sequence[str], out: str) -> str:
  """Writes one page of successive runs, such as pre-training and fine-tuning.

  Args:
    directories: of runs, in order.
    out: path to write.

  Returns:
    The path written.

  Raises:
    UserError: as `build`.
  """
  runs = [records.read(x) for x in directories]
  name = os.path.basename(os.path.dirname(os.path.abspath(out)))
  parts = [_run(run, prefix=f'{run.name}-') for run in runs]
  return _write(out, 'run.html', name, runs=parts)


def next_step(directory: str) -> str:
  """What to try after the last step of a run: a title and a command."""
  title, command = commands.next_step(records.read(directory))
  return f'{title[0].lower()}{title[1:]}:\n             {command}'


def _write(out: str, template: str, title: str, **content) -> str:
  """Renders a template to a file, which is replaced as a whole."""
  page = _environment().get_template(template)
  built = time.strftime('%Y-%m-%d %H:%M')
  text = page.render(title=title, built=built, **content)
  # Names of files need not be Unicode.
  with (
    replacing(out) as part,
    open(part, 'w', encoding='utf-8', errors='replace') as f,
  ):
    f.write(text)
  return out


def _environment() -> jinja2.Environment:
  """Escapes all values; an undefined name in a template is an error."""
  environment = jinja2.Environment(
    loader=jinja2.PackageLoader('esvit_jax.report'),
    autoescape=True,
    trim_blocks=True,
    lstrip_blocks=True,
    undefined=jinja2.StrictUndefined,
    finalize=_shown,
  )
  environment.filters |= {
    'value': tables.value,
    'sections': tables.sections,
    'flatten': flatten,
    'color_class': charts.color_class,
  }
  environment.globals['size'] = charts.SIZE
  return environment


def _shown(value):
  """Names as they can be shown; what is markup already stays."""
  if type(value) is not str:
    return value
  return '\n'.join(map(printable, value.split('\n')))


def _run(run: Record, prefix: str = '') -> dict:
  """The values for run.html; `prefix` begins its anchors."""
  config = run.config
  subtitle = [
    config_name(run),
    config.get('method'),
    config.get('model.name'),
    config.get('data.source'),
  ]
  return {
    'record': run,
    'prefix': prefix,
    'subtitle': ' · '.join(str(x) for x in subtitle if x),
    'verdict': [_finding(line) for line in run.verdict()],
    'curves': curves.of_run(run),
    'pictures': pictures.of_run(run),
    'scores': evaluations.scores(run),
    'evaluations': evaluations.of_run(run),
    'origin': _origin(run),
    'unreadable': run.unreadable[:MOST_FILES],
    'commands': commands.of_run(run),
    'command_is_known': bool(commands.made_by(run)),
  }


def _compared(runs: Sequence[Record]) -> dict:
  """The values for comparison.html."""
  runs = comparison.distinct(runs)
  return {
    'runs': runs,
    'headline': comparison.headline(runs),
    'verdicts': {
      run.name: run.verdict() or ['nothing was reported yet'] for run in runs
    },
    'charts': curves.of_runs(runs),
    'evaluations': comparison.evaluations(runs),
    'differences': comparison.differences(runs),
  }


def config_name(run: Record) -> str | None:
  """The config in the command, such as 'configs/quickstart.py'."""
  match = re.search(r'--config[= ](\S+)', commands.made_by(run))
  return match[1] if match else None


def _finding(line: str) -> tuple[str, str, str]:
  """A line of a verdict as (colour, finding, details)."""
  finding, _, details = line.partition(': ')
  color = {'healthy': 'good', 'too early to say': 'wait'}.get(finding, 'bad')
  return color, finding.capitalize(), details


def _origin(run: Record) -> list[tuple[str, object]]:
  """The entries of run.json: revision, versions, devices and so on."""
  left_out = ('command', 'chance')
  return [
    ('git revision' if key == 'git' else key, x)
    for key, x in run.origin.items()
    if x is not None and key not in left_out
  ]
