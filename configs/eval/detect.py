"""Detection by fine-tuning: a trained backbone and Mask R-CNN learn objects.

python -m main --config=configs/eval/detect.py:scenes \
    --config.checkpoint=RUN --workdir=RUN_detect

Without a checkpoint the network of `model` learns from scratch. What `data`
leaves open is as in the checkpoint's run. Needs pip install
"esvit_jax[detection]".

`vitdet_tiny`: ViT-Tiny at 640 px (MAE-Lite's recipe). `swin_1x`, `swin_3x`:
Swin-T with FPN; Swin's several sizes are large-scale jitter here. `resnet50`:
with FPN, detectron2's numbers.
`scenes`: 2,000 scenes made from the embedded images, in minutes on a CPU.
`scenes_overfit`: eight of them, learned by heart: a check of the whole chain.

COCO: --config.data.source=coco:PATH, with annotations/instances_*2017.json.
"""

from ml_collections import ConfigDict

from configs import common

OPEN = {'source': 'scenes', 'canvas': 0, 'mean': (), 'std': ()}
SWIN = {
  'model': {'name': 'swin_tiny', 'drop_path': 0.1},
  'optim.lr': 1.6e-3,  # 1e-4 at batch 16
  'optim.no_decay': 'bias_table,pos_embed',
  'optim.warmup_steps': 500,
}
SCENES = {
  'batch_size': 8,
  'steps': 1000,
  'data': {
    'source': 'scenes',
    'split': 'train[:2000]',
    'canvas': 96,
    'mean': (0.286,),
    'std': (0.353,),
  },
  'data.channels': 1,
  'data.objects': 8,
  'views.globals.size': 96,
  'jitter.longest': 96.0,
  'jitter.scale': (0.8, 1.25),
  'detect.width': 32,
  'detect.hidden': 128,
  'detect.convs': 2,
  'detect.sizes': (16.0, 32.0, 48.0),
  'detect.sampling': 2,
  'detect.rpn_samples': 64,
  'detect.pre': 128,
  'detect.post': 64,
  'detect.samples': 64,
  'detect.top': 20,
  'detect.test_size': 96,
  'detect.test_images': 300,
  'detect.test_batch': 20,
  'model': {'name': 'swin_28', 'init_scale': 'fan_in', 'drop_path': 0.0},
  'model.dtype': 'float32',
  'optim.lr': 0.064,  # 2e-3 at batch 8
  'optim.warmup_steps': 50,
  'optim.clip': 1.0,
  'eval.size': 96,
  'log_every': 20,
}
RECIPES = {
  'vitdet_tiny': {
    'batch_size': 64,
    'epochs': 100,
    'model': {'name': 'vitdet_tiny', 'drop_path': 0.0},
    'optim.lr': 4e-4,  # 1e-4 at batch 64
    'optim.warmup_steps': 250,
    'optim.drops': (24 / 27, 26 / 27),
    'optim.no_decay': 'pos_embed',
  },
  'swin_1x': SWIN | {'epochs': 12, 'optim.drops': (8 / 12, 11 / 12)},
  'swin_3x': SWIN
  | {
    'epochs': 36,
    'optim.drops': (27 / 36, 33 / 36),
    'model': SWIN['model'] | {'drop_path': 0.2},
  },
  'resnet50': {
    'steps': 90_000,
    'model': {'name': 'resnet50', 'drop_path': 0.0},
    'optim.name': 'sgd',
    'optim.lr': 0.32,  # 0.02 at batch 16
    'optim.weight_decay': 1e-4,
    'optim.weight_decay_end': 1e-4,
    'optim.warmup_steps': 1000,
    'optim.drops': (60 / 90, 80 / 90),
  },
  'scenes': SCENES,
  'scenes_overfit': SCENES
  | {
    'steps': 400,
    'data': SCENES['data'] | {'split': 'train[:8]', 'test_split': 'train[:8]'},
    'jitter.scale': (1.0, 1.0),
    'jitter.flip': 0.0,
    'save.every_epochs': 200.0,
  },
}


def get_config(arg: str | None = None) -> ConfigDict:
  recipe, debug = common.variant(arg, RECIPES, 'vitdet_tiny')
  c = common.base()
  c.task = c.method = 'detect'
  c.batch_size = 16
  c.epochs = 12

  c.views.globals = ConfigDict()
  c.views.globals.size = 640
  c.views.globals.count = 1

  # How an image and its objects become a view; before that the image is fitted
  # into these sides.
  c.jitter = ConfigDict()
  c.jitter.longest = 640.0
  c.jitter.shortest = 1e6
  c.jitter.scale = (0.1, 2.0)
  c.jitter.flip = 0.5

  c.detect = ConfigDict()
  c.detect.width = 256  # of the pyramid
  c.detect.hidden = 1024  # of the box head
  c.detect.convs = 4  # of the mask head, and of ViTDet's box head
  c.detect.sizes = (32.0, 64.0, 128.0, 256.0, 512.0)  # of anchors, pixels
  c.detect.rpn_samples = 256
  c.detect.rpn_fraction = 0.5
  c.detect.pre = 2000  # proposals of a level, and of all after suppression
  c.detect.post = 1000
  c.detect.rpn_nms = 0.7
  c.detect.samples = 512  # regions that the heads learn from
  c.detect.fraction = 0.25
  c.detect.sampling = 0  # of RoIAlign; 0: adaptive
  c.detect.score = 0.05
  c.detect.nms = 0.5
  c.detect.top = 100
  c.detect.test_size = 640  # pixels that the longer side becomes
  c.detect.test_images = 0  # 0: all
  c.detect.test_batch = 8

  c.data.objects = 100  # of an image; 8 of scenes
  c.data.canvas = 640

  c.optim.lr = 1.6e-3
  c.optim.schedule = 'falling'
  c.optim.drops = ()
  c.optim.start_lr = 1e-3  # share of lr
  c.optim.warmup_steps = 500
  c.optim.weight_decay = c.optim.weight_decay_end = 0.05
  c.optim.no_decay = ''
  c.optim.layer_decay = 1.0
  c.optim.clip = 0.0
  c.optim.clip_mode = 'global'
  c.eval.every_epochs = 0.0
  c.eval.during = c.eval.at_ends = ''
  c.eval.size = 640
  c.save.keep_every_epochs = 0

  recipe = {'data': OPEN, 'model': {}} | recipe
  for field in ('data', 'model'):
    c[field].update(recipe.pop(field))
  c.update_from_flattened_dict(recipe)
  if debug:
    c = shrink(c)

  common.add_network(c)
  c.scratch = False  # its architecture alone, to compare with
  return c


def shrink(c: ConfigDict) -> ConfigDict:
  """Scenes and a tiny network, in seconds."""
  c = common.shrink(c)
  c.data.source, c.data.canvas, c.data.objects = 'scenes', 96, 8
  c.data.split = 'train[:8]'
  c.data.test_split = 'train[:8]'
  c.batch_size, c.steps = 8, 4
  c.views.globals.size = c.eval.size = c.detect.test_size = 64
  c.jitter.longest = 64.0
  c.detect.width, c.detect.hidden, c.detect.convs = 8, 16, 1
  maps = {'vit': 5, 'res': 3, 'swi': 3}[c.model.name[:3]]
  c.detect.sizes = c.detect.sizes[:maps]
  c.detect.rpn_samples = c.detect.samples = 16
  c.detect.pre, c.detect.post, c.detect.top = 32, 16, 8
  c.optim.warmup_steps = 1
  return c
