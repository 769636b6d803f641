"""What layers do: width and reach of attention, and how alike layers are.

MAE-Lite's analyses (2205.14443, section 4), of any backbone here and between
two of them.
"""

import math

import jax
import numpy as np

from esvit_jax.analysis import attention, representation
from esvit_jax.analysis.plots.attention import heads_png
from esvit_jax.analysis.plots.layers import heat_map_png
from esvit_jax.errors import UserError
from esvit_jax.evals.finite import counted, refuse_many
from esvit_jax.protocols.setup import Result, Setup, prepare
from esvit_jax.weights import networks


def run(config, directory: str, out) -> Result:
  """Entropy and distance per head, CKA of all pairs of layers, pictures.

  Raises:
    UserError: the network cannot be used.
  """
  setup = prepare(config, directory, out)
  setups, other = [setup], config.layers.other
  if other:
    second = setup.config.copy_and_resolve_references()
    second.checkpoint, second.which, second.size = other, 'auto', 0
    second.data.mean, second.data.std = config.data.mean, config.data.std
    setups.append(prepare(second, setup.directory, out))
  figures = _similarity(setups)
  figures['attention'] = _attention(setup)
  return setup.result(figures)


def _attention(setup: Setup) -> dict | str:
  c = setup.config.layers
  base = {'nats': math.e, 'bits': 2.0}.get(c.unit)
  if base is None:
    raise UserError(f"config.layers.unit is '{c.unit}': use nats or bits")
  inspect = networks.inspect(setup.backbone)

  def per_head(variables, images):
    seen = inspect(variables, images)
    return attention.per_head(*seen, images.shape[1], c.scale, base)

  of_batch = setup.apply(per_head)

  def stream():
    for batch in setup.batches(setup.sample(c.images)):
      heads = jax.device_get(of_batch(batch))
      finite = [np.isfinite(x).all((1, 2)) for x in heads.values()]
      yield heads, np.asarray(batch['mask']) & np.all(finite, 0)

  heads = attention.mean_per_head(stream())
  if not heads:
    return 'this backbone sows no attention'
  heads_png(setup.picture('heads'), heads, base)
  return attention.figures(heads)


def _similarity(setups: list[Setup]) -> dict:
  """CKA between the layers of a network or, of two, between theirs."""
  first, last = setups[0], setups[-1]
  source = first.sample(first.config.layers.images)
  grams = [_grams(setup) for setup in setups]

  bad = 0

  def stream():
    nonlocal bad
    # The same images for both, each at the size of its network.
    for batches in zip(*(setup.batches(source) for setup in setups)):
      K = [jax.device_get(gram(x)) for gram, x in zip(grams, batches)]
      mask = np.asarray(batches[0]['mask'])
      norms = np.concatenate([np.diagonal(x, axis1=1, axis2=2) for x in K])
      finite = np.isfinite(norms).all(0)
      bad += int((mask & ~finite).sum())
      yield K[0], K[-1], mask & finite

  similarity = representation.compare(
    stream(), _layer_names(first), _layer_names(last)
  )
  refuse_many(bad, len(source))
  heat_map_png(
    first.picture('cka'),
    similarity,
    first.config.checkpoint,
    last.config.checkpoint,
  )
  figures = counted(representation.figures(similarity), bad)
  return {**figures, 'table': representation.table(similarity)}


def _grams(setup: Setup):
  """batch -> Gram matrices of its layers."""
  inspect = networks.inspect(setup.backbone)
  return setup.apply(
    lambda v, x: representation.grams(representation.layers(*inspect(v, x)))
  )


def _layer_names(setup: Setup) -> tuple[str, ...]:
  size, channels = setup.config.size, setup.weights.about['channels']
  images = jax.ShapeDtypeStruct((4, size, size, channels), 'float32')
  inspect = networks.inspect(setup.backbone)
  sown = jax.eval_shape(inspect, setup.variables, images)
  return tuple(representation.layer_names(*sown))
