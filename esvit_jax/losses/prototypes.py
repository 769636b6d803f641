"""Cross-entropy between tokens over K prototypes, never holding tokens x K.

Of one image, in the notation of the code:

  p_j = softmax((t_j W_t^T - c) / temp_t)         teacher token j
  s_i = u_i W_s^T / temp_s                        student token i
  q_i = sum_j A_ij p_j                            what token i should say
  L   = mean over images of sum_i [ |q_i| lse(s_i) - <q_i, s_i> ]

A, the matching, holds all that differs between losses: which teacher token
each student token follows, and with what weight. The view loss follows views,
the region loss the most similar region of every other view.

The gradient by the logits, G_i = |q_i| softmax(s_i) - q_i, needs nothing from
after the loss, so the tiled forms make dU = G W_s and dW_s = G^T U in the
same pass over a tile and forget the tile.
"""

from collections.abc import Sequence
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from esvit_jax.errors import UserError
from esvit_jax.models.layers import l2_normalize

# Logit of a prototype that only fills a tile; finite, so that 0 * it is 0.
_NOWHERE = -1e30


def cross_entropy(
  u: jax.Array,
  w_s: jax.Array,
  t: jax.Array,
  w_t: jax.Array,
  center: jax.Array,
  match: jax.Array,
  temp_s: float,
  temp_t: float | jax.Array,
  form: str = 'plain',
  chunk: int = 0,
  shards: int = 1,
) -> jax.Array:
  """What student tokens say against what their teacher tokens say.

  Gradients flow to `u` and `w_s` alone. Products run in the dtype of `u` and
  add up in float32; softmaxes are float32.

  Args:
    u: [B, S, P] student tokens of each image, before the prototypes.
    w_s: [K, P] student prototypes.
    t: [B, T, P] teacher tokens.
    w_t: [K, P] teacher prototypes.
    center: f32[K] taken from the teacher's logits.
    match: f32[B, S, T] weights of teacher tokens, see `matching`.
    temp_s: student temperature.
    temp_t: teacher temperature.
    form: 'plain' holds B x S x K; 'images' goes through the batch in chunks
      of images, 'prototypes' through the prototypes. Equal numbers.
    chunk: images or prototypes at a time, 0 for `default_chunk`. Chunks are
      made equal; the last is filled up with images of no weight, or with
      prototypes at which nobody looks.
    shards: number of devices that B is split over. Each goes through its own
      images and the parts of dW_s meet once, at the end.

  Returns:
    f32[], ln K times the sum of an image's weights for a student that is
    indifferent.
  """
  B, S, _ = u.shape
  t, w_t, center, match, temp_s, temp_t = jax.lax.stop_gradient(
    (t, w_t, center, match, jnp.float32(temp_s), jnp.float32(temp_t))
  )
  args = (u, w_s, t, w_t, center, match, temp_s, temp_t)
  if form == 'plain':
    return _plain(*args)
  if form not in _TILED:
    raise UserError(
      f"the prototype loss has no form '{form}': choose 'plain', 'images' or "
      "'prototypes'"
    )
  if B % shards:
    raise ValueError(f'{B} images do not split over {shards} devices')
  chunk = chunk or default_chunk(form, S)
  return _tiled(form, chunk, shards, *args)


def _plain(u, w_s, t, w_t, center, match, temp_s, temp_t):
  """The definition, and the oracle of the other forms.

  p = softmax((t W_t^T - c) / temp_t)
  s = u W_s^T / temp_s
  L = -mean_b sum_i <sum_j A_ij p_j, log softmax(s_i)>
  """
  w_s, t, w_t = (x.astype(u.dtype) for x in (w_s, t, w_t))
  p = jax.nn.softmax((_logits(t, w_t) - center[None, None]) / temp_t)
  log_s = jax.nn.log_softmax(_logits(u, w_s) / temp_s)
  return -jnp.einsum('bij,bjk,bik->', match, p, log_s) / u.shape[0]


# Tiles


def _logits(x, w):
  """[b, n, P], [k, P] -> f32[b, n, k]."""
  return jnp.einsum('bnp,kp->bnk', x, w, preferred_element_type=jnp.float32)


