"""Pre-training and fine-tuning on one small set, as one command."""

import io
import os

import pytest

from configs.eval import small_data as configs
from esvit_jax import evaluate
from esvit_jax.errors import UserError
from esvit_jax.protocols import small_data, suites


def test_both_stages_have_one_set_and_one_seed():
  c = configs.get_config('embedded_mae')
  c.seed, c.data.few, c.data.workers = 3, '50', 1
  before, after = small_data.stages(c)
  for stage in (before, after):
    assert stage.seed == 3
    assert stage.data.source == 'embedded' and stage.data.few == '50'
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
    configs.get_config(f'embedded_{x}').pretraining.model.to_dict()
    for x in (method, 'sit')
  )
  assert {k: v for k, v in a.items() if k not in own} == {
    k: v for k, v in b.items() if k not in own
  }


def test_sets_that_are_there_are_run_and_the_same_command_goes_on(tmp_path):
  c = configs.get_config('embedded_mae,debug')
  c.sets, c.root = 'embedded,aircraft', str(tmp_path / 'sets')
  c.data.few = '20'
  c.pretraining.steps = c.finetuning.steps = 2
  c.pretraining.eval.at_ends = 'knn'
  out = io.StringIO()
  figures = evaluate.run(c, str(tmp_path / 'a'), out)
  said = out.getvalue()
  assert 0 < figures['embedded'] < 100
  assert 'aircraft' in figures['not_judged']
  assert f'{c.root}/aircraft' in said
  # The published rows stand beside ours, sets without an own figure too.
  for word in ('SiT', '77.8', '31.1', 'Fashion-MNIST'):
    assert word in said
  page = (tmp_path / 'a/embedded/report.html').read_text()
  assert 'id="pretrain-curves"' in page and 'id="finetune-curves"' in page

  saved = os.listdir(tmp_path / 'a/embedded/finetune/checkpoints')
  again = evaluate.run(c, str(tmp_path / 'a'), io.StringIO())
  assert again == figures
  assert saved == os.listdir(tmp_path / 'a/embedded/finetune/checkpoints')
  c.finetuning.optim.lr = 1.0
  figures = evaluate.run(c, str(tmp_path / 'a'), io.StringIO())
  assert 'another config' in figures['not_judged']['embedded']


def test_it_says_what_it_cannot_do(tmp_path):
  c = configs.get_config('embedded_sit,debug')
  with pytest.raises(UserError, match='no --workdir'):
    small_data.run(c, '', io.StringIO())
  with pytest.raises(UserError, match='several'):
    small_data.placed(c, 'voc2007', suites.SETS['voc2007'])


def test_sets_that_must_not_be_mirrored():
  c = configs.get_config('embedded_sit')
  row = suites.SETS['embedded']._replace(flip=False, metric='mean_per_class')
  one = small_data.placed(c, 'embedded', row)
  assert one.pretraining.views.globals.flip == 0
  assert one.finetuning.views.globals.flip == 0
  assert one.finetuning.eval.metric == 'mean_per_class'
  assert c.pretraining.views.globals.flip == 0.5
