"""What pre-training on the same few images is worth: SiT's claim, in small.

  python -m main --config=configs/experiments/small_data.py \\
      --workdir=runs/small_data

2,000 labelled embedded images and no others: pre-training by each method for
about equal time, then one recipe of fine-tuning, against no pre-training.
"""

from configs import common
from configs.eval import small_data

METHODS = ('scratch', 'sit', 'mae', 'moco', 'dino', 'esvit')


def get_config(arg: str | None = None):
  _, debug = common.variant(arg, {'embedded': None}, 'embedded')
  c = common.experiment('small data', {'fine-tuned': 'small_data.score'})
  for name in METHODS:
    method = 'esvit' if name == 'dino' else name
    variant = f'embedded_{method},debug' if debug else f'embedded_{method}'
    c.runs[name] = small_data.get_config(variant)
    if name == 'dino':
      c.runs[name].pretraining.loss.region_weight = 0.0
  return c
