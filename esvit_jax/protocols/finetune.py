"""Fine-tuning: the shared train loop, started from a network's backbone."""

import math
import os

from esvit_jax import train
from esvit_jax.errors import UserError
from esvit_jax.protocols.setup import Result, fill_data
from esvit_jax.weights import loading
from esvit_jax.workdir import metrics, read_json

# Of the recipe: how to train the checkpoint's model, and what to add to it.
KEPT = ('drop_path', 'dtype', 'remat', 'init_scale', 'taps')
ADDED = ('rel_pos', 'layer_scale', 'qkv_bias')


def run(config, directory: str, out) -> Result:
  """Trains, and gives `eval.metric` on the test images in percent.

  Raises:
    UserError, Stopped: as train.finish.
  """
  if not directory:
    raise UserError('no --workdir: fine-tuning is a run of its own')
  config = resolved(config)
  train.finish(config, directory, out)
  last = metrics.read(os.path.join(directory, 'metrics.jsonl'))[-1]
  # The last epoch's: the best epoch would be chosen by the test images.
  figures = {config.eval.metric: last['accuracy/student']}
  if config.eval.metric == 'top1':
    record = read_json(os.path.join(directory, 'run.json'))
    loss = record['chance']  # ln of the number of classes
    figures['chance'] = 100 * math.exp(-loss)
  return Result(directory, config, 'student', figures)


def resolved(config):
  """The training config: the checkpoint's model and data filled in."""
  config = config.copy_and_resolve_references()
  path = config.checkpoint
  weights = None
  if path:
    answers = loading.answers(config.published)
    weights = loading.load(path, config.which, answers)
    model = weights.about['model']
    with config.unlocked():
      kept = (*KEPT, *ADDED) if config.model.get('rel_pos') else KEPT
      for name in list(config.model):
        if name not in kept:
          del config.model[name]
      config.model.update(
        {k: v for k, v in model.items() if k not in config.model}
      )
    config.data.channels = weights.about['channels']
    if not config.scratch:
      config.init.checkpoint, config.init.part = path, 'backbone'
      config.init.which = weights.handed_on
  fill_data(config.data, path, weights, config.views.globals.size)
  return config
