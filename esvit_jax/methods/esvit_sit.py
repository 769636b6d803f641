"""EsViT and SiT on one backbone: both losses, summed.

  loss = EsViT's over all views + sit.weight * SiT's over the global ones

EsViT's student sees clean views, SiT's corrupted ones; each has its own heads,
and both reach the backbone, of any kind. Neither system was published with the
other: this is to compare and to combine them.
"""

import jax

from esvit_jax.methods import esvit, sit
from esvit_jax.state import Horizon, Loss, Method


def build(config, horizon: Horizon, shards: int = 1, **_) -> Method:
  """The sum as a Method; SiT's heads are `sit` in all trees.

  Args:
    config: the sections of both, see configs/esvit.py and configs/sit.py.
    horizon: length of the run.
    shards: number of devices the batch is split over.
    _: what other methods need.

  Raises:
    UserError: as of both.
  """
  one = esvit.build(config, horizon, shards)
  two = sit.build(_with_global_views(config), horizon, shards)
  weight = config.sit.weight

  def init(key):
    params, teacher, extra = one.init(key)
    more = two.init(jax.random.fold_in(key, 1))
    return (
      _joined(params, more[0]),
      _joined(teacher, more[1]),
      _both(extra, more[2], _joined),
    )

  def loss(params, state, views, key) -> Loss:
    of_one = one.loss(_ours(params), _part(state, _ours), views, key)
    of_two = two.loss(
      _theirs(params),
      _part(state, _theirs),
      views,
      jax.random.fold_in(key, 5),
    )
    # Running statistics of a backbone that has any are those of clean views.
    extra = _both(of_one.extra, of_two.extra, _joined)
    return Loss(
      of_one.value + weight * of_two.value,
      extra,
      {
        **of_two.metrics,
        **of_one.metrics,
        'esvit_loss': of_one.value,
        'sit_loss': of_two.value,
      },
    )

  def gradient_stage(state, views, key, done):
    return jax.grad(lambda p: loss(p, state, views, key).value)(state.params)

  return Method(
    init,
    one.views,
    loss,
    one.features,
    one.momentum,
    stages={
      'corruption': two.stages['corruption'],
      'loss_and_gradient': gradient_stage,
    },
    show=lambda state, views, key: two.show(_part(state, _theirs), views, key),
  )


def _with_global_views(config):
  """The config as SiT wants it."""
  c = config.copy_and_resolve_references()
  with c.unlocked():
    c.views = {'globals': c.views.globals}
  return c


def _joined(ours, theirs) -> dict:
  """One tree: SiT's backbone is EsViT's."""
  return {**ours, 'sit': {k: v for k, v in theirs.items() if k != 'backbone'}}


def _ours(tree) -> dict:
  return {k: v for k, v in tree.items() if k != 'sit'}


def _theirs(tree) -> dict:
  backbone = {'backbone': tree['backbone']} if 'backbone' in tree else {}
  return backbone | tree['sit']


def _part(state, of):
  """The state as one of both knows it."""
  return state._replace(
    params=of(state.params),
    teacher=of(state.teacher),
    extra=_both(state.extra, state.extra, lambda a, _: of(a)),
  )


def _both(extra, more, joined) -> dict:
  """`extra` with its statistics of student and teacher joined to others."""
  return extra | {
    who: joined(extra[who], more[who]) for who in ('student', 'teacher')
  }
