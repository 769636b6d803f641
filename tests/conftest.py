"""Eight virtual devices, strict broadcasting, quick compilation."""

import atexit
import os
import shutil
import tempfile

os.environ.setdefault('JAX_PLATFORMS', 'cpu')
# Tests check numbers, not speed: compile twice as fast, and the same program
# once. Processes that tests start inherit both.
os.environ['JAX_DISABLE_MOST_OPTIMIZATIONS'] = '1'
if 'JAX_COMPILATION_CACHE_DIR' not in os.environ:
  cache = tempfile.mkdtemp(prefix='esvit_jax_tests_')
  os.environ['JAX_COMPILATION_CACHE_DIR'] = cache
  atexit.register(shutil.rmtree, cache, ignore_errors=True)

import jax

jax.config.update('jax_num_cpu_devices', 8)
jax.config.update('jax_numpy_rank_promotion', 'raise')
