"""The prototype loss in tiles, never holding tokens x K.

The gradient by the logits of student token i, in the notation of `prototypes`,

  G_i = |q_i| softmax(s_i) - q_i,

needs nothing from after the loss, so dU = G W_s and dW_s = G^T U are made in
the same pass over a tile, and the tile is forgotten.
"""

from functools import partial

import jax

from esvit_jax.errors import UserError
from esvit_jax.losses import image_tiles, prototype_tiles, prototypes
from esvit_jax.losses.prototypes import Match, Side


def cross_entropy(
  student: Side,
  teacher: Side,
  match: Match,
  form: str = 'auto',
  chunk: int = 0,
  shards: int = 1,
) -> jax.Array:
  """`prototypes.cross_entropy`, in the order of work that suits the device.

  Args:
    student, teacher, match: see there.
    form: 'plain' is the definition and holds B x S x K; 'images' goes through
      the batch in chunks of images, 'prototypes' through the prototypes;
      'auto' takes `default_form`. Equal numbers.
    chunk: about how many images or prototypes at a time, 0 for
      `default_chunk`. Chunks are made equal; where none divides, the last is
      filled up with images of no weight, or with prototypes of no probability.
    shards: number of devices that B is split over. Each goes through its own
      images and the parts of dW_s meet once, at the end.

  Raises:
    UserError: there is no such form.
    ValueError: the batch does not split over the devices.
  """
  B, S = student.tokens.shape[:2]
  if form == 'auto':
    form = default_form(B // shards, S, len(student.prototypes))
  if form == 'plain':
    return prototypes.cross_entropy(student, teacher, match)
  if form not in FORMS:
    raise UserError(
      f"the prototype loss has no form '{form}': choose 'plain', 'images', "
      "'prototypes' or 'auto'"
    )
  if B % shards:
    raise ValueError(f'{B} images do not split over {shards} devices')
  chunk = chunk or default_chunk(form, S)
  return _tiled(form, chunk, shards, student, teacher, match)


FORMS = {'images': image_tiles.tiled, 'prototypes': prototype_tiles.tiled}


def _per_device(form, chunk, shards, student, teacher, match):
  """Runs the tiles of every shard beside each other and adds up at the end.

  A scan over chunks of the whole batch would make XLA bring dW_s together in
  each of its steps; along a leading axis of shards everything is local.

  Returns:
    (loss, dU, dW_s).
  """
  B = len(match.tokens)

  def split(x):
    return x.reshape(shards, -1, *x.shape[1:])

  local = Side(0, None, None, None)
  weights = None
  if match.weights.ndim == 3:
    match, weights = match._replace(weights=split(match.weights)), 0
  value, dU, dW = jax.vmap(
    partial(FORMS[form], chunk),
    in_axes=(local, local, Match(0, weights)),
  )(
    student._replace(tokens=split(student.tokens)),
    teacher._replace(tokens=split(teacher.tokens)),
    match._replace(tokens=split(match.tokens)),
  )
  dU = dU.reshape(student.tokens.shape) / B
  dW = dW.sum(0) / B
  return (
    value.sum() / B,
    dU.astype(student.tokens.dtype),
    dW.astype(student.prototypes.dtype),
  )


@partial(jax.custom_vjp, nondiff_argnums=(0, 1, 2))
def _tiled(form, chunk, shards, *sides):
  value, _, _ = _per_device(form, chunk, shards, *sides)
  return value


def _tiled_forward(form, chunk, shards, *sides):
  value, dU, dW = _per_device(form, chunk, shards, *sides)
  return value, (dU, dW)


def _tiled_backward(form, chunk, shards, gradients, scale):
  dU, dW = (scale.astype(x.dtype) * x for x in gradients)
  return Side(dU, dW, None, None), None, None


_tiled.defvjp(_tiled_forward, _tiled_backward)


def default_form(images: int, tokens: int, prototypes: int) -> str:
  """The fastest form where it was measured, else what the arithmetic says.

  Value and gradients in float32, CPU milliseconds (one shared x86 machine):

    images, student and teacher tokens, K, P   plain  images  prototypes
    64,   4 and  2,   256,  64                   0.6     0.7         0.6
    64,  40 and 32,   256,  64                    13       6          13
    64,  40 and 32,  2048,  64                   157      62         138
    16,  10 and  2,  8192, 256                    25      24          31
     4, 170 and 98,  8192, 256                   221     126         157
     4, 170 and 98, 65536, 256                  2217    1538        1631

  So 'images' is never behind the plain form beyond noise, even where one
  chunk holds the whole batch. A TPU keeps a chunk of prototypes on the chip
  (not measured).

  Args:
    images: on one device.
    tokens: student tokens of an image.
    prototypes: K.
  """
  logits_mib = images * tokens * prototypes * 4 / 2**20
  tpu = jax.default_backend() == 'tpu'
  return 'prototypes' if tpu and logits_mib > 64 else 'images'


def default_chunk(form: str, tokens: int) -> int:
  """Images or prototypes at a time.

  A chunk of images reads and writes all of dW_s, so it should hold some
  hundred tokens; more only take memory. 256 were best on a CPU; GPUs, which
  were not measured here, are given 16 images of 170 tokens.

  Args:
    form: 'images' or 'prototypes'.
    tokens: student tokens of an image.
  """
  if form == 'prototypes':
    return 1024
  rows = 256 if jax.default_backend() == 'cpu' else 1360
  return max(1, rows // tokens)
