"""Detection by fine-tuning: the shared train loop, then COCO's figures.

Judged in pixels of the images as they are stored, which the canvas must hold.
"""

import os

import jax
import jax.numpy as jnp
import numpy as np

from esvit_jax import data, evals, models, sharding, train, workdir
from esvit_jax.analysis.plots import overlays
from esvit_jax.analysis.plots.images import pixels
from esvit_jax.dense import views
from esvit_jax.detection import average_precision, mask_rcnn, shapes
from esvit_jax.detection import boxes as boxes_lib
from esvit_jax.errors import UserError
from esvit_jax.methods import detect
from esvit_jax.models.vit import ViT
from esvit_jax.protocols import finetune, memory
from esvit_jax.protocols.setup import Result, require_test_split
from esvit_jax.workdir import terminal
from esvit_jax.workdir.checkpoint import restore_parts

# Of a plain ViT that ViTDet starts from, and of the recipe.
CARRIED = ('dim', 'depth', 'heads', 'patch', 'image_size', 'positions')
WINDOWED = ('window', 'global_every', 'rel_pos', 'detect_size')
SHOWN = 10  # targets before training, detections after it
# COCO val2017, box and mask AP in percent.
PUBLISHED = (
  ('Swin-T 3x, supervised', 46.0, 41.6, 'Swin'),
  ('Swin-T 3x, EsViT', 46.2, 41.6, 'EsViT'),
  ('Swin-T 3x, MoBY', 46.0, 41.7, 'MoBY'),
  ('ResNet-50, supervised', 38.2, 33.3, 'EsViT'),
  ('ResNet-50, EsViT V', 37.8, 33.1, 'EsViT'),
  ('ResNet-50, EsViT V+R', 38.0, 33.2, 'EsViT'),
  ('ViT-Tiny 640 px, DeiT', 40.4, 35.5, 'MAE-Lite'),
  ('ViT-Tiny 640 px, MAE', 39.9, 35.4, 'MAE-Lite'),
  ('ViT-Tiny 640 px, MoCo-v3', 39.7, 35.1, 'MAE-Lite'),
  ('ViT-Tiny 640 px, D-MAE', 42.3, 37.3, 'MAE-Lite'),
  ('ViT-B 1,024 px, MAE', 51.6, 45.9, 'ViTDet'),
)


def run(config, directory: str, out) -> Result:
  """Trains, and gives COCO's figures of the test images in percent.

  Raises:
    UserError, Stopped: as train.finish.
  """
  average_precision.require()
  if not directory:
    raise UserError('no --workdir: fine-tuning is a run of its own')
  config = windowed(config, finetune.resolved(config))
  workdir.check(directory, config.to_dict())
  source, test = data.open_pair(config.data)
  require_test_split(test, config.data)
  for each in (source, test):
    if each.objects is None:
      raise UserError(
        f'{each.name} has no boxes and masks of objects: use '
        '--config.data.source=scenes or coco:PATH'
      )
  test = data.sample(test, config.detect.test_images, config.seed)
  print(memory.line(config, source), file=out)
  draw_targets(config, source, directory)
  train.finish(config, directory, out)
  found = judge(config, directory, test, out)
  names = average_precision.NAMES
  rows = [
    (title, *(f'{x:.1f}' for x in found[kind].stats[:6]))
    for title, kind in (('boxes', 'bbox'), ('masks', 'segm'))
  ]
  print(terminal.table('percent', ('of', *names[:6]), rows), file=out)
  table = [(n, f'{b:.1f}', f'{m:.1f}', by) for n, b, m, by in PUBLISHED]
  title = 'published, Mask R-CNN on COCO val2017, AP'
  columns = ('network', 'boxes', 'masks', 'by')
  print(terminal.table(title, columns, table), file=out)
  figures = {
    f'{title}_{name}': None if np.isnan(x) else float(x)
    for title, kind in (('box', 'bbox'), ('mask', 'segm'))
    for name, x in zip(names, found[kind].stats)
  }
  per_class = zip(
    test.objects.classes, *(x.of_classes() for x in found.values())
  )
  figures['ap_of_classes'] = [
    {'class': n, 'box': float(b), 'mask': float(m)}
    for n, b, m in per_class
    if not np.isnan(b)
  ]
  figures['test_images'] = len(test)
  return Result(directory, config, 'student', figures)


