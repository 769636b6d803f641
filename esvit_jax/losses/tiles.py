"""The prototype loss in tiles, never holding tokens x K.

The gradient by the logits of student token i, in the notation of `prototypes`,

  G_i = |q_i| softmax(s_i) - q_i,

needs nothing from after the loss, so dU = G W_s and dW_s = G^T U are made in
the same pass over a tile, and the tile is forgotten.
"""

from functools import partial

import jax
import jax.numpy as jnp

from esvit_jax.errors import UserError
from esvit_jax.losses import prototypes
from esvit_jax.losses.prototypes import Side, logits

# Centre of a prototype that only fills a tile: its share of any softmax is 0.
FILLER = 1e30


def cross_entropy(
  student: Side,
  teacher: Side,
  match: jax.Array,
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
    chunk: images or prototypes at a time, 0 for `default_chunk`. Chunks are
      made equal; the last is filled up with images of no weight, or with
      prototypes of no probability.
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


def _tile(gradients, student, log_s, log_t, match):
  """The loss of one tile, summed, and if wanted its G W_s and G^T U.

  Args:
    gradients: whether they are wanted.
    student: with the tile's tokens and prototypes.
    log_s, log_t: log softmax of both sides, f32[b, S, k] and f32[b, T, k].
    match: f32[b, S, T].

  Returns:
    f32[], f32[b, S, P] or None, f32[k, P] or None.
  """
  u, w_s = student.tokens, student.prototypes
  f32 = {'preferred_element_type': jnp.float32}
  weight = jnp.sum(match, -1, keepdims=True)
  # Shares of a token's weight are halves and ones, exact in bfloat16.
  share = (match / jnp.maximum(weight, 1e-30)).astype(u.dtype)
  q = jnp.einsum('bij,bjk->bik', share, jnp.exp(log_t).astype(u.dtype), **f32)
  value = -jnp.sum(weight * q * log_s)
  if not gradients:
    return value, None, None
  G = weight / student.temperature * (jnp.exp(log_s) - q)
  G = G.astype(u.dtype)
  dU = jnp.einsum('bik,kp->bip', G, w_s, **f32)
  dW = jnp.einsum('bik,bip->kp', G, u, **f32)
  return value, dU, dW


def _by_images(chunk, gradients, student, teacher, match):
  """A chunk of images sees its rows of logits whole."""
  b, S, P = student.tokens.shape

  def step(sums, tile):
    u, t, match = tile
    s, t = student._replace(tokens=u), teacher._replace(tokens=t)
    log_s, log_t = (jax.nn.log_softmax(logits(x)) for x in (s, t))
    value, dU, dW = _tile(gradients, s, log_s, log_t, match)
    return jax.tree.map(jnp.add, sums, (value, dW)), dU

  zero = jnp.zeros(()), jnp.zeros(student.prototypes.shape)
  tiles = _cut((student.tokens, teacher.tokens, match), chunk)
  (value, dW), dU = jax.lax.scan(
    step, zero if gradients else (zero[0], None), tiles
  )
  return value, dU.reshape(-1, S, P)[:b] if gradients else None, dW


def _by_prototypes(chunk, gradients, student, teacher, match):
  """A chunk of prototypes: first the sums over all, then the loss."""
  K, P = student.prototypes.shape
  n, c = _even(K, chunk)

  def pieces(side):
    center = jnp.broadcast_to(side.center, (K,))
    center = jnp.pad(center, (0, n * c - K), constant_values=FILLER)
    return *_cut((side.prototypes,), chunk), center.reshape(n, c)

  def with_tile(tile):
    return [
      side._replace(prototypes=w, center=center)
      for side, (w, center) in zip((student, teacher), tile)
    ]

  def add_up(sums, tile):
    return tuple(
      jnp.logaddexp(lse, jax.nn.logsumexp(logits(side), -1, keepdims=True))
      for lse, side in zip(sums, with_tile(tile))
    ), None

  tiles = pieces(student), pieces(teacher)
  minus_infinity = tuple(
    jnp.full((*side.tokens.shape[:2], 1), -jnp.inf)
    for side in (student, teacher)
  )
  (lse_s, lse_t), _ = jax.lax.scan(add_up, minus_infinity, tiles)

  def step(sums, tile):
    s, t = with_tile(tile)
    log_s, log_t = logits(s) - lse_s, logits(t) - lse_t
    value, dU, dW = _tile(gradients, s, log_s, log_t, match)
    return jax.tree.map(jnp.add, sums, (value, dU)), dW

  zero = jnp.zeros(()), jnp.zeros(student.tokens.shape)
  (value, dU), dW = jax.lax.scan(
    step, zero if gradients else (zero[0], None), tiles
  )
  return value, dU, dW.reshape(-1, P)[:K] if gradients else None


def _even(size: int, chunk: int) -> tuple[int, int]:
  """Number and length of equal chunks, none longer than `chunk`."""
  n = -(-size // chunk)
  return n, -(-size // n)


def _cut(xs, chunk):
  """Arrays [size, ...] -> [n, c, ...], filled up with zeros."""
  n, c = _even(xs[0].shape[0], chunk)

  def cut(x):
    missing = [(0, n * c - x.shape[0])] + [(0, 0)] * (x.ndim - 1)
    return jnp.pad(x, missing).reshape(n, c, *x.shape[1:])

  return jax.tree.map(cut, xs)


FORMS = {'images': _by_images, 'prototypes': _by_prototypes}


def _per_device(form, chunk, shards, gradients, student, teacher, match):
  """Runs the tiles of every shard beside each other and adds up at the end.

  A scan over chunks of the whole batch would make XLA bring dW_s together in
  each of its steps; along a leading axis of shards everything is local.

  Returns:
    The loss, or with `gradients` (loss, dU, dW_s).
  """
  B = len(match)
  dtype = student.prototypes.dtype

  def split(x):
    return x.reshape(shards, -1, *x.shape[1:])

  student, teacher = (
    side._replace(tokens=split(side.tokens))
    for side in prototypes.cast(student, teacher)
  )
  value, dU, dW = jax.vmap(
    partial(FORMS[form], chunk, gradients),
    in_axes=(Side(0, None, None, None), Side(0, None, None, None), 0),
  )(student, teacher, split(match))
  value = value.sum() / B
  if not gradients:
    return value
  dU = dU.reshape(B, *dU.shape[2:]) / B
  return value, dU.astype(student.tokens.dtype), (dW.sum(0) / B).astype(dtype)


@partial(jax.custom_vjp, nondiff_argnums=(0, 1, 2))
def _tiled(form, chunk, shards, *sides):
  return _per_device(form, chunk, shards, False, *sides)


def _tiled_forward(form, chunk, shards, *sides):
  value, dU, dW = _per_device(form, chunk, shards, True, *sides)
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
  were not measured here, are given about a dozen images of 170 tokens.

  Args:
    form: 'images' or 'prototypes'.
    tokens: student tokens of an image.
  """
  if form == 'prototypes':
    return 1024
  rows = 256 if jax.default_backend() == 'cpu' else 2048
  return max(1, rows // tokens)
