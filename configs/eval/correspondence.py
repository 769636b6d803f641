"""Correspondence of regions with a mirrored copy, as measured by EsViT.

python -m main --config=configs/eval/correspondence.py --config.checkpoint=RUN
"""

from ml_collections import ConfigDict

from configs import common


def get_config():
  c = common.evaluation('correspondence')
  c.batch_size = 64
  c.correspondence = ConfigDict()
  c.correspondence.images = 1000  # 0: all
  return c
