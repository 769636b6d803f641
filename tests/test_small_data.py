"""Pre-training and fine-tuning on one small set, as one command."""

import dataclasses
import io

import pytest
from runs import Interrupt

from configs.eval import small_data as configs
from esvit_jax import evaluate, models
from esvit_jax.errors import Stopped, UserError
from esvit_jax.protocols import small_data, suites
from esvit_jax.workdir import metrics


def test_both_stages_have_one_set_and_one_seed():
  c = configs.get_config('embedded_mae')
  c.seed, c.data.labels_per_class, c.data.workers = 3, 50, 1
  before, after = small_data.stages(c)
  for stage in (before, after):
    assert stage.seed == 3
    assert stage.data.source == 'embedded' and stage.data.labels_per_class == 50
    assert stage.data.workers == 1 and stage.data.canvas == 0
  assert before.method == 'mae' and after.method == 'finetune'
  assert c.seed == 3 and c.pretraining.seed == 0  # the original is as it was


def test_from_scratch_the_same_network_is_fine_tuned():
  scratch = configs.get_config('embedded_scratch')
  before, after = small_data.stages(scratch)
  assert after.model.to_dict() == before.model.to_dict()
  sit = configs.get_config('embedded_sit')
  assert sit.pretraining.model == scratch.pretraining.model
  assert sit.finetuning == scratch.finetuning
  assert scratch.scratch and not sit.scratch


@pytest.mark.parametrize('method', configs.METHODS)
def test_embedded_methods_train_the_same_network(method):
  """Position tables and first weights are each method's own."""
  own = ('positions', 'init_scale', 'pool', 'remat')
  a, b = (
    models.build(configs.get_config(f'embedded_{x}').pretraining.model)
    for x in (method, 'sit')
  )
  fields = {f.name for f in dataclasses.fields(a)} - {*own, 'parent', 'name'}
  for field in fields:
    assert getattr(a, field) == getattr(b, field), field


def test_sets_that_are_there_are_run(tmp_path):
  c = configs.get_config('embedded_scratch,debug')
  c.sets, c.root = 'embedded,aircraft', str(tmp_path / 'sets')
  c.data.labels_per_class = 20
  c.finetuning.steps = 2
  out = io.StringIO()
  figures = evaluate.run(c, str(tmp_path / 'a'), out)
  said = out.getvalue()
  assert 0 < figures['embedded'] < 100
  assert 'aircraft' in figures['not_judged']
  assert f'{c.root}/aircraft' in said
  # The published rows stand beside ours, sets without an own figure too.
  for word in ('SiT', '77.8', '31.1', 'Fashion-MNIST'):
    assert word in said
  assert (tmp_path / 'a/embedded/report.html').exists()
  drawn = {x.name for x in (tmp_path / 'a').rglob('pictures/*.png')}
  assert {'views.png', 'pca.png', 'attention.png'} <= drawn


@pytest.mark.slow
def test_a_stop_is_not_an_end(tmp_path):
  """Stopped, it neither fine-tunes a half nor writes figures; then goes on."""
  c = configs.get_config('embedded_mae,debug')
  c.data.labels_per_class = 20
  c.pretraining.eval.pictures = c.finetuning.eval.pictures = False
  c.pretraining.steps = c.finetuning.steps = 3
  c.pretraining.log_every = c.finetuning.log_every = 1
  c.pretraining.eval.at_ends = c.pretraining.eval.during = ''
  directory = tmp_path / 'a'
  with pytest.raises(Stopped):
    evaluate.run(c, str(directory), Interrupt('step 1/'))
  assert not (directory / 'finetune').exists()
  assert not (directory / 'eval').exists()

  last = metrics.read(directory / 'pretrain/metrics.jsonl')[-1]
  assert last['step'] < 3
  out = io.StringIO()
  figures = evaluate.run(c, str(directory), out)
  assert f'from step {last["step"]}' in out.getvalue()
  assert 0 < figures['score'] < 100
  page = (directory / 'report.html').read_text()
  assert 'id="pretrain-curves"' in page and 'id="finetune-curves"' in page
  assert not list(directory.rglob('*.png'))  # as asked for
  # Done is done: the same command tells the same.
  assert evaluate.run(c, str(directory), io.StringIO()) == figures


def test_it_says_what_it_cannot_do(tmp_path):
  c = configs.get_config('embedded_sit,debug')
  with pytest.raises(UserError, match='no --workdir'):
    small_data.run(c, '', io.StringIO())
  row = suites.SETS['voc2007']
  assert small_data.config_of(c, 'voc2007', row).finetuning.eval.metric == (
    'map_11'  # of several labels, which fine-tuning learns too
  )


def test_sets_that_must_not_be_mirrored():
  c = configs.get_config('embedded_sit')
  row = suites.SETS['embedded']._replace(flip=False, metric='mean_per_class')
  one = small_data.config_of(c, 'embedded', row)
  assert one.pretraining.views.globals.flip == 0
  assert one.finetuning.views.globals.flip == 0
  assert one.finetuning.eval.metric == 'mean_per_class'
  assert c.pretraining.views.globals.flip == 0.5
