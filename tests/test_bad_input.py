"""What a user can get wrong: one line, exit code 2, nothing written."""

import contextlib
import fcntl
import io
import os
import pathlib
import re
import shutil
import subprocess
import sys
from unittest import mock

import numpy as np
import pytest
from PIL import Image

from configs import quickstart
from configs.eval import knn
from esvit_jax import bench, evaluate, train
from esvit_jax.errors import UserError
from esvit_jax.run import initial
from esvit_jax.weights.loading import load
from esvit_jax.workdir import metrics

ROOT = pathlib.Path(__file__).parent.parent
BASE = '--config=configs/quickstart.py:debug'
CORRUPT = ('07.jpg', '50.jpg', '93.jpg')


def main(*argv):
  """`python -m main` as a user runs it, on one device."""
  return subprocess.run(
    [sys.executable, '-m', 'main', *argv],
    cwd=ROOT,
    env=os.environ | {'JAX_PLATFORMS': 'cpu', 'COLUMNS': '80'},
    capture_output=True,
    text=True,
    check=False,
  )


def refused(*argv) -> str:
  """The one line that `python -m main` answers."""
  answer = main(*argv)
  assert answer.returncode == 2, answer.stderr
  assert answer.stdout == ''
  assert 'Traceback' not in answer.stderr
  (line,) = answer.stderr.splitlines()
  assert line.startswith('error: ')
  return line


def refused_here(config, directory) -> str:
  """The same answer from within this process."""
  with pytest.raises(UserError) as e:
    train.run(config, str(directory), io.StringIO())
  text = str(e.value)
  assert '\n' not in text and len(text) < 600
  return text


def tiny(fields):
  """The debug config with fields changed."""
  config = quickstart.get_config('debug')
  config.update_from_flattened_dict(fields)
  return config


def contents(directory) -> dict:
  """Every file below a directory, to the byte; but for the lock's."""
  return {
    str(file): file.read_bytes()
    for file in pathlib.Path(directory).rglob('*')
    if file.is_file() and file.name != '.lock'
  }


# What the command line alone shows: answered before jax is imported.
@pytest.mark.parametrize(
  ('argv', 'words'),
  [
    ([BASE, '--config.batch_sze=3'], "'batch_sze': did you mean 'batch_size'?"),
    ([BASE, '--config.optim.lrr=3'], "'optim.lrr': did you mean 'optim.lr'?"),
    ([BASE, '--config.optm.lr=3'], "'optm.lr': did you mean 'optim.lr'?"),
    ([BASE, '--noconfig.tensrboard'], "did you mean 'tensorboard'?"),
    ([BASE, '--config.optim.zzz=3'], "config has no field 'optim.zzz'"),
    ([BASE, '--config.seed.x=3'], "config has no field 'seed.x'"),
    ([BASE, '--config.batch_size=abc'], "is 'abc': give a whole number"),
    ([BASE, '--config.batch_size=1.5'], "is '1.5': give a whole number"),
    ([BASE, '--config.optim.lr=fast'], "is 'fast': give a number"),
    ([BASE, '--config.tensorboard=perhaps'], 'give True or False'),
    ([BASE, '--config.data.mean=grey'], 'config.data.mean is'),
    ([BASE, '--config.optim=3'], '--config.optim=3'),
    ([BASE, '--mode=trian'], 'train|plan|bench|report|replay'),
    ([BASE, '--wrkdir=x'], 'Did you mean: workdir'),
    ([BASE, 'x'], "what is 'x'?"),
    ([], 'no --config; try --config=configs/quickstart.py'),
    (['--config=configs/quikstart.py'], 'did you mean configs/quickstart.py?'),
    (['--config=configs/knn.py'], 'did you mean configs/eval/knn.py?'),
    (['--config=configs/zzz.py'], 'choose from configs/dino.py, configs/esvit'),
    (['--config=configs/quickstart.py,debug'], 'configs/quickstart.py:debug'),
    (['--config=nowhere/a.py', '--config.seed=1'], "file 'nowhere/a.py'"),
    (['--config=configs'], "no config file 'configs'"),
    (['--config=configs/esvit.py:swin_tinny'], "no variant 'swin_tinny'"),
  ],
  ids=lambda x: x[-1] if isinstance(x, list) and x else None,
)
def test_flags(argv, words, tmp_path):
  line = refused(*argv, f'--workdir={tmp_path}/run')
  assert words in line
  assert "\\'" not in line and '\\n' not in line
  assert os.listdir(tmp_path) == []


