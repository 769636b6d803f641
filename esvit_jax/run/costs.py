"""What a train step computes and keeps, counted in its trace."""

import math
from typing import NamedTuple

import jax
from jax.extend import core


class Products(NamedTuple):
  """Of all matrix products and convolutions.

  Attributes:
    flops: operations.
    bytes: operands read and results written.
  """

  flops: float
  bytes: float


def products(jaxpr: core.Jaxpr) -> Products:
  """Counts a traced function, loops of known length written out."""
  flops = traffic = 0.0
  for eqn in jaxpr.eqns:
    kind = eqn.primitive.name
    if kind in ('dot_general', 'conv_general_dilated'):
      flops += _flops(eqn)
      arrays = [v.aval for v in (*eqn.invars, *eqn.outvars)]
      traffic += sum(a.size * a.dtype.itemsize for a in arrays)
      continue
    times = eqn.params['length'] if kind == 'scan' else 1
    inner = [products(x) for x in _inside(eqn)]
    if kind == 'cond':
      inner = [max(inner)]
    flops += times * sum(x.flops for x in inner)
    traffic += times * sum(x.bytes for x in inner)
  return Products(flops, traffic)


def _flops(eqn) -> float:
  left, right = (v.aval for v in eqn.invars[:2])
  out = eqn.outvars[0].aval
  if eqn.primitive.name == 'dot_general':
    (contracted, _), _ = eqn.params['dimension_numbers']
    return 2.0 * out.size * math.prod(left.shape[i] for i in contracted)
  features = eqn.params['dimension_numbers'].rhs_spec[0]
  return 2.0 * out.size * right.size / right.shape[features]


def _inside(eqn):
  for value in eqn.params.values():
    for x in value if isinstance(value, (tuple, list)) else [value]:
      if isinstance(x, core.ClosedJaxpr):
        yield x.jaxpr
      elif isinstance(x, core.Jaxpr):
        yield x


def kept_bytes(loss, params, *args) -> int:
  """What the backward pass of loss(params, *args) needs from the forward.

  Args:
    loss: a function to a number.
    params, args: arrays or their shapes.
  """

  def forward(params, *args):
    return jax.vjp(lambda p: loss(p, *args), params)[1]

  kept = jax.tree.leaves(jax.eval_shape(forward, params, *args))
  return sum(x.size * x.dtype.itemsize for x in kept)


def tree_bytes(tree) -> int:
  """Bytes of all arrays of a tree."""
  return sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(tree))
