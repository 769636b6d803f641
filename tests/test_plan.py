"""A plan says before a start what a start would need and refuse."""

import io

import jax
import jax.numpy as jnp
import pytest

from configs import quickstart
from esvit_jax import plan
from esvit_jax.errors import UserError
from esvit_jax.run import costs, hlo, targets


@pytest.fixture(scope='module')
def config():
  c = quickstart.get_config('debug')
  c.model.update({'dims': (16,), 'depths': (1,), 'heads': (1,)})
  return c


@pytest.fixture(autouse=True)
def from_arithmetic(monkeypatch):
  monkeypatch.setattr(targets, 'compiler_device', lambda goal: None)


def test_a_plan_that_fits(config):
  out = io.StringIO()
  figures = plan.run(config, 'h200-8', out)
  assert figures['images'] == '10,000' and figures['steps'] == config.steps
  assert 0 < figures['memory_per_device_gib'] < 1
  assert figures['largest_batch_size'] > 8000
  assert figures['hours'] == pytest.approx(
    config.steps * config.batch_size / figures['images_per_s'] / 3600
  )
  assert figures['checkpoint_gib'] > 0
  text = out.getvalue()
  assert 'fits' in text and '80% of memory bandwidth' in text


def test_a_batch_that_does_not_split_is_refused(config):
  with pytest.raises(UserError, match='not divide by 3 devices; the nearest'):
    plan.run(config, 'h100-3')


def test_what_does_not_fit_is_refused_with_what_does(config, monkeypatch):
  room = plan.run(config, 'h200', io.StringIO())['memory_per_device_gib']
  small = targets.DEVICES['h200']._replace(memory=0.8 * room * 2**30)
  monkeypatch.setitem(targets.DEVICES, 'h200', small)
  with pytest.raises(UserError, match='GiB per device of h200') as refusal:
    plan.run(config, 'h200')
  text = str(refusal.value)
  batch_size = int(text.partition('batch_size=')[2].partition(' ')[0])
  accumulate = int(text.partition('accumulate=')[2])
  assert 1 <= batch_size < config.batch_size
  for field, value in (('batch_size', batch_size), ('accumulate', accumulate)):
    c = config.copy_and_resolve_references()
    c[field] = value
    plan.run(c, 'h200', io.StringIO())
  none = small._replace(memory=1e5)
  monkeypatch.setitem(targets.DEVICES, 'h200', none)
  with pytest.raises(UserError, match='not even one image fits'):
    plan.run(config, 'h200')


@pytest.mark.parametrize(
  'name, count',
  [('h200', 1), ('H100-8', 8), ('v5e-8', 8), ('v5p-64', 32), ('v4', 1)],
)
def test_names_of_targets(name, count):
  assert targets.target(name).size == count


@pytest.mark.parametrize('name', ['b300', 'h200-0', 'v5p-3', 'h200x8'])
def test_other_names_are_refused(name):
  with pytest.raises(UserError, match='target'):
    targets.target(name)


def test_products_are_counted_as_often_as_they_run():
  def f(x, w):
    x, _ = jax.lax.scan(lambda x, _: (x @ w, None), x, None, length=3)
    return jax.jit(lambda x: x @ w)(x)

  x, w = jnp.zeros((2, 5)), jnp.zeros((5, 5))
  counted = costs.products(jax.make_jaxpr(f)(x, w).jaxpr)
  assert counted.flops == 4 * 2 * 2 * 5 * 5
  assert counted.bytes == 4 * 4 * (10 + 25 + 10)
  image, kernel = jnp.zeros((1, 8, 8, 3)), jnp.zeros((2, 2, 3, 7))
  convolve = lambda x, k: jax.lax.conv_general_dilated(  # noqa: E731
    x, k, (2, 2), 'VALID', dimension_numbers=('NHWC', 'HWIO', 'NHWC')
  )
  counted = costs.products(jax.make_jaxpr(convolve)(image, kernel).jaxpr)
  assert counted.flops == 2 * (4 * 4 * 7) * (2 * 2 * 3)


def test_what_is_kept_for_the_backward_pass():
  x = jnp.zeros((4, 8))
  kept = costs.kept_bytes(lambda w, x: jnp.sum(x @ w), jnp.zeros((8, 2)), x)
  assert kept == 4 * 32  # x alone


HLO = """
%body (arg: (s32[], f32[8])) -> (s32[], f32[8]) {
  %arg = (s32[], f32[8]{0}) parameter(0)
  %i = s32[] get-tuple-element(%arg), index=0
  %x = f32[8]{0} get-tuple-element(%arg), index=1
  %y = f32[8]{0} negate(%x)
  ROOT %t = (s32[], f32[8]{0}) tuple(%i, %y)
}

%fused (p: f32[4,8]) -> bf16[8] {
  %p = f32[4,8]{1,0} parameter(0)
  %s = f32[1,8]{1,0} slice(%p), slice={[0:1], [0:8]}
  %b = f32[8]{0} bitcast(%s)
  ROOT %c = bf16[8]{0} convert(%b)
}

ENTRY %main (a: f32[4,8], t: (s32[], f32[8])) -> bf16[8] {
  %a = f32[4,8]{1,0} parameter(0)
  %t = (s32[], f32[8]{0}) parameter(1)
  %w = (s32[], f32[8]{0}) while(%t), condition=%c, body=%body, """
HLO += """backend_config={"known_trip_count":{"n":"5"}}
  ROOT %f = bf16[8]{0} fusion(%a), kind=kLoop, calls=%fused
}
"""


def test_traffic_of_a_program():
  # Five times 32 bytes in and out; 32 of a slice in and 16 out.
  assert hlo.traffic(HLO) == hlo.Traffic(5 * 64 + 32 + 16, 6)
