"""Training on 10,000 embedded images: minutes on a CPU, offline.

  python -m main --config=configs/quickstart.py --workdir=runs/quickstart

Variants: the methods `esvit` (the default), `mae`, `moco` and `sit` on the same
images.
"""

from configs import common, mae_lite
from configs import esvit as esvit_recipe
from configs import moco as moco_recipe
from configs import sit as sit_recipe


def get_config(arg: str | None = None):
  (recipe, debug), small = common.variant(arg, VARIANTS, 'esvit')
  c = recipe()
  return debug(c) if small else c


def embedded(c):
  """Sets the images, and the frequency of evaluations."""
  c.batch_size = 64
  c.data.source = 'embedded'
  c.data.channels = 1
  c.data.canvas = 0
  c.data.workers = 2
  c.data.mean, c.data.std = (0.286,), (0.353,)
  c.model.dtype = 'float32'
  c.eval.size = 28
  c.eval.every_epochs = 4.0
  c.eval.train_images = 0
  c.save.keep_every_epochs = 0
  c.log_every = 30
  return c


def gentle(group):
  """Weakens augmentations so that small objects stay recognisable."""
  group.ratio = (1 / 1.1, 1.1)
  group.brightness = group.contrast = 0.4
  group.blur_sigma = (0.1, 1.0)


def esvit():
  c = embedded(esvit_recipe.recipe())
  c.steps = 1200

  # Small objects on black: gentle crops, no hue, no solarisation.
  c.views.globals = common.view(28, 2, (0.6, 1.0), blur=(0.2, 0.02))
  c.views.locals = common.view(16, 2, (0.25, 0.6), blur=(0.1,))
  for group in c.views.values():
    gentle(group)

  c.model.name = 'swin_28'
  c.model.init_scale = 'fan_in'  # 0.02 learns nothing at this width
  c.model.drop_path = 0.0

  c.head.out_dim, c.head.hidden, c.head.bottleneck = 256, 128, 64
  c.head.init_scale = 'fan_in'
  c.loss.teacher_temp = 0.04
  c.loss.teacher_temp_warmup_epochs = 0
  c.ema.start = 0.95
  c.optim.lr = 0.012  # 3e-3 at batch 64
  c.optim.weight_decay_end = 0.04
  c.optim.warmup_epochs = 0.77
  c.optim.freeze_last_layer_epochs = 0
  return c


def mae():
  c = common.base()
  mae_lite.sections(c)
  embedded(c)
  c.steps = 1200
  c.views.globals = mae_lite.crop(28)
  c.views.globals.scale = (0.6, 1.0)
  c.views.globals.ratio = (1 / 1.1, 1.1)
  c.model.name = 'mae_28'
  c.model.drop_path = 0.0
  c.mae.norm_pix = False  # small objects on black: a black patch has no norm
  c.mae.decoder_dim, c.mae.decoder_heads = 32, 2
  c.optim.lr = 8e-3  # 2e-3 at batch 64
  c.optim.warmup_epochs = 0.77
  return c


def moco():
  c = two_views(moco_recipe)
  c.model.name = 'moco_28'
  c.ema.start = 0.95
  c.optim.lr = 0.012  # 3e-3 at batch 64
  c.optim.weight_decay = c.optim.weight_decay_end = 0.05
  return c


def sit():
  c = two_views(sit_recipe)
  c.model.name = 'vit_28'
  c.model.init_scale = 'fan_in'
  c.ema.start = 0.95
  c.optim.lr = 0.012  # 3e-3 at batch 64
  c.optim.weight_decay_end = 0.04
  return c


def two_views(recipe):
  """The common part of MoCo-v3 and SiT: two weak crops, small heads."""
  c = common.base()
  recipe.sections(c)
  embedded(c)
  c.steps = 600
  c.views.globals = common.view(28, 2, (0.6, 1.0), blur=(0.2, 0.02))
  gentle(c.views.globals)
  c.model.drop_path = 0.0
  c.contrast.hidden, c.contrast.dim = 256, 64
  c.optim.warmup_epochs = 0.77
  return c


VARIANTS = {
  'esvit': (esvit, esvit_recipe.debug),
  'mae': (mae, mae_lite.debug),
  'moco': (moco, moco_recipe.debug),
  'sit': (sit, sit_recipe.debug),
}
