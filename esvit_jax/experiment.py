"""Several runs that answer one question, in each of several seeds.

  python -m main --config=configs/experiments/regions.py --workdir=runs/regions

Runs go one after another, each in its own directory WORKDIR/NAME_SEED; the
same command goes on where it was stopped, and further seeds may be added later.
It ends in a table of means and spreads (experiment.txt), a figure
(experiment.png) and all numbers (experiment.json).
"""

import graphlib
import json
import os
import statistics
import sys

from esvit_jax import bench, evaluate, train, workdir
from esvit_jax.analysis.plots import experiment as plots
from esvit_jax.errors import UserError, require_local
from esvit_jax.workdir import metrics, provenance, terminal

COLUMNS = 5  # figures side by side
PREFIX = 'run:'  # of a field that names another run of the same seed


def run(config, directory: str, out=sys.stdout) -> dict:
  """Trains and evaluates what is still missing, and prints the table.

  Args:
    config: as in configs/experiments/.
    directory: of the experiment.
    out: where to report.

  Returns:
    run -> figure -> (mean, standard deviation over seeds).

  Raises:
    UserError: a config cannot be run, or the directory holds another
      experiment; what was measured is kept.
    Stopped: it was asked to stop.
  """
  if not directory:
    raise UserError('no --workdir: this trains, so it needs a place')
  require_local(directory, '--workdir')
  seeds = [int(seed) for seed in config.seeds]
  if not seeds or len(set(seeds)) < len(seeds):
    raise UserError(f'config.seeds is {config.seeds}: give distinct seeds')
  asked = json.loads(json.dumps(config.to_dict()))
  rows = recorded(directory, asked)
  os.makedirs(directory, exist_ok=True)
  for seed in seeds:
    for name in ordered(config.runs):
      if any((row['run'], row['seed']) == (name, seed) for row in rows):
        continue
      place = os.path.join(directory, f'{name}_{seed}')
      print(f'run      {name}, seed {seed}: {place}', file=out)
      figures = measure(config, name, seed, directory, out)
      rows.append({'run': name, 'seed': seed, 'figures': figures})
      write(directory, asked, rows)
  write(directory, asked, rows)
  text = table(config, rows)
  with open(f'{directory}/experiment.txt', 'w', encoding='utf-8') as f:
    f.write(text + '\n')
  picture = os.path.join(directory, 'experiment.png')
  plots.spread_png(picture, values(config, rows))
  print(f'{text}\nfigure   {picture}', file=out)
  return summary(config, rows)


def ordered(runs) -> list[str]:
  """Names of runs, each after those that its fields name.

  Raises:
    UserError: a field names a run that there is not.
  """
  needs = {
    name: [
      value.removeprefix(PREFIX)
      for value in workdir.flatten(arm.to_dict()).values()
      if isinstance(value, str) and value.startswith(PREFIX)
    ]
    for name, arm in runs.items()
  }
  for name in sorted({x for named in needs.values() for x in named}):
    if name not in needs:
      raise UserError(f"'{PREFIX}{name}': there is no run {name}")
  return list(graphlib.TopologicalSorter(needs).static_order())


def recorded(directory: str, config: dict) -> list[dict]:
  """Rows of an earlier call of the same experiment.

  Raises:
    UserError: it was another one.
  """
  path = os.path.join(directory, 'experiment.json')
  if not os.path.exists(path):
    return []
  try:
    earlier = workdir.read_json(path)
    there = workdir.flatten(earlier['config'])
    rows = earlier['rows']
  except (OSError, ValueError, KeyError, TypeError) as e:
    raise UserError(
      f'cannot read {path} ({e}); choose another --workdir'
    ) from e
  here = workdir.flatten(config)
  differ = [
    key
    for key in sorted(there.keys() | here.keys())
    if there.get(key) != here.get(key) and key != 'seeds'
  ]
  if differ:
    raise UserError(
      f'{directory} holds an experiment of another config '
      f'({", ".join(differ[:6])} differ): choose another --workdir'
    )
  return rows


