"""Natural images at 96 px: ten classes, about ten minutes on one GPU.

  python -m main --config=configs/imagenette.py --workdir=runs/imagenette

or from a folder, with train/ and val/ in it or without:

  python -m main --config=configs/imagenette.py --workdir=runs/mine \\
      --config.data.source=folder:YOUR_IMAGES

Variants: esvit (view and region loss) and view (view loss alone) of a Swin; mae
and sit of a plain transformer.
"""

from configs import common, mae_lite
from configs import esvit as esvit_recipe
from configs import sit as sit_recipe


def get_config(arg: str | None = None):
  (recipe, debug), small = common.variant(arg, VARIANTS, 'esvit')
  c = recipe()
  return debug(c) if small else c


def images(c):
  """Ten classes of ImageNet at 160 px, evaluated at 96 px."""
  c.batch_size = 256
  c.epochs = 100
  c.data.source = 'tfds:imagenette/160px-v2'
  c.data.canvas = 192
  c.data.workers = 16
  c.eval.size = 96
  c.eval.train_images = 0
  c.save.every_epochs = 5.0
  c.save.keep_every_epochs = 0


def mae():
  c = common.base()
  mae_lite.sections(c)
  images(c)
  c.views.globals = mae_lite.crop(96)
  c.model.name = 'mae_96'
  c.model.drop_path = 0.0
  c.mae.decoder_dim, c.mae.decoder_heads = 192, 6
  c.optim.warmup_epochs = 5.0
  c.optim.lr = 6e-4
  return c


def sit():
  c = common.base()
  sit_recipe.sections(c)
  images(c)
  c.model.name = 'vit_96'
  c.views.globals = common.view(96, 2, (0.2, 1.0), (0.5, 0.1), (0.0, 0.2))
  c.views.globals.blur_sigma = (0.1, 1.0)
  c.contrast.hidden = 2048
  return c


def esvit(region_weight: float = 0.5):
  c = esvit_recipe.recipe()
  images(c)

  c.views.globals = common.view(96, 2, (0.4, 1.0), (0.5, 0.1), (0.0, 0.2))
  c.views.locals = common.view(48, 6, (0.1, 0.4), (0.25,))
  for group in c.views.values():
    group.blur_sigma = (0.1, 1.0)  # 2 px suits 224 px views

  c.model.name = 'swin_96'  # 36 regions to match

  c.head.out_dim, c.head.hidden = 8192, 1024
  c.loss.region_weight = region_weight
  c.loss.teacher_temp_warmup_epochs = 10
  c.ema.start = 0.992
  c.optim.lr = 1e-3
  c.optim.weight_decay_end = 0.2
  return c


VARIANTS = {
  'esvit': (esvit, esvit_recipe.debug),
  'view': (lambda: esvit(0.0), esvit_recipe.debug),
  'mae': (mae, mae_lite.debug),
  'sit': (sit, sit_recipe.debug),
}
