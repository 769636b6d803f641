"""MoCo-v3 for vision transformers, as MAE-Lite compares with it.

  python -m main --config=configs/moco.py:tiny --workdir=runs/moco_tiny

The patch embedding trains; MoCo-v3's own recipe keeps it as it starts:
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
  """What MoCo has beside common.base()."""
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
  c.optim.decay_vectors = True  # published: everything decays
  c.optim.clip = 0.0
  c.optim.frozen = 'pos_embed'


def debug(c: ConfigDict) -> ConfigDict:
  """In seconds on a laptop."""
  common.shrink(c)
  c.contrast.hidden, c.contrast.dim = 32, 16
  return c
