"""Segmentation with frozen features: linear, and by nearest patches.

  python -m main --config=configs/eval/segmentation.py --config.checkpoint=RUN

On scenes made from the embedded images, in minutes on a CPU. Own masks:
--config.data.source=masks:PATH --config.size=512
--config.segmentation.train_images=0 --config.segmentation.test_images=0
"""

from ml_collections import ConfigDict

from configs import common


def get_config():
  c = common.evaluation('segmentation')
  c.batch_size = 32
  c.size = 96  # longer side of images, pixels
  c.data.source = 'scenes'
  c.networks = ()  # 'pre-trained', 'random init', 'raw patches'; (): all
  c.data.canvas = 0  # pixels beyond it are ignored
  c.data.zero = 'class'  # of masks; 'void' if classes begin at 1
  c.segmentation = ConfigDict()
  c.segmentation.train_images = 600  # 0: all
  c.segmentation.test_images = 300
  c.segmentation.memory = 20_000  # patches; published: 102,400 and more
  c.segmentation.neighbours = 30
  return c