def test_a_flag_of_an_older_version():
  line = refused(BASE, '--config.data.max_corrupt=0.1')
  assert "'data.max_corrupt': it is now 'data.max_unreadable'" in line


def test_fields_of_the_network_may_be_added():
  """They are checked where it is built; sections are not added."""
  line = refused(BASE, '--config.model.widnow=7', '--workdir=/proc/x')
  assert "swin_28 has no field 'widnow': did you mean 'window'?" in line
  line = refused(BASE, '--config.modl.window=7')
  assert "did you mean 'model" in line


def test_no_workdir():
  assert '--workdir=runs/NAME' in refused(BASE)


def test_config_that_raises(tmp_path):
  file = tmp_path / 'mine.py'
  file.write_text('def get_config():\n  return 1 / 0\n')
  line = refused(f'--config={file}', f'--workdir={tmp_path}/run')
  assert 'ZeroDivisionError: division by zero' in line


def test_folder_of_text_files(tmp_path):
  """A real process, for one that gets as far as the data."""
  images = tmp_path / 'images'
  images.mkdir()
  for name in ('a.txt', 'b.txt'):
    (images / name).write_text('not an image')
  line = refused(
    BASE, f'--config.data.source=folder:{images}', f'--workdir={tmp_path}/run'
  )
  assert f"no images in folder '{images}': found only 2 .txt" in line
  assert os.listdir(tmp_path) == ['images']


@pytest.mark.parametrize(
  ('fields', 'words'),
  [
    ({'data.source': 'folder:/no/such'}, "folder '/no/such' does not exist"),
    ({'data.source': 'fodler:/tmp'}, "did you mean 'folder'?"),
    ({'data.source': 'tfds:no_such_set', 'data.data_dir': '/no'}, 'tfds'),
    ({'data.split': 'trian'}, "no split 'trian'"),
    ({'data.channels': 2}, 'set data.channels=1'),
    ({'data.channels': 3}, 'one per channel'),
    ({'batch_size': 12}, 'does not divide by 8 devices; the nearest'),
    ({'batch_size': 10_000_000}, 'take a smaller batch_size'),
    ({'accumulate': 3}, 'accumulate 3'),
    ({'views.globals.size': 30}, 'patches of 4 px'),
    ({'views.locals.size': 2}, 'patches of 4 px'),
    ({'eval.size': 30}, 'patches of 4 px'),
    ({'views.locals.scale': (0.5, 0.2)}, 'views.locals.scale'),
    ({'method': 'esvitt'}, "no method 'esvitt': choose one of detect, esvit"),
    ({'model.name': 'swim'}, "did you mean 'swin'?"),
    ({'model.heads': (3, 5)}, 'change dims or heads'),
    ({'model.dtype': 'float16'}, "use 'float32' or 'bfloat16'"),
    ({'optim.name': 'adam'}, "did you mean 'adamw'?"),
    ({'optim.clip_mode': 'tensr'}, "did you mean 'tensor'?"),
    ({'optim.warmup_epochs': 5.0}, 'shorten the warm-up'),
    ({'loss.teacher_temp_warmup_epochs': 9}, 'shorten it'),
    ({'loss.form': 'tild'}, "no form 'tild'"),
    ({'loss.region_weight': 2.0}, 'config.loss.region_weight is 2.0'),
    ({'log_every': 0}, 'config.log_every is 0: use 1 to'),
    ({'data.std': (0.0,)}, 'config.data.std is (0.0,): use more than 0'),
    ({'data.std': (58.4,)}, 'at most 1, since pixels are in 0..1'),
    ({'data.mean': (123.7,)}, 'use 0 to 1, since pixels are in 0..1'),
    ({'data.mean': (float('nan'),)}, 'config.data.mean is (nan,)'),
    ({'data.channels': 0}, 'config.data.channels is 0: use 1 or more'),
    ({'model.image_size': '28x28'}, 'image_size of swin_28 is 28x28: use a'),
    ({'model.image_size': (28, 28)}, 'use a whole number of 1 or more'),
    ({'model.window': '7'}, 'window of swin_28 is 7: use a whole number'),
    ({'model.dtype': 'float8'}, "use 'float32' or 'bfloat16'"),
    ({'optim.frozen': 'pos_embd'}, "optim.frozen: no parameter has 'pos_embd'"),
    ({'epochs': 2**31 - 1, 'steps': 0}, 'the steps of a run are at most'),
    ({'placement': 'zero'}, "can be 'replicated' or 'fsdp'"),
    ({'init.epoch': 2}, '--config.init.checkpoint='),
    ({'init.checkpoint': '/no/run'}, 'no checkpoint in /no/run'),
  ],
  ids=lambda x: '-'.join(x) if isinstance(x, dict) else None,
)
def test_config(fields, words, tmp_path):
  assert words in refused_here(tiny(fields), tmp_path / 'run')
  assert os.listdir(tmp_path) == []


