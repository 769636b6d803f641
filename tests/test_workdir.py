"""One run at a time, always of the same config, and no litter."""

import json
import os
import pathlib

import pytest

from configs import esvit as esvit_recipe
from esvit_jax import workdir
from esvit_jax.errors import UserError

CONFIG = {
  'batch_size': 8,
  'log_every': 5,
  'optim': {'lr': 0.1, 'betas': (0.9, 0.99)},
  'eval': {'size': 28},
}


def changed(**fields):
  config = json.loads(json.dumps(CONFIG))
  for field, value in fields.items():
    section, _, name = field.rpartition('__')
    (config[section] if section else config)[name] = value
  return config


def write(path, name, text):
  pathlib.Path(path, name).write_text(text, encoding='utf-8')


def config_in(path):
  text = pathlib.Path(path, 'config.json').read_text(encoding='utf-8')
  return json.loads(text)


def train_there(path):
  """Leaves what a run has written after its first steps."""
  with workdir.claim(path, CONFIG):
    write(path, 'metrics.jsonl', '{"step": 0}\n{"step": 5}\n')


def listing(path):
  return sorted(os.listdir(path))


@pytest.fixture
def path(tmp_path):
  return f'{tmp_path}/runs/a'


def test_claim_writes_the_config(path):
  with workdir.claim(path, CONFIG):
    assert config_in(path) == json.loads(json.dumps(CONFIG))


def test_second_claim_is_refused_while_the_first_lives(path):
  with workdir.claim(path, CONFIG):
    with (
      pytest.raises(UserError, match=f'in use by process {os.getpid()};'),
      workdir.claim(path, CONFIG),
    ):
      pass
    # The refused one took nothing away.
    assert listing(path) == ['.lock', 'config.json']
  with workdir.claim(path, CONFIG):
    pass


def test_another_config_is_refused_and_told_apart(path):
  train_there(path)
  other = changed(batch_size=16, optim__lr=0.2)
  with pytest.raises(UserError) as e:
    workdir.check(path, other)
  text = str(e.value)
  assert 'batch_size: 8 there, 16 here' in text
  assert 'optim.lr: 0.1 there, 0.2 here' in text
  assert 'log_every' not in text


def test_missing_and_new_fields_count_as_different(path):
  train_there(path)
  other = changed()
  del other['batch_size']
  other['seed'] = 3
  with pytest.raises(UserError, match='batch_size: 8 there, None here; seed'):
    workdir.check(path, other)


def test_many_differences_stay_short(path):
  with workdir.claim(path, {f'field{i}': i for i in range(20)}):
    os.makedirs(f'{path}/checkpoints/5')
  with pytest.raises(UserError, match='and 14 more') as e:
    workdir.check(path, {f'field{i}': i + 1 for i in range(20)})
  assert str(e.value).count('there') == 6


def test_fields_of_watching_may_change(path):
  train_there(path)
  with workdir.claim(path, changed(log_every=7, eval__size=32)):
    assert config_in(path)['log_every'] == 7


def test_free_fields_are_fields():
  fields = workdir.flatten(esvit_recipe.recipe().to_dict())
  for free in workdir.FREE:
    assert any(field.startswith(free) for field in fields), free


def test_nothing_trained_binds_no_one(path):
  """A run that was killed before its first step is not in the way."""
  with workdir.claim(path, CONFIG):
    write(path, 'metrics.jsonl', '{"step": 0}\n')
    os.makedirs(f'{path}/checkpoints')
  with workdir.claim(path, changed(batch_size=16)):
    pass


def test_a_mistake_before_training_leaves_no_trace(path):
  with pytest.raises(UserError, match='mend'), workdir.claim(path, CONFIG):
    os.makedirs(f'{path}/checkpoints')
    write(path, 'metrics.jsonl', '{"step": 0}\n')
    raise UserError('mend this')
  assert not os.path.exists(path)


def test_what_was_there_stays(path):
  os.makedirs(path)
  write(path, 'notes.txt', 'mine')
  with pytest.raises(UserError), workdir.claim(path, CONFIG):
    raise UserError('mend this')
  assert 'notes.txt' in listing(path)


def test_an_empty_folder_stays_an_empty_folder(path):
  os.makedirs(path)
  with pytest.raises(UserError), workdir.claim(path, CONFIG):
    raise UserError('mend this')
  assert listing(path) == []


def test_the_list_of_corrupt_images_stays(path):
  with pytest.raises(UserError), workdir.claim(path, CONFIG):
    write(path, 'unreadable.txt', 'a.jpg\n')
    raise UserError('too many')
  assert listing(path) == ['unreadable.txt']


def test_a_mistake_after_training_loses_nothing(path):
  train_there(path)
  before = listing(path)
  with pytest.raises(UserError), workdir.claim(path, CONFIG):
    raise UserError('mend this')
  assert listing(path) == before


def test_a_bug_leaves_its_traces(path):
  with pytest.raises(ZeroDivisionError), workdir.claim(path, CONFIG):
    raise ZeroDivisionError
  assert 'config.json' in listing(path)


def test_a_file_is_no_directory(tmp_path):
  file = tmp_path / 'file'
  file.write_text('x')
  for place in (file, file / 'below'):
    with (
      pytest.raises(UserError, match='--workdir'),
      workdir.claim(str(place), CONFIG),
    ):
      pass
  assert file.read_text() == 'x'


def test_damaged_config_is_refused(path):
  train_there(path)
  for content in ('{"batch_size": ', None):
    if content is None:
      os.remove(f'{path}/config.json')
    else:
      write(path, 'config.json', content)
    with pytest.raises(UserError, match=r'cannot read .*config\.json'):
      workdir.check(path, CONFIG)


def test_flatten():
  tree = {'a': {'b': 1, 'c': {'d': 2}}, 'e': {}}
  assert workdir.flatten(tree) == {'a.b': 1, 'a.c.d': 2, 'e': {}}


def test_a_run_of_an_older_version_is_told_which_field_is_meant(
  path, monkeypatch
):
  train_there(path)
  monkeypatch.setitem(workdir.RENAMED, 'optim.lr', 'optim.peak_lr')
  config = changed()
  config['optim']['peak_lr'] = config['optim'].pop('lr')
  workdir.check(path, config)
  config['optim']['peak_lr'] = 0.2
  with pytest.raises(
    UserError, match=r'optim\.peak_lr \(then optim\.lr\): 0\.1 there, 0\.2 here'
  ):
    workdir.check(path, config)
