"""D-MAE and D2-MAE against the published ones, and their laws."""

import functools

import golden_mae_sit
import jax
import jax.numpy as jnp
import mae_runs
import numpy as np
import pytest
from mae_runs import (
  CLOSE,
  RUN,
  VISIBLE,
  check_gradients,
  golden_step,
  random_images,
  random_variables,
  small_vit,
  start,
)

from esvit_jax import models
from esvit_jax.methods import mae as method
from esvit_jax.models import mae
from esvit_jax.models.patches import patchify
from esvit_jax.models.vit import ViT
from esvit_jax.weights import tables

KEY = jax.random.key(0)


@functools.cache
def teacher():
  """The published teacher of the goldens, and its variables."""
  _, entry = golden_mae_sit.load('dmae')
  module = ViT(dim=256, depth=12, heads=8, positions='mae', pool='mean')
  like = models.abstract_variables(module)
  weights = mae_runs.published(entry['keys'], 'tch_model.')
  return module, tables.from_published(weights, 'vit', like)


def student(more=(), table='mae', **fields):
  """A published student with all keys of the golden and `more`."""
  _, entry = golden_mae_sit.load('dmae')
  network = mae.MAE(
    models.build({'name': 'mae_tiny'}),
    96,
    1,
    3,
    match=12,
    teacher_heads=8,
    **fields,
  )
  keys = [*entry['keys'], *more]
  weights = mae_runs.published(keys, 'model.')
  adapters = [key for key in keys if '_adapter.' in key[0]]
  weights |= mae_runs.published(adapters)
  return network, mae_runs.variables(network, weights, table)['params']


def targets(frozen):
  seen = mae_runs.golden_order()[:, :VISIBLE]
  images = mae_runs.image('mae_img')
  return teacher()[0].apply(frozen, images, seen, method='encode_visible')


@functools.cache
def distilled():
  golden, entry = golden_mae_sit.load('dmae')
  network, params = student()
  adapter = params['attn_adapter']['kernel'].transpose(3, 2, 0, 1)
  np.testing.assert_array_equal(adapter, golden['adapter_weight'])
  loss = golden_step(network, mae_runs.config(), mae_runs.golden_order())

  @jax.jit
  def run(params, frozen):
    told = targets(frozen)
    (value, (metrics, out)), grads = jax.value_and_grad(loss, has_aux=True)(
      params, told
    )
    logits = out.traces[-1].logits, told[-1].logits
    return value, metrics, grads, logits

  return golden, entry, run(params, teacher()[1])


def test_published_distillation():
  golden, entry, (value, metrics, grads, logits) = distilled()
  for found, name in (
    (value, 'loss_total'),
    (metrics['attention_loss'], 'loss_attn'),
    (metrics['reconstruction_loss'], 'loss_mae'),
  ):
    np.testing.assert_allclose(found, golden[name], rtol=1e-5, err_msg=name)
  for found, who in zip(logits, ('student', 'teacher')):
    head = golden[f'{who}_logits_head0']
    np.testing.assert_allclose(found[:, 0], head, **CLOSE, err_msg=who)
  names = [name.removeprefix('model.') for name in entry['grad_names']]
  check_gradients(golden, names, grads, 'mae')


HIDDEN = (0, 6, 12)
TAIL = [
  ['model.blocks.12.norm1.weight', [192], 'norm_weight'],
  ['model.blocks.12.norm1.bias', [192], 'bias'],
  ['model.blocks.12.attn.qkv.weight', [576, 192], 'matrix'],
  ['model.blocks.12.attn.qkv.bias', [576], 'bias'],
]
ADAPTERS = [
  [f'hidden_adapter.adapter{i}.weight', [256, 192], 'matrix'] for i in HIDDEN
]


@pytest.mark.parametrize(
  ('more', 'fields', 'distill', 'expected'),
  [
    (TAIL, {'tail': True, 'decode_at': 8}, {}, (5.8645, 1.9667, 3.8977)),
    (
      ADAPTERS,
      {'hidden': HIDDEN, 'teacher_dim': 256},
      {'hidden': HIDDEN},
      (11.1365, 1.9620, 3.0468, 6.1277),
    ),
  ],
  ids=['decoupled', 'hidden'],
)
def test_published_variants_of_distillation(more, fields, distill, expected):
  """Losses as told of other runs of the published code."""
  table = 'd2mae' if 'tail' in fields else 'mae'
  network, params = student(more, table, **fields)
  c = mae_runs.config()
  c.distill.update(distill)
  loss = golden_step(network, c, mae_runs.golden_order())
  run = jax.jit(lambda params, frozen: loss(params, targets(frozen)))
  value, (metrics, _) = run(params, teacher()[1])
  names = ('reconstruction_loss', 'attention_loss', 'hidden_loss')[
    : len(metrics)
  ]
  found = [value, *(metrics[name] for name in names)]
  np.testing.assert_allclose(found, expected, atol=1e-4)


def test_decoupled_student_learns_in_two_halves():
  """The decoder teaches the first blocks, the teacher all and the tail."""
  c = mae_runs.tiny(decoupled=True, layer=3)
  c.mae.decode_at = 2
  built = method.build(c, RUN._replace(teacher=mae_runs.tiny_teacher()))
  whole, _, batch = start(built)
  assert set(whole.params['tail_block']['attn']) == {'qkv'}
  views = jax.jit(built.views)(batch, jax.random.split(KEY, 8))

  def losses(params):
    metrics = built.loss(params, whole, views, KEY).metrics
    return jnp.stack(
      [metrics['reconstruction_loss'], metrics['attention_loss']]
    )

  jacobian = jax.jit(jax.jacrev(losses))(whole.params)
  parts = [jacobian['backbone'][f'block{j}'] for j in range(3)]
  reached = [
    [any(jnp.any(g[i] != 0) for g in jax.tree.leaves(part)) for i in range(2)]
    for part in (*parts, jacobian['tail_block'], jacobian['decoder'])
  ]
  both, taught, painted = [True, True], [False, True], [True, False]
  assert reached == [both, both, taught, taught, painted]


def test_hidden_states_are_matched_through_their_adapters():
  """Against a plain reading of the formula, i = depth included."""
  c = mae_runs.tiny(hidden=(0, 2, 3), hidden_weight=0.5)
  network = mae.MAE(
    small_vit(),
    16,
    1,
    2,
    match=3,
    teacher_heads=2,
    hidden=(0, 2, 3),
    teacher_dim=24,
  )
  vit, frozen = mae_runs.tiny_teacher()
  variables = random_variables(network)
  images, order = random_images(), method.patch_order(KEY, 2, 16)

  @jax.jit
  def run(variables):
    out = network.apply(variables, images, order, 4)
    targets = vit.apply(frozen, images, order[:, :4], method='encode_visible')
    patches = patchify(images, 4)
    return method.objective(out, patches, order, 4, targets, c), out, targets

  (value, metrics), out, targets = run(variables)
  expected = 0
  for i in (0, 2, 3):
    s = out.traces[i].normed if i < 3 else out.traces[2].output
    t = targets[i].normed if i < 3 else targets[2].output
    kernel = variables['params'][f'hidden_adapter{i}']['kernel']
    expected += np.mean((np.asarray(s) @ np.asarray(kernel) - t) ** 2)
  np.testing.assert_allclose(metrics['hidden_loss'], expected, rtol=1e-4)
  np.testing.assert_allclose(
    value,
    metrics['reconstruction_loss']
    + metrics['attention_loss']
    + 0.5 * metrics['hidden_loss'],
    rtol=1e-6,
  )
