"""The sum of EsViT's and SiT's losses on one backbone: an experiment.

python -m main --config=configs/esvit_sit.py:swin_tiny --workdir=runs/both
"""

from configs import common, esvit, sit

VARIANTS = {name: name for name in ('swin_tiny', 'cvt_tiny')}


def get_config(arg: str | None = None):
  common.variant(arg, VARIANTS, 'swin_tiny')
  c = esvit.get_config(arg)
  c.init.epoch = 0  # both losses from the start
  small = 'debug' in (arg or '').split(',')
  sit_config = sit.get_config('small,debug' if small else 'small')
  for section in ('contrast', 'gmml', 'sit'):
    c[section] = sit_config[section]
  c.sit.weight = 1.0  # of SiT's loss
  c.method = 'esvit_sit'
  return c
