"""Trained networks out of the house, and back.

import esvit_jax
apply, params = esvit_jax.load('swin_tiny.safetensors')
features = apply(params, images)  # .view [N, D], .grid [N, h, w, D]
"""

import contextlib
import json
import os
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import safetensors.numpy

from esvit_jax.errors import UserError
from esvit_jax.state import TrainState
from esvit_jax.weights import networks as weights_lib
from esvit_jax.weights.handover import AUTO, NETWORKS
from esvit_jax.weights.networks import Weights
from esvit_jax.weights.published import FORMAT
from esvit_jax.workdir import checkpoint, write_json


def load(path: str, which: str = 'auto'):
  """A trained backbone, ready for features.

  Args:
    path: a run directory, a converted one, a safetensors file or a published
      checkpoint (.pth).
    which: 'teacher', 'student', or 'auto' for the one to hand on.

  Returns:
    (apply, params): apply(params, images) -> Features of images f32[N, H, W,
    C], normalised as in training: view f32[N, D], grid f32[N, h, w, D].

  Raises:
    UserError: there is none, or it is of no architecture known.
  """
  weights, which = weights_lib.pick(os.fspath(path), which)
  params = weights_lib.part_variables(weights, which)
  return weights_lib.forward(weights.backbone), jax.tree.map(
    jnp.asarray, params
  )


def save(path: str, weights: Weights, which: str = AUTO) -> None:
  """Writes a safetensors file in the published layout, in one stroke.

  Its metadata describe the architecture, as JSON under 'esvit_jax'.

  Args:
    path: must not exist.
    weights: what to write.
    which: 'teacher', 'student', 'both', or 'auto' for the one handed on.

  Raises:
    UserError: it cannot be written.
  """
  check_free(path)
  which = weights.handed_on if which == AUTO else which
  arrays = weights_lib.to_published(weights, which)
  arrays = {k: np.asarray(v, order='C') for k, v in arrays.items()}
  about = json.dumps(
    {
      'version': 1,
      'network': which,
      'handed_on': weights.handed_on,
      **weights.about,
    }
  )
  part = _part(path)
  try:
    safetensors.numpy.save_file(arrays, part, {FORMAT: about})
    os.replace(part, path)
  except (OSError, safetensors.SafetensorError) as e:
    raise UserError(f'cannot write {path}: {e}') from None
  finally:
    with contextlib.suppress(FileNotFoundError):
      os.remove(part)


def save_run(path: str, weights: Weights, source: str) -> None:
  """Writes a directory that is to this project like a run's, in one stroke.

  It has a config.json and a checkpoint of step 0 without an optimiser, to
  start from (--config.init.checkpoint), to evaluate and to export.

  Args:
    path: must not exist, or be empty.
    weights: of one network, which is then both, or of two.
    source: where they come from.

  Raises:
    UserError: it cannot be written.
  """
  check_free(path)
  (any_network, *_) = weights.networks.values()
  networks = [weights.networks.get(who, any_network) for who in NETWORKS]
  student, teacher = networks
  state = TrainState(
    np.zeros((), np.int32),
    student['params'],
    teacher['params'],
    {
      'student': student['batch_stats'],
      'teacher': teacher['batch_stats'],
      **weights.centres,
    },
    {},
  )
  config = {
    'converted_from': source,
    'network': weights.handed_on,
    'model': weights.about['model'],
    'data': {'channels': weights.about['channels']},
    **({'head': weights.about['head']} if 'head' in weights.about else {}),
  }
  part = _part(path)
  try:
    os.mkdir(part)
    checkpoints = checkpoint.Checkpoints(os.path.join(part, 'checkpoints'))
    checkpoints.save(state)
    checkpoints.close()
    write_json(os.path.join(part, 'config.json'), config)
    os.replace(part, path)
  except OSError as e:
    raise UserError(f'cannot write {path}: {e.strerror or e}') from None
  finally:
    shutil.rmtree(part, ignore_errors=True)


def check_free(path: str) -> None:
  """Raises UserError where there is something, or no folder to write in."""
  if os.path.isdir(path) and not os.listdir(path):
    return
  if os.path.lexists(path):
    raise UserError(f'{path} exists: name another, or remove it')
  folder = os.path.dirname(os.path.abspath(path))
  if not os.path.isdir(folder):
    raise UserError(f'there is no folder {folder} to write in')


def _part(path: str) -> str:
  """Where something is written until it is whole: a name of this process."""
  return f'{path.rstrip("/")}.{os.getpid()}.tmp'
