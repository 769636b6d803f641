"""SiT: reconstruction and contrastive learning, for small data.

  python -m main --config=configs/sit.py:small --workdir=runs/sit_small

On a few thousand images --config.sit.reconstruction_weight=5 is better.
Fine-tune with configs/eval/finetune.py:deit. The variant `swin_tiny` is a Swin.
"""

from ml_collections import ConfigDict

from configs import common

VARIANTS = {
  'tiny': 'vit_tiny',
  'small': 'vit_small',
  'base': 'vit_base',
  'swin_tiny': 'swin_tiny',
}


def get_config(arg: str | None = None):
  model, small = common.variant(arg, VARIANTS, 'small')
  c = common.base()
  sections(c)
  c.batch_size = 256
  c.epochs = 801
  c.views.globals = common.view(
    224, 2, (0.2, 1.0), blur=(1.0, 0.1), solarize=(0.0, 0.2)
  )
  c.model.name = model
  if model != 'swin_tiny':
    c.model.resize_extra = 0.1
  return debug(c) if small else c


def sections(c: ConfigDict) -> None:
  """Adds the fields of SiT to common.base()."""
  c.method = 'sit'
  c.contrast = ConfigDict()
  c.contrast.temp = 0.2
  c.contrast.hidden = 4096
  c.contrast.dim = 256

  c.gmml = ConfigDict()
  c.gmml.share = 0.5  # of the area, which is corrupted
  c.gmml.fill = 'zeros'  # or 'noise', 'own'; 'zeros-noise' is one at random
  c.gmml.align = 1  # blocks in multiples of this, pixels
  c.gmml.replace = 0.3  # of the area, replaced by blocks of another image
  c.gmml.replace_prob = 0.5

  c.sit = ConfigDict()
  c.sit.reconstruction_weight = 1.0
  # The first SiT (2104.03602v1): rotation, 'simclr' with contrast.temp 0.5,
  # learned weights.
  c.sit.contrast = 'momentum'  # or 'simclr'
  c.sit.rotation = False  # rotate views, and predict the rotation
  c.sit.learned_weights = False

  c.ema = ConfigDict()
  c.ema.start = 0.996
  c.ema.end = 1.0

  c.optim.weight_decay_end = 0.1


def debug(c: ConfigDict) -> ConfigDict:
  """Makes a recipe run in seconds."""
  common.shrink(c)
  c.contrast.hidden, c.contrast.dim = 32, 16
  return c
