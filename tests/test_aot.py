"""What stages need when compiled for an H200: budgets that changes must hold.

  pytest -m aot tests/test_aot.py

The compiler's plug-in is taken from PLUGINS, or else from the package index.
"""

import json
import os
import pathlib
import subprocess
import sys
import zipfile

import jax
import pytest

ROOT = pathlib.Path(__file__).parent.parent
PLUGINS = 'ESVIT_JAX_PLUGINS'  # a folder of unzipped wheels
PACKAGES = ('jax-cuda13-pjrt', 'jax-cuda13-plugin')

pytestmark = pytest.mark.aot


@pytest.fixture(scope='session')
def plugins(tmp_path_factory) -> str:
  """Folder with the plug-in of the installed jax."""
  if folder := os.environ.get(PLUGINS):
    return folder
  folder = tmp_path_factory.mktemp('plugins')
  download = subprocess.run(
    [
      *(sys.executable, '-m', 'pip', 'download', '--quiet', '--no-deps'),
      *('--dest', str(folder)),
      *(f'{name}=={jax.__version__}' for name in PACKAGES),
    ],
    capture_output=True,
    text=True,
  )
  if download.returncode:
    pytest.skip(f'no plug-in of CUDA: {download.stderr.strip()[-200:]}')
  for wheel in folder.glob('*.whl'):
    zipfile.ZipFile(wheel).extractall(folder)
  return str(folder)


# stage, images -> the most MB per image, kernels, MiB of temporary memory
BUDGETS = {
  ('loss', 64): (265, 240, 500),
  ('student', 16): (2750, 1000, 3700),
}


@pytest.mark.parametrize('stage, batch_size', BUDGETS)
def test_budget_of_a_stage(stage, batch_size, plugins):
  run = subprocess.run(
    [sys.executable, 'tests/compiled.py', stage, str(batch_size)],
    cwd=ROOT,
    env=os.environ | {'PYTHONPATH': os.pathsep.join((str(ROOT), plugins))},
    capture_output=True,
    text=True,
  )
  assert run.returncode == 0, run.stderr[-2000:]
  needed = json.loads(run.stdout.splitlines()[-1])
  for figure, most in zip(
    ('mb_per_image', 'kernels', 'temporary_mib'), BUDGETS[stage, batch_size]
  ):
    assert needed[figure] <= most, needed
