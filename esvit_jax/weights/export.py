"""Trained networks as safetensors files."""

import json

import numpy as np
import safetensors.numpy

from esvit_jax.errors import UserError
from esvit_jax.weights import place, writing
from esvit_jax.weights.handover import AUTO
from esvit_jax.weights.networks import Weights
from esvit_jax.weights.published.files import FORMAT, OWN


def save(
  path: str,
  weights: Weights,
  which: str = AUTO,
  centres: bool = False,
  prefix: str = '',
) -> None:
  """Writes a safetensors file in the published layout, in one stroke.

  Its metadata describe the architecture, as JSON under 'esvit_jax'.

  Args:
    path: must not exist.
    weights: what to write.
    which: 'teacher', 'student', 'both', or 'auto' for the one handed on.
    centres, prefix: see `writing.to_published`.

  Raises:
    UserError: it cannot be written.
  """
  place.check_free(path)
  which = weights.handed_on if which == AUTO else which
  arrays = writing.to_published(weights, which, centres, prefix)
  arrays = {k: np.asarray(v, order='C') for k, v in arrays.items()}
  about = {
    'version': 2,
    'network': which,
    'handed_on': weights.handed_on,
    **weights.about,
  }
  networks = weights.networks if which == 'both' else (which,)
  if OWN in [writing.layout(weights, name) for name in networks]:
    about['layout'] = OWN
  try:
    with place.unfinished(path) as part:
      safetensors.numpy.save_file(arrays, part, {FORMAT: json.dumps(about)})
  except safetensors.SafetensorError as e:
    raise UserError(f'cannot write {path}: {e}') from None
