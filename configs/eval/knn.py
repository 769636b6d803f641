"""Weighted k-nearest neighbours on pooled features, as in DINO and EsViT.

python -m main --config=configs/eval/knn.py --config.checkpoint=RUN
"""

from configs import common


def get_config():
  return common.evaluation('knn')
