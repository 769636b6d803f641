"""Heads of Mask R-CNN, over maps and over the features of regions.

`vitdet` heads have more layers, and norms (2203.16527).
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from flax import linen as nn

from esvit_jax.models.pyramid import (
  Deconv,
  FeaturePyramid,
  NormedConv,
  SimplePyramid,
)
from esvit_jax.models.resnet import ResNet
from esvit_jax.models.vit import ViT
from esvit_jax.models.vitdet import ViTDet


class RPNHead(nn.Module):
  """Objectness and codes of anchors, the same head on every map.

  Attributes:
    anchors: at each place.
    convs: hidden convolutions; ViTDet has two.
    dtype: of the computation.
  """

  anchors: int = 3
  convs: int = 1
  dtype: jnp.dtype = jnp.float32

  @nn.compact
  def __call__(self, maps: Sequence[jax.Array]):
    """Maps f[B, h_l, w_l, C] -> logits [B, h_l, w_l, a], codes [..., 4 a]."""
    normal = nn.initializers.normal(0.01)

    def conv(features, size, name):
      return nn.Conv(
        features, (size, size), kernel_init=normal, dtype=self.dtype, name=name
      )

    C = maps[0].shape[-1]
    hidden = [conv(C, 3, f'conv{i}') for i in range(self.convs)]
    logit = conv(self.anchors, 1, 'logits')
    delta = conv(4 * self.anchors, 1, 'deltas')
    logits, deltas = [], []
    for x in maps:
      for layer in hidden:
        x = nn.relu(layer(x))
      logits.append(logit(x))
      deltas.append(delta(x))
    return logits, deltas


class BoxHead(nn.Module):
  """Scores of classes and codes of boxes.

  Attributes:
    classes: K, without the background.
    convs: normed convolutions before the linear layers; ViTDet has four.
    fcs: linear layers; two, ViTDet has one.
    hidden: their width.
    dtype: of the computation.
  """

  classes: int
  convs: int = 0
  fcs: int = 2
  hidden: int = 1024
  dtype: jnp.dtype = jnp.float32

  @nn.compact
  def __call__(self, x):
    """f[n, s, s, C] -> scores f[n, K + 1], codes f[n, K, 4]."""
    for i in range(self.convs):
      conv = NormedConv(x.shape[-1], 3, self.dtype, name=f'conv{i}')
      x = nn.relu(conv(x))
    x = x.reshape(len(x), -1)
    for i in range(self.fcs):
      init = nn.initializers.xavier_uniform()
      fc = nn.Dense(
        self.hidden, kernel_init=init, dtype=self.dtype, name=f'fc{i}'
      )
      x = nn.relu(fc(x))
    K, normal = self.classes, nn.initializers.normal
    scores = nn.Dense(
      K + 1, kernel_init=normal(0.01), dtype=self.dtype, name='scores'
    )(x)
    codes = nn.Dense(
      4 * K, kernel_init=normal(0.001), dtype=self.dtype, name='codes'
    )(x)
    return scores, codes.reshape(-1, K, 4)


class MaskHead(nn.Module):
  """A mask of every class, at twice the size of the features.

  Attributes:
    classes: K.
    convs: convolutions before the last two layers.
    norm: whether they are normed, as ViTDet's.
    dtype: of the computation.
  """

  classes: int
  convs: int = 4
  norm: bool = False
  dtype: jnp.dtype = jnp.float32

  @nn.compact
  def __call__(self, x):
    """f[n, s, s, C] -> logits f[n, 2 s, 2 s, K]."""
    C, he = x.shape[-1], nn.initializers.he_normal()
    for i in range(self.convs):
      if self.norm:
        conv = NormedConv(C, 3, self.dtype, name=f'conv{i}')
      else:
        conv = nn.Conv(
          C, (3, 3), kernel_init=he, dtype=self.dtype, name=f'conv{i}'
        )
      x = nn.relu(conv(x))
    x = nn.relu(Deconv(C, self.dtype, name='deconv')(x))
    return nn.Conv(
      self.classes,
      (1, 1),
      kernel_init=nn.initializers.normal(0.001),
      dtype=self.dtype,
      name='logits',
    )(x)


class Detector(nn.Module):
  """The networks of Mask R-CNN, to be called one by one.

  A plain ViT has ViTDet's pyramid and heads, others have FPN and the usual
  heads. Batch norm stays as it was pre-trained.

  Attributes:
    backbone: any of `models.BACKBONES`.
    classes: of objects.
    width: of the pyramid.
    hidden: of the box head's linear layers.
    convs: of the mask head, and of ViTDet's box head.
    ratios: anchors at each place.
  """

  backbone: nn.Module
  classes: int
  width: int = 256
  hidden: int = 1024
  convs: int = 4
  ratios: int = 3

  @property
  def plain(self) -> bool:
    return isinstance(self.backbone, ViT | ViTDet)

  def setup(self):
    plain, dtype = self.plain, self.backbone.dtype
    normed = not isinstance(self.backbone, ResNet)
    if plain:
      self.neck = SimplePyramid(self.width, dtype=dtype)
    else:
      self.neck = FeaturePyramid(self.width, normed, dtype=dtype)
    self.rpn = RPNHead(self.ratios, 2 if plain else 1, dtype)
    self.box_head = BoxHead(
      self.classes,
      self.convs if plain else 0,
      1 if plain else 2,
      self.hidden,
      dtype,
    )
    self.mask_head = MaskHead(self.classes, self.convs, plain, dtype)

  def __call__(self, images, train: bool = False):
    """Calls all of them once, for their parameters."""
    maps = self.maps(images, train)
    pooled = jnp.zeros((1, 7, 7, self.width), maps[0].dtype)
    return self.score(maps), self.box(pooled), self.mask(pooled)

  def maps(self, images, train: bool = False) -> tuple[jax.Array, ...]:
    """Images f[B, H, W, C] -> maps of the pyramid f[B, h_l, w_l, width]."""
    learned = train and not isinstance(self.backbone, ResNet)
    (features,) = self.backbone((images[:, None],), train=learned)
    return self.neck([x[:, 0] for x in features.stages])

  def score(self, maps):
    """See RPNHead."""
    return self.rpn(maps)

  def box(self, pooled):
    """See BoxHead."""
    return self.box_head(pooled)

  def mask(self, pooled):
    """See MaskHead."""
    return self.mask_head(pooled)
