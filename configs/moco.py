"""MoCo-v3 for vision transformers, as in MAE-Lite's comparison.

  python -m main --config=configs/moco.py:tiny --workdir=runs/moco_tiny

The patch embedding is trained. MoCo-v3's own recipe freezes it:
--config.optim.frozen=pos_embed,patch_embed. Fine-tune with
configs/eval/finetune.py:impr --config.optim.layer_decay=0.75
"""

from ml_collections import ConfigDict

from configs import common

VARIANTS = {'tiny': 'moco_tiny', 'small': 'moco_small', 'base': 'moco_base'}


def get_config(arg: str | None = None):
  model, small = common.variant(arg, VARIANTS, 'tiny')
  c = common.base()
  sections(c)
  c.batch_size = 1024
  c.epochs = 400
  c.views.globals = common.view(
    224, 2, (0.08, 1.0), blur=(1.0, 0.1), solarize=(0.0, 0.2)
  )
  c.views.globals.bilinear = 1.0
  c.model.name = model
  c.model.drop_path = 0.0
  return debug(c) if small else c


def sections(c: ConfigDict) -> None:
  """Adds the fields of MoCo to common.base()."""
  c.method = 'moco'
  c.contrast = ConfigDict()
  c.contrast.temp = 0.2
  c.contrast.hidden = 4096
  c.contrast.dim = 256

  c.ema = ConfigDict()
  c.ema.start = 0.99
  c.ema.end = 1.0

  c.optim.lr = 1.5e-4  # per 256 images
  c.optim.start_lr = 1e-6
  c.optim.min_lr = 0.0
  c.optim.top_twice = False
  c.optim.warmup_epochs = 40.0
  c.optim.weight_decay = c.optim.weight_decay_end = 0.1
  c.optim.decay_vectors = True  # published: weight decay of all parameters
  c.optim.clip = 0.0
  c.optim.frozen = 'pos_embed'


def debug(c: ConfigDict) -> ConfigDict:
  """Makes a recipe run in seconds."""
  common.shrink(c)
  c.contrast.hidden, c.contrast.dim = 32, 16
  return c
