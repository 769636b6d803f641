"""Every recipe builds, and a few published numbers stay what they are."""

import functools
import importlib
import json
import math
import pathlib
import re

import jax
import pytest
from ml_collections import ConfigDict

from configs import common, dino, esvit
from esvit_jax import models, sharding, workdir
from esvit_jax.errors import UserError
from esvit_jax.run import jobs, limits

ROOT = pathlib.Path(__file__).parent.parent
FILES = sorted(
  x.stem for x in ROOT.glob('configs/*.py') if x.stem not in ('__init__',)
)
RECIPES = [x for x in FILES if x != 'common']


def module(name):
  return importlib.import_module(f'configs.{name}')


VARIANTS = [
  (name, variant)
  for name in RECIPES
  for variant in getattr(module(name), 'VARIANTS', ('',))
]


@pytest.mark.parametrize(('name', 'variant'), VARIANTS)
def test_variant_is_whole(name, variant):
  """Fields as in `common`, bar the model's; a backbone that builds."""
  c = module(name).get_config(variant)
  assert isinstance(c, ConfigDict)
  c.lock()
  ours, shared, all_of_esvit = (
    {x for x in workdir.flatten(x.to_dict()) if not x.startswith('model.')}
    for x in (c, common.base(), esvit.recipe())
  )
  if c.method == 'esvit':
    assert ours == all_of_esvit
  else:
    assert shared - {'views'} <= ours
  models.build(c.model)
  limits.check(c)


@pytest.mark.parametrize(('name', 'variant'), VARIANTS)
def test_debug_keeps_what_makes_a_variant(name, variant):
  c, whole = (
    module(name).get_config(f'{variant}{debug}') for debug in (',debug', '')
  )
  c.lock()
  if c.method == 'esvit':
    assert c.loss.region_weight == whole.loss.region_weight
  small, large = models.build(c.model), models.build(whole.model)
  assert type(small) is type(large)
  for field in ('positions', 'pool'):
    assert getattr(small, field, None) == getattr(large, field, None)


def traced_variants():
  """Every variant; all but the first of a recipe's kinds of backbone slow."""
  traced = set()
  for name, variant in VARIANTS:
    kind = name, type(models.build(module(name).get_config(variant).model))
    marks = [pytest.mark.slow] if kind in traced else []
    yield pytest.param(name, variant, marks=marks)
    traced.add(kind)


@functools.cache
def prepared(text):
  """Parameters and steps; small as they are, many variants are alike."""
  config = ConfigDict(json.loads(text))
  job = jobs.prepare(config, sharding.mesh(jax.devices()[:1]))
  size = sum(x.size for x in jax.tree.leaves(job.state.params))
  return size, job.horizon.steps


@pytest.mark.parametrize(('name', 'variant'), [*traced_variants()])
def test_debug_shrinks_it_to_something_that_runs(name, variant):
  """Traced to the last operation, on shapes alone."""
  c = module(name).get_config(f'{variant},debug')
  size, steps = prepared(c.to_json())
  assert size < 200_000
  assert steps <= 10


@pytest.mark.parametrize('name', RECIPES)
def test_header_is_the_command(name):
  command = f'python -m main --config=configs/{name}.py'
  text = module(name).__doc__
  assert command in text
  for variant in re.findall(rf'configs/{name}\.py:([\w,]+)', text):
    module(name).get_config(variant)


@pytest.mark.parametrize('name', RECIPES)
def test_unknown_variant_names_the_known(name):
  with pytest.raises(ValueError, match="no variant 'nothing': choose one of"):
    module(name).get_config('nothing')
  with pytest.raises(ValueError, match='no variant'):
    module(name).get_config('nothing,debug')


