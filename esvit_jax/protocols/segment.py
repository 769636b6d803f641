"""Segmentation by fine-tuning: the shared train loop, then windows over images.

Judged at the pixels of the canvas, by one confusion matrix over all images.
"""

import os

import jax
import numpy as np

from esvit_jax import data, evals, sharding, train, workdir
from esvit_jax.analysis.plots import overlays
from esvit_jax.analysis.plots.images import pixels
from esvit_jax.dense import VOID, metrics, resize, sliding, views
from esvit_jax.errors import UserError
from esvit_jax.methods import segment
from esvit_jax.protocols import finetune, memory
from esvit_jax.protocols.setup import Result, require_test_split
from esvit_jax.workdir import terminal
from esvit_jax.workdir.checkpoint import restore_parts

SHOWN = 10  # pairs before training, predictions after it
# mIoU of the validation images, percent, whole images or windows at one scale.
PUBLISHED = (
  ('ADE20K Semantic FPN, DeiT ViT-Tiny', 38.0, 'MAE-Lite'),
  ('ADE20K Semantic FPN, D2-MAE ViT-Tiny', 39.0, 'MAE-Lite'),
  ('ADE20K Semantic FPN, D2-MAE-RPE ViT-Tiny', 42.8, 'MAE-Lite'),
  ('ADE20K UPerNet, supervised Swin-T', 44.5, 'Swin'),
  ('ADE20K UPerNet, MoBY Swin-T', 44.1, 'MoBY'),
)


def run(config, directory: str, out) -> Result:
  """Trains, and gives mIoU and accuracies on the test images in percent.

  Raises:
    UserError, Stopped: as train.finish.
  """
  if not directory:
    raise UserError('no --workdir: fine-tuning is a run of its own')
  config = finetune.resolved(config)
  workdir.check(directory, config.to_dict())
  source, test = data.open_pair(config.data)
  require_test_split(test, config.data)
  test = data.sample(test, config.segment.test_images, config.seed)
  for each in (source, test):
    survey = data.survey(each, config.data.workers)
    print(f'masks    {survey.line(each)}', file=out)
  print(memory.line(config, source), file=out)
  draw_pairs(config, source, directory)
  train.finish(config, directory, out)
  scores = judge(config, directory, test, out)
  rows = [
    (name, f'{iou:.1f}')
    for name, iou in zip(test.segmentation.classes, scores.iou)
    if not np.isnan(iou)
  ]
  print(terminal.table('IoU, percent', ('class', 'IoU'), rows), file=out)
  title = 'published, mIoU in percent'
  table = [(name, f'{x:.1f}', source) for name, x, source in PUBLISHED]
  print(terminal.table(title, ('network', 'mIoU', 'by'), table), file=out)
  return Result(
    directory,
    config,
    'student',
    {
      'miou': scores.miou,
      'pixel_accuracy': scores.pixel_accuracy,
      'mean_accuracy': scores.mean_accuracy,
      'test_images': len(test),
      'iou_of_classes': {
        name: None if np.isnan(x) else float(x)
        for name, x in zip(test.segmentation.classes, scores.iou)
      },
    },
  )


def draw_pairs(config, source, directory: str) -> None:
  """Ten crops and their masks as they will be learned, drawn before that."""
  some = data.sample(source, SHOWN, config.seed)
  with data.epoch(some, len(some)) as feed:
    batch = next(feed)
  keys = jax.random.split(jax.random.key(config.seed), len(some))
  made = jax.device_get(jax.jit(segment.crops(config))(batch, keys))
  shown = made['globals'][:, 0]
  overlays.segmentation_png(
    _picture(directory, 'targets'),
    pixels(shown, config.data.mean, config.data.std),
    {'target': made['segmentation']},
    source.segmentation.classes,
  )


def judge(config, directory: str, test, out) -> metrics.Scores:
  """Scores of a finished run on the test images."""
  c, mesh = config.segment, sharding.mesh()
  classes, canvas = len(test.segmentation.classes), test.canvas
  network = segment.segmenter(config, classes)
  parts = restore_parts(os.path.join(directory), ('params', 'extra'))
  whole = sharding.replicated(mesh)
  variables = jax.device_put(
    {'params': parts['params'], 'batch_stats': parts['extra']['student']}, whole
  )

  @jax.jit
  def predict(variables, batch):
    images = views.whole(
      batch['image'],
      batch['size'],
      c.test_size,
      config.data.mean,
      config.data.std,
    )

    def window(x):
      logits, _ = network.apply(variables, x, train=False)
      return resize.bilinear(logits, x.shape[1:3])

    side = min(c.window, c.test_size)
    logits = sliding.mean_over_windows(window, images, side, c.step)
    steps = views.steps(batch['size'], c.test_size)
    found = resize.classes_at_pixels(logits, steps, canvas)
    confusion = metrics.confusion(batch['segmentation'], found, classes)
    return jax.lax.with_sharding_constraint((confusion, found), whole)

  total, first = np.zeros((classes, classes), np.int64), None
  reading = data.reading(config.data, directory)
  batches = evals.batches(test, mesh, c.test_batch, reading)
  count = -(-len(test) // c.test_batch)
  for batch in terminal.counted(batches, count, 'judging', out):
    confusion, found = predict(variables, batch)
    total += np.asarray(confusion)
    if first is None:
      first = jax.device_get((batch, found))
  draw_predictions(directory, test, *first)
  return metrics.scores(total)


def draw_predictions(directory: str, test, batch, found) -> None:
  """Images, their masks and what the network makes of them."""
  rows = np.flatnonzero(batch['mask'])[:SHOWN]
  target = batch['segmentation'][rows]
  overlays.segmentation_png(
    _picture(directory, 'predictions'),
    batch['image'][rows] / np.float32(255),
    {
      'target': target,
      'predicted': np.where(target == VOID, VOID, found[rows]),
    },
    test.segmentation.classes,
  )


def _picture(directory: str, name: str) -> str:
  folder = os.path.join(directory, 'pictures')
  os.makedirs(folder, exist_ok=True)
  return os.path.join(folder, f'{name}.png')
