"""Every published EsViT recipe on ImageNet-1K: Swin, ViL, CvT, ResNet-50.

  python -m main --config=configs/esvit.py:swin_tiny --workdir=runs/swin_tiny

A variant is NAME, NAME_w14 (window 14) and, for the view loss alone, NAME_view
and NAME_w14_view. If EsViT added the region loss to a view-only run, the
variant needs that run:

  python -m main --config=configs/esvit.py:swin_base \\
      --config.init.checkpoint=runs/swin_base_view --workdir=runs/swin_base

With ,debug a variant runs in seconds: configs/esvit.py:swin_tiny,debug
"""

from ml_collections import ConfigDict

from configs import common

# name -> model, its fields, epoch at which the region loss was added to a
# view-only run (0: both from the start), norm_last_layer, batch size.
RECIPES = {
  'swin_tiny': ('swin_tiny', {}, 0, False, 512),
  'swin_small': ('swin_small', {'drop_path': 0.2}, 0, False, 512),
  'swin_base': ('swin_base', {'drop_path': 0.2}, 200, False, 512),
  'swin_tiny_w14': ('swin_tiny', {'window': 14}, 200, False, 512),
  'swin_small_w14': (
    'swin_small',
    {'window': 14, 'drop_path': 0.2},
    180,
    False,
    512,
  ),
  # The name of the published run says that its last layer was normalised.
  'swin_base_w14': (
    'swin_base',
    {'window': 14, 'drop_path': 0.2},
    200,
    True,
    512,
  ),
  # Published with batch 512 for the view loss alone, 1024 with regions.
  'vil': ('vil_2262', {}, 200, False, 1024),
  'cvt_tiny': ('cvt_tiny', {}, 200, False, 1024),
  'resnet50': ('resnet50', {'drop_path': 0.0}, 200, False, 1024),
}
VARIANTS = {name: (*row, True) for name, row in RECIPES.items()} | {
  f'{name}_view': (*row, False) for name, row in RECIPES.items()
}


def get_config(arg: str | None = None):
  row, small = common.variant(arg, VARIANTS, 'swin_tiny')
  model, fields, added_at, norm_last_layer, batch_size, region = row
  c = recipe()
  c.batch_size = batch_size if region or model != 'vil_2262' else 512
  c.model.update({'name': model, **fields})
  c.head.norm_last_layer = norm_last_layer
  c.loss.region_weight = 0.5 if region else 0.0
  if region:
    c.init.epoch = added_at
  return debug(c) if small else c


def recipe() -> ConfigDict:
  """The common part of all variants, at batch 512."""
  c = common.base()
  sections(c)
  c.views.globals = common.view(224, 2, (0.4, 1.0), (1.0, 0.1), (0.0, 0.2))
  c.views.locals = common.view(96, 8, (0.05, 0.4))
  return c


def sections(c: ConfigDict) -> None:
  """Adds the fields of EsViT to common.base()."""
  c.method = 'esvit'
  c.head = ConfigDict()
  c.head.out_dim = 65536  # prototypes
  c.head.hidden = 2048
  c.head.bottleneck = 256
  c.head.norm_last_layer = False
  c.head.use_bn = False
  c.head.init_scale = 'published'  # or 'fan_in', for narrow networks

  c.loss = ConfigDict()
  c.loss.region_weight = 0.5  # 0 is DINO: view loss only, no region head
  c.loss.student_temp = 0.1
  c.loss.teacher_temp = 0.07
  c.loss.teacher_temp_warmup = 0.04
  c.loss.teacher_temp_warmup_epochs = 30
  c.loss.center_momentum = 0.9
  c.loss.form = 'auto'  # 'plain', 'images', 'prototypes': same numbers

  c.ema = ConfigDict()
  c.ema.start = 0.996
  c.ema.end = 1.0

  c.optim.freeze_last_layer_epochs = 1


def debug(c: ConfigDict) -> ConfigDict:
  """Makes a recipe run in seconds."""
  common.shrink(c)
  c.head.out_dim, c.head.hidden, c.head.bottleneck = 64, 32, 16
  c.loss.teacher_temp_warmup_epochs = 0
  c.optim.freeze_last_layer_epochs = 0
  return c
