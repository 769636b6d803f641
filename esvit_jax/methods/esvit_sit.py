"""EsViT and SiT on one backbone: both losses, summed.

  loss = EsViT's over all views + sit.weight * SiT's over the global ones

EsViT's student sees clean views, SiT's corrupted ones. Each has its own heads;
the backbone, of any family, is shared. The combination is this project's own.
"""

import jax

from esvit_jax.methods import esvit, sit
from esvit_jax.methods import method as shared
from esvit_jax.state import Loss, Method, Run, TrainState


def build(config, run: Run) -> Method:
  """The sum as a Method; SiT's heads are `sit` in all trees.

  Args:
    config: the sections of both, see configs/esvit.py and configs/sit.py.
    run: facts about it.

  Raises:
    UserError: as of both.
  """
  first = esvit.build(config, run)
  second = sit.build(with_global_views(config), run)
  weight = config.sit.weight

  def init(key):
    params, teacher, extra = first.init(key)
    heads = second.init(jax.random.fold_in(key, 1))
    return (
      join(params, heads[0]),
      join(teacher, heads[1]),
      _join_stats(extra, heads[2]),
    )

  def loss(params, state, views, key) -> Loss:
    a = first.loss(esvit_tree(params), esvit_state(state), views, key)
    key = jax.random.fold_in(key, 5)
    b = second.loss(sit_tree(params), sit_state(state), views, key)
    metrics = {'esvit_loss': a.value, 'sit_loss': b.value}
    return Loss(
      a.value + weight * b.value,
      # Running statistics of the backbone, if any, are those of clean views.
      _join_stats(a.extra, b.extra),
      b.metrics | a.metrics | metrics,
    )

  return first._replace(
    init=jax.jit(init),
    loss=loss,
    stages={
      'corruption': second.stages['corruption'],
      'loss_and_gradient': shared.gradient_stage(loss),
    },
    chance=None,
    show=lambda state, views, key: second.show(sit_state(state), views, key),
  )


def with_global_views(config):
  """The config for SiT, which has no other views."""
  c = config.copy_and_resolve_references()
  with c.unlocked():
    c.views = {'globals': c.views.globals}
  return c


def join(esvit_tree, sit_tree) -> dict:
  """One tree, whose backbone is EsViT's."""
  heads = {k: v for k, v in sit_tree.items() if k != 'backbone'}
  return {**esvit_tree, 'sit': heads}


def _join_stats(esvit_extra, sit_extra) -> dict:
  """EsViT's `extra` with the batch statistics of both."""
  return esvit_extra | {
    network: join(esvit_extra[network], sit_extra[network])
    for network in ('student', 'teacher')
  }


def esvit_tree(tree) -> dict:
  """EsViT's part of a joined tree."""
  return {k: v for k, v in tree.items() if k != 'sit'}


def sit_tree(tree) -> dict:
  """SiT's part of a joined tree."""
  backbone = {'backbone': tree['backbone']} if 'backbone' in tree else {}
  return backbone | tree['sit']


def esvit_state(state: TrainState) -> TrainState:
  return _part(state, esvit_tree)


def sit_state(state: TrainState) -> TrainState:
  return _part(state, sit_tree)


def _part(state: TrainState, take) -> TrainState:
  stats = {k: take(state.extra[k]) for k in ('student', 'teacher')}
  return state._replace(
    params=take(state.params),
    teacher=take(state.teacher),
    extra=state.extra | stats,
  )
