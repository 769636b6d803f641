"""Ridge regression on pooled features: a linear score in seconds.

python -m main --config=configs/eval/linear.py --config.checkpoint=RUN

The published protocol is configs/eval/probe.py.
"""

from configs import common


def get_config():
  return common.evaluation('linear')
