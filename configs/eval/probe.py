"""Linear probe of a frozen network.

  python -m main --config=configs/eval/probe.py --config.checkpoint=RUN

Variants: sweep (many learning rates, blocks and normalisations at once; the
best is chosen on a tenth of the training set), published (EsViT's: SGD on the
last four blocks, random crops), mae (LARS and batch norm on the pooled
feature). With few labels: --config.data.label_fraction=0.01 or
--config.data.labels_per_class=10.
"""

from ml_collections import ConfigDict

from configs import common

VARIANTS = {
  'sweep': ((1, 4), False),
  'published': ((4,), True),
  'mae': ((), True),
}


def get_config(arg: str | None = None):
  (blocks, augment), _ = common.variant(arg, VARIANTS, 'sweep')
  c = common.evaluation('probe')
  c.probe = ConfigDict()
  c.probe.recipe = arg or 'sweep'
  c.probe.blocks = blocks  # the last n, concatenated; () is the pooled feature
  c.probe.augment = augment  # random crops instead of center crops
  c.probe.flip = True  # of the crops
  c.probe.metric = 'top1'  # to select by; a name of evals.scores.METRICS
  c.probe.lrs = ()  # per 256 images; () or 0: those of the recipe
  c.probe.epochs = 0
  c.probe.batch = 0
  return c
