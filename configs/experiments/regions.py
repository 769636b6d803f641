"""What the region loss adds to the view loss: EsViT's claim, in small.

  python -m main --config=configs/experiments/regions.py \\
      --workdir=runs/regions --config.data.source=folder:imagenette

A Swin of three stages at 96 px, 36 regions a view, equal steps with and without
the region loss. The paper (Swin-T, ImageNet): correspondence 66 -> 91 %, k-NN
74.2 -> 75.7 %.
"""

from configs import common, imagenette
from configs.eval import correspondence

NETWORK = {
  'name': 'swin_96',
  'dims': (32, 64, 128),
  'depths': (1, 1, 2),
  'heads': (2, 2, 4),
  'init_scale': 'fan_in',
  'dtype': 'float32',
}


def get_config(arg: str | None = None):
  _, debug = common.variant(arg, {'photographs': None}, 'photographs')
  c = common.experiment(
    'regions',
    {
      'k-NN': 'knn',
      'linear': 'linear',
      'correspondence': 'correspondence.accuracy',
    },
  )
  for name, variant in {'view': 'view', 'view_and_regions': 'esvit'}.items():
    c.runs[name] = imagenette.get_config(
      f'{variant},debug' if debug else variant
    )
    if not debug:
      small(c.runs[name])
  c.evaluations.correspondence = correspondence.get_config()
  return c


def small(run) -> None:
  """A run of about 25 minutes on two cores."""
  run.model.update(NETWORK)
  run.batch_size, run.steps = 32, 1500
  run.data.workers = 2
  run.views.locals.count = 4
  run.head.out_dim, run.head.hidden, run.head.bottleneck = 1024, 256, 64
  run.head.init_scale = 'fan_in'
  run.loss.teacher_temp_warmup_epochs = 0
  run.ema.start = 0.98
  run.optim.lr = 8e-3  # 1e-3 at batch 32
  run.optim.warmup_epochs = 0.5
  run.eval.every_epochs = 0.0
