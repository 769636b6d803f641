"""Saving and restoring a run: the only importer of orbax.

Saves are asynchronous and atomic: a directory that carries a step number is
complete, whatever killed the run. Kept are the last few and the best.
"""

import contextlib
import glob
import logging
import os
import shutil
import sys
import time

import jax
import numpy as np
import orbax.checkpoint as ocp
from orbax.checkpoint.checkpoint_managers import (
  AnyPreservationPolicy,
  BestN,
  EveryNSteps,
  LatestN,
)

from esvit_jax.errors import UserError
from esvit_jax.state import TrainState

UNFINISHED = '.orbax-checkpoint-tmp'

# Orbax tells at INFO what the progress line already says.
logging.getLogger('absl').setLevel(logging.ERROR)


class Checkpoints:
  """The checkpoints of one run directory.

  Args:
    directory: created if missing.
    keep: how many of the newest stay.
    keep_every: steps at whose multiples they stay too; 0: none.

  Attributes:
    scores: step -> figure of its evaluation, which may come after the step was
      saved; the checkpoint with the largest stays as well.
  """

  def __init__(self, directory: str, keep: int = 2, keep_every: int = 0):
    self.scores: dict[int, float] = {}

    def score(metrics):
      step = (metrics or {}).get('step', -1)
      return self.scores.get(int(step), float('-inf'))

    stay = [
      LatestN(keep),
      BestN(get_metric_fn=score, n=1, keep_checkpoints_without_metrics=False),
    ]
    if keep_every:
      stay.append(EveryNSteps(keep_every))
    self.directory = os.path.abspath(directory)
    if jax.process_index() == 0:
      # What a killed save left. Orbax would remove it too, but in a thread
      # that outlives us.
      for name in glob.glob(f'{glob.escape(self.directory)}/*{UNFINISHED}*'):
        shutil.rmtree(name)
    with _reading(self.directory, 'delete the step that is damaged'):
      self._manager = ocp.CheckpointManager(
        self.directory,
        options=ocp.CheckpointManagerOptions(
          preservation_policy=AnyPreservationPolicy(stay),
          # Without it orbax forgets the metrics when the run is resumed.
          best_fn=score,
          enable_async_checkpointing=True,
        ),
      )

  def latest(self) -> int | None:
    """The newest complete step, or None."""
    return self._manager.latest_step()

  def save(self, state: TrainState) -> None:
    """Starts to write `state`; returns once it may change."""
    step = int(state.step)
    if step != self._manager.latest_step():
      self._manager.save(
        step,
        args=ocp.args.Composite(state=ocp.args.StandardSave(state._asdict())),
        metrics={'step': step},
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
    with _reading(
      os.path.join(self.directory, str(step)),
      'delete that folder to resume from the step before, or choose another '
      '--workdir',
    ):
      restored = self._manager.restore(
        step,
        args=ocp.args.Composite(state=ocp.args.StandardRestore(like._asdict())),
      )
    return TrainState(**restored['state'])

  def __enter__(self) -> 'Checkpoints':
    return self

  def __exit__(self, kind, *unused) -> None:
    # Without the other processes there is nothing to wait for.
    if kind is None or not issubclass(kind, jax.errors.JaxRuntimeError):
      self.close()

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
  if steps == [0]:
    step = 0  # converted weights, of no step
  if step is not None and step not in steps:
    raise UserError(
      f'no checkpoint of step {step} in {directory}: there are '
      f'{", ".join(map(str, steps))}'
    )
  folder = os.path.join(directory, str(steps[-1] if step is None else step))
  with (
    _reading(folder, 'choose another --config.init.checkpoint'),
    contextlib.closing(ocp.PyTreeCheckpointer()) as reader,
  ):
    path = os.path.join(folder, 'state')
    saved = reader.metadata(path).item_metadata
    if saved is None:
      raise OSError('its metadata is damaged')
    tree = {part: saved.tree[part] for part in parts}
    # As NumPy arrays: the devices that saved them may not be here.
    kind = jax.tree.map(lambda _: ocp.RestoreArgs(np.ndarray), tree)
    return reader.restore(
      path,
      ocp.args.PyTreeRestore(tree, restore_args=kind, partial_restore=True),
    )


@contextlib.contextmanager
def _reading(folder: str, remedy: str):
  """Turns whatever a broken checkpoint raises into one line."""
  hook, sys.unraisablehook = sys.unraisablehook, lambda _: None
  try:
    yield
  except jax.errors.JaxRuntimeError:
    # Of devices or other processes: no reason to delete anything.
    raise
  except Exception as e:  # orbax raises bare Exceptions too
    # Reads in flight would add tracebacks of their own as they end.
    logging.getLogger('asyncio').setLevel(logging.CRITICAL)
    time.sleep(0.3)
    raise UserError(
      f'cannot read checkpoint {folder} ({_first_line(e)}): {remedy}'
    ) from e
  finally:
    sys.unraisablehook = hook


def _first_line(error: Exception) -> str:
  text = str(error).strip(' \n\'"').splitlines() or [type(error).__name__]
  return text[0][:100]
