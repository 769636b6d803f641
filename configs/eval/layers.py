"""Attention entropy and distance per head, CKA between layers.

  python -m main --config=configs/eval/layers.py --config.checkpoint=RUN

Between two networks: --config.layers.other=OTHER_RUN.
"""

from ml_collections import ConfigDict

from configs import common


def get_config():
  c = common.evaluation('layers')
  c.batch_size = 128
  c.layers = ConfigDict()
  c.layers.images = 1152  # published: nine batches of 128
  c.layers.other = ''  # a second network for CKA
  c.layers.unit = 'nats'  # of entropy, or 'bits', EsViT's
  # Pixels between regions; 0: as published, which is 14 for patches of 16 (an
  # error in the published code), else the patch.
  c.layers.scale = 0.0
  return c
