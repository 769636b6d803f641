"""Where arrays live: the mesh, three placements, global batches.

All training code works on global arrays under `jit`; XLA inserts the one
gradient all-reduce. Nothing else in the project knows how many devices or
processes there are.
"""

import contextlib
import itertools
from typing import Any

import jax
import numpy as np
from jax._src import distributed
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from esvit_jax.errors import UserError

Tree = Any

# Seconds after which a silent process counts as dead.
HEARTBEAT = 20
_ROUNDS = itertools.count()


def initialize(
  coordinator: str = '', processes: int = 0, process: int = -1
) -> None:
  """Joins a multi-process run; with no arguments, as pods and Slurm announce.

  Args:
    coordinator: host:port of process 0, or '' to detect it.
    processes: number of processes, 0 to detect.
    process: this one's index, -1 to detect.
  """
  # Its handler of SIGTERM would take the signal from run/signals.py.
  jax.config.update('jax_enable_preemption_service', False)
  try:
    jax.distributed.initialize(
      coordinator or None,
      processes or None,
      process if process >= 0 else None,
      heartbeat_timeout_seconds=HEARTBEAT,
      shutdown_timeout_seconds=2 * HEARTBEAT,
    )
  except (ValueError, RuntimeError) as e:
    raise UserError(
      f'could not join the other processes: {str(e).splitlines()[0]}; give '
      '--coordinator=host:port --processes=N --process=I, or drop '
      '--distributed to run alone'
    ) from e


@contextlib.contextmanager
def together():
  """What several processes do at the same time: all pass, or none does.

  Raises:
    UserError: the one raised inside, here or by another process.
  """
  if jax.process_count() == 1:
    yield
    return
  error = None
  try:
    yield
  except UserError as e:
    error = e
  # Messages go through the service that the processes met at; jax offers no
  # public way to it.
  client = distributed.global_state.client
  name, me = f'esvit_jax/round/{next(_ROUNDS)}', jax.process_index()
  client.key_value_set(f'{name}/{me}', f'{error or ""}.')
  client.wait_at_barrier(f'{name}/said', 600_000)
  answers = [
    client.blocking_key_value_get(f'{name}/{i}', 60_000).removesuffix('.')
    for i in range(jax.process_count())
  ]
  client.wait_at_barrier(f'{name}/heard', 60_000)
  if error is not None:
    raise error
  for i, answer in enumerate(answers):
    if answer:
      raise UserError(f'process {i}: {answer}')


def stops_at(step: int, asked: bool) -> bool:
  """Whether this is the step at which all processes stop.

  To be called after each step by all processes, once the metrics of the step
  before are known. These came from all processes, so nobody is further than
  two steps ahead of the one that asks: an agreement on the second step from
  here reaches everyone in time.

  Args:
    step: number of steps done.
    asked: whether this process was asked to stop.
  """
  if jax.process_count() == 1:
    return asked
  client, folder = distributed.global_state.client, 'esvit_jax/stop'
  if asked:
    # The first word stands.
    with contextlib.suppress(jax.errors.JaxRuntimeError):
      client.key_value_set(f'{folder}/{jax.process_index()}', str(step + 2))
  agreed = [int(text) for _, text in client.key_value_dir_get(folder)]
  return bool(agreed) and step >= min(agreed)


def mesh(devices=None) -> Mesh:
  """Devices (by default all of all processes) along one axis, `data`."""
  devices = jax.devices() if devices is None else devices
  # Auto, not Explicit: windows are reshapes that sharding follows by itself.
  return jax.make_mesh(
    (len(devices),), ('data',), axis_types=(AxisType.Auto,), devices=devices
  )


def check_batch(batch_size: int, mesh: Mesh, accumulate: int = 1) -> None:
  """Raises UserError unless the batch splits evenly."""
  shares = mesh.size * max(accumulate, 1)
  if batch_size < 1 or batch_size % shares:
    nearest = max(shares, batch_size // shares * shares)
    parts = f' x accumulate {accumulate}' if accumulate > 1 else ''
    raise UserError(
      f'batch_size {batch_size} does not divide by {mesh.size} devices'
      f'{parts}; the nearest that does is {nearest}'
    )


def data(mesh: Mesh) -> NamedSharding:
  """The leading axis is split over devices."""
  return NamedSharding(mesh, PartitionSpec('data'))


def replicated(mesh: Mesh) -> NamedSharding:
  """Every device holds the whole."""
  return NamedSharding(mesh, PartitionSpec())


def fsdp(mesh: Mesh, tree: Tree, min_bytes: int = 2**20) -> Tree:
  """Splits each large array along its largest axis that divides.

  Args:
    mesh: where.
    tree: arrays or ShapeDtypeStructs.
    min_bytes: smaller arrays stay whole; moving them costs more than they do.

  Returns:
    A tree of shardings.
  """

  def place(x):
    axes = [i for i, n in enumerate(x.shape) if n % mesh.size == 0]
    if x.size * x.dtype.itemsize < min_bytes or not axes:
      return replicated(mesh)
    axis = max(axes, key=lambda i: x.shape[i])
    return NamedSharding(mesh, PartitionSpec(*[None] * axis, 'data'))

  return jax.tree.map(place, tree)


def place(mesh: Mesh, tree: Tree, placement: str) -> Tree:
  """Shardings of a state by name: 'replicated' or 'fsdp'."""
  if placement == 'fsdp':
    return fsdp(mesh, tree)
  if placement == 'replicated':
    return jax.tree.map(lambda _: replicated(mesh), tree)
  raise UserError(
    f"config.placement is '{placement}': it can be 'replicated' or 'fsdp'"
  )


def global_batch(mesh: Mesh, local: dict[str, np.ndarray]) -> dict:
  """Global arrays of which this process holds the given rows."""
  sharding = data(mesh)
  return {
    k: jax.make_array_from_process_local_data(sharding, v)
    for k, v in local.items()
  }
