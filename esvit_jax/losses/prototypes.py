"""Cross-entropy between tokens by their scores over K prototypes.

Of one image, in the notation of the code:

  p_j = softmax((t_j W_t^T - c) / temp_t)         teacher token j
  s_i = u_i W_s^T / temp_s                        student token i
  q_i = sum_j A_ij p_j                            target of token i
  L   = mean over images of sum_i [ |q_i| lse(s_i) - <q_i, s_i> ]

All that differs between losses is in A, the matching: which teacher token each
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


def cast(student: Side, teacher: Side) -> tuple[Side, Side]:
  """Both sides with products in the dtype of the student's tokens."""
  dtype = student.tokens.dtype
  return tuple(
    x._replace(
      tokens=x.tokens.astype(dtype), prototypes=x.prototypes.astype(dtype)
    )
    for x in (student, teacher)
  )


def cross_entropy(student: Side, teacher: Side, match: jax.Array) -> jax.Array:
  """The definition: -mean_b sum_i <sum_j A_ij p_j, log softmax(s_i)>.

  Gradients flow to the student's tokens and prototypes alone. Products run in
  the dtype of the student's tokens and add up in float32.

  Args:
    student: S tokens of each image.
    teacher: T tokens of each image.
    match: A, f32[B, S, T], see `matching`.

  Returns:
    f32[]; ln K times the sum of an image's weights where the student's scores
    are all alike.
  """
  teacher, match = jax.lax.stop_gradient((teacher, match))
  student, teacher = cast(student, teacher)
  p = jax.nn.softmax(logits(teacher))
  log_s = jax.nn.log_softmax(logits(student))
  return -jnp.einsum('bij,bjk,bik->', match, p, log_s) / len(match)


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
) -> tuple[jax.Array, jax.Array]:
  """Lets each student region follow the most similar region of every view.

  j*(i, q) = argmax over regions j of teacher view q of cos(f_s_i, f_t_j)

  Args:
    f_s: [B, S, D] student regions, all views of an image in a row.
    f_t: [B, T, D] teacher regions, likewise.
    weights: f32[S, Q], see `pair_weights`.
    teacher_regions: number of regions of each teacher view, with sum T.

  Returns:
    f32[B, S, T] the `match` of `cross_entropy`; i32[B, S, Q] the most similar
    region within each teacher view, that of the region's own view too.
    Neither carries gradients.
  """
  f_s, f_t = jax.lax.stop_gradient((f_s, f_t))
  f_s, f_t = f_s.astype(jnp.float32), f_t.astype(jnp.float32)
  # The length of a student region cannot change what is most similar to it.
  similarity = jnp.einsum('bid,bjd->bij', f_s, l2_normalize(f_t))
  edges = np.cumsum(teacher_regions)[:-1]
  nearest, match = [], []
  for q, view in enumerate(jnp.split(similarity, edges, axis=-1)):
    nearest.append(jnp.argmax(view, -1))  # B S
    followed = jax.nn.one_hot(nearest[q], view.shape[-1])
    match.append(weights[None, :, q, None] * followed)
  return jnp.concatenate(match, -1), jnp.stack(nearest, -1)


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