def test_tensorboard_without_tensorflow(tmp_path, monkeypatch):
  monkeypatch.setitem(sys.modules, 'clu', None)
  text = refused_here(tiny({'tensorboard': True}), tmp_path / 'run')
  assert "pip install 'esvit_jax[tensorboard]'" in text
  assert os.listdir(tmp_path) == []


def test_out_of_memory_seen_by_the_compiler(tmp_path, monkeypatch):
  """Refused after the directory was claimed, which is then given back."""
  from esvit_jax.run import jobs
  from esvit_jax.run.evaluation import Evaluation

  monkeypatch.setattr(
    jobs, 'compile_step', lambda job: jobs.refuse_if_over(2**60, 'a step needs')
  )
  monkeypatch.setattr(Evaluation, '__call__', lambda *a, **k: {})
  text = refused_here(tiny({}), tmp_path / 'run')
  assert 'a step needs' in text
  assert os.listdir(tmp_path) == []


@pytest.mark.parametrize('place', ['file', 'file/below', '/proc/nowhere'])
def test_workdir_that_cannot_be(place, tmp_path):
  (tmp_path / 'file').write_text('mine')
  text = refused_here(tiny({}), tmp_path / place)
  assert '--workdir=' in text and place in text
  assert (tmp_path / 'file').read_text() == 'mine'


# What a run that is there already, or its images, can do to the next.


@pytest.fixture(scope='module')
def images(tmp_path_factory):
  """A folder of 100 JPEGs, three of them broken."""
  folder = tmp_path_factory.mktemp('images')
  rng = np.random.default_rng(0)
  for i in range(100):
    pixels = rng.integers(0, 256, (28, 28), np.uint8)
    Image.fromarray(pixels).save(folder / f'{i:02d}.jpg')
  (folder / CORRUPT[0]).write_bytes(b'')
  (folder / CORRUPT[1]).write_bytes(b'no image at all')
  os.truncate(folder / CORRUPT[2], 100)
  return folder


FIELDS = {
  'batch_size': 40,
  'steps': 3,
  'log_every': 1,
  'model.dims': (16,),
  'model.depths': (1,),
  'model.heads': (1,),
}


def config_of(images):
  """The config of that run."""
  return tiny({'data.source': f'folder:{images}', **FIELDS})


@pytest.fixture(scope='module')
def finished(images, tmp_path_factory):
  """The directory of a tiny run on those images, and what it said."""
  directory = tmp_path_factory.mktemp('runs') / 'finished'
  out = io.StringIO()
  train.run(config_of(images), str(directory), out)
  return directory, out.getvalue()


@pytest.fixture
def run_dir(finished, tmp_path):
  """A copy to do harm to."""
  return shutil.copytree(finished[0], tmp_path / 'run')


def flags(images, **more):
  """The command line of that run, with fields changed."""
  fields = {'data.source': f'folder:{images}', **FIELDS, **more}
  return [BASE, *(f'--config.{k}={v}' for k, v in fields.items())]


def test_corrupt_images_are_named_and_survived(finished, images):
  directory, said = finished
  named = (directory / 'unreadable.txt').read_text().splitlines()
  assert sorted(x.partition('\t')[0] for x in named) == [
    str(images / name) for name in CORRUPT
  ]
  assert 'step 3/3' in said
  last = metrics.read(f'{directory}/metrics.jsonl')[-1]
  assert last['step'] == 3 and last['train/loss'] > 0


def test_too_many_corrupt_images_stop_the_run(images, tmp_path):
  source = {'data.source': f'folder:{images}', 'data.max_unreadable': 0.0}
  config = tiny(FIELDS | source)
  text = refused_here(config, tmp_path / 'run')
  assert 'images are unreadable' in text and 'unreadable.txt' in text
  # The list is what the user needs; nothing else is left.
  assert os.listdir(tmp_path / 'run') == ['unreadable.txt']


