"""Evaluations in training cost their figures at most, never trained steps."""

import io
import os

import numpy as np
import pytest
from PIL import Image
from runs import STEPS, tiny

from configs.eval import finetune
from esvit_jax import train
from esvit_jax.analysis import pictures
from esvit_jax.errors import UserError
from esvit_jax.protocols import finetune as protocol
from esvit_jax.run import jobs
from esvit_jax.run.evaluation import Evaluation
from esvit_jax.workdir import metrics


def at_every_step():
  config = tiny()
  config.eval.train_images, config.eval.at_ends = 50, 'knn'
  config.eval.every_epochs = 1 / 625  # of 10,000 images, 16 a step
  config.save.every_epochs = 0.0
  return config


def steps_saved(directory):
  return {int(x) for x in os.listdir(f'{directory}/checkpoints')}


@pytest.mark.slow
def test_a_failure_is_said_and_training_goes_on(tmp_path, monkeypatch):
  figures = Evaluation._figures

  def fail_once(self, state, at_start, at_end):
    if int(state.step) == 2:
      raise RuntimeError('out of\nmemory')
    return figures(self, state, at_start, at_end)

  monkeypatch.setattr(Evaluation, '_figures', fail_once)
  monkeypatch.setattr(pictures, 'FIRST_GUESS', 0.0)  # drawn every time
  monkeypatch.setattr(pictures, 'SHARE', 1e9)
  monkeypatch.setattr(pictures, 'draw', lambda *_: 1 / 0)
  config = at_every_step()
  config.eval.pictures = True
  out = io.StringIO()
  train.run(config, str(tmp_path / 'a'), out)
  said = out.getvalue()
  assert 'evaluation failed, training goes on: RuntimeError: out of mem' in said
  assert 'pictures failed, training goes on: ZeroDivisionError' in said
  lines = {x['step']: x for x in metrics.read(f'{tmp_path}/a/metrics.jsonl')}
  assert 'knn/teacher' not in lines[2] and 'train/loss' in lines[2]
  assert all('knn/teacher' in lines[step] for step in (1, 3, 4, STEPS))


def test_a_step_is_saved_before_it_is_evaluated(tmp_path, monkeypatch):
  """A process that dies in its evaluation loses nothing."""
  figures = Evaluation._figures

  def die(self, state, at_start, at_end):
    if int(state.step) == 3:
      raise SystemExit(9)
    return figures(self, state, at_start, at_end)

  config, directory = at_every_step(), str(tmp_path / 'a')
  with monkeypatch.context() as patch, pytest.raises(SystemExit):
    patch.setattr(Evaluation, '_figures', die)
    train.run(config, directory, io.StringIO())
  assert 3 in steps_saved(directory)
  train.run(config, directory, io.StringIO())
  lines = {x['step']: x for x in metrics.read(f'{directory}/metrics.jsonl')}
  assert all('knn/teacher' in lines[step] for step in range(1, STEPS + 1))
  best = max(range(1, STEPS + 1), key=lambda step: lines[step]['knn/teacher'])
  assert lines[best]['knn/teacher'] == max(
    lines[step]['knn/teacher'] for step in steps_saved(directory)
  )


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
  """Four classes of a colour each, in order; one test image has no label."""
  top = tmp_path_factory.mktemp('images')
  for split, count in (('train', 9), ('val', 4)):
    for c in range(4):
      (top / split / str(c)).mkdir(parents=True)
      for k in range(count):
        image = Image.new('RGB', (28, 28), (60 * c, k, 0))
        image.save(top / split / str(c) / f'{k}.png')
  image.save(top / 'val/stray.png')
  return top


def of(folder, config):
  config.data.source, config.data.channels = f'folder:{folder}', 3
  config.data.mean, config.data.std = (0.5,) * 3, (0.25,) * 3
  config.batch_size = 8
  return config


def test_the_bank_is_of_all_classes(folder, tmp_path):
  config = of(folder, tiny())
  config.eval.train_images = 13
  evaluation = Evaluation(jobs.prepare(config), str(tmp_path), print)
  bank = evaluation._sources['train']
  assert sorted(np.bincount(bank.labels)) == [3, 3, 3, 4]
  test = evaluation._sources['test']
  assert len(test) == 16 and test.canvas == (28, 28)  # without the stray one


def test_what_can_be_known_is_refused_before_training(tmp_path, monkeypatch):
  def refused(config, words):
    with pytest.raises(UserError, match=words) as e:
      train.run(config, str(tmp_path / 'a'), io.StringIO())
    assert '\n' not in str(e.value) and not os.listdir(tmp_path)

  config = protocol.resolved(finetune.get_config('embedded,debug'))
  config.eval.metric = 'roc_auc'
  refused(config, '2 classes, and here are 10')
  config.eval.metric = 'top2'
  refused(config, 'top1, top5')
  monkeypatch.setattr(Evaluation, '_length', lambda _: 10**12)
  refused(tiny(), 'eval.train_images')
