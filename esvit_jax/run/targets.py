"""Accelerators a run can be planned for, as their makers describe them."""

import importlib.util
import re
from typing import NamedTuple

from esvit_jax.errors import UserError

GB, TB = 10**9, 10**12


class Device(NamedTuple):
  """One device.

  Attributes:
    memory: bytes.
    bandwidth: of its memory, bytes/s.
    flops: dense products in bfloat16, 1/s.
    link: to the other devices, bytes/s in one direction.
    per_name: what the number in a name such as v5p-64 counts, per device.
  """

  memory: float
  bandwidth: float
  flops: float
  link: float
  per_name: int = 1


DEVICES = {
  'h200': Device(141 * GB, 4.8 * TB, 989 * TB, 450 * GB),
  'h100': Device(80 * GB, 3.35 * TB, 989 * TB, 450 * GB),
  'a100': Device(80 * GB, 2.04 * TB, 312 * TB, 300 * GB),
  'v4': Device(32 * 2**30, 1.2 * TB, 275 * TB, 150 * GB, 2),
  'v5e': Device(16 * 2**30, 0.82 * TB, 197 * TB, 100 * GB),
  'v5p': Device(95 * 2**30, 2.77 * TB, 459 * TB, 300 * GB, 2),
  'v6e': Device(32 * 2**30, 1.64 * TB, 918 * TB, 224 * GB),
}
# `device_kind` of jax -> name, to tell the share of a device's peak.
KINDS = {
  'NVIDIA H200': 'h200',
  'NVIDIA H100 80GB HBM3': 'h100',
  'NVIDIA A100-SXM4-80GB': 'a100',
  'TPU v4': 'v4',
  'TPU v5 lite': 'v5e',
  'TPU v5p': 'v5p',
  'TPU v6 lite': 'v6e',
}
# For a compiler that cannot ask the card; H100 and H200 are one chip.
HOPPER = """gpu_device_info {{
threads_per_block_limit: 1024 threads_per_warp: 32
shared_memory_per_block: 49152 shared_memory_per_core: 233472
threads_per_core_limit: 2048 core_count: 132 fpus_per_core: 128
block_dim_limit_x: 2147483647 block_dim_limit_y: 65535 block_dim_limit_z: 65535
memory_bandwidth: {bandwidth:.0f} l2_cache_size: 52428800 clock_rate_ghz: 1.98
device_memory_size: {memory:.0f} shared_memory_per_block_optin: 232448
cuda_compute_capability {{ major: 9 minor: 0 }} registers_per_core_limit: 65536
registers_per_block_limit: 65536 }}
platform_name: "CUDA"
dnn_version_info {{ major: 9 minor: 12 patch: 0 }}
device_description_str: "{name}"
"""


class Target(NamedTuple):
  """Some devices of one kind."""

  name: str
  device: Device
  size: int


def target(name: str) -> Target:
  """'h200' or 'h200-8' (GPUs), 'v5e-8' (chips), 'v5p-64' (cores, as sold).

  Raises:
    UserError: nothing is known of it.
  """
  kind, _, number = name.lower().partition('-')
  if kind not in DEVICES or not re.fullmatch(r'[1-9]\d*|', number):
    raise UserError(
      f"no target '{name}': choose {', '.join(DEVICES)}, with a number of "
      'devices if there are several, such as h200-8 or v5e-8'
    )
  device = DEVICES[kind]
  cores = int(number or device.per_name)
  if cores % device.per_name:
    raise UserError(
      f"target '{name}': {kind} counts {device.per_name} cores a chip, so take "
      'an even number'
    )
  return Target(name.lower(), device, cores // device.per_name)


def compiler_device(goal: Target):
  """A device to compile for that is not here; None without its plug-in."""
  kind = goal.name.partition('-')[0]
  if kind not in ('h200', 'h100'):
    return None  # one TPU program takes up to eight minutes
  if importlib.util.find_spec('jax_plugins') is None or (
    importlib.util.find_spec('jax_plugins.xla_cuda13') is None
  ):
    return None
  from jax.experimental import topologies

  device = DEVICES[kind]
  return topologies.get_topology_desc(
    platform='cuda',
    topology_name='',
    target_config=HOPPER.format(
      name=f'NVIDIA {kind.upper()}',
      bandwidth=device.bandwidth,
      memory=device.memory,
    ),
    topology='1 x 1 x 1',
  ).devices[0]
