"""Eight virtual devices, strict broadcasting, quick compilation."""

import atexit
import fcntl
import gc
import io
import os
import shutil
import tempfile

os.environ.setdefault('JAX_PLATFORMS', 'cpu')
# Tests check numbers, not speed: compile several times as fast, and the same
# program once. Processes that tests start inherit all of it.
os.environ['JAX_DISABLE_MOST_OPTIMIZATIONS'] = '1'
os.environ['JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS'] = '0.1'
if 'JAX_COMPILATION_CACHE_DIR' not in os.environ:
  cache = tempfile.mkdtemp(prefix='esvit_jax_tests_')
  os.environ['JAX_COMPILATION_CACHE_DIR'] = cache
  atexit.register(shutil.rmtree, cache, ignore_errors=True)

import jax
import pytest

flags = [
  '--xla_cpu_opt_preset=FAST_COMPILE',
  '--xla_cpu_parallel_codegen_split_count=1',
]
if jax.__version_info__ < (0, 11):  # those since have no choice of emitters
  flags.append('--xla_cpu_use_fusion_emitters=false')
os.environ['XLA_FLAGS'] = ' '.join([os.environ.get('XLA_FLAGS', ''), *flags])

jax.config.update('jax_num_cpu_devices', 8)
jax.config.update('jax_numpy_rank_promotion', 'raise')


def pytest_collection_finish():
  """Collects garbage rarely: a fifth of the time of tracing went into it."""
  gc.freeze()
  gc.set_threshold(50_000, 20, 100)


@pytest.fixture(scope='session')
def tiny_run(tmp_path_factory) -> str:
  """Directory of a finished tiny run, for all workers: copy it to write."""
  from runs import tiny

  from esvit_jax import train

  root = tmp_path_factory.getbasetemp()
  if 'PYTEST_XDIST_WORKER' in os.environ:
    root = root.parent
  directory = root / 'tiny_run'
  with open(root / 'tiny_run.lock', 'w') as lock:
    fcntl.flock(lock, fcntl.LOCK_EX)
    if not directory.exists():
      unfinished = str(tmp_path_factory.mktemp('run') / 'a')
      train.run(tiny(), unfinished, io.StringIO())
      os.rename(unfinished, directory)
  return str(directory)
