"""launch/gpu_day.sh: its debug form measures all that the whole one does."""

import io
import json
import subprocess
import zipfile

import numpy as np
import pytest
from PIL import Image

from launch import gpu_day


@pytest.mark.slow
def test_the_debug_form_gives_every_figure(tmp_path):
  subprocess.run(
    ['bash', 'launch/gpu_day.sh', '--debug', f'--out={tmp_path}'], check=True
  )
  figures = json.loads((tmp_path / 'gpu_day.json').read_text())
  runs = figures['regions']['runs']
  assert [(row['loss'], row['seed']) for row in runs] == [
    (loss, seed) for seed in (0, 1) for loss in gpu_day.VARIANTS
  ]
  for row in runs:
    assert all(0 <= row[k] <= 100 for k in gpu_day.SCORES)
  rows = figures['throughput']['recipes']
  assert [row['form'] for row in rows] == ['auto', 'plain']
  assert all(row['images_per_s'] > 0 for row in rows)
  text = (tmp_path / 'gpu_day.txt').read_text()
  assert 'view and region loss' in text and 'esvit:swin_tiny' in text


def test_photographs_of_a_zip_file_are_a_source(tmp_path):
  with zipfile.ZipFile(tmp_path / 'set.zip', 'w') as archive:
    for name, side in (('a/1', 20), ('b/2', 30), ('b/3', 40)):
      record = io.BytesIO()
      image = np.full((side, 40, 3), side, np.uint8)
      Image.fromarray(image).save(record, 'png')
      archive.writestr(f'train/{name}.png', record.getvalue())
  source = gpu_day.decoded(str(tmp_path / 'set.zip'), 'train', 32)
  assert source.classes == ['a', 'b'] and list(source.labels) == [0, 1, 1]
  assert [source[i]['image'].shape for i in range(3)] == [
    (16, 32, 3),
    (24, 32, 3),
    (32, 32, 3),
  ]


def test_seeds_are_merged_into_mean_and_spread():
  row = {'loss': 'x', 'steps': 6, 's': 1.0, 'linear': 0, 'correspondence': 0}
  mean, spread = gpu_day.summary(
    [row | {'seed': 0, 'knn': 70.0}, row | {'seed': 1, 'knn': 74.0}]
  )
  assert mean['knn'] == 72 and round(spread['knn'], 3) == 2.828
