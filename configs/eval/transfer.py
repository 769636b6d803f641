"""Transfer to a suite of data sets, by linear probe or fine-tuning.

  python -m main --config=configs/eval/transfer.py:elevater \
      --config.checkpoint=RUN --config.transfer.root=SETS

Suites: elevater (20 sets), esvit (18), mae_lite (7), sit (8), all; or sets by
name, --config.transfer.suite=cifar10,pets. Sets come from SETS/NAME or tfds.
Sets that are not on disk are listed. Results that exist are not computed again.
"""

from ml_collections import ConfigDict

from configs import common
from configs.eval import finetune, probe

SUITES = dict.fromkeys(('elevater', 'esvit', 'mae_lite', 'sit', 'all'))


def get_config(arg: str | None = None):
  common.variant(arg, SUITES, 'elevater')
  c = common.evaluation('transfer')
  c.transfer = ConfigDict()
  c.transfer.suite = (arg or 'elevater').partition(',')[0]
  c.transfer.mode = 'probe'  # or 'finetune'
  c.transfer.root = ''  # folder that holds one folder a set
  c.transfer.baseline = ''  # a run or transfer.json to count wins against
  c.probe = probe.get_config().probe
  c.finetuning = finetune.get_config('transfer')
  return c
