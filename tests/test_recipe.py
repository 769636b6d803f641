"""What configs/own.py derives from images, device and time."""

import json

import jax
import numpy as np
import pytest
from PIL import Image

from configs import own, quickstart
from esvit_jax import sharding
from esvit_jax.errors import UserError
from esvit_jax.run import limits, pace, recipe

FAST = pace.Pace(1000.0, 2**30, 2**20, 8 * 2**30)


@pytest.fixture
def images(tmp_path):
  """Forty photographs of 120x160 in two classes."""
  rng = np.random.default_rng(0)
  for k in range(40):
    path = tmp_path / 'images' / 'ab'[k % 2] / f'{k}.png'
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = rng.integers(0, 256, (120, 160, 3), np.uint8)
    Image.fromarray(pixels).save(path)
  return f'folder:{tmp_path / "images"}'


@pytest.fixture
def paced(monkeypatch):
  """A device of known speed, nothing compiled; returns its measurements."""
  measured = []

  def measure(config, mesh):
    measured.append(config.model.name)
    return FAST

  monkeypatch.setattr(pace, 'measure', measure)
  monkeypatch.setattr(pace, 'rate', lambda: 1e12)
  monkeypatch.setattr(pace, 'flops', lambda config, mesh: 1e9)
  return measured


def derived(source, given=(), directory='', **fields):
  """(config, lines) of configs/own.py."""
  config = own.get_config()
  config.update_from_flattened_dict({'data.source': source, **fields})
  config.lock()
  lines = []
  before = config.to_json()
  config = recipe.derive(config, given, directory, lines.append)
  assert before != config.to_json()
  limits.check(config)
  return config, lines


def test_each_value_has_a_reason(images, paced):
  config, lines = derived(images)
  assert paced == ['swin_96']  # 120 px are too few for views of 224
  assert config.model.name == 'swin_96'
  assert config.views.globals.size == config.eval.size == 96
  assert config.data.canvas == 160  # no larger than the images
  assert config.data.test_split == 'held_out'
  assert config.batch_size == 32
  assert config.epochs == recipe.MOST_EPOCHS
  assert config.accumulate == 1
  np.testing.assert_allclose(config.data.mean, 0.5, atol=0.01)
  for line in lines:
    assert line.startswith('recipe ')
    field, _, reason = line.removeprefix('recipe ').partition(': ')
    assert ' = ' in field
    assert reason
  named = {line.split()[1] for line in lines}
  assert {
    *('batch_size', 'accumulate', 'epochs', 'optim.lr', 'ema.start'),
    *('optim.warmup_epochs', 'head.out_dim', 'data.canvas', 'model.name'),
    *('views.globals.size', 'views.locals.count', 'eval.every_epochs'),
  } <= named


def test_what_the_command_sets_stays_and_others_follow(images, paced):
  given = {'batch_size': 256, 'views.globals.size': 64, 'epochs': 5}
  config, lines = derived(images, given, **given)
  assert (config.batch_size, config.epochs) == (256, 5)
  assert config.views.globals.size == config.eval.size == 64
  assert config.optim.warmup_epochs == 0.5
  assert 'recipe batch_size = 256: as the command says' in lines
  assert config.loss.teacher_temp == 0.04  # of a short run


def test_the_batch_is_taken_in_parts_that_fit(images, paced, monkeypatch):
  small = FAST._replace(memory=2**30 * 10 / 9 + 10 * 2**20, images_per_s=9e5)
  monkeypatch.setattr(pace, 'measure', lambda config, mesh: small)
  config, _ = derived(images, {'batch_size'}, batch_size=512)
  assert small.fitting == 8
  assert config.accumulate == 8  # 64 rows a part, on eight devices


def test_time_decides_between_networks(images, paced, monkeypatch):
  """Ten epochs must be paid for, by the estimate and by the measurement."""
  monkeypatch.setattr(pace, 'flops', lambda config, mesh: 1e15)
  config, _ = derived(images, budget='1m')
  assert paced == ['swin_28']
  assert config.model.name == 'swin_28'
  assert config.head.init_scale == config.model.init_scale == 'fan_in'
  monkeypatch.setattr(pace, 'flops', lambda config, mesh: 1.0)
  slow = FAST._replace(images_per_s=1.0)
  names = []

  def measure(config, mesh):
    names.append(config.model.name)
    return slow

  monkeypatch.setattr(pace, 'measure', measure)
  config, _ = derived(images, budget='20s')
  assert names == ['swin_96', 'swin_28']
  assert config.steps == 10  # less than an epoch


def test_a_run_goes_on_with_what_was_derived(images, paced, tmp_path):
  config, _ = derived(images)
  with config.unlocked():
    config.epochs = 77
  (tmp_path / 'config.json').write_text(json.dumps(config.to_dict()))
  again, lines = derived(
    images, {'log_every'}, str(tmp_path), budget='9h', log_every=3
  )
  assert len(paced) == 1  # nothing is measured twice
  assert (again.epochs, again.log_every, again.budget) == (77, 3, '9h')
  assert again.data.mean == config.data.mean
  assert 'as derived when the run began' in lines[0]


def test_grey_images(tmp_path, paced):
  for k in range(30):
    Image.new('L', (30, 28), 8 * k).save(tmp_path / f'{k}.png')
  config, _ = derived(f'folder:{tmp_path}')
  assert config.data.channels == len(config.data.mean) == 1
  assert config.model.name == 'swin_28'
  assert config.views.globals.scale == (0.6, 1.0)


@pytest.mark.parametrize(
  ('text', 'seconds'),
  [('90m', 5400), ('2h', 7200), ('1d12h', 129600), ('1.5h', 5400), ('20s', 20)],
)
def test_times(text, seconds):
  assert recipe.seconds(text) == seconds


@pytest.mark.parametrize('text', ['2', 'h', '2 hours', '0h', '1h x'])
def test_what_is_no_time(text):
  with pytest.raises(UserError, match='use a time such as'):
    recipe.seconds(text)


def test_other_methods_are_refused():
  config = quickstart.get_config('mae')
  config.budget = '2h'
  with pytest.raises(UserError, match=r'configs/own\.py'):
    recipe.derive(config, (), '')


@pytest.mark.slow
def test_a_step_is_measured():
  config = quickstart.get_config('debug')
  config.model.depths, config.model.heads = (1, 1), (1, 2)
  mesh = sharding.mesh(jax.devices()[:1])
  found = pace.measure(config, mesh)
  assert found.images_per_s > 0
  assert 0 < found.image_bytes < 2**30
  assert found.state_bytes > 10_000
  assert pace.flops(config, mesh) > 1e5
