"""EsViT's and SiT's losses summed on one backbone; an experiment of ours.

python -m main --config=configs/esvit_sit.py:swin_tiny --workdir=runs/both
"""

from configs import common, esvit, sit

VARIANTS = {name: name for name in ('swin_tiny', 'cvt_tiny')}


def get_config(arg: str | None = None):
  common.variant(arg, VARIANTS, 'swin_tiny')
  c = esvit.get_config(arg)
  c.init.epoch = 0  # no part of it is added later
  small = 'debug' in (arg or '').split(',')
  of_sit = sit.get_config('small,debug' if small else 'small')
  for section in ('contrast', 'gmml', 'sit'):
    c[section] = of_sit[section]
  c.sit.weight = 1.0  # of SiT's loss
  c.method = 'esvit_sit'
  return c
