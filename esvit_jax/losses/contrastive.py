"""Contrastive losses: MoCo-v3's (2104.02057), as in SiT, and SimCLR's."""

import math

import jax
import jax.numpy as jnp

from esvit_jax.models.layers import l2_normalize


def loss(queries, keys, temperature: float) -> tuple[jax.Array, jax.Array]:
  """Tells each query's own key from those of all other images.

    loss = 2T mean_i CE(softmax_j(<q_i, k_j> / T), i),    |q_i| = |k_j| = 1

  The batch is the global one, so every device sees the keys of all. 2T keeps
  gradients alike between temperatures.

  Args:
    queries: f[N, P], of any length.
    keys: likewise; no gradient.
    temperature: T.

  Returns:
    (loss, share of queries whose own key is the nearest), f32[] each.
  """
  q = l2_normalize(queries.astype(jnp.float32))
  k = l2_normalize(jax.lax.stop_gradient(keys).astype(jnp.float32))
  # Matrix units round to bfloat16 unless told not to; logits reach 1/T.
  logits = jnp.einsum('ip,jp->ij', q, k, precision='highest') / temperature
  positive = jnp.einsum('ip,ip->i', q, k, precision='highest') / temperature
  value = 2 * temperature * (jax.nn.logsumexp(logits, 1) - positive).mean()
  right = logits.argmax(1) == jnp.arange(len(q))
  return value, right.mean()


def symmetric(queries, keys, temperature: float) -> tuple[jax.Array, jax.Array]:
  """L(view 1's queries, view 2's keys) + L(view 2's, view 1's).

  Args:
    queries, keys: f[N, 2, P].
    temperature: T.

  Returns:
    (sum of both losses, mean of both shares).
  """
  (loss_1, share_1), (loss_2, share_2) = (
    loss(queries[:, v], keys[:, 1 - v], temperature) for v in range(2)
  )
  return loss_1 + loss_2, (share_1 + share_2) / 2


def nt_xent(projected, temperature: float) -> tuple[jax.Array, jax.Array]:
  """Tells the other view of an image from all other views (2002.05709).

    loss = mean over 2N views i of CE(softmax_{j != i}(<z_i, z_j> / T), i')
    where i' is the other view of i's image

  Args:
    projected: z f[N, 2, P], of any length.
    temperature: T.

  Returns:
    (loss, share of views whose nearest is i'), f32[] each.
  """
  z = l2_normalize(projected.astype(jnp.float32)).swapaxes(0, 1)  # 2 N P
  n = z.shape[1]
  partner = jnp.roll(jnp.arange(2 * n), n)
  z = z.reshape(2 * n, -1)
  logits = jnp.einsum('ip,jp->ij', z, z, precision='highest') / temperature
  logits = jnp.where(jnp.eye(2 * n, dtype=bool), -jnp.inf, logits)
  positive = (
    jnp.einsum('ip,ip->i', z, z[partner], precision='highest') / temperature
  )
  value = (jax.nn.logsumexp(logits, 1) - positive).mean()
  return value, (logits.argmax(1) == partner).mean()


def chance(images: int, temperature: float) -> float:
  """`symmetric` where all keys look alike."""
  return 4 * temperature * math.log(images)
