"""Weights of finished networks, and their features.

`Weights` is the common form between published files, runs and exported files:
trees as a run has them, and a description to build the network from.
"""

import functools
from collections.abc import Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn

from esvit_jax import models
from esvit_jax.models.backbone import Features
from esvit_jax.models.layers import layer_norm
from esvit_jax.weights.tables import Arrays

# What an evaluation of a whole network applies to the mean of the last map
# before any final norm (MAE's fine-tuning, `global_pool`), beside the backbone.
POOLED_NORM = 'fc_norm'


class Weights(NamedTuple):
  """One network or two, and their centres.

  Attributes:
    about: plain JSON. 'model': the config of the backbone with all fields;
      'channels' of its images; where known, 'mean' and 'std' by which these
      are normalised, 'head' (the fields of DINO's heads), 'batches' (network
      -> published key -> number of batches a batch norm has seen), 'buffers'
      (constant ones of its source) and 'random' (published keys of backbone
      arrays that were missing and started afresh).
    networks: 'student', 'teacher' or both -> {'params': {'backbone', 'head',
      ...}, 'batch_stats': likewise}.
    centres: 'center' and 'center_grid' f[K], where known.
    handed_on: which network is meant where none is named.
    notes: what is to be said of where they come from, a line each.
  """

  about: dict
  networks: dict[str, dict]
  centres: Arrays
  handed_on: str = 'teacher'
  notes: tuple[str, ...] = ()

  @property
  def backbone(self) -> nn.Module:
    """The module, in float32 and without drop path."""
    model = {**self.about['model'], 'dtype': 'float32'}
    if 'drop_path' in model:
      model['drop_path'] = 0.0
    return models.build(model)

  def variables(self, network: str = '', part: str = 'backbone') -> dict:
    """{'params', 'batch_stats'} of one part of a network, for its `apply`.

    With a backbone comes, as the collection 'fc_norm', the norm of the mean
    that a fine-tuned network may have behind it; see `forward`.

    Args:
      network: 'student' or 'teacher'; by default the one handed on.
      part: such as 'backbone' or 'head'.
    """
    tree = self.networks[network or self.handed_on]
    variables = {'params': tree['params'][part]}
    if stats := tree['batch_stats'].get(part):
      variables['batch_stats'] = stats
    if part == 'backbone' and POOLED_NORM in tree['params']:
      variables[POOLED_NORM] = tree['params'][POOLED_NORM]
    return variables


@functools.lru_cache(maxsize=8)
def forward(backbone: nn.Module):
  """(variables, images f32[N, H, W, C]) -> Features of N images, jitted.

  `variables` are `Weights.variables`. With 'fc_norm' among them the view is
  the fine-tuned network's own: that norm of the mean of the last map.
  """

  def apply(variables, images) -> Features:
    (out,) = backbone.apply(variables, (images[:, None],), train=False)
    return _own_view(jax.tree.map(lambda x: x[:, 0], out), variables)

  return jax.jit(apply)


@functools.lru_cache(maxsize=4)
def inspect(backbone: nn.Module):
  """As `forward`, but -> (Features, what its blocks sow), for analyses."""

  def apply(variables, images):
    (out,), sown = backbone.apply(
      variables, (images[:, None],), train=False, mutable=['intermediates']
    )
    features = _own_view(jax.tree.map(lambda x: x[:, 0], out), variables)
    return features, sown.get('intermediates', {})

  return jax.jit(apply)


def _own_view(features: Features, variables: Mapping) -> Features:
  norm = variables.get(POOLED_NORM)
  if norm is None:
    return features
  mean = features.stages[-1].astype(jnp.float32).mean((1, 2))  # N D
  view = layer_norm(None).apply({'params': norm}, mean)
  return features._replace(view=view, blocks=(*features.blocks[:-1], view))
