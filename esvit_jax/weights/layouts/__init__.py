"""Layouts: tables from published keys to our variables, and back."""

from esvit_jax.weights.layouts import backbones, heads
from esvit_jax.weights.layouts.rows import Buffer, Row, Rows

__all__ = ['BACKBONES', 'LAYOUTS', 'Buffer', 'Row', 'Rows']

BACKBONES = {
  'cvt': backbones.CVT,
  'resnet': backbones.RESNET,
  'swin': backbones.SWIN,
  'vil': backbones.VIL,
  'vit': backbones.VIT,
}
LAYOUTS = {
  **BACKBONES,
  'dino_head': heads.DINO,
  'dino_head_bn': heads.DINO_BN,
  'mae': heads.MAE,
  'd2mae': heads.D2MAE,
  'moco': heads.MOCO,
  'sit': heads.SIT,
  # torchvision's ResNet calls its head fc.
  **{
    f'{name}_classifier': heads.classifier(
      rows, 'fc' if name == 'resnet' else 'head'
    )
    for name, rows in BACKBONES.items()
  },
  'sit_classifier': heads.SIT_CLASSIFIER,
}
