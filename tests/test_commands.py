"""Every command that a report prints works, for each kind of run."""

import re
import shlex
import sys

import pytest
from absl import flags

import main
from esvit_jax import convert
from esvit_jax.report import commands, records

TRAINED = {
  'swin': 'esvit.py:swin_tiny,debug',
  'resnet': 'esvit.py:resnet50,debug',
  'mae': 'quickstart.py:mae,debug',
  'moco': 'quickstart.py:moco,debug',
  'sit': 'quickstart.py:sit,debug',
  'finetuned mae': 'eval/finetune.py:embedded,debug',
  'finetuned swin': 'eval/finetune.py:embedded,debug',
}
# For time alone: the commands are as printed.
FEW_IMAGES = '--config.data.labels_per_class=8'
SHORTER = {
  'knn.py': [FEW_IMAGES],
  'probe.py': [FEW_IMAGES],
  'finetune.py': [
    '--config.eval.pictures=False',
    '--config.steps=2',
    '--config.optim.warmup_epochs=0',
  ],
}


def run(monkeypatch, command: str, *more: str) -> int:
  """Runs a command line, as a fresh process would."""
  words = [*shlex.split(command), *more]
  monkeypatch.setattr(sys, 'orig_argv', words)
  for name in list(flags.FLAGS):
    if name.startswith('config.'):  # of the config before
      delattr(flags.FLAGS, name)
  for name in ('mode', 'workdir'):
    flags.FLAGS[name].unparse()
  python, dash, program, *arguments = words
  assert (python, dash) == ('python', '-m')
  if program == 'main':
    monkeypatch.setattr(sys, 'argv', ['main.py', *arguments])
    return main.main(sys.argv)
  assert program == 'esvit_jax.convert'
  return convert.main(arguments)


@pytest.mark.filterwarnings('ignore::DeprecationWarning')
@pytest.mark.parametrize(
  'kind',
  [
    kind if kind == 'swin' else pytest.param(kind, marks=pytest.mark.slow)
    for kind in TRAINED
  ],
)
def test_commands_of_a_report_work(tmp_path, monkeypatch, kind):
  path = tmp_path / kind
  quoted = shlex.quote(str(path))
  train = 'python -m main --config=configs/{} --workdir={}'
  more = ['--config.eval.pictures=False']
  tuned, _, start = kind.rpartition(' ')
  if tuned:
    before = tmp_path / start
    assert run(monkeypatch, train.format(TRAINED[start], before), *more) == 0
    more.append(f'--config.checkpoint={before}')
  assert run(monkeypatch, train.format(TRAINED[kind], quoted), *more) == 0
  printed = commands.of_run(records.read(str(path)))
  assert len(printed) == (5 if tuned else 6)
  for command in printed:
    config = re.search(r'eval/(\w+\.py)', command.text)
    shorter = SHORTER.get(config[1], []) if config else []
    if command.title == 'Run it again':
      shorter = []
    assert run(monkeypatch, command.text, *shorter) == 0, command
  assert (tmp_path / f'{kind}.safetensors').exists()
  assert (path / 'eval/knn.json').exists()
  assert (path / 'report.html').exists()
