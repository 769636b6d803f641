"""DINO's vision transformers: the view loss alone, EsViT's baseline rows.

  python -m main --config=configs/dino.py:vit_small --workdir=runs/vit_small

Batch 1024 and 300 epochs as in EsViT's comparison (its table 4).
"""

from configs import common

VARIANTS = {name: name for name in ('vit_tiny', 'vit_small', 'vit_base')}


def get_config(arg: str | None = None):
  model, debug = common.variant(arg, VARIANTS, 'vit_small')
  c = common.get_config()
  c.batch_size = 1024
  c.model.name = model
  c.loss.region_weight = 0.0
  return common.shrink(c) if debug else c
