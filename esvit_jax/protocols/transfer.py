"""One network on many labelled sets: the transfer suites.

Each set is judged by a linear probe or by fine-tuning, in its own metric. A
set that is not on disk, or fails, is said so and the others go on; what is
done is kept in transfer/NAME.json, and the same command goes on from there.
"""

import json
import os
import statistics

from esvit_jax import data, workdir
from esvit_jax.errors import UserError
from esvit_jax.protocols import finetune, probe, suites
from esvit_jax.protocols.setup import Result, prepare
from esvit_jax.workdir import terminal

MODES = ('probe', 'finetune')


def run(config, directory: str, out) -> Result:
  """Judges all sets of a suite that are on disk.

  Returns:
    Figures: set -> percent, 'mean' of them, and against a baseline 'wins' and
    'compared'.

  Raises:
    UserError: the network or the config cannot be used at all.
    Stopped: fine-tuning was asked to stop.
  """
  c = config.transfer
  if c.mode not in MODES:
    raise UserError(f"config.transfer.mode is '{c.mode}': use probe, finetune")
  rows = suites.chosen(c.suite)
  baseline = _baseline(c.baseline)
  config = config.copy_and_resolve_references()
  config.data.source = config.data.source or 'embedded'
  # A network that cannot be read fails here, before the first set.
  setup = prepare(config, directory, out)
  directory = setup.directory
  folder = os.path.join(directory, 'transfer')
  os.makedirs(folder, exist_ok=True)
  figures, failed = {}, {}
  for name, row in rows.items():
    try:
      figures[name] = _once(config, directory, name, row, out)
      print(f'{row.title}: {figures[name]:.2f} ({row.metric})', file=out)
    except UserError as e:
      failed[name] = str(e)
      print(f'{row.title}: not judged: {e}', file=out)
  _print(rows, figures, failed, baseline, out)
  found = dict(figures)
  if figures:
    found['mean'] = statistics.mean(figures.values())
  if baseline:
    both = figures.keys() & baseline.keys()
    found['compared'] = len(both)
    found['wins'] = sum(figures[name] > baseline[name] for name in both)
  if failed:
    found['not_judged'] = failed
  return Result(directory, config, setup.network, found)


def _once(config, directory: str, name: str, row, out) -> float:
  """The score of one set, computed or remembered."""
  one = placed(config, name, row)
  file = os.path.join(directory, 'transfer', f'{name}.json')
  asked = json.loads(json.dumps(one.to_dict()))
  if os.path.exists(file):
    with open(file, encoding='utf-8') as f:
      done = json.load(f)
    if done['config'] == asked:
      return done['score']
  if config.transfer.mode == 'probe':
    figures = probe.figures(prepare(one, directory, out))
    score = figures[row.metric]
  else:
    where = os.path.join(directory, 'transfer', name)
    figures = finetune.run(one, where, out).figures
    score = figures['accuracy/student']
  done = {'score': score, 'figures': figures, 'config': asked}
  workdir.write_json(file, done)
  return score


def placed(config, name: str, row: suites.Set):
  """The config of one set.

  Raises:
    UserError: it is not on disk.
  """
  if config.transfer.mode == 'finetune':
    one = config.finetuning.copy_and_resolve_references()
    one.checkpoint, one.which = config.checkpoint, config.which
    one.eval.metric = row.metric
    one.views.globals.flip = 0.5 * row.flip
    if row.metric == 'map_11':
      raise UserError('fine-tuning learns one label an image: use mode=probe')
  else:
    one = config.copy_and_resolve_references()
    one.probe.flip, one.probe.metric = row.flip, row.metric
    with one.unlocked():
      del one.transfer, one.finetuning
  for field in (
    'workers',
    'data_dir',
    'max_unreadable',
    'label_fraction',
    'labels_per_class',
  ):
    one.data[field] = config.data[field]
  one.data.canvas = max(config.data.canvas, 0)  # 0: what the set needs
  suites.place(one.data, config.transfer.root, name, row)
  data.open_source(one.data.to_dict(), one.data.split)
  return one


def _baseline(path: str) -> dict[str, float]:
  """Scores by set, of another transfer.json or of a run that has one."""
  if not path:
    return {}
  if os.path.isdir(path):
    path = os.path.join(path, 'eval', 'transfer.json')
  try:
    with open(path, encoding='utf-8') as f:
      found = json.load(f)['figures']
  except (OSError, ValueError, KeyError, TypeError) as e:
    raise UserError(
      f'cannot read the baseline {path} ({type(e).__name__}): give a '
      'transfer.json, or a run that was judged by this suite'
    ) from None
  return {k: v for k, v in found.items() if k in suites.SETS}


def _print(rows, figures, failed, baseline, out) -> None:
  columns = ('set', 'metric', 'score')
  if baseline:
    columns += ('baseline', 'win')
  table = []
  for name, row in rows.items():
    score, reference = figures.get(name), (baseline or {}).get(name)
    numbers = ['-' if x is None else f'{x:.2f}' for x in (score, reference)]
    won = None not in (score, reference) and score > reference
    cells = (row.title, row.metric, *numbers, 'yes' if won else '')
    table.append(cells[: len(columns)])
  left = ('metric', 'win')
  print(terminal.table('transfer', columns, table, left), file=out)
  for name, why in failed.items():
    note = f' ({rows[name].note})' if rows[name].note else ''
    print(f'{rows[name].title}: {why}{note}', file=out)