def _tile(grads, u, w_s, log_s, log_t, match, temp_s):
  """One tile's sum of the loss and, if wanted, its G W_s and G^T U.

  Returns:
    f32[], f32[b, S, P] or None, f32[k, P] or None.
  """
  f32 = {'preferred_element_type': jnp.float32}
  weight = jnp.sum(match, -1, keepdims=True)
  # Shares of a token's weight are halves and ones, exact in bfloat16.
  share = (match / jnp.maximum(weight, 1e-30)).astype(u.dtype)
  q = jnp.einsum('bij,bjk->bik', share, jnp.exp(log_t).astype(u.dtype), **f32)
  value = -jnp.sum(weight * q * log_s)
  if not grads:
    return value, None, None
  G = (weight / temp_s * (jnp.exp(log_s) - q)).astype(u.dtype)
  dU = jnp.einsum('bik,kp->bip', G, w_s, **f32)
  dW = jnp.einsum('bik,bip->kp', G, u, **f32)
  return value, dU, dW


def _images(chunk, grads, u, w_s, t, w_t, center, match, temp_s, temp_t):
  """A chunk of images sees its rows of logits whole."""
  b, S, P = u.shape

  def step(carry, tile):
    u, t, match = tile
    log_s = jax.nn.log_softmax(_logits(u, w_s) / temp_s)
    log_t = jax.nn.log_softmax((_logits(t, w_t) - center[None, None]) / temp_t)
    value, dU, dW = _tile(grads, u, w_s, log_s, log_t, match, temp_s)
    return jax.tree.map(jnp.add, carry, (value, dW)), dU

  zero = jnp.zeros(()), jnp.zeros(w_s.shape) if grads else None
  (value, dW), dU = jax.lax.scan(step, zero, _cut((u, t, match), chunk))
  return value, dU.reshape(-1, S, P)[:b] if grads else None, dW


def _prototypes(chunk, grads, u, w_s, t, w_t, center, match, temp_s, temp_t):
  """A chunk of prototypes: first the sums of all, then the loss."""
  b, (K, P) = len(u), w_s.shape
  n, c = _even(K, chunk)
  nobody = (0, n * c - K)
  # Filling prototypes get no share of any softmax.
  tiles = (
    *_cut((w_s, w_t), chunk),
    jnp.pad(center, nobody, constant_values=-_NOWHERE).reshape(n, c),
    jnp.pad(jnp.zeros(K), nobody, constant_values=_NOWHERE).reshape(n, c),
  )

  def scores(tile):
    w_s, w_t, center, bias = tile
    s = _logits(u, w_s) / temp_s + bias[None, None]
    return s, (_logits(t, w_t) - center[None, None]) / temp_t

  def add_up(sums, tile):
    return tuple(
      jnp.logaddexp(lse, jax.nn.logsumexp(x, -1, keepdims=True))
      for lse, x in zip(sums, scores(tile))
    ), None

  nothing = tuple(jnp.full((b, x.shape[1], 1), -jnp.inf) for x in (u, t))
  (lse_s, lse_t), _ = jax.lax.scan(add_up, nothing, tiles)

  def step(carry, tile):
    s, t = scores(tile)
    value, dU, dW = _tile(
      grads, u, tile[0], s - lse_s, t - lse_t, match, temp_s
    )
    return jax.tree.map(jnp.add, carry, (value, dU)), dW

  zero = jnp.zeros(()), jnp.zeros(u.shape) if grads else None
  (value, dU), dW = jax.lax.scan(step, zero, tiles)
  return value, dU, dW.reshape(-1, P)[:K] if grads else None


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


_TILED = {'images': _images, 'prototypes': _prototypes}


def _per_device(
  form, chunk, shards, grads, u, w_s, t, w_t, center, match, temp_s, temp_t
):
  """Runs the tiles of every shard beside each other and adds up at the end.

  A scan over chunks of the whole batch would make XLA bring dW_s together in
  each of its steps; along a leading axis of shards everything is local.
  """
  B, S, P = u.shape
  w_s_dtype = w_s.dtype
  w_s, t, w_t = (x.astype(u.dtype) for x in (w_s, t, w_t))
  u, t, match = (x.reshape(shards, -1, *x.shape[1:]) for x in (u, t, match))
  value, dU, dW = jax.vmap(
    partial(_TILED[form], chunk, grads),
    in_axes=(0, None, 0, None, None, 0, None, None),
  )(u, w_s, t, w_t, center, match, temp_s, temp_t)
  value = value.sum() / B
  if not grads:
    return value
  dU = dU.reshape(B, S, P) / B
  return value, dU.astype(u.dtype), (dW.sum(0) / B).astype(w_s_dtype)


