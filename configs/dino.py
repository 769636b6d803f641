"""DINO with DeiT's vision transformers, the baselines of EsViT.

  python -m main --config=configs/dino.py:vit_small --workdir=runs/vit_small

Batch 1024 and 300 epochs, as in EsViT's comparison (table 4). vit_small_regions
adds the region loss, from which EsViT saw no gain.
"""

from configs import common, esvit

MODELS = ('vit_tiny', 'vit_small', 'vit_base')
VARIANTS = {name: (name, 0.0) for name in MODELS} | {
  f'{name}_regions': (name, 0.5) for name in MODELS
}


def get_config(arg: str | None = None):
  (model, region_weight), small = common.variant(arg, VARIANTS, 'vit_small')
  c = esvit.recipe()
  c.batch_size = 1024
  c.model.name = model
  c.loss.region_weight = region_weight
  return esvit.debug(c) if small else c
