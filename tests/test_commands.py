"""Every command that a report prints works, for each kind of run."""

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
  'finetuned': 'eval/finetune.py:embedded,debug',
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
@pytest.mark.parametrize('kind', TRAINED)
def test_commands_of_a_report_work(tmp_path, monkeypatch, kind):
  path = tmp_path / kind
  train = 'python -m main --config=configs/{} --workdir={}'
  more = ['--config.eval.pictures=False']
  if kind == 'finetuned':
    before = tmp_path / 'swin'
    assert run(monkeypatch, train.format(TRAINED['swin'], before), *more) == 0
    more.append(f'--config.checkpoint={before}')
  assert run(monkeypatch, train.format(TRAINED[kind], path), *more) == 0
  for command in commands.of_run(records.read(str(path))):
    import time

    t = time.time()
    rc = run(
      monkeypatch,
      command.text,
      *(
        ['--config.steps=2', '--config.optim.warmup_epochs=0']
        if 'Fine' in command.title
        else []
      ),
    )
    print('====', rc, time.time() - t, command.text)