def test_workdir_of_another_config(run_dir, images):
  before = contents(run_dir)
  source = {'data.source': f'folder:{images}'}
  config = tiny(FIELDS | source | {'optim.lr': 1.0, 'steps': 9})
  text = refused_here(config, run_dir)
  assert 'run of another config' in text
  assert re.search(r'optim\.lr: \S+ there, 1\.0 here; steps: 3 there', text)
  assert contents(run_dir) == before


@contextlib.contextmanager
def in_use(directory, pid):
  """What another process at work there looks like."""
  with (directory / '.lock').open('w') as lock:
    lock.write(str(pid))
    lock.flush()
    fcntl.flock(lock, fcntl.LOCK_EX)
    yield


def test_workdir_in_use(run_dir, images):
  before = contents(run_dir)
  with in_use(run_dir, 12345):
    line = refused(*flags(images), f'--workdir={run_dir}')
  assert 'in use by process 12345' in line
  assert contents(run_dir) == before


def test_workdir_in_use_before_its_first_step(images, tmp_path):
  config = config_of(images)
  run = tmp_path / 'run'
  run.mkdir()
  with in_use(run, 12345):
    assert 'in use by process 12345' in refused_here(config, run)
  assert os.listdir(run) == ['.lock']


@pytest.mark.parametrize('kept', [0.0, 0.5])
def test_broken_checkpoint(run_dir, images, kept):
  for file in (run_dir / 'checkpoints/3/state').rglob('*'):
    if file.is_file() and (kept == 0 or file.parent.name == 'd'):
      os.truncate(file, int(kept * file.stat().st_size))
  before = contents(run_dir)
  text = refused_here(config_of(images), run_dir)
  assert f'cannot read checkpoint {run_dir}/checkpoints/3' in text
  assert 'delete that folder' in text
  assert contents(run_dir) == before


def test_broken_checkpoint_to_continue_from(run_dir, tmp_path):
  for file in (run_dir / 'checkpoints/3/state').rglob('*'):
    if file.is_file():
      os.truncate(file, 10)
  new = tmp_path / 'new'
  text = refused_here(tiny({'init.checkpoint': str(run_dir)}), new)
  assert f'cannot read checkpoint {run_dir}/checkpoints/3' in text
  assert not new.exists()


def test_checkpoint_of_another_model_to_continue_from(finished, tmp_path):
  config = tiny({'init.checkpoint': str(finished[0])})
  text = refused_here(config, tmp_path / 'new')
  assert 'another model' in text
  assert os.listdir(tmp_path) == []


def test_a_finished_run_answers_again(run_dir, images):
  """Not a mistake: it tells its end again and changes nothing."""
  before = contents(run_dir)
  answer = main(*flags(images), f'--workdir={run_dir}')
  assert answer.returncode == 0, answer.stderr
  assert 'step 3/3' not in answer.stdout
  assert str(run_dir / 'metrics.jsonl') in answer.stdout
  after = contents(run_dir)
  drawn = ('/pictures/', 'report.html')
  kept = [x for x in before if not any(word in x for word in drawn)]
  assert {x: after[x] for x in kept} == {x: before[x] for x in kept}


@pytest.mark.parametrize(
  'url', ['gs://bucket/run', 'hdfs://name/run', 'gs:/bucket/run', 's3:/b']
)
def test_buckets_are_refused_and_no_folder_is_made(url, monkeypatch):
  """os.makedirs would make a local folder `gs:`."""
  monkeypatch.setattr('os.makedirs', lambda *a, **k: pytest.fail('made'))
  evaluation = knn.get_config()
  evaluation.checkpoint = url
  calls = (
    lambda: train.run(tiny({}), url),
    lambda: bench.run(tiny({}), url),
    lambda: evaluate.run(knn.get_config(), url),
    lambda: evaluate.run(evaluation),
    lambda: load(url),
    lambda: train.run(tiny({'data.source': f'folder:{url}'}), 'run'),
    lambda: initial.initial_state(
      mock.Mock(config=tiny({'init.checkpoint': url}))
    ),
  )
  for call in calls:
    with pytest.raises(UserError, match=f'is {url}: buckets and other URLs'):
      call()
