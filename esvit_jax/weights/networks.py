"""Weights of trained networks, and their features.

`Weights` is the common form of published files, run directories and exported
files: trees as in a run, and a description from which the network is built.
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

# A norm beside the backbone, of the mean of the last map before any final norm:
# `global_pool` of MAE's fine-tuning.
POOLED_NORM = 'fc_norm'


class Weights(NamedTuple):
  """A student, a teacher or both, and their centres.

  Attributes:
    about: a description, plain JSON:
      model: the config of the backbone with all fields;
      channels: of its images;
      mean, std: by which images are normalised, if known;
      head: the fields of DINO's heads, if there are any;
      batches: network -> published key -> batches that a batch norm has seen;
      buffers: names of constant buffers that its source has;
      random: published keys of backbone arrays that were missing and were
        initialised.
    networks: 'student', 'teacher' or both -> {'params': {'backbone', 'head',
      ...}, 'batch_stats': likewise}.
    centres: 'center' and 'center_grid' f[K], if known.
    handed_on: the network that is used if none is named.
    notes: remarks on the source, a line each.
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

    The collection 'fc_norm' of a backbone holds the norm that a fine-tuned
    network may have behind it; see `inspect`.

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
def inspect(backbone: nn.Module):
  """(variables, images f32[N, H, W, C]) -> (Features, what blocks sow), jitted.

  Features are of N images; `variables` are `Weights.variables`. With 'fc_norm'
  among them the view is that of the fine-tuned network: this norm of the mean
  of the last map.
  """

  def apply(variables, images):
    (out,), sown = backbone.apply(
      variables, (images[:, None],), train=False, mutable=['intermediates']
    )
    features = _own_view(jax.tree.map(lambda x: x[:, 0], out), variables)
    return features, sown.get('intermediates', {})

  return jax.jit(apply)


@functools.lru_cache(maxsize=8)
def forward(backbone: nn.Module):
  """As `inspect`, but -> Features alone."""
  return jax.jit(lambda *inputs: inspect(backbone)(*inputs)[0])


def _own_view(features: Features, variables: Mapping) -> Features:
  norm = variables.get(POOLED_NORM)
  if norm is None:
    return features
  mean = features.stages[-1].astype(jnp.float32).mean((1, 2))  # N D
  view = layer_norm(None).apply({'params': norm}, mean)
  return features._replace(view=view, blocks=(*features.blocks[:-1], view))