def windowed(recipe, config):
  """`config` with the windows of a recipe for ViTDet.

  Args:
    recipe: as given.
    config: the same with the checkpoint's model filled in, perhaps a plain ViT.
  """
  backbone, given = models.build(config.model), recipe.model
  if not (given.name.startswith('vitdet') and isinstance(backbone, ViT)):
    return config
  wanted = models.build(given)
  fields = {k: getattr(backbone, k) for k in CARRIED}
  fields |= {k: getattr(wanted, k) for k in WINDOWED}
  with config.unlocked():
    kept = ('drop_path', 'dtype', 'remat')
    fields |= {k: config.model[k] for k in kept}
    config.model = type(config)({'name': 'vitdet', **fields})
  return config


def draw_targets(config, source, directory: str) -> None:
  """Ten views and their objects as they will be learned."""
  some = data.sample(source, SHOWN, config.seed)
  with data.epoch(some, len(some)) as feed:
    batch = next(feed)
  batch.pop('mask')
  keys = jax.random.split(jax.random.key(config.seed), len(some))

  @jax.jit
  def targets(batch, keys):
    made = detect.crops(config)(batch, keys)
    size = made['globals'].shape[2:4]
    masks = jax.vmap(lambda s, f: shapes.paste(s, f, size) >= 0.5)(
      made['shapes'], _solid(made)
    )
    return made, masks

  made, masks = jax.device_get(targets(batch, keys))
  overlays.objects_png(
    _picture(directory, 'targets'),
    pixels(made['globals'][:, 0], config.data.mean, config.data.std),
    {'target': (made['boxes'], made['classes'], masks)},
    source.objects.classes,
  )


