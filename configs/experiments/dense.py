"""What the region loss adds where every pixel counts: EsViT's claim, in small.

  python -m main --config=configs/experiments/dense.py --workdir=runs/dense

A Swin of two stages learns from scenes without labels, with and without the
region loss at equal steps, and is judged frozen on other scenes and clips, on
each of its maps. `untrained` is the same network before it learned.
"""

from configs import common, quickstart
from configs.eval import propagation, segmentation

MAPS = {'fine': '4 px', 'coarse': '8 px', 'both': 'all'}
FIGURES = {
  'linear': 'segmentation.maps.{}.{}.linear_miou',
  'balanced': 'segmentation.maps.{}.{}.balanced_miou',
  'context': 'segmentation.maps.{}.{}.in_context_miou',
  'J&F': 'propagation.maps.{}.{}.JF',
}


def get_config(arg: str | None = None):
  _, debug = common.variant(arg, {'scenes': None}, 'scenes')
  c = common.experiment(
    'dense',
    {
      f'{title} {name}': key.format('pre-trained', place)
      for name, place in MAPS.items()
      for title, key in FIGURES.items()
    }
    | {
      f'raw {title}': key.format('raw patches', 'all')
      for title, key in FIGURES.items()
    },
  )
  for name, weight in {'view': 0.0, 'view_and_regions': 0.5}.items():
    c.runs[name] = scenes(weight, debug)
  c.runs.untrained = scenes(0.0, debug)
  c.runs.untrained.steps, c.runs.untrained.optim.lr = 1, 0.0
  c.runs.untrained.optim.min_lr = 0.0
  for module in (segmentation, propagation):
    task = module.get_config()
    task.data.source, task.data.canvas = 'scenes', 96
    task.data.mean, task.data.std = (0.286,), (0.353,)
    task.networks = ('pre-trained', 'raw patches')
    c.evaluations[task.task] = task
  if debug:
    c.evaluations.segmentation.segmentation.train_images = 32
    c.evaluations.segmentation.segmentation.test_images = 16
    c.evaluations.propagation.propagation.videos = 1
  return c


def scenes(region_weight: float, debug: bool):
  """A run of about fifteen minutes on two cores: crops around a garment."""
  c = quickstart.get_config('esvit,debug' if debug else 'esvit')
  c.data.source, c.data.canvas = 'scenes', 96
  c.loss.region_weight = region_weight
  c.views.globals.size = 48
  c.views.globals.scale = (0.1, 0.4)  # of the scene: a garment or two
  c.views.locals.size = 24
  c.views.locals.scale = (0.03, 0.12)
  c.model.image_size = 48
  c.eval.size = 48
  c.eval.every_epochs = 0.0
  c.eval.pictures = False
  if not debug:
    c.batch_size, c.steps = 32, 1500
    c.optim.lr = 0.016  # 2e-3 at batch 32
    c.optim.warmup_epochs = 1.0
  return c
