"""A small network that distils a larger one's attention: MAE-Lite's claim.

  python -m main --config=configs/experiments/light_networks.py \\
      --workdir=runs/light_networks

On the embedded images: a teacher is trained with MAE, then a network of half
its width with MAE alone and with distillation (D-MAE).
"""

from configs import common, quickstart
from configs.eval import layers


def get_config(arg: str | None = None):
  _, debug = common.variant(arg, {'embedded': None}, 'embedded')
  c = common.experiment('light networks', {'k-NN': 'knn', 'linear': 'linear'})
  variant = 'mae,debug' if debug else 'mae'
  for name in ('teacher', 'mae', 'dmae'):
    c.runs[name] = quickstart.get_config(variant)
    c.runs[name].eval.every_epochs = 0.0
  if not debug:
    c.runs.teacher.model.update({'dim': 128})
  c.runs.dmae.distill.checkpoint = 'run:teacher'
  # The last block of both.
  c.runs.dmae.distill.layer = 2 if debug else 4
  c.evaluations.layers = layers.get_config()
  return c
