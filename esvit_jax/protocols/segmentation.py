"""Frozen segmentation: what the tokens of a network tell of each pixel.

Two read-outs without a training loop: a linear one in one solve, and the
classes of the nearest patches of training images (Hummingbird, 2306.01667).
Judged at the pixels of the canvas, by one confusion matrix over all images.
"""

import jax
import numpy as np

from esvit_jax import data
from esvit_jax.analysis.plots import overlays
from esvit_jax.dense import VOID, metrics, resize
from esvit_jax.protocols import maps as maps_lib
from esvit_jax.protocols import readouts
from esvit_jax.protocols.setup import Result, prepare, require_test_split
from esvit_jax.workdir import terminal

SHOWN = 10  # images in the picture
# In-context mIoU on VOC 2012, memory of 10^5, 10^6, 10^7 patches, by
# open-hummingbird-eval 5e79da2: two passes of crops at 512 px.
PUBLISHED = {
  'DINO S/16': (37.2, 43.1, 46.6),
  'DINO B/16': (44.9, 50.8, 55.7),
  'DINOv2 S/14': (70.2, 74.9, 77.0),
}


def run(config, directory: str, out) -> Result:
  """mIoU and accuracies in percent of each map, read-out and network.

  Raises:
    UserError: the network or the masks cannot be used.
  """
  setup = prepare(config, directory, out)
  c = setup.config
  require_test_split(setup.test, c.data)
  train, test = (
    data.sample(source, c.segmentation[f'{split}_images'], c.seed)
    for split, source in (('train', setup.train), ('test', setup.test))
  )
  surveys = [data.survey(x, c.data.workers) for x in (train, test)]
  for source, survey in zip((train, test), surveys):
    print(f'masks    {survey.line(source)}', file=out)
  counts = surveys[0].counts
  balance = np.where(counts > 0, counts.sum() / np.maximum(counts, 1), 0)
  parts = data.hold_out(train, seed=c.seed)
  per_image = max(1, c.segmentation.memory // len(train))
  rows, classes = [], {}
  for name, network in maps_lib.networks(setup, (c.size, c.size)).items():
    weights = balance.astype(np.float32)
    task = readouts.Task(setup, network, weights, per_image, out)
    learned = readouts.learn(task, parts)
    for features, scores in readouts.judge(task, test, learned).items():
      rows.append({'network': name, 'features': features, **_row(scores)})
      if name == maps_lib.PRE_TRAINED:
        classes = scores  # those of all maps come last
    if name == maps_lib.PRE_TRAINED:
      _draw(task, test, features, learned[features])
  print(_tables(rows), file=out)
  own = [row for row in rows if row['network'] == maps_lib.PRE_TRAINED][-1]
  return setup.result(
    {
      'miou': own['linear_miou'],
      **{f'miou_{k}': own[f'{k}_miou'] for k in readouts.READOUTS[1:]},
      'pixel_accuracy': own['linear_pixel_accuracy'],
      'mean_accuracy': own['linear_mean_accuracy'],
      'train_images': len(train),
      'test_images': len(test),
      'void_percent': 100 * surveys[1].void,
      'maps': maps_lib.by_network(rows),
      'table': rows,
      'iou_of_classes': _per_class(train, surveys[1].counts, classes),
    }
  )


def _draw(
  task: readouts.Task, test, features: str, learned: readouts.Learned
) -> None:
  """Images, their masks and what the linear read-out makes of them."""
  test = data.sample(test, SHOWN, task.setup.config.seed)
  batch = next(iter(task.setup.whole_batches(test)))

  @maps_lib.replicated_by(task.setup)
  def predict(variables, readout, batch):
    images, steps = task.view(batch)
    maps = task.network.maps(variables, images)
    maps = maps_lib.named(maps, images.shape[1])[features]
    x = readout(resize.side_by_side(maps))
    return resize.classes_at_pixels(x, steps, test.canvas)

  found = predict(task.network.variables, learned.linear, batch)
  batch, found = jax.device_get((batch, found))
  shown = np.flatnonzero(batch['mask'])[:SHOWN]
  outside = batch['segmentation'][shown] == VOID
  overlays.segmentation_png(
    task.setup.picture('segmentation'),
    batch['image'][shown] / np.float32(255),
    {
      'target': batch['segmentation'][shown],
      'linear': np.where(outside, VOID, found[shown]),
    },
    test.segmentation.classes,
  )


def _row(scores: dict[str, metrics.Scores]) -> dict[str, float]:
  return {
    f'{readout}_{name}': getattr(x, name)
    for readout, x in scores.items()
    for name in ('miou', 'pixel_accuracy', 'mean_accuracy')
  }


def _per_class(source, counts, scores) -> list[dict]:
  """IoU of each class on all maps, None where it does not occur."""
  share = 100 * counts / counts.sum()
  return [
    {
      'class': name,
      'pixels_percent': float(share[k]),
      **{
        readout: None if np.isnan(x.iou[k]) else float(x.iou[k])
        for readout, x in scores.items()
      },
    }
    for k, name in enumerate(source.segmentation.classes)
  ]


def _tables(rows) -> str:
  """mIoU of our networks, and what is published."""
  columns = ('network', 'features', 'linear', 'balanced', 'in context')
  cells = [
    (
      row['network'],
      row['features'],
      *(f'{row[f"{k}_miou"]:.1f}' for k in readouts.READOUTS),
    )
    for row in rows
  ]
  published = [(k, *map(str, x)) for k, x in PUBLISHED.items()]
  return '\n'.join(
    [
      terminal.table('frozen segmentation, mIoU in percent', columns, cells),
      terminal.table(
        'published, in context on VOC 2012 (open-hummingbird-eval)',
        ('network', '10^5 patches', '10^6', '10^7'),
        published,
      ),
    ]
  )