def test_esvit_is_the_published_recipe():
  """As recorded by the authors for 16 GPUs of 32 images."""
  c = esvit.recipe()
  assert (c.batch_size, c.epochs) == (512, 300)
  assert (c.optim.lr, c.optim.min_lr, c.optim.warmup_epochs) == (5e-4, 1e-6, 10)
  assert (c.optim.weight_decay, c.optim.weight_decay_end) == (0.04, 0.4)
  assert (c.optim.clip, c.optim.clip_mode) == (3.0, 'tensor')
  assert c.optim.freeze_last_layer_epochs == 1
  assert (c.ema.start, c.ema.end) == (0.996, 1.0)
  assert (c.head.out_dim, c.head.hidden, c.head.bottleneck) == (
    65536,
    2048,
    256,
  )
  assert (c.loss.student_temp, c.loss.center_momentum) == (0.1, 0.9)
  assert c.loss.teacher_temp_warmup == 0.04
  assert (c.loss.teacher_temp, c.loss.teacher_temp_warmup_epochs) == (0.07, 30)
  assert c.loss.region_weight == 0.5
  views = c.views
  assert (views.globals.size, views.globals.count) == (224, 2)
  assert (views.globals.scale, views.locals.scale) == ((0.4, 1.0), (0.05, 0.4))
  assert (views.locals.size, views.locals.count) == (96, 8)
  assert (views.globals.blur, views.globals.solarize) == ((1.0, 0.1), (0, 0.2))
  assert views.locals.blur == (0.5,)


# As the published runs: window, drop path, epoch at which regions came in.
@pytest.mark.parametrize(
  ('variant', 'window', 'drop_path', 'epoch'),
  [
    ('swin_tiny', 7, 0.1, 0),
    ('swin_small', 7, 0.2, 0),
    ('swin_base', 7, 0.2, 200),
    ('swin_tiny_w14', 14, 0.1, 200),
    ('swin_small_w14', 14, 0.2, 180),
    ('swin_base_w14', 14, 0.2, 200),
  ],
)
def test_published_runs(variant, window, drop_path, epoch):
  both = esvit.get_config(variant)
  view = esvit.get_config(f'{variant}_view')
  for c in (both, view):
    assert (c.batch_size, c.epochs) == (512, 300)
    backbone = models.build(c.model)
    assert (backbone.window, backbone.drop_path) == (window, drop_path)
    assert c.head.norm_last_layer == (variant == 'swin_base_w14')
  assert (both.loss.region_weight, both.init.epoch) == (0.5, epoch)
  assert (view.loss.region_weight, view.init.epoch) == (0, 0)
  # The view-only run still holds the checkpoint the other goes on from.
  assert epoch % view.save.keep_every_epochs == 0


def test_dino_is_the_view_loss_at_batch_1024():
  for variant in dino.VARIANTS:
    c = dino.get_config(variant)
    name, _, regions = variant.partition('_regions')
    both = variant != name
    assert regions == ''
    assert (c.batch_size, c.loss.region_weight) == (1024, 0.5 * both)
    assert c.model.name == name


def test_limits_are_of_fields_that_exist():
  fields = workdir.flatten(esvit.recipe().to_dict())
  assert set(limits.LIMITS) <= set(fields)


@pytest.mark.parametrize(
  ('field', 'value', 'rule'),
  [
    ('log_every', 0, '1 to 2147483647'),
    ('steps', 10**20, '0 to 2147483647'),
    ('optim.b1', 1.0, '0 to below 1'),
    ('optim.lr', math.inf, '0 or more'),
    ('loss.region_weight', 1.5, '0 to 1'),
    ('loss.student_temp', 0.0, 'more than 0'),
    ('eval.batch_size', -1, '1 or more'),
  ],
)
def test_numbers_out_of_range(field, value, rule):
  c = esvit.recipe()
  with c.ignore_type():
    c.update_from_flattened_dict({field: value})
  with pytest.raises(UserError, match=f'{field} is {value}: use {rule}'):
    limits.check(c)


@pytest.mark.parametrize('family', common.SMALL)
def test_small_networks_are_for_28_px(family):
  backbone = models.build(common.SMALL[family])
  assert backbone.image_size in (28, None)
