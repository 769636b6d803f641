"""Every published EsViT recipe on ImageNet-1K.

  python -m main --config=configs/esvit.py:swin_tiny --workdir=runs/swin_tiny

A variant is NAME, NAME_w14 (window 14) and, for the view loss alone, NAME_view
and NAME_w14_view. Where EsViT added the region task to a view-only run, the
variant wants that run:

  python -m main --config=configs/esvit.py:swin_base \\
      --config.init.checkpoint=runs/swin_base_view --workdir=runs/swin_base

Add ,debug to see it all work in seconds: configs/esvit.py:swin_tiny,debug
"""

from configs import common

# name: model, window, drop path, epoch at which the region task was added
# to a view-only run (0: both from the start), norm_last_layer.
RECIPES = {
  'swin_tiny': ('swin_tiny', 7, 0.1, 0, False),
  'swin_small': ('swin_small', 7, 0.2, 0, False),
  'swin_base': ('swin_base', 7, 0.2, 200, False),
  'swin_tiny_w14': ('swin_tiny', 14, 0.1, 200, False),
  'swin_small_w14': ('swin_small', 14, 0.2, 180, False),
  # The published run's name says norm true: its last layer was normalised.
  'swin_base_w14': ('swin_base', 14, 0.2, 200, True),
}
VARIANTS = {name: (*row, True) for name, row in RECIPES.items()} | {
  f'{name}_view': (*row, False) for name, row in RECIPES.items()
}


def get_config(arg: str | None = None):
  row, debug = common.variant(arg, VARIANTS, 'swin_tiny')
  model, window, drop_path, added_at, norm_last_layer, region = row
  c = common.get_config()
  c.model.name = model
  c.model.window = window
  c.model.drop_path = drop_path
  c.head.norm_last_layer = norm_last_layer
  c.loss.region_weight = 0.5 if region else 0.0
  if region:
    c.init.epoch = added_at
  return common.shrink(c) if debug else c
