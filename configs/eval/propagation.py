"""Propagation of the first frame's masks through videos: DAVIS's J and F.

  python -m main --config=configs/eval/propagation.py --config.checkpoint=RUN

On clips made from the embedded images, in minutes on a CPU. DAVIS 2017 at 480p:
--config=configs/eval/propagation.py:davis --config.data.source=davis:PATH
"""

from ml_collections import ConfigDict

from configs import common


def get_config(arg: str | None = None):
  variants = {'clips': ('scenes', 96, 32), 'davis': ('davis:', 480, 64)}
  row, _ = common.variant(arg, variants, 'clips')
  c = common.evaluation('propagation')
  c.data.source, c.size, multiple = row  # size: of the shorter side, pixels
  c.data.split = 'val'  # of DAVIS
  c.networks = ()  # 'pre-trained', 'random init', 'raw patches'; (): all
  c.data.canvas = 0
  c.propagation = ConfigDict()
  c.propagation.multiple = (
    multiple  # the longer side is cropped to a multiple of this
  )
  c.propagation.videos = 0  # 0: all
  c.propagation.recent = 7  # frames, beside the first, to propagate from
  c.propagation.radius = 12  # tokens in each direction; 0: the whole map
  c.propagation.nearest = 5
  c.propagation.temperature = 0.1
  return c
