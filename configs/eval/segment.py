"""Segmentation by fine-tuning: a trained backbone and a head learn masks.

python -m main --config=configs/eval/segment.py:scenes \
    --config.checkpoint=RUN --workdir=RUN_segment

Without a checkpoint the network of `model` learns from scratch. What `data`
leaves open is as in the checkpoint's run.

`mae_lite`: Semantic FPN on four taps of ViT-Tiny, ADE20K (MAE-Lite's recipe).
`swin`: UPerNet on Swin (Swin's recipe). `linear`: batch norm and one layer on
a frozen backbone, as DINOv2 is judged.
`scenes`, `scenes_linear`, `scenes_fpn`: UPerNet and the others on scenes made
from the embedded images, in minutes on a CPU.

ADE20K: --config.data.source=masks:PATH --config.data.zero=void, with the
images and masks of ADEChallengeData2016.
"""

from ml_collections import ConfigDict

from configs import common

OPEN = {'source': 'scenes', 'canvas': 0, 'mean': (), 'std': ()}
SCENES = {
  'batch_size': 16,
  'steps': 300,
  'views.globals.size': 96,
  'jitter.longest': 96.0,
  'jitter.shortest': 96.0,
  'jitter.scale': (0.75, 1.5),
  'jitter.vary': False,
  'jitter.distort': 0.0,
  'segment.width': 32,
  'segment.neck_width': 32,
  'segment.auxiliary_width': 16,
  'segment.test_size': 96,
  'segment.window': 96,
  'segment.step': 64,
  'segment.test_images': 300,
  'segment.test_batch': 32,
  'model': {'name': 'swin_28', 'init_scale': 'fan_in', 'drop_path': 0.0},
  'data': {
    'source': 'scenes',
    'canvas': 96,
    'mean': (0.286,),
    'std': (0.353,),
  },
  'data.channels': 1,
  'model.dtype': 'float32',
  'optim.lr': 0.032,  # 2e-3 at batch 16
  'optim.warmup_steps': 20,
  'eval.size': 96,
  'log_every': 20,
}
RECIPES = {
  'mae_lite': {
    'model': {
      'name': 'vit_tiny_12h',
      'taps': (4, 6, 8, 12),
      'drop_path': 0.1,
    },
    'segment.head': 'semantic_fpn',
    'segment.auxiliary_weight': 0.0,
    'optim.lr': 1.6e-3,  # 1e-4 at batch 16
    'optim.weight_decay': 0.05,
    'optim.weight_decay_end': 0.05,
    'optim.no_decay': 'cls_token,pos_embed',
    'optim.layer_decay': 0.8,
  },
  'swin': {},
  'linear': {
    'steps': 40_000,
    'segment.head': 'linear',
    'segment.maps': 4,
    'segment.auxiliary_weight': 0.0,
    'optim.frozen': 'backbone',
    'optim.lr': 0.016,  # 1e-3 at batch 16
    'optim.weight_decay': 1e-4,
    'optim.weight_decay_end': 1e-4,
    'model': {'name': 'swin_tiny', 'drop_path': 0.0},
  },
  'scenes': SCENES,
  'scenes_linear': SCENES
  | {
    'segment.head': 'linear',
    'segment.maps': 2,
    'segment.auxiliary_weight': 0.0,
    'optim.frozen': 'backbone',
  },
  'scenes_fpn': SCENES
  | {
    'segment.head': 'semantic_fpn',
    'segment.auxiliary_weight': 0.0,
  },
}


def get_config(arg: str | None = None) -> ConfigDict:
  recipe, debug = common.variant(arg, RECIPES, 'mae_lite')
  c = common.base()
  c.task = c.method = 'segment'
  c.batch_size = 16
  c.steps = 160_000

  c.views.globals = ConfigDict()
  c.views.globals.size = 512  # of the crops
  c.views.globals.count = 1

  # How an image and its mask become a crop, before which the image is fitted
  # into these sides.
  c.jitter = ConfigDict()
  c.jitter.longest = 2048.0
  c.jitter.shortest = 512.0
  c.jitter.scale = (0.5, 2.0)
  c.jitter.flip = 0.5
  c.jitter.vary = True  # again where one class fills three quarters
  c.jitter.distort = 1.0  # photometric; 0: none

  c.segment = ConfigDict()
  c.segment.head = 'uper'  # or 'linear', 'semantic_fpn'
  c.segment.width = 0  # 0: as published
  c.segment.neck_width = 0
  c.segment.maps = 1  # the last maps that a linear head reads
  c.segment.auxiliary_weight = 0.4  # of UPerNet's second head; 0: none
  c.segment.auxiliary_width = 256
  c.segment.over = 'counted'  # pixels of the mean; 'all' as in mmseg
  c.segment.test_size = 1024  # pixels that the longer side becomes
  c.segment.window = 512  # windows over it, and pixels between them
  c.segment.step = 341
  c.segment.test_images = 0  # 0: all
  c.segment.test_batch = 8

  c.data.zero = 'class'  # of masks; 'void' where classes begin with 1

  c.optim.lr = 9.6e-4  # 6e-5 at batch 16
  c.optim.schedule = 'falling'  # linear to 0
  c.optim.drops = ()
  c.optim.start_lr = 1e-6  # share of lr
  c.optim.warmup_steps = 1500
  c.optim.weight_decay = c.optim.weight_decay_end = 0.01
  c.optim.no_decay = 'bias_table,pos_embed'
  c.optim.layer_decay = 1.0
  c.optim.clip = 0.0
  c.model.drop_path = 0.3
  c.eval.every_epochs = 0.0
  c.eval.during = c.eval.at_ends = ''
  c.save.every_epochs = 5.0
  c.save.keep_every_epochs = 0

  recipe = {'data': OPEN} | recipe
  for field in ('data', 'model'):
    c[field].update(recipe.pop(field, {}))
  c.update_from_flattened_dict(recipe)
  if debug:
    c = shrink(c)

  common.add_network(c)
  c.scratch = False  # its architecture alone, to compare with
  return c


def shrink(c: ConfigDict) -> ConfigDict:
  """Scenes and a tiny network, in seconds."""
  c = common.shrink(c)
  c.data.source, c.data.canvas = 'scenes', 96
  c.batch_size, c.steps = 8, 4
  c.views.globals.size = 56
  c.jitter.longest = c.jitter.shortest = 56.0
  c.segment.width = c.segment.neck_width = c.segment.auxiliary_width = 8
  c.segment.test_size, c.segment.window, c.segment.step = 84, 56, 28
  c.segment.test_images = 8
  c.optim.warmup_steps = 1
  if 'taps' in c.model:
    c.model.taps, c.model.image_size = (1, 2, 3, 4), 28
    c.model.depth = 4
  return c
