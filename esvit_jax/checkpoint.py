"""Saving and restoring a run: the only importer of orbax.

Saves are asynchronous and atomic: a directory that carries a step number is
complete, whatever killed the run. Kept are the last few and the best.
"""

import contextlib
import logging
import os

import jax
import orbax.checkpoint as ocp
from orbax.checkpoint.checkpoint_managers import (
  AnyPreservationPolicy,
  BestN,
  EveryNSteps,
  LatestN,
)

from esvit_jax.errors import UserError
from esvit_jax.state import TrainState

# Orbax tells at INFO what the progress line already says.
logging.getLogger('absl').setLevel(logging.ERROR)


class Checkpoints:
  """The checkpoints of one run directory.

  Args:
    directory: created at the first save.
    keep: how many of the newest stay.
    keep_every: steps at whose multiples they stay too; 0: none.
    best: name of the metric whose best (largest) checkpoint stays as well.
  """

  def __init__(
    self,
    directory: str,
    keep: int = 2,
    keep_every: int = 0,
    best: str = 'knn/teacher',
  ):
    def score(metrics):
      return (metrics or {}).get(best, float('-inf'))

    stay = [LatestN(keep), BestN(get_metric_fn=score, n=1)]
    if keep_every:
      stay.append(EveryNSteps(keep_every))
    self.directory = os.path.abspath(directory)
    self._manager = ocp.CheckpointManager(
      self.directory,
      options=ocp.CheckpointManagerOptions(
        preservation_policy=AnyPreservationPolicy(stay),
        cleanup_tmp_directories=True,
        enable_async_checkpointing=True,
      ),
    )

  def latest(self) -> int | None:
    """The newest complete step, or None."""
    return self._manager.latest_step()

  def save(self, state: TrainState, metrics: dict | None = None) -> None:
    """Starts to write `state`; returns once it may change."""
    step = int(state.step)
    if step != self._manager.latest_step():
      self._manager.save(
        step,
        args=ocp.args.Composite(state=ocp.args.StandardSave(state._asdict())),
        metrics=metrics or {},
      )

  def restore(self, like: TrainState, step: int | None = None) -> TrainState:
    """The state of `step` (the newest by default).

    Args:
      like: a TrainState of ShapeDtypeStructs with shardings; the checkpoint
        may come from any number of devices.
      step: which.

    Raises:
      UserError: where it cannot be read or is of another model.
    """
    step = self.latest() if step is None else step
    try:
      restored = self._manager.restore(
        step,
        args=ocp.args.Composite(state=ocp.args.StandardRestore(like._asdict())),
      )
    except (ValueError, KeyError, OSError, TypeError) as e:
      raise UserError(
        f'cannot read checkpoint {step} in {self.directory}: '
        f'{_first_line(e)}; delete that step to resume from the one before, '
        'or choose another --workdir'
      ) from e
    return TrainState(**restored['state'])

  def close(self) -> None:
    """Waits until everything is on disk."""
    self._manager.wait_until_finished()
    self._manager.close()


def restore_parts(
  path: str, parts: tuple[str, ...], step: int | None = None
) -> dict:
  """Some parts of another run's checkpoint, as NumPy arrays.

  Args:
    path: a run directory or its `checkpoints` folder.
    parts: fields of TrainState, such as ('params', 'teacher').
    step: which, the newest by default.

  Returns:
    {part: tree of nested dicts}

  Raises:
    UserError: no such checkpoint there.
  """
  directory = os.path.abspath(path)
  if os.path.isdir(os.path.join(directory, 'checkpoints')):
    directory = os.path.join(directory, 'checkpoints')
  steps = sorted(
    int(name)
    for name in (os.listdir(directory) if os.path.isdir(directory) else [])
    if name.isdigit()
  )
  if not steps:
    raise UserError(
      f'no checkpoint in {path}: give a run directory that has a '
      'checkpoints/ folder with numbered steps'
    )
  if step is not None and step not in steps:
    raise UserError(
      f'no checkpoint of step {step} in {directory}: there are '
      f'{", ".join(map(str, steps))}'
    )
  step = steps[-1] if step is None else step
  with contextlib.closing(ocp.StandardCheckpointer()) as reader:
    tree = reader.restore(os.path.join(directory, str(step), 'state'))
  return {part: jax.device_get(tree[part]) for part in parts}


def _first_line(error: Exception) -> str:
  text = str(error).strip().splitlines() or [type(error).__name__]
  return text[0][:200]
