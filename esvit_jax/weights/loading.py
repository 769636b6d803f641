"""Weights from any path: runs, converted directories, published files."""

import os
from collections.abc import Callable, Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp

from esvit_jax import models
from esvit_jax.errors import UserError, require_local
from esvit_jax.weights import architecture, directory, reading
from esvit_jax.weights.handover import AUTO, NETWORKS
from esvit_jax.weights.libraries import huggingface
from esvit_jax.weights.networks import Weights, forward
from esvit_jax.weights.published import families, files
from esvit_jax.weights.tables import listed


def load(
  path: str, which: str = AUTO, fields: Mapping | None = None
) -> Weights:
  """The weights at a path.

  Args:
    path: a run directory, a converted one, a folder of Hugging Face, a file of
      torch.save, or a safetensors file.
    which: 'student', 'teacher', 'both', or 'auto' for the one handed on.
    fields: of the backbone, such as {'heads': 3}, that a file leaves open.

  Raises:
    UserError: there are no weights, the network asked for is not among them,
      or the file leaves a field open.
  """
  path = require_local(os.fspath(path), 'the checkpoint')
  if huggingface.is_folder(path):
    return reading.from_folder(path, which, fields)
  if not os.path.isdir(path):
    return reading.from_file(files.read(path), which, fields)
  weights = directory.read(path, which)
  try:
    reading.agree(weights.about['model'], fields or {})
  except UserError as e:
    raise UserError(f'{path!r}: {e}') from None
  return weights


def load_one(
  path: str, which: str = AUTO, fields: Mapping | None = None
) -> Weights:
  """As `load`, but of a single network that is trained in all its parts.

  Raises:
    UserError: as `load`, or arrays of its backbone are random.
  """
  if which not in (AUTO, *NETWORKS):
    raise UserError(f"which is '{which}': use auto, {', '.join(NETWORKS)}")
  weights = load(path, which, fields)
  if random := weights.about.get('random'):
    raise UserError(
      f'{path!r}: {listed("arrays of its backbone are random", random)} (they '
      'were missing when it was converted): train it before it is used'
    )
  return weights


def load_for(model: Mapping, path: str, which: str = AUTO) -> Weights:
  """As `load`, to initialise `model`, whose fields settle open ones.

  Raises:
    UserError: as `load`, or the number of attention heads differs, which
      shapes do not show.
  """
  described = architecture.resolved(model, models.build(model))
  try:
    weights = load(path, which)
  except families.OpenError as e:
    weights = load(path, which, {e.field: described[e.field]})
  heads, own = weights.about['model'].get('heads'), described.get('heads')
  if heads != own:
    raise UserError(
      f'{path!r} has {heads} attention heads, config.model has {own}: shapes '
      f'agree but features would not; set --config.model.heads={heads}'
    )
  return weights


def answers(published: Mapping) -> dict:
  """The fields that the `published` section of an evaluation's config sets."""
  fields = {k: v for k, v in published.items() if v}
  if len(fields.get('heads', ())) == 1:
    (fields['heads'],) = fields['heads']  # of a ViT
  return fields


class Network(NamedTuple('Pair', [('apply', Callable), ('variables', dict)])):
  """(apply, variables), ready for features.

  Attributes:
    about: what was loaded: `path`, `which` network, `model` with all its
      fields, `channels`, and `mean` and `std` of its images, if known.
  """

  about: dict


def features(
  path,
  which: str = AUTO,
  fields: Mapping | None = None,
  dtype: str = 'float32',
) -> Network:
  """A network with its features; see `esvit_jax.load`."""
  weights = load_one(path, which, fields)
  variables = jax.tree.map(jnp.asarray, weights.variables())
  try:
    backbone = weights.backbone.clone(dtype=jnp.dtype(dtype))
  except TypeError:
    raise UserError(f'dtype is {dtype!r}: use float32 or bfloat16') from None
  network = Network(forward(backbone), variables)
  network.about = {
    'path': os.fspath(path),
    'which': weights.handed_on if which == AUTO else which,
    **{
      k: weights.about[k]
      for k in ('model', 'channels', 'mean', 'std')
      if k in weights.about
    },
  }
  return network
