"""Cross-entropy of pixels from logits of a coarser map."""

import jax
import jax.numpy as jnp
import numpy as np

from esvit_jax.dense import VOID, resize
from esvit_jax.errors import UserError

OVER = ('counted', 'all')
_ROWS = 64  # of labels at a time: a float for each class and pixel is much


def cross_entropy(
  logits: jax.Array, labels: jax.Array, over: str = 'counted'
) -> jax.Array:
  """loss = -sum over counted pixels of log softmax(bilinear(logits))_label / n

  Args:
    logits: f[B, h, w, C].
    labels: u8[B, H, W], VOID where nothing counts.
    over: what n is: 'counted' pixels, or 'all' of them, as mmseg has it.
  """
  if over not in OVER:
    raise UserError(f"loss.over is '{over}': use one of {', '.join(OVER)}")
  _, h, w, _ = logits.shape
  B, H, W = labels.shape
  rows, columns = (
    resize.weights(n, out, n / out) for n, out in ((h, H), (w, W))
  )
  R = min(_ROWS, H)
  rows = jnp.pad(rows, ((0, -H % R), (0, 0))).reshape(-1, R, h)
  labels = jnp.pad(labels, ((0, 0), (0, -H % R), (0, 0)), constant_values=VOID)
  labels = jnp.moveaxis(labels.reshape(B, -1, R, W), 1, 0).astype(jnp.int32)

  @jax.checkpoint
  def block(rows, labels):
    x = jnp.einsum(
      'yh,Bhwc,xw->Byxc',
      rows,
      logits.astype(jnp.float32),
      columns,
      precision='highest',
    )
    counted = labels != VOID
    own = jnp.take_along_axis(x, jnp.where(counted, labels, 0)[..., None], -1)
    entropy = jax.nn.logsumexp(x, -1) - own[..., 0]
    return jnp.where(counted, entropy, 0).sum(), counted.sum()

  sums, counts = jax.lax.map(lambda args: block(*args), (rows, labels))
  n = counts.sum() if over == 'counted' else np.float32(B * H * W)
  return sums.sum() / jnp.maximum(n, 1)
