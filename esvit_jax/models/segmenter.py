"""Heads that give each place of a map its classes.

Maps are f[B, h, w, C], the finest first; logits have the size of the finest.
Batch norm is over the whole batch.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from esvit_jax.errors import UserError
from esvit_jax.models.layers import BatchNorm
from esvit_jax.models.pyramid import Deconv, FeaturePyramid, SimplePyramid
from esvit_jax.models.resize import bilinear
from esvit_jax.models.resnet import ResNet

DROPPED = 0.1  # share of channels before the last layer, in training


class NormConv(nn.Module):
  """A convolution without bias, batch norm, ReLU."""

  features: int
  size: int = 3
  dtype: jnp.dtype = jnp.float32

  @nn.compact
  def __call__(self, x, train: bool):
    x = nn.Conv(
      self.features,
      (self.size, self.size),
      use_bias=False,
      kernel_init=nn.initializers.he_normal(),
      dtype=self.dtype,
      name='conv',
    )(x)
    return nn.relu(BatchNorm(dtype=self.dtype, name='norm')(x, train))


class LinearHead(nn.Module):
  """Batch norm and one linear layer on all maps side by side (DINOv2's).

  Attributes:
    classes: of pixels.
    dtype: of the computation.
  """

  classes: int
  dtype: jnp.dtype = jnp.float32

  @nn.compact
  def __call__(self, maps: Sequence[jax.Array], train: bool = False):
    size = maps[0].shape[1:3]
    x = jnp.concatenate([bilinear(x, size) for x in maps], -1)
    x = BatchNorm(dtype=self.dtype, name='norm')(x, train)
    init = nn.initializers.normal(0.01)
    return nn.Dense(
      self.classes, kernel_init=init, dtype=self.dtype, name='logits'
    )(x)


class SemanticFPN(nn.Module):
  """Semantic FPN's head (1901.02446): every map brought to the finest, summed.

  Attributes:
    classes: of pixels.
    width: channels.
    dropped: see DROPPED.
    dtype: of the computation.
  """

  classes: int
  width: int = 128
  dropped: float = DROPPED
  dtype: jnp.dtype = jnp.float32

  @nn.compact
  def __call__(self, maps: Sequence[jax.Array], train: bool = False):
    """Maps of strides that double."""
    size, total = maps[0].shape[1:3], 0
    for i, x in enumerate(maps):
      for j in range(max(i, 1)):
        x = NormConv(self.width, dtype=self.dtype, name=f'map{i}_conv{j}')(
          x, train
        )
        if i:
          x = bilinear(x, (2 * x.shape[1], 2 * x.shape[2]))
      total += bilinear(x, size)
    return _classify(total, self, train)


class UPerHead(nn.Module):
  """UPerNet's head (1807.10221): pyramid pooling, then a pyramid of maps.

  Attributes:
    classes: of pixels.
    width: channels.
    bins: sides of the pooled maps.
    dropped: see DROPPED.
    dtype: of the computation.
  """

  classes: int
  width: int = 512
  bins: tuple[int, ...] = (1, 2, 3, 6)
  dropped: float = DROPPED
  dtype: jnp.dtype = jnp.float32

  @nn.compact
  def __call__(self, maps: Sequence[jax.Array], train: bool = False):
    def conv(name, size, x):
      return NormConv(self.width, size, self.dtype, name=name)(x, train)

    last = maps[-1]
    pooled = [
      bilinear(conv(f'pool{n}', 1, adaptive_mean(last, n)), last.shape[1:3])
      for n in self.bins
    ]
    laterals = [conv(f'lateral{i}', 1, x) for i, x in enumerate(maps[:-1])]
    laterals.append(conv('pooled', 3, jnp.concatenate([last, *pooled], -1)))
    for i in reversed(range(len(maps) - 1)):
      laterals[i] += bilinear(laterals[i + 1], laterals[i].shape[1:3])
    smooth = [conv(f'output{i}', 3, x) for i, x in enumerate(laterals[:-1])]
    size = maps[0].shape[1:3]
    joined = [bilinear(x, size) for x in (*smooth, laterals[-1])]
    x = conv('fused', 3, jnp.concatenate(joined, -1))
    return _classify(x, self, train)


class FCNHead(nn.Module):
  """One convolution on the last but one map: UPerNet's auxiliary head.

  Attributes:
    classes: of pixels.
    width: channels.
    dropped: see DROPPED.
    dtype: of the computation.
  """

  classes: int
  width: int = 256
  dropped: float = DROPPED
  dtype: jnp.dtype = jnp.float32

  @nn.compact
  def __call__(self, maps: Sequence[jax.Array], train: bool = False):
    x = maps[max(len(maps) - 2, 0)]
    x = NormConv(self.width, dtype=self.dtype, name='conv')(x, train)
    return _classify(x, self, train)


class StageNorms(nn.Module):
  """A fresh LayerNorm on each map, which Swin's dense heads begin with."""

  dtype: jnp.dtype = jnp.float32

  @nn.compact
  def __call__(self, maps: Sequence[jax.Array], train: bool = False):
    return tuple(
      nn.LayerNorm(1e-5, dtype=self.dtype, name=f'norm{i}')(x)
      for i, x in enumerate(maps)
    )


class TapNeck(nn.Module):
  """MAE-Lite's: four maps of a plain ViT at 4, 2, 1 and 1/2 its resolution.

  Attributes:
    width: channels of all of them.
    dtype: of the computation.
  """

  width: int = 48
  dtype: jnp.dtype = jnp.float32

  @nn.compact
  def __call__(self, maps: Sequence[jax.Array], train: bool = False):
    """Four maps f[B, h, w, D] of one size, of the first taps first."""
    quarter, half, same, double = maps
    D, dtype = quarter.shape[-1], self.dtype
    x = Deconv(D // 4, dtype, name='up4_first')(quarter)
    x = BatchNorm(dtype=dtype, name='up4_norm')(x, train)
    x = nn.gelu(x, approximate=False)

    def conv(name, x):
      return nn.Conv(self.width, (1, 1), dtype=dtype, name=name)(x)

    return (
      Deconv(self.width, dtype, name='up4_second')(x),
      Deconv(self.width, dtype, name='up2')(half),
      conv('same', same),
      nn.max_pool(conv('down', double), (2, 2), (2, 2)),
    )


def adaptive_mean(x: jax.Array, n: int) -> jax.Array:
  """Means of f[B, h, w, C] over n x n bins, which may overlap."""
  rows, columns = (_bins(side, n) for side in x.shape[1:3])
  return jnp.einsum(
    'ah,Bhwc,bw->Babc', rows, x, columns, precision='highest'
  ).astype(x.dtype)


def _bins(length: int, n: int) -> np.ndarray:
  """Bin i takes places floor(i L / n) to ceil((i + 1) L / n): f32[n, L]."""
  start = np.arange(n) * length // n
  stop = -(-np.arange(1, n + 1) * length // n)
  at = np.arange(length)[None]
  inside = (at >= start[:, None]) & (at < stop[:, None])
  return (inside / inside.sum(1, keepdims=True)).astype(np.float32)


def _classify(x, head: nn.Module, train: bool):
  """Whole channels dropped in training, then a linear layer: in compact."""
  x = nn.Dropout(
    head.dropped,
    broadcast_dims=(1, 2),
    deterministic=not train,
    rng_collection='drop_path',
  )(x)
  init = nn.initializers.normal(0.01)
  return nn.Dense(
    head.classes, kernel_init=init, dtype=head.dtype, name='logits'
  )(x)


HEADS = ('linear', 'semantic_fpn', 'uper')


class Segmenter(nn.Module):
  """Logits of single images, from the maps of a backbone.

  A plain ViT, whose maps are of one size, is given a pyramid: TapNeck of four
  taps before Semantic FPN, SimplePyramid of the last map before UPerNet. Other
  backbones have maps of several strides: FeaturePyramid before Semantic FPN,
  norms before UPerNet, but none after batch norm.

  Attributes:
    backbone: any of `models.BACKBONES`.
    classes: of pixels.
    head: one of HEADS.
    width: of the head; 0: 128 of Semantic FPN, 512 of UPerNet.
    neck_width: of a plain ViT's pyramid; 0: 48 of taps, else the head's.
    auxiliary: width of UPerNet's auxiliary head.
    maps: of 'linear': how many of the last maps are read.
  """

  backbone: nn.Module
  classes: int
  head: str = 'uper'
  width: int = 0
  neck_width: int = 0
  auxiliary: int = 256
  maps: int = 1

  def __post_init__(self):
    if self.head not in HEADS:
      raise UserError(
        f"segment.head is '{self.head}': use one of {', '.join(HEADS)}"
      )
    super().__post_init__()

  @nn.compact
  def __call__(self, images, train: bool = False):
    """Images f[B, H, W, C] -> logits [B, h, w, classes], and auxiliary ones.

    The latter are None where there is no auxiliary head.
    """
    dtype = self.backbone.dtype
    (features,) = self.backbone((images[:, None],), train=train)
    maps = [x[:, 0] for x in features.stages]
    width = self.width or (512 if self.head == 'uper' else 128)
    if self.head == 'linear':
      maps = maps[-self.maps :]
      head = LinearHead(self.classes, dtype, name='head')
      return head(maps, train).astype(jnp.float32), None
    neck = self._neck(maps, width)
    if neck is not None:
      maps = neck(maps, train)
    kind = SemanticFPN if self.head == 'semantic_fpn' else UPerHead
    head = kind(self.classes, width, dtype=dtype, name='head')
    logits = head(maps, train).astype(jnp.float32)
    if self.head != 'uper' or not self.auxiliary:
      return logits, None
    fcn = FCNHead(self.classes, self.auxiliary, dtype=dtype, name='auxiliary')
    return logits, fcn(maps, train).astype(jnp.float32)

  def _neck(self, maps, width: int) -> nn.Module | None:
    dtype = self.backbone.dtype
    plain = len({x.shape[1] for x in maps}) == 1
    normed = not isinstance(self.backbone, ResNet)
    if plain and self.head == 'semantic_fpn':
      if len(maps) != 4:
        raise UserError(
          f'Semantic FPN reads four maps and this network gives {len(maps)}: '
          'set --config.model.taps to four blocks, such as (4,6,8,12)'
        )
      return TapNeck(self.neck_width or 48, dtype, name='neck')
    if plain:
      width = self.neck_width or width
      return SimplePyramid(width, extra=0, dtype=dtype, name='neck')
    if self.head == 'semantic_fpn':
      return FeaturePyramid(256, normed, extra=0, dtype=dtype, name='neck')
    return StageNorms(dtype, name='neck') if normed else None
