"""What one GPU can measure in one call: learning with regions, and speed.

  bash launch/gpu_day.sh --photographs=imagenette96.zip --out=OUT

Parts, in this order, each within its share of --minutes:

  regions     imagenette.py with the view loss alone and with both losses, equal
              steps, several seeds: k-NN, linear, correspondence
  throughput  a train step of every published recipe, bfloat16, its loss in one
              piece ('plain') and in tiles ('auto')

OUT/gpu_day.json and OUT/gpu_day.txt are written after each figure, so that a
call cut short keeps what it measured. Photographs are a zip file or a folder
of train/CLASS/ and val/CLASS/; they stay on the device, so that no figure waits
for a disk.
"""

import argparse
import concurrent.futures
import io
import json
import os
import pathlib
import statistics
import time
import traceback
import zipfile

import jax
import numpy as np

from configs import dino, esvit, imagenette, mae_lite, moco, sit
from esvit_jax import augment, data, evals, sharding
from esvit_jax.analysis import correspondence
from esvit_jax.data.source import Source
from esvit_jax.errors import UserError
from esvit_jax.run import jobs, synthetic
from esvit_jax.state import Horizon
from esvit_jax.workdir import terminal

VARIANTS = {'view loss': 'view', 'view and region loss': 'esvit'}
SCORES = ('knn', 'linear', 'correspondence')
PAIRS = 500  # images of the correspondence figure
SHARE = {'regions': 0.6, 'throughput': 1.0}  # of --minutes, when a part ends
STEPS = 10  # that are timed
# Those that distil from a teacher need one, and are left out.
RECIPES = {
  'esvit': (esvit, esvit.VARIANTS),
  'dino': (dino, dino.VARIANTS),
  'mae_lite': (mae_lite, mae_lite.MODELS),
  'moco': (moco, moco.VARIANTS),
  'sit': (sit, sit.VARIANTS),
}


def main() -> None:
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument('--photographs', help='zip file or folder')
  parser.add_argument('--out', default=os.environ.get('OUT', 'gpu_day'))
  parser.add_argument('--parts', default=','.join(SHARE))
  parser.add_argument('--minutes', type=float, default=25.0)
  parser.add_argument('--seeds', type=int, default=3)
  parser.add_argument('--epochs', type=int, default=100)
  parser.add_argument('--batch', type=int, default=64, help='of throughput')
  parser.add_argument('--debug', action='store_true')
  args = parser.parse_args()
  if args.debug:
    args.seeds, args.batch = 2, 16
  if not (args.debug or args.photographs) and 'regions' in args.parts:
    parser.error('give --photographs, or --parts=throughput')
  began = time.time()
  results = Results(pathlib.Path(args.out))
  for part in args.parts.split(','):
    deadline = began + 60 * args.minutes * SHARE[part]
    try:
      {'regions': regions, 'throughput': throughput}[part](
        args, results, deadline
      )
    except Exception as e:  # the other parts are worth having
      traceback.print_exc()
      results.add(part, {'failed': f'{type(e).__name__}: {e}'})
  results.add('minutes', (time.time() - began) / 60)


class Results:
  """Figures by part, on disk after each."""

  def __init__(self, directory: pathlib.Path):
    directory.mkdir(parents=True, exist_ok=True)
    self.directory = directory
    self.figures = {
      'device': f'{jax.device_count()} {jax.devices()[0].device_kind}',
      'jax': jax.__version__,
      'date': time.strftime('%Y-%m-%d'),
    }

  def add(self, part: str, figures) -> None:
    """Replaces what there is of a part, and writes all."""
    self.figures[part] = figures
    path = self.directory / 'gpu_day.json'
    path.write_text(json.dumps(self.figures, indent=2) + '\n')
    text = self.text()
    (self.directory / 'gpu_day.txt').write_text(text + '\n')
    print(text, flush=True)

  def text(self) -> str:
    """Device, and a table for each part."""
    made = self.figures
    parts = [f'{made["device"]}, jax {made["jax"]}, {made["date"]}']
    if rows := made.get('regions', {}).get('runs'):
      columns = ('loss', 'seed', 'steps', 's', *SCORES)
      parts.append(
        terminal.table(
          'regions, %',
          columns,
          [
            (
              row['loss'],
              *(str(row[k]) for k in columns[1:3]),
              *(f'{row[k]:.1f}' for k in columns[3:]),
            )
            for row in rows + summary(rows)
          ],
        )
      )
    if rows := made.get('throughput', {}).get('recipes'):
      columns = ('images_per_s', 'step_ms', 'memory_gib')
      parts.append(
        terminal.table(
          'throughput',
          ('recipe', 'form', 'batch', *columns),
          [
            (
              row['recipe'],
              row['form'],
              str(row['batch']),
              *(
                f'{row[k]:,.1f}' if k in row else row['failed'][:12]
                for k in columns
              ),
            )
            for row in rows
          ],
          ('form',),
        )
      )
    return '\n\n'.join(parts)


