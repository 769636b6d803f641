"""What can be done with a run: commands, ready to be copied."""

import os
import shlex
from typing import NamedTuple

from esvit_jax.report.records import Record


class Command(NamedTuple):
  """A command and what it does."""

  title: str
  text: str


def of_run(run: Record) -> list[Command]:
  """The command that made the run, then evaluations, export and the page."""
  directory = shlex.quote(os.path.normpath(run.directory))
  main = 'python -m main'
  checkpoint = f'--config.checkpoint={directory}'
  recipe = 'embedded' if run.config.get('data.source') == 'embedded' else 'impr'
  commands = [
    Command(
      'Evaluate: k nearest neighbours',
      f'{main} --config=configs/eval/knn.py {checkpoint}',
    ),
    Command(
      'Evaluate: linear probe',
      f'{main} --config=configs/eval/probe.py {checkpoint}',
    ),
    Command(
      'Fine-tune',
      f'{main} --config=configs/eval/finetune.py:{recipe} {checkpoint} '
      f'--workdir={directory}_finetuned',
    ),
    Command(
      'Export in the published layout',
      f'python -m esvit_jax.convert {directory} {directory}.safetensors',
    ),
    Command(
      'Build this page again', f'{main} --mode=report --workdir={directory}'
    ),
  ]
  if command := made_by(run):
    title = 'Run it again' if run.status[0] == 'finished' else 'Resume'
    commands.insert(0, Command(title, command))
  return commands


def made_by(run: Record) -> str:
  """The command that started the run; empty where it is not known."""
  command = run.origin.get('command') or ''
  if isinstance(command, (list, tuple)):
    return shlex.join(map(str, command))
  return str(command)
