"""Regions as colours, attention, nearest neighbours, a map of images.

python -m main --config=configs/eval/embedding.py --config.checkpoint=RUN
"""

from ml_collections import ConfigDict

from configs import common


def get_config():
  c = common.evaluation('embedding')
  c.embedding = ConfigDict()
  c.embedding.images = 2000  # among which neighbours are searched
  return c
