"""One evaluation of a finished network, alone.

  python -m main --config=configs/eval/knn.py --config.checkpoint=runs/a

The network may come from a run directory, a safetensors file or a published
checkpoint. Figures go to eval/NAME.json of the run, or of --workdir.
"""

import os
import sys

from esvit_jax import protocols, report, workdir
from esvit_jax.errors import UserError, in_one_line, require_local
from esvit_jax.workdir import figures, provenance, terminal


def run(config, directory: str = '', out=sys.stdout) -> dict:
  """Evaluates a network, writes and prints the figures.

  Args:
    config: as in configs/eval/.
    directory: for eval/NAME.json and pictures; '' takes the checkpoint's
      own, if it is a run directory.
    out: where to print.

  Returns:
    The figures.

  Raises:
    UserError: the network, the images or the config cannot be used.
    Stopped: it was asked to stop while it trained.
  """
  if config.task not in protocols.PROTOCOLS:
    names = ', '.join(protocols.PROTOCOLS)
    raise UserError(f"no evaluation '{config.task}': choose from {names}")
  require_local(directory, '--workdir')
  result = protocols.PROTOCOLS[config.task](config, directory, out)
  write(result)
  _print(result, out)
  if os.path.exists(os.path.join(result.directory, 'metrics.jsonl')):
    try:
      page = report.build([result.directory])
    except Exception as e:  # the figures are written
      page = f'failed: {in_one_line(e)}'
    print(f'report   {page}', file=out)
  return result.figures


def path(result: protocols.Result) -> str:
  """Where the figures of an evaluation are written."""
  return os.path.join(result.directory, 'eval', f'{result.config.task}.json')


def write(result: protocols.Result) -> None:
  """Writes the figures, and all that is needed to get them again."""
  with workdir.writing(path(result)):
    os.makedirs(os.path.dirname(path(result)), exist_ok=True)
  workdir.write_json(
    path(result),
    {
      'name': result.config.task,
      'figures': result.figures,
      'network': result.network,
      'config': result.config.to_dict(),
      'run': provenance.record(),
    },
  )


def _print(result: protocols.Result, out) -> None:
  rows = [
    (
      figures.title(name),
      f'{value:.4g}' if isinstance(value, float) else str(value),
    )
    for name, value in result.figures.items()
    if isinstance(value, (float, int, str))
  ]
  print(terminal.table(result.config.task, ('figure', 'value'), rows), file=out)
  print(f'figures  {path(result)}', file=out)
