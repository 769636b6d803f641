"""Eight virtual devices, strict broadcasting; the goldens' own fill rule."""

import os

os.environ.setdefault('JAX_PLATFORMS', 'cpu')

import jax

jax.config.update('jax_num_cpu_devices', 8)
jax.config.update('jax_numpy_rank_promotion', 'raise')
# Tests check numbers, not speed: compile twice as fast.
jax.config.update('jax_disable_most_optimizations', True)