@partial(jax.custom_vjp, nondiff_argnums=(0, 1, 2))
def _tiled(form, chunk, shards, *args):
  return _per_device(form, chunk, shards, False, *args)


def _tiled_fwd(form, chunk, shards, *args):
  value, dU, dW = _per_device(form, chunk, shards, True, *args)
  return value, (dU, dW)


def _tiled_bwd(form, chunk, shards, grads, scale):
  dU, dW = (scale.astype(x.dtype) * x for x in grads)
  return dU, dW, *[None] * 6


_tiled.defvjp(_tiled_fwd, _tiled_bwd)


# Who follows whom, centres, choosing a form


def pair_weights(
  tokens_per_view: Sequence[int], teacher_views: int = 2
) -> np.ndarray:
  """The weight with which student tokens follow each teacher view.

  Args:
    tokens_per_view: student tokens of each view; the first `teacher_views`
      views are the teacher's too, and no view follows itself.
    teacher_views: number of teacher views.

  Returns:
    f32[S, Q] with sum 1: every pair of views weighs the same, shared by the
    tokens of its student view.
  """
  pairs = (len(tokens_per_view) - 1) * teacher_views
  if pairs < 1:
    raise UserError('one view alone has no other to follow: add views')
  weights = 1 / (pairs * np.asarray(tokens_per_view, np.float32))
  own = np.arange(len(weights))[:, None] == np.arange(teacher_views)[None]
  by_view = np.where(own, 0, weights[:, None])  # V Q
  return np.repeat(by_view, tokens_per_view, axis=0).astype(np.float32)


def matching(
  f_s: jax.Array,
  f_t: jax.Array,
  weights: np.ndarray,
  teacher_regions: Sequence[int],
) -> tuple[jax.Array, jax.Array]:
  """Lets each student region follow the most similar region of every view.

  j*(i, q) = argmax over regions j of teacher view q of cos(f_s_i, f_t_j)

  Args:
    f_s: [B, S, D] student regions, all views of an image in a row.
    f_t: [B, T, D] teacher regions, likewise.
    weights: f32[S, Q], see `pair_weights`.
    teacher_regions: number of regions of each teacher view, with sum T.

  Returns:
    f32[B, S, T] the `match` of `cross_entropy`; i32[B, S, Q] the region
    within each teacher view that every student region found, its own view's
    too. Neither carries gradients.
  """
  f_s, f_t = jax.lax.stop_gradient((f_s, f_t))
  f_s, f_t = f_s.astype(jnp.float32), f_t.astype(jnp.float32)
  # The length of a student region cannot change what is most similar to it.
  similarity = jnp.einsum('bid,bjd->bij', f_s, l2_normalize(f_t))
  edges = np.cumsum(teacher_regions)[:-1]
  found, match = [], []
  for q, view in enumerate(jnp.split(similarity, edges, axis=-1)):
    best = jnp.argmax(view, -1)  # B S
    found.append(best)
    match.append(
      weights[None, :, q, None] * jax.nn.one_hot(best, view.shape[-1])
    )
  return jnp.concatenate(match, -1), jnp.stack(found, -1)


def update_center(
  center: jax.Array, w_t: jax.Array, t: jax.Array, momentum: float
) -> jax.Array:
  """Moves the centre towards the teacher's mean logits.

  Logits are linear in the token, so the mean token has the mean logits and
  no pass over tokens x K is needed.

  Args:
    center: f32[K].
    w_t: [K, P] teacher prototypes.
    t: [B, T, P] teacher tokens, of all images of all devices.
    momentum: share of the old centre.

  Returns:
    f32[K].
  """
  mean = jnp.mean(t.astype(jnp.float32), axis=(0, 1))
  logits = w_t.astype(jnp.float32) @ mean
  return jax.lax.stop_gradient(momentum * center + (1 - momentum) * logits)


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