def summary(rows: list[dict]) -> list[dict]:
  """Mean over seeds of each loss; the spread is in the row below."""
  lines = []
  for loss in dict.fromkeys(row['loss'] for row in rows):
    same = [row for row in rows if row['loss'] == loss]
    for title, merge in (('mean', statistics.fmean), ('sd', statistics.stdev)):
      if len(same) > 1:
        figures = {k: merge(row[k] for row in same) for k in ('s', *SCORES)}
        name = {'loss': loss, 'seed': title, 'steps': same[0]['steps']}
        lines.append(name | figures)
  return lines


def regions(args, results: Results, deadline: float) -> None:
  """The view loss alone, and with the region loss: all seeds of both."""
  debug = ',debug' if args.debug else ''
  rows, runs = [], {}
  for loss, variant in VARIANTS.items():
    config = imagenette.get_config(variant + debug)
    sources = open_sources(config, args.photographs)
    if not runs:
      canvases = on_canvas(sources['train'], config.data)
    per_epoch = len(sources['train']) / config.batch_size
    steps = config.steps or round(args.epochs * per_epoch)
    job = jobs.plan(config, sharding.mesh(), sources, Horizon(steps, per_epoch))
    runs[loss] = job, jobs.compile_step(job), judge(job)
  longest = 0.0
  for seed in range(args.seeds):  # both losses of a seed, then the next
    if time.time() + 2 * longest > deadline:
      print(f'no time for seed {seed}')
      break
    for loss, (job, step, scores) in runs.items():
      began = time.time()
      job.config.seed = seed
      state, seconds, last = train(job, step, canvases)
      row = {'loss': loss, 'seed': seed, 'steps': job.horizon.steps}
      row |= {'s': seconds, 'last_loss': last} | scores(state)
      rows.append(row)
      longest = max(longest, time.time() - began)
      results.add('regions', {'runs': rows, 'summary': summary(rows)})


def open_sources(config, photographs: str | None) -> dict[str, Source]:
  """Splits 'train' and 'test' of decoded images."""
  if photographs is None:
    train, test = data.open_pair(config.data)
    return {'train': train, 'test': test}
  return {
    kind: decoded(photographs, folder, config.data.canvas)
    for kind, folder in (('train', 'train'), ('test', 'val'))
  }


def decoded(photographs: str, folder: str, canvas: int) -> Source:
  """All images FOLDER/CLASS/NAME of a zip file or a folder, by Pillow."""
  path = pathlib.Path(photographs)
  root = path if path.is_dir() else zipfile.Path(path)
  classes = sorted(x.name for x in (root / folder).iterdir() if x.is_dir())
  records, labels = [], []
  for label, name in enumerate(classes):
    for file in sorted((root / folder / name).iterdir(), key=lambda f: f.name):
      records.append(file.read_bytes())
      labels.append(label)
  with concurrent.futures.ThreadPoolExecutor() as pool:
    images = list(pool.map(pixels, records))
  return Source(
    name=f'{path.name}, {folder}',
    split=folder,
    count=len(images),
    classes=classes,
    read=lambda i: (images[i], labels[i]),
    where=lambda i: f'{folder}[{i}]',
    canvas=(canvas, canvas),
    labels=np.asarray(labels, np.int32),
  )


def pixels(record: bytes) -> np.ndarray:
  """u8[h, w, 3] of an image file."""
  from PIL import Image

  return np.asarray(Image.open(io.BytesIO(record)).convert('RGB'))


def on_canvas(source: Source, section) -> dict[str, jax.Array]:
  """All images of a source as one batch, on every device."""
  shape = (len(source), *source.canvas, section.channels)
  batch = {
    'image': np.zeros(shape, np.uint8),
    'size': np.zeros((len(source), 2), np.int32),
    'label': np.asarray(source.labels, np.int32),
    'index': np.arange(len(source), dtype=np.int32),
  }
  for i in range(len(source)):
    image = source[i]['image']
    h, w, _ = image.shape
    batch['image'][i, :h, :w], batch['size'][i] = image, (h, w)
  return jax.device_put(batch, sharding.replicated(sharding.mesh()))


