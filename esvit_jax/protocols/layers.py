"""What layers do: width and reach of attention, and how alike layers are.

MAE-Lite's analyses (2205.14443, section 4), of any backbone here and between
two of them.
"""

import itertools
import math

import jax
import numpy as np

from esvit_jax.analysis import attention, representation
from esvit_jax.analysis.plots.attention import heads_png
from esvit_jax.analysis.plots.layers import heat_map_png
from esvit_jax.errors import UserError
from esvit_jax.protocols.subject import Result, Subject, prepare
from esvit_jax.weights import networks as weights_lib


def run(config, directory: str, out) -> Result:
  """Entropy and distance per head, CKA of all pairs of layers, pictures.

  Raises:
    UserError: the network cannot be used.
  """
  del out
  subject = prepare(config, directory)
  figures = _similarity(subject)
  figures['attention'] = _attention(subject)
  return subject.result(figures)


def _attention(subject: Subject) -> dict | str:
  c = subject.config.layers
  base = {'nats': math.e, 'bits': 2.0}.get(c.unit)
  if base is None:
    raise UserError(f"config.layers.unit is '{c.unit}': use nats or bits")
  inspect = weights_lib.inspect(subject.module)

  def per_head(variables, images):
    seen = inspect(variables, images)
    return attention.per_head(*seen, images.shape[1], c.scale, base)

  of = subject.images(per_head)
  heads = attention.mean_per_head(
    (jax.device_get(of(batch)), batch['mask']) for batch in _some(subject)
  )
  if not heads:
    return 'this backbone sows no attention'
  heads_png(subject.picture('heads'), heads, base)
  return attention.figures(heads)


def _similarity(subject: Subject) -> dict:
  """CKA between the layers of the network or, of two, between theirs."""
  subjects = [subject]
  other = subject.config.layers.other
  if other:
    config = subject.config.copy_and_resolve_references()
    config.checkpoint, config.which, config.size = other, 'auto', 0
    subjects.append(prepare(config, subject.directory))
  names, grams = [], []
  for one in subjects:
    inspect = weights_lib.inspect(one.module)
    images = jax.ShapeDtypeStruct(
      (4, one.config.size, one.config.size, one.weights.about['channels']),
      'float32',
    )
    variables = weights_lib.part_variables(one.weights, one.which)
    sown = jax.eval_shape(inspect, variables, images)
    names.append(tuple(jax.eval_shape(representation.layers, *sown)))
    grams.append(
      one.images(
        lambda v, x, inspect=inspect: representation.grams(
          representation.layers(*inspect(v, x))
        )
      )
    )

  def stream():
    for batch in _some(subject):
      found = [jax.device_get(gram(batch)) for gram in grams]
      yield found[0], found[-1], np.asarray(batch['mask'])

  similarity = representation.compare(stream(), names[0], names[-1])
  heat_map_png(
    subject.picture('cka'),
    similarity,
    subject.config.checkpoint,
    other or subject.config.checkpoint,
  )
  return {
    **representation.figures(similarity),
    'table': representation.table(similarity),
  }


def _some(subject: Subject):
  """Batches of as many images as the config wants."""
  c = subject.config
  count = -(-c.layers.images // c.batch_size)
  return itertools.islice(subject.batches(subject.judged), count)
