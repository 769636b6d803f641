"""Small data: pre-train on a set, fine-tune on the same, judge on its test.

The protocol behind SiT's table (2104.03602): no image from elsewhere. Both
stages are plain runs, WORKDIR/pretrain and WORKDIR/finetune, so the same
command goes on where it was stopped; of several sets each has its own folder.
"""

import os

from esvit_jax import report, train
from esvit_jax.errors import UserError
from esvit_jax.protocols import finetune, suites
from esvit_jax.protocols.setup import Result
from esvit_jax.workdir import terminal


def run(config, directory: str, out) -> Result:
  """Trains on each set of the config, and prints a table.

  Returns:
    Figures: set -> percent, or 'score' of the one source that has no name.

  Raises:
    UserError, Stopped: as train.finish; of several sets, those that fail are
      said so and the others go on.
  """
  if not directory:
    raise UserError('no --workdir: this trains, so it needs a place')
  if not config.sets:
    score = both(config, directory, out)
    return Result(directory, config, 'student', {'score': score})
  figures, failed = {}, {}
  rows = suites.chosen(config.sets)
  for name, row in rows.items():
    try:
      one = placed(config, name, row)
      figures[name] = both(one, os.path.join(directory, name), out)
    except UserError as e:
      failed[name] = str(e)
      print(f'{row.title}: left out: {e}', file=out)
  _print(rows, figures, out)
  found = figures | ({'not_judged': failed} if failed else {})
  return Result(directory, config, 'student', found)


def placed(config, name: str, row: suites.Set):
  """The config of one set; mirrors and metric are as it wants them.

  Raises:
    UserError: it is nowhere to be had, or not to be fine-tuned on.
  """
  if row.metric == 'map_11':
    raise UserError('fine-tuning learns one label an image, here are several')
  one = config.copy_and_resolve_references()
  suites.place(one.data, config.root, name, row)
  for stage in (one.pretraining, one.finetuning):
    for group in stage.views.values():
      group.flip *= row.flip
  one.finetuning.eval.metric = row.metric
  return one


def both(config, directory: str, out) -> float:
  """Pre-trains, fine-tunes; returns percent on test of the last epoch."""
  first, second = (os.path.join(directory, x) for x in ('pretrain', 'finetune'))
  before, after = stages(config)
  done = []
  if not config.scratch:
    print(f'pre-training in {first}', file=out)
    train.finish(before, first, out)
    after.checkpoint = first
    done = [first]
  print(f'fine-tuning in {second}', file=out)
  figures = finetune.run(after, second, out).figures
  page = report.stages([*done, second], os.path.join(directory, 'report.html'))
  print(f'both     {page}', file=out)
  return figures['accuracy/student']


def stages(config):
  """The configs of both runs: one seed, one set, one network."""
  before = config.pretraining.copy_and_resolve_references()
  after = config.finetuning.copy_and_resolve_references()
  given = {k: v for k, v in config.data.items() if v not in ('', -1)}
  for stage in (before, after):
    stage.seed = config.seed
    stage.data.update(given)
  after.data.update({k: before.data[k] for k in ('channels', 'mean', 'std')})
  if config.scratch:
    drop_path = after.model.drop_path
    with after.unlocked():
      after.model = before.model
    after.model.drop_path = drop_path
  return before, after


def _print(rows, figures: dict, out) -> None:
  """Our row beside the published ones, where there are any."""
  names = [name for name in rows if name in suites.PUBLISHED['SiT']]
  names += [name for name in rows if name not in names]
  lines = {'this run': figures}
  if any(name in suites.PUBLISHED['SiT'] for name in names):
    lines |= suites.PUBLISHED
  table = []
  for name in names:
    scores = [line.get(name) for line in lines.values()]
    cells = ['-' if x is None else f'{x:.1f}' for x in scores]
    table.append((rows[name].title, *cells))
  print(terminal.table('small data', ('set', *lines), table), file=out)