def measure(config, name: str, seed: int, directory: str, out) -> dict:
  """One run of one seed, its evaluations and its speed, as flat figures."""
  place = os.path.join(directory, f'{name}_{seed}')
  arm = resolved(config.runs[name], seed, directory)
  arm.data.update(
    {k: v for k, v in config.data.items() if v not in ('', -1, ())}
  )
  if 'task' in arm:
    figures = evaluate.run(arm, place, out)
    return numbers(figures, arm.task)
  train.finish(arm, place, out)
  figures = final_scores(place)
  for task, evaluation in config.evaluations.items():
    evaluation = resolved(evaluation, seed, directory)
    evaluation.checkpoint = place
    figures |= numbers(evaluate.run(evaluation, place, out), task)
  if config.bench and seed == config.seeds[0]:
    figures |= numbers(bench.run(arm), 'bench')
  return figures


def resolved(arm, seed: int, directory: str):
  """A config of its own with the seed, and places of other runs filled in."""
  arm = arm.copy_and_resolve_references()
  arm.seed = seed
  for key, value in workdir.flatten(arm.to_dict()).items():
    if isinstance(value, str) and value.startswith(PREFIX):
      other = value.removeprefix(PREFIX)
      place = os.path.join(directory, f'{other}_{seed}')
      arm.update_from_flattened_dict({key: place})
  return arm


def final_scores(directory: str) -> dict[str, float]:
  """'knn', 'linear' and so on of the network that a run hands on."""
  network = workdir.read_json(os.path.join(directory, 'run.json'))['network']
  lines = metrics.read(os.path.join(directory, 'metrics.jsonl'))
  scores = {
    kind: metrics.last(lines, f'{kind}/{network}') for kind in metrics.SCORES
  }
  return {kind: x for kind, x in scores.items() if x is not None}


def numbers(figures: dict, name: str) -> dict[str, float]:
  """'NAME.FIGURE' -> value, of those that are numbers."""
  flat = workdir.flatten(figures)
  return {
    f'{name}.{key}': x for key, x in flat.items() if isinstance(x, (int, float))
  }


def values(config, rows: list[dict]) -> dict[str, dict[str, list[float]]]:
  """figure's title -> run -> its values over seeds."""
  return {
    title: {
      name: [
        row['figures'][key]
        for row in rows
        if row['run'] == name and key in row['figures']
      ]
      for name in config.runs
    }
    for title, key in config.figures
  }


def summary(config, rows: list[dict]) -> dict:
  """run -> figure -> (mean, standard deviation over seeds or None)."""
  by_title = values(config, rows)
  return {
    name: {
      title: (
        statistics.fmean(runs[name]),
        statistics.stdev(runs[name]) if len(runs[name]) > 1 else None,
      )
      for title, runs in by_title.items()
      if runs[name]
    }
    for name in config.runs
  }


def table(config, rows: list[dict]) -> str:
  """Means and spreads, a line for each run; many figures fill several."""
  tables, every = [], [title for title, _ in config.figures]
  for first in range(0, len(every), COLUMNS):
    titles = every[first : first + COLUMNS]
    lines = []
    for name, figures in summary(config, rows).items():
      cells = []
      for title in titles:
        mean, spread = figures.get(title, (None, None))
        cell = '-' if mean is None else f'{mean:.1f}'
        cells.append(cell if spread is None else f'{cell} ± {spread:.1f}')
      lines.append((name, *cells))
    tables.append(terminal.table(config.experiment, ('run', *titles), lines))
  text = '\n'.join(tables)
  seeds = ', '.join(map(str, sorted({row['seed'] for row in rows})))
  return f'{text}\n  mean ± standard deviation, seeds {seeds}'


def write(directory: str, config: dict, rows: list[dict]) -> None:
  """All numbers, and what is needed to get them again."""
  workdir.write_json(
    os.path.join(directory, 'experiment.json'),
    {'config': config, 'rows': rows, 'run': provenance.record()},
  )
