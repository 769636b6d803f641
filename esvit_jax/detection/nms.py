"""Non-maximum suppression without a loop over boxes."""

import jax
import jax.numpy as jnp

from esvit_jax.detection import boxes as boxes_lib


def nms(
  boxes: jax.Array,
  scores: jax.Array,
  threshold: float,
  there: jax.Array | None = None,
  groups: jax.Array | None = None,
) -> jax.Array:
  """Which boxes stay when each suppresses those it covers: bool[n].

    keep(i) = there(i) and no j with a higher score, of the same group, kept,
              and IoU(i, j) > threshold

  This has one solution, that of the greedy algorithm. It is found by repeating
  the rule for all boxes at once until nothing changes: a few rounds.

  Args:
    boxes: f32[n, 4].
    scores: f32[n]; of equals the first counts as higher.
    threshold: of the IoU.
    there: which boxes are no padding.
    groups: i32[n]; by default all are of one.
  """
  order = jnp.argsort(-scores, stable=True)
  boxes = boxes[order]
  n = len(scores)
  covers = boxes_lib.iou(boxes, boxes) > threshold
  covers &= jnp.arange(n)[:, None] < jnp.arange(n)[None]
  if groups is not None:
    groups = groups[order]
    covers &= groups[:, None] == groups[None]
  valid = jnp.ones(n, bool) if there is None else there[order]

  def rule(keep):
    return valid & ~(covers & keep[:, None]).any(0)

  def change(state):
    keep, _ = state
    new = rule(keep)
    return new, (new != keep).any()

  keep, _ = jax.lax.while_loop(
    lambda state: state[1], change, (valid, jnp.bool_(True))
  )
  return jnp.zeros(n, bool).at[order].set(keep)
