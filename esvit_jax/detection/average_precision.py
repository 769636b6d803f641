"""COCO's figures of boxes and masks, by pycocotools."""

import contextlib
import io
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from esvit_jax.errors import UserError

KINDS = ('bbox', 'segm')
NAMES = (
  *('AP', 'AP50', 'AP75', 'AP_small', 'AP_medium', 'AP_large'),
  *('AR1', 'AR10', 'AR100', 'AR_small', 'AR_medium', 'AR_large'),
)


class Figures(NamedTuple):
  """In percent, NaN where there is nothing to judge.

  Attributes:
    stats: in the order of NAMES f64[12].
    precision: at IoU 0.5:0.05:0.95, 101 recalls and each class, with all sizes
      and 100 detections f64[10, 101, K], in 0..1, -1: nothing.
  """

  stats: np.ndarray
  precision: np.ndarray

  def of_classes(self) -> np.ndarray:
    """AP of each class, f64[K]."""
    known = self.precision > -1
    sums = np.where(known, self.precision, 0).sum((0, 1))
    count = known.sum((0, 1))
    return np.where(count > 0, 100 * sums / np.maximum(count, 1), np.nan)


def figures(truth: dict, results: Sequence[dict], kind: str) -> Figures:
  """Judges detections.

  Args:
    truth: as in a json of COCO instances: images, categories, annotations.
    results: as COCO's results: image_id, category_id, score, bbox (x y w h) and
      segmentation (RLE).
    kind: of KINDS.

  Raises:
    UserError: pycocotools is not installed.
  """
  require()
  from pycocotools.coco import COCO
  from pycocotools.cocoeval import COCOeval

  with contextlib.redirect_stdout(io.StringIO()):
    known = COCO()
    known.dataset = truth
    known.createIndex()
    if not results:
      classes = len(truth['categories'])
      return Figures(np.zeros(12), np.zeros((10, 101, classes)))
    # With a box a result's size is that of the box: masks go without.
    left_out = {'segm': ('bbox',)}.get(kind, ())
    results = [
      {k: v for k, v in x.items() if k not in left_out} for x in results
    ]
    judge = COCOeval(known, known.loadRes(results), kind)
    judge.evaluate()
    judge.accumulate()
    judge.summarize()
  stats = np.where(judge.stats < 0, np.nan, 100 * judge.stats)
  return Figures(stats, judge.eval['precision'][:, :, :, 0, 2])


def encode(mask: np.ndarray) -> dict:
  """A mask bool[h, w] as COCO's run-length code."""
  from pycocotools import mask as codes

  code = codes.encode(np.asfortranarray(mask.astype(np.uint8)))
  return code | {'counts': code['counts'].decode('ascii')}


def require() -> None:
  """Raises UserError unless pycocotools is installed."""
  try:
    import pycocotools  # noqa: F401
  except ImportError as error:
    raise UserError(
      'average precision needs pycocotools: pip install "esvit_jax[detection]"'
    ) from error