def train(job: jobs.Job, step, canvases: dict):
  """The last state of a run, the seconds it took and its last loss."""
  take = jax.jit(
    lambda batch, rows: jax.tree.map(lambda x: x[rows], batch),
    out_shardings=sharding.data(job.mesh),
  )
  state, size = jobs.create_state(job), job.config.batch_size
  rng = np.random.default_rng(job.config.seed)
  count = job.horizon.steps * size
  epochs = -(-count // len(canvases['index']))
  order = [rng.permutation(len(canvases['index'])) for _ in range(epochs)]
  order = np.concatenate(order)[:count].astype(np.int32)
  began = time.perf_counter()
  for rows in order.reshape(-1, size):
    state, values = step(state, take(canvases, rows), job.key)
  loss = float(jax.block_until_ready(values['loss']))
  return state, time.perf_counter() - began, loss


def judge(job: jobs.Job):
  """state -> k-NN, linear and correspondence of its teacher, in percent."""
  c = job.config
  features = jax.jit(job.method.features)
  copy = {**correspondence.COPY, 'size': c.eval.size}
  if c.data.channels != 3:
    copy |= {'hue': 0.0, 'saturation': 0.0, 'gray': 0.0}
  groups = augment.view_groups({'copy': copy})
  cropped = {
    split: data.center_cropped(source, c.eval.size)
    for split, source in job.sources.items()
  }
  cropped['pairs'] = data.sample(cropped['test'], PAIRS, 0)

  def normal(batch):
    return augment.normalize(batch['image'], c.data.mean, c.data.std)

  @jax.jit
  def copies(batch, keys):
    views = augment.multi_crop(
      batch['image'], batch['size'], keys, groups, c.data.mean, c.data.std
    )
    return views['copy'][:, 0]

  def batches(split):
    reading = data.Reading(c.data.workers, max_unreadable=0.0)
    return evals.batches(cropped[split], job.mesh, c.eval.batch_size, reading)

  def scores(state) -> dict[str, float]:
    def network(image):
      return features(state.teacher, state.extra['teacher'], image)

    def grids(batch, keys):
      return tuple(
        network(x).grid for x in (normal(batch), copies(batch, keys))
      )

    networks = {'teacher': lambda batch: network(normal(batch)).view}
    sets = [evals.extract(networks, batches(x)) for x in ('train', 'test')]
    figures = evals.figures(('knn', 'linear'), *sets)
    mean = correspondence.mean_flip_score(
      grids, batches('pairs'), jax.random.key(0), 1
    )
    return {
      'knn': figures['knn/teacher']['top1'],
      'linear': figures['linear/teacher']['top1'],
      'correspondence': mean['accuracy'],
    }

  return scores


def throughput(args, results: Results, deadline: float) -> None:
  """Times a step of each recipe; programs compile side by side before."""
  debug = ',debug' if args.debug else ''
  cases = [
    (f'{name}:{variant}', module.get_config(variant + debug), form)
    for name, (module, variants) in RECIPES.items()
    for variant in variants
    for form in ('auto', 'plain')
  ]
  cases = [x for x in cases if x[2] == 'auto' or 'form' in x[1].get('loss', {})]
  if args.debug:
    cases = cases[:2]
  rows = []
  with concurrent.futures.ThreadPoolExecutor(os.cpu_count() // 2 or 1) as pool:
    programs = {
      pool.submit(program, config, form, args.batch): (name, form)
      for name, config, form in cases
    }
    left = max(deadline - time.time(), 0)
    done, late = concurrent.futures.wait(programs, timeout=left)
    for future in late:
      future.cancel()
    for future, (name, form) in programs.items():
      row = {'recipe': name, 'form': form, 'batch': args.batch}
      if future in done:
        try:
          row |= timed(*future.result())
        except (UserError, jax.errors.JaxRuntimeError) as e:
          row['failed'] = str(e).partition('\n')[0]
      else:
        row['failed'] = 'no time'
      rows.append(row)
    results.add('throughput', {'recipes': rows})


def program(config, form: str, batch: int):
  """A job on synthetic images and its compiled step."""
  config.batch_size, config.init.checkpoint = batch, ''
  if 'form' in config.get('loss', {}):
    config.loss.form = form
  job = synthetic.job(config, sharding.mesh())
  return job, jobs.compile_step(job)


def timed(job: jobs.Job, step) -> dict[str, float]:
  """Median time of a step, images per second and memory."""
  state, batch, spans = jobs.create_state(job), synthetic.batch(job), []
  for _ in range(2 + STEPS):
    began = time.perf_counter()
    state, _ = jax.block_until_ready(step(state, batch, job.key))
    spans.append(time.perf_counter() - began)
  seconds = statistics.median(spans[2:])
  figures = {
    'images_per_s': job.config.batch_size / seconds,
    'step_ms': 1e3 * seconds,
  }
  memory = step.memory_analysis()
  if memory is not None:
    used = memory.temp_size_in_bytes + memory.argument_size_in_bytes
    figures['memory_gib'] = used / 2**30
  return figures


if __name__ == '__main__':
  main()
