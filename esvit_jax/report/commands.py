"""Commands for what can be done with a run, ready to be copied."""

import os
import shlex
from typing import NamedTuple

from esvit_jax.report.records import Record

MAIN = 'python -m main'


class Command(NamedTuple):
  """A command, and what it does as a title."""

  title: str
  text: str


def of_run(run: Record) -> list[Command]:
  """The run's own command, then evaluations, fine-tuning, export, report."""
  commands = [*_evaluations(run)]
  if run.config.get('method') != 'finetune':
    commands.append(_finetune(run))
  commands += [
    _export(run),
    Command(
      'Build this page again', f'{MAIN} --mode=report --workdir={_place(run)}'
    ),
  ]
  if command := made_by(run):
    title = 'Run it again' if run.status[0] == 'finished' else 'Resume'
    commands.insert(0, Command(title, command))
  return commands


def next_step(run: Record) -> Command:
  """The command to try first after the last step."""
  if run.config.get('method') == 'finetune':
    return _export(run)
  if not labelled(run):
    return _evaluations(run)[0]
  on_cpu = str(run.origin.get('devices', '')).lower().endswith('cpu')
  if _embedded(run) and not on_cpu:
    return Command(
      'Train on your own images',
      f'{MAIN} --config=configs/own.py --workdir=runs/mine '
      '--config.data.source=folder:YOUR_IMAGES --config.budget=2h',
    )
  return _finetune(run)


def labelled(run: Record) -> bool:
  """Whether its images have labels, as far as the run directory tells."""
  return _embedded(run) or bool(run.scores())


def made_by(run: Record) -> str:
  """The command that started the run; empty if unknown."""
  command = run.origin.get('command') or ''
  if isinstance(command, (list, tuple)):
    return shlex.join(map(str, command))
  return str(command)


def _evaluations(run: Record) -> list[Command]:
  titles = {
    'embedding': 'Look at the features: neighbours and a map of images',
    'correspondence': 'Evaluate: correspondence of regions',
  }
  if labelled(run):
    titles = {
      'knn': 'Evaluate: k nearest neighbours',
      'probe': 'Evaluate: linear probe',
    }
  checkpoint = f'--config.checkpoint={_place(run)}'
  return [
    Command(title, f'{MAIN} --config=configs/eval/{name}.py {checkpoint}')
    for name, title in titles.items()
  ]


def _finetune(run: Record) -> Command:
  """Uses the method's published recipe; unlabelled runs need a data set."""
  recipe = 'deit' if run.config.get('method') == 'sit' else 'impr'
  place = _place(run)
  data = '' if labelled(run) else '--config.data.source=folder:LABELLED '
  return Command(
    'Fine-tune',
    f'{MAIN} --config=configs/eval/finetune.py:'
    f'{"embedded" if _embedded(run) else recipe} '
    f'--config.checkpoint={place} {data}--workdir={place}_finetuned',
  )


def _export(run: Record) -> Command:
  place = _place(run)
  return Command(
    'Export in the published layout',
    f'python -m esvit_jax.convert {place} {place}.safetensors',
  )


def _embedded(run: Record) -> bool:
  return run.config.get('data.source') == 'embedded'


def _place(run: Record) -> str:
  return shlex.quote(os.path.normpath(run.directory))
