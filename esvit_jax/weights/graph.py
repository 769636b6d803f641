"""A network as a StableHLO graph that runs without this package."""

import jax
import jax.numpy as jnp
from jax import export

from esvit_jax.errors import UserError
from esvit_jax.models.backbone import IMAGE_SIZE
from esvit_jax.weights.handover import AUTO
from esvit_jax.weights.networks import Weights, forward
from esvit_jax.workdir.files import check_free, replacing

PLATFORMS = ('cpu', 'cuda', 'tpu')


def exported(weights: Weights, which: str = AUTO) -> export.Exported:
  """The graph of one network, for any number of images of one size.

  It maps images f32[N, H, W, C], normalised as in training, to a dict: `view`
  f32[N, D], `grid` f32[N, h, w, D], and the maps `stage0`, ... of the stages.
  N is symbolic. Height and width are those that the network was made for:
  windows and positions are laid out for them when it is traced.
  """
  which = weights.handed_on if which == AUTO else which
  variables = jax.tree.map(jnp.asarray, weights.variables(which))
  apply = forward(weights.backbone)

  def features(image):
    found = apply(variables, image[None])
    stages = {f'stage{i}': x for i, x in enumerate(found.stages)}
    outputs = {'view': found.view, 'grid': found.grid, **stages}
    return {name: x[0] for name, x in outputs.items()}

  side = weights.about['model'].get('image_size') or IMAGE_SIZE
  shape = export.symbolic_shape(
    f'n, {side}, {side}, {weights.about["channels"]}'
  )
  images = jax.ShapeDtypeStruct(shape, jnp.float32)
  # One image under vmap: shapes within the network are numbers, not symbols.
  return export.export(jax.jit(jax.vmap(features)), platforms=PLATFORMS)(images)


def save(path: str, weights: Weights, which: str = AUTO) -> list[str]:
  """Writes the graph, whole or not at all; returns how to run it.

  Raises:
    UserError: two networks are asked for, or it cannot be written.
  """
  if which == 'both':
    raise UserError('--to=stablehlo takes one network: give --which')
  check_free(path)
  graph = exported(weights, which)
  try:
    content = graph.serialize()
  except ImportError:
    raise UserError(
      'writing a graph needs flatbuffers: pip install "esvit_jax[graph]"'
    ) from None
  with replacing(path) as part, open(part, 'wb') as file:
    file.write(content)
  (images,), shapes = graph.in_avals, graph.out_avals
  stages = (f'stage{i}' for i in range(len(shapes) - 2))
  names = sorted(('view', 'grid', *stages))
  outputs = ', '.join(
    f'{name} {list(map(str, x.shape))}' for name, x in zip(names, shapes)
  )
  read = f"jax.export.deserialize(bytearray(open('{path}', 'rb').read()))"
  return [
    f'a graph of images {list(map(str, images.shape))} to {outputs}',
    f'{read}.call(images)',
  ]
