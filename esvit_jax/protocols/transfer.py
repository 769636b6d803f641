"""One network on many labelled sets: the transfer suites.

Each set is evaluated by a linear probe or by fine-tuning, in its own metric. A
set that is not on disk, or fails, is reported and the others go on; finished
ones are kept in transfer/NAME.json, and the same command goes on from there.
"""

import contextlib
import json
import os
import statistics

from esvit_jax import data, workdir
from esvit_jax.errors import UserError
from esvit_jax.protocols import finetune, probe, suites
from esvit_jax.protocols.setup import Result, prepare
from esvit_jax.workdir import terminal

MODES = ('probe', 'finetune')
SHARED = (
  'workers',
  'data_dir',
  'max_unreadable',
  'max_pixels',
  'label_fraction',
  'labels_per_class',
)


def run(config, directory: str, out) -> Result:
  """Evaluates all sets of a suite that are on disk.

  Returns:
    Figures: set -> percent, 'mean' of them, and against a baseline 'wins' and
    'compared'.

  Raises:
    UserError: the network or the config cannot be used at all, or no set
      could be evaluated.
    Stopped: fine-tuning was asked to stop.
  """
  c = config.transfer
  if c.mode not in MODES:
    raise UserError(f"config.transfer.mode is '{c.mode}': use probe, finetune")
  rows = suites.resolve(c.suite)
  if c.suite in suites.UNCERTAIN:
    print(f'note: {suites.UNCERTAIN[c.suite]}', file=out)
  baseline = _baseline(c.baseline)
  config = config.copy_and_resolve_references()
  config.data.source = config.data.source or 'embedded'
  # A network that cannot be read fails here, before the first set.
  setup = prepare(config, directory, out)
  directory = setup.directory
  with workdir.writing(directory):
    os.makedirs(os.path.join(directory, 'transfer'), exist_ok=True)
  scores, failed = suites.score_each(
    rows, lambda *row: _score(config, directory, *row, out), out
  )
  _print(rows, scores, failed, baseline, out)
  figures = {**scores, 'mean': statistics.mean(scores.values())}
  if baseline:
    both = scores.keys() & baseline.keys()
    figures['compared'] = len(both)
    figures['wins'] = sum(scores[name] > baseline[name] for name in both)
  if failed:
    figures['not_judged'] = failed
  return Result(directory, config, setup.network, figures)


def _score(config, directory: str, name: str, row, out) -> float:
  """The score of one set, computed or remembered."""
  config = config_of(config, name, row)
  file = os.path.join(directory, 'transfer', f'{name}.json')
  asked = json.loads(json.dumps(config.to_dict()))
  if os.path.exists(file):
    with contextlib.suppress(OSError, ValueError):  # damaged: judged again
      record = workdir.read_json(file)
      if record.get('config') == asked and 'score' in record:
        return record['score']
  if config.task == 'finetune':
    place = os.path.join(directory, 'transfer', name)
    figures = finetune.run(config, place, out).figures
  else:
    figures = probe.figures(prepare(config, directory, out))
  score = figures[row.metric]
  workdir.write_json(
    file, {'score': score, 'figures': figures, 'config': asked}
  )
  return score


def config_of(config, name: str, row: suites.Set):
  """The config of the evaluation of one set.

  Raises:
    UserError: it is not on disk.
  """
  if config.transfer.mode == 'finetune':
    new = config.finetuning.copy_and_resolve_references()
    new.checkpoint, new.which = config.checkpoint, config.which
    new.published = config.published
    new.eval.metric = row.metric
    new.views.globals.flip = 0.5 * row.flip
  else:
    new = config.copy_and_resolve_references()
    new.probe.flip, new.probe.metric = row.flip, row.metric
    with new.unlocked():
      del new.transfer, new.finetuning
  for field in SHARED:
    new.data[field] = config.data[field]
  new.data.canvas = max(config.data.canvas, 0)  # 0: what the set needs
  suites.locate(new.data, config.transfer.root, name, row)
  data.open_source(new.data.to_dict(), new.data.split)
  return new


def _baseline(path: str) -> dict[str, float]:
  """Scores by set, of another transfer.json or of a run that has one."""
  if not path:
    return {}
  if os.path.isdir(path):
    path = os.path.join(path, 'eval', 'transfer.json')
  try:
    figures = workdir.read_json(path)['figures']
    figures = {k: v + 0.0 for k, v in figures.items() if k in suites.SETS}
  except (OSError, ValueError, LookupError, TypeError, AttributeError) as e:
    raise UserError(
      f'cannot read the baseline {path} ({type(e).__name__}): give a '
      'transfer.json, or a run that was evaluated on this suite'
    ) from None
  return figures


def _print(rows, scores, failed, baseline, out) -> None:
  columns = ('set', 'metric', 'score')
  table = []
  for name, row in rows.items():
    score, other = scores.get(name), baseline.get(name)
    cells = [row.title, row.metric, _percent(score)]
    if baseline:
      both = score is not None and other is not None
      cells += [_percent(other), 'yes' if both and score > other else '']
    table.append(cells)
  if baseline:
    columns += ('baseline', 'win')
  text = terminal.table('transfer, %', columns, table, left=('metric', 'win'))
  print(text, file=out)
  for name, reason in failed.items():
    note = f' ({rows[name].note})' if rows[name].note else ''
    print(f'{rows[name].title}: {reason}{note}', file=out)


def _percent(score: float | None) -> str:
  return '-' if score is None else f'{score:.2f}'
