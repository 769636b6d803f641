"""Small data: pre-training and fine-tuning on the same labelled set.

  python -m main --config=configs/eval/small_data.py:sit --workdir=runs/mine \\
      --config.data.source=folder:YOUR_LABELLED_IMAGES

  python -m main --config=configs/eval/small_data.py:sit --workdir=runs/sit8 \\
      --config.sets=sit --config.root=SETS

The second command runs those of SiT's eight sets that are on disk, and prints
the published scores beside these. `sit`, `esvit`, `mae` and `moco` are methods
of pre-training, `scratch` has none; fine-tuning is the same. `embedded_sit` and
so on use 2,000 embedded images, in minutes on a CPU.
"""

from ml_collections import ConfigDict

from configs import common, dino, esvit, mae_lite, moco, quickstart, sit
from configs.eval import finetune

METHODS = {
  'sit': lambda: sit.get_config('small'),
  'esvit': lambda: dino.get_config('vit_small_regions'),
  'mae': lambda: mae_lite.get_config('small'),
  'moco': lambda: moco.get_config('small'),
}
METHODS['scratch'] = METHODS['sit']
DEBUG = {
  'sit': sit.debug,
  'esvit': esvit.debug,
  'mae': mae_lite.debug,
  'moco': moco.debug,
}
# Steps of 64 images, such that all methods take about as long as SiT.
STEPS = {'sit': 300, 'esvit': 220, 'mae': 1350, 'moco': 300}
VARIANTS = (*METHODS, *(f'embedded_{method}' for method in METHODS))


def get_config(arg: str | None = None) -> ConfigDict:
  name, debug = common.variant(arg, {x: x for x in VARIANTS}, 'sit')
  where, _, method = name.rpartition('_')
  c = ConfigDict()
  c.task = 'small_data'
  c.seed = 0
  c.sets = ''  # 'sit', or names of protocols/suites.py separated by commas
  c.root = ''  # a folder with a folder for each set; others come from tfds
  c.scratch = method == 'scratch'  # no pre-training
  # For both stages; '' or -1 leaves the fields of the stages below.
  c.data = ConfigDict()
  c.data.source = '' if where or debug else 'tfds:oxford_flowers102'
  c.data.split = 'train'
  c.data.test_split = 'auto'
  c.data.label_fraction = 1.0
  c.data.labels_per_class = 200 if where else 0
  c.data.data_dir = ''
  c.data.canvas = -1
  c.data.workers = -1

  c.finetuning = finetune.get_config('embedded' if where else 'deit')
  if where:
    embedded(c, 'sit' if c.scratch else method)
  else:
    c.pretraining = METHODS[method]()
    few_images(c)
  if debug:
    DEBUG[c.pretraining.method](c.pretraining)
    common.shrink(c.finetuning)
  return c


def few_images(c: ConfigDict) -> None:
  """For a few thousand images: many epochs of small batches."""
  c.pretraining.batch_size = 256
  c.pretraining.epochs = 800
  c.pretraining.save.every_epochs = c.finetuning.save.every_epochs = 10.0
  c.pretraining.save.keep_every_epochs = 0
  c.pretraining.eval.every_epochs = 100.0
  c.finetuning.eval.every_epochs = 10.0
  if c.pretraining.method == 'sit':
    c.pretraining.sit.reconstruction_weight = 5.0  # as published for small sets


def embedded(c: ConfigDict, method: str) -> None:
  """The quickstart's recipes on one small ViT, for about equal times."""
  c.pretraining = quickstart.get_config(method)
  if method == 'esvit':
    c.pretraining.model = quickstart.get_config('sit').model
  c.pretraining.steps = STEPS[method]
  c.pretraining.eval.every_epochs = 0.0
  c.finetuning.epochs = 15
  c.finetuning.optim.layer_decay = 1.0  # the same recipe from scratch
  c.finetuning.optim.lr = 0.004  # 1e-3 at batch 64
  c.finetuning.optim.warmup_epochs = 2.0
  c.finetuning.eval.every_epochs = 10.0
