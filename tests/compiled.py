"""Compiles stages of EsViT Swin-T for an H200 and prints what they need.

  PYTHONPATH=.:PLUGINS python tests/compiled.py STAGE BATCH_SIZE

PLUGINS holds the wheels jax-cuda13-pjrt and jax-cuda13-plugin of the installed
jax, unzipped. No GPU and no CUDA is needed.
"""

import json
import os
import sys

os.environ['JAX_PLATFORMS'] = 'cpu'
# Before jax: it reads the flags once.
os.environ['XLA_FLAGS'] = (
  '--xla_gpu_autotune_level=0 --xla_gpu_enable_triton_gemm=false'
)

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from configs import esvit
from esvit_jax.run import hlo, synthetic, targets


def main(stage: str, batch_size: int) -> dict:
  """Bytes, kernels and temporary memory of a stage."""
  device = targets.compiler_device(targets.target('h200'))
  # Forms and chunks as on the device.
  jax.default_backend = lambda: 'gpu'
  mesh = Mesh(np.array([device]), ('data',), axis_types=(AxisType.Auto,))
  config = esvit.get_config('swin_tiny')
  config.batch_size = batch_size
  job = synthetic.job(config, mesh)
  key = jax.eval_shape(lambda: jax.random.key(0))
  keys = jax.eval_shape(lambda: jax.random.split(jax.random.key(0), batch_size))
  views = jax.eval_shape(job.method.views, job.batch, keys)
  if stage == 'augmentation':
    fn, args = job.method.views, (job.batch, keys)
  else:
    done = {}
    for name, fn in job.method.stages.items():
      args = job.state, views, key, done
      if name == stage:
        break
      done = {**done, name: jax.eval_shape(fn, *args)}
  here = NamedSharding(mesh, PartitionSpec())
  args = jax.tree.map(
    lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=here), args
  )
  compiled = jax.jit(fn).lower(*args).compile()
  counted = hlo.traffic(compiled.as_text())
  return {
    'mb_per_image': counted.bytes / batch_size / 1e6,
    'kernels': counted.kernels,
    'temporary_mib': compiled.memory_analysis().temp_size_in_bytes / 2**20,
  }


if __name__ == '__main__':
  print(json.dumps(main(sys.argv[1], int(sys.argv[2]))))
