"""The bench measures a config where nothing but the core is installed."""

import json
import sys
from types import SimpleNamespace

import jax
import pytest

from configs import quickstart
from esvit_jax import bench, sharding
from esvit_jax.errors import UserError
from esvit_jax.run import synthetic

PIECES = ('augmentation', 'teacher', 'student', 'loss', 'optimiser')


@pytest.fixture(scope='module')
def measured(tmp_path_factory):
  """Config, mesh, directory and figures of one bench."""
  config = quickstart.get_config('debug')
  config.model.update({'dims': (16,), 'depths': (1,), 'heads': (1,)})
  config.lock()
  mesh = sharding.mesh(jax.devices()[:1])
  directory = tmp_path_factory.mktemp('bench') / 'new'
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(sharding, 'mesh', lambda: mesh)
    patch.setattr(bench, 'REPEATS', 2)
    patch.setattr(bench, 'WARM_UP', 1)
    for name in ('grain', 'tensorflow_datasets', 'clu', 'PIL', 'simplejpeg'):
      patch.setitem(sys.modules, name, None)
    figures = bench.run(config, str(directory))
  return config, mesh, directory, figures


def test_figures_are_there_and_positive(measured):
  *_, figures = measured
  names = [f'{piece}_ms' for piece in PIECES]
  assert [x for x in figures if x in names] == names
  for name in (
    *names,
    'images_per_s',
    'step_ms',
    'compile_s',
    'gflop_per_image',
    'step_memory_mib',
    'gb_per_image',
    'step_spread',
  ):
    assert figures[name] > 0, name
  assert figures['batch_size'] == 16
  assert figures['device'].startswith('1 ')
  assert figures['images_per_s'] == pytest.approx(16e3 / figures['step_ms'])


def test_earlier_figures_are_compared(measured, tmp_path, capsys):
  *_, directory, figures = measured
  slower = {**figures, 'step_ms': 3 * figures['step_ms']}
  earlier = bench._earlier(str(directory / 'bench.json'))
  bench._compare(slower, earlier, 'bench.json')
  out = capsys.readouterr().out
  assert '0.33x' in out and '1.00x' in out and 'loss_ms' in out
  for text in ('[]', 'no json'):
    (tmp_path / 'a').write_text(text)
    with pytest.raises(UserError, match='cannot read --against'):
      bench._earlier(str(tmp_path / 'a'))


def test_peaks_of_known_devices(measured, monkeypatch):
  *_, figures = measured
  assert 'share_of_bandwidth' not in figures
  device = SimpleNamespace(device_kind='NVIDIA H200')
  monkeypatch.setattr(jax, 'devices', lambda: [device])
  known = {'images_per_s': 2e3, 'gflop_per_image': 100.0, 'gb_per_image': 3.0}
  shares = bench._shares_of_peak(known, 2)
  assert shares['share_of_peak_flops'] == pytest.approx(1e14 / 989e12)
  assert shares['share_of_bandwidth'] == pytest.approx(3e12 / 4.8e12)


def test_json_is_written(measured):
  *_, directory, figures = measured
  assert json.loads((directory / 'bench.json').read_text()) == figures


def test_flops_do_not_depend_on_how_the_step_is_taken(measured):
  """Loops and recomputation are a matter of memory."""
  config, mesh, _, figures = measured
  config = config.copy_and_resolve_references()
  config.unlock()
  config.accumulate, config.loss.form = 2, 'images'
  config.model.remat = True
  job = synthetic.job(config, mesh)
  # The optimiser's work is shared by half as many images.
  flops = bench._flops_per_image(job) / 1e9
  assert flops == pytest.approx(figures['gflop_per_image'], rel=0.1)


def test_a_workdir_that_cannot_be_is_refused_first(tmp_path):
  (tmp_path / 'file').write_text('x')
  with pytest.raises(UserError, match='cannot write to --workdir'):
    bench.run(quickstart.get_config('debug'), f'{tmp_path}/file')


def test_bad_numbers_are_refused(tmp_path):
  config = quickstart.get_config('debug')
  config.accumulate = 0
  with pytest.raises(UserError, match='accumulate is 0'):
    bench.run(config)
