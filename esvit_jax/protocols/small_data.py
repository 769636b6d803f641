"""Small data: pre-train on a set, fine-tune on the same, score on its test.

The protocol behind SiT's table (arXiv 2104.03602): no image from elsewhere.
Both stages are plain runs, WORKDIR/pretrain and WORKDIR/finetune, so the same
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
      reported and the others go on, unless all fail.
  """
  if not directory:
    raise UserError('no --workdir: this trains, so it needs a place')
  if not config.sets:
    score = both(config, directory, out)
    return Result(directory, config, 'student', {'score': score})
  rows = suites.resolve(config.sets)

  def score(name: str, row: suites.Set) -> float:
    place = os.path.join(directory, name)
    return both(config_of(config, name, row), place, out)

  scores, failed = suites.score_each(rows, score, out)
  _print(rows, scores, out)
  figures = scores | ({'not_judged': failed} if failed else {})
  return Result(directory, config, 'student', figures)


def config_of(config, name: str, row: suites.Set):
  """The config of one set; its mirroring and its metric are taken over.

  Raises:
    UserError: it is not on disk.
  """
  new = config.copy_and_resolve_references()
  suites.locate(new.data, config.root, name, row)
  for stage in (new.pretraining, new.finetuning):
    for group in stage.views.values():
      group.flip *= row.flip
  new.finetuning.eval.metric = row.metric
  return new


def both(config, directory: str, out) -> float:
  """Pre-trains, fine-tunes; returns percent on test of the last epoch."""
  first, second = (os.path.join(directory, x) for x in ('pretrain', 'finetune'))
  before, after = stages(config)
  finished = []
  if not config.scratch:
    print(f'pre-training in {first}', file=out)
    train.finish(before, first, out)
    after.checkpoint = first
    finished = [first]
  print(f'fine-tuning in {second}', file=out)
  figures = finetune.run(after, second, out).figures
  page = report.stages(
    [*finished, second], os.path.join(directory, 'report.html')
  )
  print(f'both     {page}', file=out)
  return figures[after.eval.metric]


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


def _print(rows, scores: dict, out) -> None:
  """Our row beside the published ones, where there are any."""
  published = suites.PUBLISHED['SiT']
  names = sorted(rows, key=lambda name: name not in published)
  lines = {'this run': scores}
  if any(name in published for name in names):
    lines |= suites.PUBLISHED
  table = []
  for name in names:
    row = [line.get(name) for line in lines.values()]
    cells = ['-' if x is None else f'{x:.1f}' for x in row]
    table.append((rows[name].title, *cells))
  print(terminal.table('small data', ('set', *lines), table), file=out)