def judge(config, directory: str, test, out) -> dict:
  """'bbox' and 'segm' -> figures of a finished run on the test images."""
  c, mesh = config.detect, sharding.mesh()
  predict = predictor(config, directory, len(test.objects.classes), mesh)
  reading = data.reading(config.data, directory)
  batches = evals.batches(test, mesh, c.test_batch, reading)
  truth, results, first = _Truth(test), [], None
  count = -(-len(test) // c.test_batch)
  for batch in terminal.counted(batches, count, 'judging', out):
    found, masks = jax.device_get(predict(batch))
    batch = jax.device_get(batch)
    for row in np.flatnonzero(batch['mask']):
      index = int(batch['index'][row])
      truth.add(index, tuple(batch['size'][row]))
      results += _results(test, index, found, masks, batch['size'][row], row)
    if first is None:
      first = batch, found, masks
  draw_detections(config, directory, test, *first)
  return {
    kind: average_precision.figures(truth.content, results, kind)
    for kind in average_precision.KINDS
  }


def predictor(config, directory: str, classes: int, mesh):
  """batch -> (Detections in pixels of the canvas, masks bool[B, n, H, W])."""
  network, side = detect.detector(config, classes), config.detect.test_size
  numbers = detect.settings(config, network, (side, side))
  parts = restore_parts(directory, ('params', 'extra'))
  whole = sharding.replicated(mesh)
  params, stats = jax.device_put(
    (parts['params'], parts['extra']['student']), whole
  )

  @jax.jit
  def predict(params, stats, batch):
    images = views.whole(
      batch['image'],
      batch['size'],
      side,
      config.data.mean,
      config.data.std,
    )
    variables = {'params': params, 'batch_stats': stats}
    maps = network.apply(variables, images, method='maps')
    shown = views.shown_size(batch['size'], side)
    found, soft = mask_rcnn.detect(
      detect.heads(network, params), maps, shown, numbers
    )
    factor = batch['size'] / shown  # back to the canvas
    factor = jnp.concatenate([factor[:, ::-1]] * 2, -1)
    found = found._replace(boxes=found.boxes * factor[:, None])
    canvas = batch['image'].shape[1:3]

    def paste(args):
      masks, boxes, classes = args
      solid = boxes_lib.solid(boxes, classes >= 0)
      pasted = shapes.paste(masks, solid, canvas) >= 0.5
      return pasted & (classes >= 0)[:, None, None]

    # One image after another: a float for each object and pixel is much.
    masks = jax.lax.map(paste, (soft, found.boxes, found.classes))
    return jax.lax.with_sharding_constraint((found, masks), whole)

  return lambda batch: predict(params, stats, batch)


class _Truth:
  """The objects of the judged images, as COCO's json has them."""

  def __init__(self, source):
    self.source = source
    self.content = {
      'info': {},
      'images': [],
      'annotations': [],
      'categories': [
        {'id': number, 'name': name}
        for number, name in zip(source.objects.ids, source.objects.classes)
      ],
    }

  def add(self, index: int, size: tuple[int, int]) -> None:
    """Adds an image that was seen at `size`.

    Raises:
      UserError: it was shrunk to fit the canvas.
    """
    objects = self.source.objects
    image, instances = objects.image_id(index), objects.read(index)
    stored = instances.masks.shape[1:]
    if len(instances.masks) and tuple(map(int, size)) != stored:
      raise UserError(
        f'{self.source.where(index)} has {stored[1]} x {stored[0]} pixels, '
        'which do not fit the canvas: set a larger --config.data.canvas, for '
        'detections are judged in pixels of the image'
      )
    h, w = map(int, size)
    self.content['images'].append({'id': image, 'height': h, 'width': w})
    for box, kind, mask, crowd, area in zip(*instances):
      self.content['annotations'].append(
        {
          'id': len(self.content['annotations']) + 1,
          'image_id': image,
          'category_id': objects.ids[kind],
          'bbox': _box(box),
          'area': float(area),
          'iscrowd': int(crowd),
          'segmentation': average_precision.encode(mask),
        }
      )


def _results(test, index: int, found, masks, size, row: int) -> list[dict]:
  """The detections of an image as COCO's results."""
  h, w = size
  return [
    {
      'image_id': test.objects.image_id(index),
      'category_id': test.objects.ids[found.classes[row, k]],
      'score': float(found.scores[row, k]),
      'bbox': _box(found.boxes[row, k]),
      'segmentation': average_precision.encode(masks[row, k, :h, :w]),
    }
    for k in np.flatnonzero(found.classes[row] >= 0)
  ]


def _box(box) -> list[float]:
  """x1 y1 x2 y2 -> x y w h."""
  x1, y1, x2, y2 = map(float, box)
  return [x1, y1, x2 - x1, y2 - y1]


def draw_detections(config, directory, test, batch, found, masks) -> None:
  """Images, their objects and those found with a score above a half."""
  rows = np.flatnonzero(batch['mask'])[:SHOWN]
  truth = []
  for row in rows:
    instances = test.objects.read(int(batch['index'][row]))
    padded = np.zeros((len(instances.masks), *batch['image'].shape[1:3]), bool)
    h, w = instances.masks.shape[1:]
    padded[:, :h, :w] = instances.masks
    truth.append((instances.boxes, instances.classes, padded))
  sure = np.where(found.scores > 0.5, found.classes, -1)[rows]
  overlays.objects_png(
    _picture(directory, 'detections'),
    batch['image'][rows] / np.float32(255),
    {
      'target': tuple(zip(*truth)),
      'found': (found.boxes[rows], sure, masks[rows]),
    },
    test.objects.classes,
  )


def _solid(made):
  return jax.vmap(boxes_lib.solid)(made['frames'], made['classes'] >= 0)


def _picture(directory: str, name: str) -> str:
  folder = os.path.join(directory, 'pictures')
  os.makedirs(folder, exist_ok=True)
  return os.path.join(folder, f'{name}.png')
