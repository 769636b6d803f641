"""What a run counts as an epoch, and what it says before its first step."""

import functools
import tempfile

import numpy as np
import pytest
from PIL import Image

from configs import quickstart
from esvit_jax.run import jobs, summary
from esvit_jax.state import Horizon


@functools.cache
def job():
  """The debug config on six images, 16 of them at a time, for 40 epochs."""
  folder = tempfile.mkdtemp()
  for i in range(6):
    Image.fromarray(np.full((20, 30), 40 * i, np.uint8)).save(
      f'{folder}/{i}.png'
    )
  with open(f'{folder}/notes.txt', 'w') as f:
    f.write('no image')
  c = quickstart.get_config('debug')
  c.data.source = f'folder:{folder}'
  c.batch_size, c.steps, c.epochs = 16, 0, 40
  c.views.globals.size = (28, 36)
  return jobs.prepare(c)


def test_an_epoch_is_a_pass_over_the_images():
  """Of 6 images a batch of 16 takes 2.7: 40 passes are 15 steps."""
  horizon = job().horizon
  assert horizon == (15, 6 / 16)
  assert horizon.epochs == 40
  assert horizon.steps_in(16) == 6
  assert horizon.steps_in(0.1) == 1 and horizon.steps_in(0) == 0


@pytest.mark.parametrize('images', [1000, 1023, 50])
def test_so_is_one_of_any_size(images):
  horizon = Horizon(round(3 * images / 64), images / 64)
  assert horizon.epochs == 3
  assert abs(horizon.steps_in(3) * 64 - 3 * images) <= 32


def test_introduction_says_what_was_taken_for_what():
  said = []
  summary.introduce(job(), 'run', None, said.append)
  text = ' '.join(' '.join(said).split())
  for words in (
    'train: 6 images without labels in folder',
    'no test split: add --config.data.test_split=held_out for scores',
    'note: not read, by their ending: 1 .txt',
    'note: a batch of 16 is larger than the set: each holds its 6 images 2.7',
    'images of 1 channels: saturation, hue, gray of views need three',
    '2 globals of 28x36 px',
    '15 steps of 16 images (40.0 epochs)',
  ):
    assert words in text, words


def test_unreadable_images_are_named_at_the_end(tmp_path):
  (tmp_path / 'unreadable.txt').write_text('a.jpg\tno image\nb.jpg\tneither\n')
  said = []
  metrics = type('Metrics', (), {'last': lambda self, name: None})()
  summary.conclude(str(tmp_path), metrics, [], [], '', said.append)
  assert said[0].startswith('unreadable   2 images, such as a.jpg: all are')
