"""Fine-tuning of a pre-trained backbone with labels.

python -m main --config=configs/eval/finetune.py:impr \
    --config.checkpoint=runs/mae_tiny --workdir=runs/mae_tiny_ft

Without a checkpoint the network of `model` is trained from scratch. Fields that
`data` leaves open are those of the checkpoint's run.

`impr`, `mae`: MAE-Lite's improved recipe and MAE's own, for ImageNet.
`rpe`, `rpe2023`: `impr` with relative positions, in the two forms that MAE-Lite
published; also from networks without them.
`deit`: DeiT's recipe, with which SiT is fine-tuned.
`transfer`, `cifar100`: small sets, with SGD and without augmentations.
`embedded`, `embedded_few`: the embedded images, with all labels or 1 % of them;
a minute on a CPU from the quickstart's checkpoint.
"""

from ml_collections import ConfigDict

from configs import common, quickstart

# Fields left open are those of the checkpoint's run.
OPEN = {'source': '', 'canvas': -1, 'mean': (), 'std': ()}
# MAE-Lite's network, if there is no checkpoint.
VIT_TINY = {'name': 'vit_tiny_12h', 'drop_path': 0.0}

# Relative positions, which a checkpoint may lack.
RPE = {
  'epochs': 1000,
  'model': VIT_TINY | {'rel_pos': True, 'init_scale': 'rpe'},
  'finetune.head_std': 2e-5,
}

# Differences from MAE-Lite's improved recipe in get_config.
RECIPES = {
  'impr': {},
  'mae': {
    'epochs': 100,
    'views.globals.rand_magnitude': 9.0,
    'finetune.mixup': 0.8,
    'finetune.cutmix': 1.0,
    'finetune.smoothing': 0.1,
    'finetune.erase': 0.25,
    'model.drop_path': 0.1,
  },
  'rpe': RPE,
  'rpe2023': RPE
  | {'model': RPE['model'] | {'layer_scale': 0.1, 'qkv_bias': 'qv'}},
  'deit': {
    # Three views of each image (repeated augmentation): 768 in a batch, and
    # an epoch here is three of the published 300. DeiT also keeps an average
    # of the weights at 0.99996, and reports the network itself.
    'epochs': 100,
    'batch_size': 256,
    'views.globals.count': 3,
    'views.globals.rand_magnitude': 9.0,
    'finetune.pool': 'cls_mean',  # SiT's classifier
    'finetune.mixup': 0.8,
    'finetune.cutmix': 1.0,
    'finetune.smoothing': 0.1,
    'finetune.erase': 0.25,
    'model.drop_path': 0.1,
    'optim.lr': 7.5e-4,  # 5e-4 for 512 views
    'optim.start_lr': 1e-6,
    'optim.min_lr': 1e-5,
    'optim.warmup_epochs': 5 / 3,
    'optim.layer_decay': 1.0,
  },
  'transfer': {
    'batch_size': 512,
    'views.globals.rand_ops': 0,
    'finetune.mixup': 0.0,
    'optim.name': 'sgd',
    'optim.nesterov': True,
    'optim.lr': 0.015,  # 0.03 at batch 512
    'optim.warmup_epochs': 20.0,
    'optim.weight_decay': 0.0,
    'optim.weight_decay_end': 0.0,
    'optim.clip': 1.0,
    'optim.layer_decay': 0.75,
  },
  'embedded': {
    'batch_size': 64,
    'epochs': 5,
    'data': quickstart.get_config().data,
    'model': quickstart.get_config().model,
    'views.globals.size': 28,
    'views.globals.scale': (0.6, 1.0),
    'views.globals.ratio': (1 / 1.1, 1.1),
    'views.globals.rand_ops': 0,
    'finetune.mixup': 0.0,
    'optim.lr': 0.012,  # 3e-3 at batch 64
    'optim.warmup_epochs': 0.5,
    'optim.layer_decay': 0.65,
    'eval.size': 28,
    'eval.every_epochs': 2.0,
    'log_every': 20,
  },
}
RECIPES['embedded_few'] = RECIPES['embedded'] | {
  'batch_size': 50,  # of 99 images: an epoch is a step
  'epochs': 300,
  'data.label_fraction': 0.01,
  'optim.lr': 0.015,  # 3e-3 at batch 50
  'optim.warmup_epochs': 5.0,
  'eval.every_epochs': 100.0,
  'save.every_epochs': 100.0,
}
# The one set whose settings MAE-Lite gives in full; lr is 0.1 at batch 512.
RECIPES['cifar100'] = RECIPES['transfer'] | {
  'epochs': 50,
  'data.source': 'tfds:cifar100',
  'optim.lr': 0.05,
  'optim.warmup_epochs': 10.0,
}


def get_config(arg: str | None = None) -> ConfigDict:
  recipe, debug = common.variant(arg, RECIPES, 'impr')
  c = common.base()
  c.task = c.method = 'finetune'
  c.batch_size = 1024
  c.epochs = 300

  c.views.globals = ConfigDict()
  c.views.globals.size = 224
  c.views.globals.count = 1
  c.views.globals.scale = (0.08, 1.0)
  c.views.globals.ratio = (3 / 4, 4 / 3)
  c.views.globals.flip = 0.5
  c.views.globals.rand_ops = 2  # operations of RandAugment; 0: none
  c.views.globals.rand_magnitude = 10.0
  c.views.globals.rand_noise = 0.5

  c.finetune = ConfigDict()
  c.finetune.classes = 0  # 0: as many as the data has
  c.finetune.pool = 'gap'  # or 'cls', 'mean', 'cls_mean': models/classifier.py
  c.finetune.head_std = 0.02  # deviation of the head's initial weights
  c.finetune.mixup = 0.2  # a of Beta(a, a), one draw per batch; 0: none
  c.finetune.cutmix = 0.0  # likewise
  c.finetune.mix_switch = 0.5  # probability of CutMix if both are used
  c.finetune.smoothing = 0.0
  c.finetune.erase = 0.0  # probability of a box of noise

  c.ema = ConfigDict()
  c.ema.decay = 0.0  # > 0: also evaluate an average of the weights

  c.optim.lr = 1e-3  # per 256 images
  c.optim.min_lr = 1e-6  # times the layer's factor, like lr
  c.optim.start_lr = 0.0
  c.optim.top_twice = False
  c.optim.warmup_epochs = 5.0
  c.optim.weight_decay = c.optim.weight_decay_end = 0.05
  c.optim.no_decay = 'cls_token,pos_embed'
  c.optim.layer_decay = 0.85
  c.optim.clip = 0.0
  c.optim.clip_mode = 'global'
  c.optim.nesterov = False  # of sgd
  c.eval.every_epochs = 5.0
  c.save.keep_every_epochs = 0

  recipe = {'data': OPEN, 'model': VIT_TINY} | recipe
  for field in ('data', 'model'):
    c[field].update(recipe.pop(field))
  c.update_from_flattened_dict(recipe)
  c = common.shrink(c) if debug else c

  common.add_network(c)
  c.scratch = False  # use only the checkpoint's architecture
  return c
