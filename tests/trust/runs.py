"""The run that is harmed here: a few images, a tiny network, all that is kept.

Faults are put into what it leaves on disk, so it leaves all there is:
checkpoints, metrics, pictures, a report.
"""

import os
import pathlib
import sys

import numpy as np

from configs import quickstart

STEPS = 6
ROOT = pathlib.Path(__file__).parents[2]
# Quick compilation, one device: tests check bytes, not speed.
ENVIRONMENT = {
  'JAX_PLATFORMS': 'cpu',
  'JAX_NUM_CPU_DEVICES': '1',
  'JAX_DISABLE_MOST_OPTIMIZATIONS': '1',
  'JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS': '0',
  'XLA_FLAGS': '--xla_cpu_opt_preset=FAST_COMPILE '
  '--xla_cpu_parallel_codegen_split_count=1',
}


def images(folder: pathlib.Path) -> pathlib.Path:
  """A folder of 2 x 8 small images."""
  from PIL import Image

  rng = np.random.default_rng(0)
  for name, level in (('dark', 60), ('light', 180)):
    (folder / name).mkdir(parents=True, exist_ok=True)
    for i in range(8):
      pixels = rng.normal(level, 40, (28, 28)).clip(0, 255).astype(np.uint8)
      Image.fromarray(pixels).save(folder / name / f'{i}.png')
  return folder


FIELDS = {
  'steps': STEPS,
  'batch_size': 8,
  'log_every': 1,
  'epochs': 3,
  'data.test_split': 'held_out',
  'data.workers': 1,
  'model.depths': (1,),
  'model.heads': (1,),
  'model.dims': (8,),
  'eval.pictures': False,
  'eval.at_ends': 'knn',
  'eval.every_epochs': 1.0,
  'save.every_epochs': 0.5,
  'save.keep': 2,
}


def config(folder, **changes):
  """The config of the run, for train.run."""
  c = quickstart.get_config('debug')
  c.data.source = f'folder:{folder}'
  with c.unlocked():
    for field, value in {**FIELDS, **changes}.items():
      *sections, name = field.split('.')
      section = c
      for part in sections:
        section = section[part]
      section[name] = value
  return c


def flags(folder, directory, **changes) -> list[str]:
  """The same for main.py."""
  fields = {'data.source': f'folder:{folder}', **FIELDS, **changes}
  return [
    '--config=configs/quickstart.py:debug',
    f'--workdir={directory}',
    *(f'--config.{name}={value}' for name, value in fields.items()),
  ]


def command(arguments: list[str]) -> list[str]:
  return [sys.executable, '-m', 'main', *arguments]


def environment(cache) -> dict:
  """Of a process that runs it, with its compiled programs in `cache`."""
  return {
    **os.environ,
    **ENVIRONMENT,
    'JAX_COMPILATION_CACHE_DIR': str(cache),
    'PYTHONPATH': str(ROOT),
  }
