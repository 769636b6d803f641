"""Cross-entropy between tokens by their scores over K prototypes.

Of one image, in the notation of the code:

  p_j = softmax((t_j W_t^T - c) / temp_t)         teacher token j
  s_i = u_i W_s^T / temp_s                        student token i
  q_i = sum_j A_ij p_j                            target of token i
  L   = mean over images of sum_i [ |q_i| lse(s_i) - <q_i, s_i> ]

All that differs between losses is in A, the matching: which teacher tokens each
student token follows, and with what weight. The view loss follows views, the
region loss the most similar region of every other view (arXiv 2106.09785,
section 3.2). `tiles` computes the same without holding tokens x K.
"""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from esvit_jax.errors import UserError
from esvit_jax.models.layers import l2_normalize


class Side(NamedTuple):
  """The student's or the teacher's tokens and prototypes.

  Attributes:
    tokens: of each image, f[B, N, P].
    prototypes: f[K, P].
    temperature: of the softmax over prototypes, f32[].
    center: f32[K], subtracted from the teacher's scores; 0 for none.
  """

  tokens: jax.Array
  prototypes: jax.Array
  temperature: float | jax.Array
  center: float | jax.Array = 0.0


class Match(NamedTuple):
  """The teacher tokens that each student token follows: A, row by row.

  Attributes:
    tokens: of the same image's teacher, i32[B, S, Q].
    weights: of each, f32[B, S, Q] or the same for all images, f32[S, Q]; the
      weight 0 follows none.
  """

  tokens: jax.Array
  weights: jax.Array

  def dense(self, teacher_tokens: int) -> jax.Array:
    """A, f32[B, S, T]."""
    rows = jax.nn.one_hot(self.tokens, teacher_tokens)  # B S Q T
    weights = jnp.broadcast_to(self.weights, self.tokens.shape)
    return jnp.einsum('bsq,bsqt->bst', weights, rows, precision='highest')


def logits(side: Side) -> jax.Array:
  """(tokens W^T - center) / temperature, f32[B, N, K]."""
  scores = jnp.einsum(
    'bnp,kp->bnk',
    side.tokens,
    side.prototypes,
    preferred_element_type=jnp.float32,
  )
  center = jnp.broadcast_to(side.center, side.prototypes.shape[:1])
  return (scores - center[None, None]) / side.temperature


def cross_entropy(student: Side, teacher: Side, match: Match) -> jax.Array:
  """The definition: -mean_b sum_i <sum_j A_ij p_j, log softmax(s_i)>.

  Gradients flow to the student's tokens and prototypes alone. Products run in
  the dtype of the student's tokens and add up in float32.

  Args:
    student: S tokens of each image.
    teacher: T tokens of each image.
    match: A, see `matching`.

  Returns:
    f32[]; ln K times the sum of an image's weights where the student's scores
    are all alike.
  """
  teacher, match = jax.lax.stop_gradient((teacher, match))
  dtype = student.tokens.dtype
  student, teacher = (
    side._replace(
      tokens=side.tokens.astype(dtype), prototypes=side.prototypes.astype(dtype)
    )
    for side in (student, teacher)
  )
  A = match.dense(teacher.tokens.shape[1])
  p = jax.nn.softmax(logits(teacher))
  log_s = jax.nn.log_softmax(logits(student))
  return -jnp.einsum('bij,bjk,bik->', A, p, log_s) / len(A)


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

  Raises:
    UserError: there is no pair.
  """
  pairs = (len(tokens_per_view) - 1) * teacher_views
  if pairs < 1:
    raise UserError('one view alone has no other to follow: add views')
  weights = 1 / (pairs * np.asarray(tokens_per_view, np.float32))
  same = np.arange(len(weights))[:, None] == np.arange(teacher_views)[None]
  by_view = np.where(same, 0, weights[:, None])  # V Q
  return np.repeat(by_view, tokens_per_view, axis=0).astype(np.float32)


def matching(
  f_s: jax.Array,
  f_t: jax.Array,
  weights: np.ndarray,
  teacher_regions: Sequence[int],
) -> tuple[Match, jax.Array]:
  """Lets each student region follow the most similar region of every view.

  j*(i, q) = argmax over regions j of teacher view q of cos(f_s_i, f_t_j)

  Args:
    f_s: [B, S, D] student regions, all views of an image in a row.
    f_t: [B, T, D] teacher regions, likewise.
    weights: f32[S, Q], see `pair_weights`.
    teacher_regions: number of regions of each teacher view, with sum T.

  Returns:
    The `match` of `cross_entropy`; and i32[B, S, Q] the most similar region
    within each teacher view, that of the region's own view too. Neither
    carries gradients.
  """
  f_s, f_t = jax.lax.stop_gradient((f_s, f_t))
  f_s, f_t = f_s.astype(jnp.float32), f_t.astype(jnp.float32)
  # The length of a student region cannot change what is most similar to it.
  similarity = jnp.einsum('bid,bjd->bij', f_s, l2_normalize(f_t))
  ends = np.cumsum(teacher_regions)
  views = jnp.split(similarity, ends[:-1], axis=-1)
  nearest = jnp.stack([jnp.argmax(view, -1) for view in views], -1)  # B S Q
  first = ends - np.asarray(teacher_regions)
  tokens = nearest + first.astype(np.int32)[None, None]
  return Match(tokens, jnp.asarray(weights)), nearest


def view_matching(images: int, weights: np.ndarray) -> Match:
  """Lets each student view follow the teacher's views.

  Args:
    images: B.
    weights: f32[V, Q], see `pair_weights`.
  """
  tokens = jnp.arange(weights.shape[1], dtype=jnp.int32)[None, None]
  return Match(
    jnp.broadcast_to(tokens, (images, *weights.shape)), jnp.asarray(weights)
  )


def update_center(teacher: Side, momentum: float) -> jax.Array:
  """Moves the centre towards the teacher's mean scores.

  Scores are linear in the token, so the mean token has the mean scores and no
  pass over tokens x K is needed.

  Args:
    teacher: all tokens of all images of all devices, and the old centre.
    momentum: share of the old centre.

  Returns:
    f32[K].
  """
  mean = jnp.mean(teacher.tokens.astype(jnp.float32), axis=(0, 1))
  scores = teacher.prototypes.astype(jnp.float32) @ mean
  return jax.lax.stop_gradient(
    momentum * teacher.center + (1 - momentum) * scores
  )
