"""A backbone with a linear head, for fine-tuning and transfer."""

import jax.numpy as jnp
from flax import linen as nn

from esvit_jax.errors import UserError
from esvit_jax.models.layers import layer_norm

POOLS = ('gap', 'cls', 'mean', 'cls_mean')


class Classifier(nn.Module):
  """Logits of single images.

  Attributes:
    backbone: any of `models.BACKBONES`.
    classes: number of logits.
    pool: input of the head.
      'gap': a norm of the mean of the last map before any final norm (MAE);
      'cls', 'mean': the backbone's view feature, a class token or a mean;
      'cls_mean': [view, mean of the normed regions] through a hidden layer
      with GELU (SiT).
    head_std: standard deviation of the head's initial weights. MAE's script
      and recipes with relative positions use 2e-5.
  """

  backbone: nn.Module
  classes: int
  pool: str = 'gap'
  head_std: float = 0.02

  def __post_init__(self):
    if self.pool not in POOLS:
      raise UserError(f"pool is '{self.pool}': use one of {', '.join(POOLS)}")
    super().__post_init__()

  @nn.compact
  def __call__(self, images, train: bool = False):
    """Images f[B, H, W, C] -> logits f32[B, classes]."""
    (features,) = self.backbone((images[:, None],), train=train)
    x = features.view[:, 0].astype(jnp.float32)  # B D
    if self.pool == 'gap':
      last = features.stages[-1][:, 0].astype(jnp.float32)  # B h w D
      x = layer_norm('fc_norm')(last.mean((1, 2)))
    elif self.pool == 'cls_mean':
      mean = features.grid[:, 0].astype(jnp.float32).mean((1, 2))
      init = nn.initializers.truncated_normal(0.02)
      x = nn.Dense(x.shape[-1], kernel_init=init, name='hidden')(
        jnp.concatenate([x, mean], -1)
      )
      x = nn.gelu(x, approximate=False)
    init = nn.initializers.normal(self.head_std)
    return nn.Dense(self.classes, kernel_init=init, name='head')(x)
