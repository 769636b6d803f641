"""A plain ViT against a multi-stage Swin: EsViT's table 1, in small.

  python -m main --config=configs/experiments/monolithic.py \\
      --workdir=runs/monolithic

On the embedded images, with both losses and equal steps: speed, memory, scores
and correspondence.
"""

from configs import common, quickstart
from configs.eval import correspondence

NETWORKS = {'vit': 'vit_28', 'swin': 'swin_28'}


def get_config(arg: str | None = None):
  _, debug = common.variant(arg, {'embedded': None}, 'embedded')
  c = common.experiment(
    'monolithic against multi-stage',
    {
      'images/s': 'bench.images_per_s',
      'MiB': 'bench.step_memory_mib',
      'GFLOP/image': 'bench.gflop_per_image',
      'k-NN': 'knn',
      'linear': 'linear',
      'correspondence': 'correspondence.accuracy',
    },
  )
  c.bench = True
  for name, network in NETWORKS.items():
    c.runs[name] = quickstart.get_config('esvit,debug' if debug else 'esvit')
    c.runs[name].model.name = name if debug else network
    c.runs[name].eval.every_epochs = 0.0
  c.evaluations.correspondence = correspondence.get_config()
  return c
