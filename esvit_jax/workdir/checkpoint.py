"""Saving and restoring a run: the only importer of orbax.

Saves are asynchronous and atomic: a directory that carries a step number is
complete, whatever killed the run. Kept are the last few and the best.
"""

import contextlib
import glob
import json
import logging
import os
import shutil
import sys
import time

import jax
import numpy as np
import orbax.checkpoint as ocp
from jax.experimental import multihost_utils
from orbax.checkpoint.checkpoint_managers import (
  AnyPreservationPolicy,
  BestN,
  EveryNSteps,
  LatestN,
)

from esvit_jax.errors import UserError
from esvit_jax.state import TrainState
from esvit_jax.workdir.checksum import checksums

UNFINISHED = '.orbax-checkpoint-tmp'

# Orbax tells at INFO what the progress line already says.
logging.getLogger('absl').setLevel(logging.ERROR)

# Orbax has every replica write a slice of each array, and compiles a program
# for each slice. Small arrays are written whole, by one: on 8 devices the first
# save of a small network takes a tenth of the time.
ocp.type_handlers.register_type_handler(
  jax.Array,
  ocp.type_handlers.ArrayHandler(min_slice_bytes_for_replica_parallel=2**20),
  override=True,
)


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
    """Starts to write `state`; returns once it may change.

    Raises:
      UserError: it cannot be written.
    """
    step = int(state.step)
    if step == self._manager.latest_step():
      return
    tree = state._asdict()
    with self._writing():
      self._manager.save(
        step,
        args=ocp.args.Composite(
          state=ocp.args.StandardSave(tree),
          checksums=ocp.args.JsonSave(checksums(tree)),
        ),
        metrics={'step': step},
      )

  def restore(self, like: TrainState, step: int | None = None) -> TrainState:
    """The state of `step` (the newest by default).

    Args:
      like: a TrainState of ShapeDtypeStructs with shardings; the checkpoint
        may come from any number of devices.
      step: which.

    Raises:
      UserError: where it cannot be read, is damaged or is of another model.
    """
    step = self.latest() if step is None else step
    folder = os.path.join(self.directory, str(step))
    with _reading(
      folder,
      'delete that folder to resume from the step before, or choose another '
      '--workdir',
    ):
      restored = self._manager.restore(
        step,
        args=ocp.args.Composite(state=ocp.args.StandardRestore(like._asdict())),
      )['state']
      _verify(folder, restored)
    return TrainState(**restored)

  def resume(self, like: TrainState) -> tuple[TrainState, str]:
    """The newest state that is not damaged, and what to say of the others.

    Damaged checkpoints are moved out of the way, beside `checkpoints/`.

    Raises:
      UserError: none can be read.
    """
    errors = {}
    for step in sorted(self._manager.all_steps(), reverse=True):
      try:
        state = self.restore(like, step)
      except UserError as e:
        errors[step] = e
        continue
      return state, self._set_aside(errors)
    raise next(iter(errors.values()))

  def _set_aside(self, damaged: dict[int, UserError]) -> str:
    """Moves checkpoints out of the way; says which, in a line each."""
    lines = []
    for step, error in damaged.items():
      aside = os.path.join(os.path.dirname(self.directory), f'damaged_{step}')
      lines.append(f'{str(error).partition(": ")[0]}; it is now {aside}')
      if jax.process_index() == 0:
        shutil.rmtree(aside, ignore_errors=True)
        os.rename(os.path.join(self.directory, str(step)), aside)
    if damaged:
      multihost_utils.sync_global_devices('damaged checkpoints')
      self._manager.reload()
    return '\n'.join(lines)

  @contextlib.contextmanager
  def _writing(self):
    """Turns what a full or broken disk raises into one line."""
    try:
      yield
    except jax.errors.JaxRuntimeError:
      raise
    except Exception as e:  # orbax and tensorstore raise what they like
      raise UserError(
        f'cannot write a checkpoint in {self.directory} ({_first_line(e)}): '
        f'make room or mend the disk; the same command goes on from the last '
        'complete checkpoint there'
      ) from e

  def __enter__(self) -> 'Checkpoints':
    return self

  def __exit__(self, kind, *unused) -> None:
    # Without the other processes there is nothing to wait for.
    if kind is None or not issubclass(kind, jax.errors.JaxRuntimeError):
      self.close()

  def close(self) -> None:
    """Waits until everything is on disk."""
    with self._writing():
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
  damaged = []
  while True:
    steps = _steps(directory)
    if not steps:
      raise UserError(
        f'no checkpoint in {path}: give a run directory that has a '
        'checkpoints/ folder with numbered steps'
      )
    if step is not None and step not in steps and steps != [0]:
      raise UserError(
        f'no checkpoint of step {step} in {directory}: there are '
        f'{", ".join(map(str, steps))}'
      )
    if steps == [0]:
      chosen = 0  # converted weights, of no step
    elif step is not None:
      chosen = step
    else:
      whole = [x for x in steps if x not in damaged]
      chosen = whole[-1] if whole else steps[-1]
    folder = os.path.join(directory, str(chosen))
    try:
      restored = _read_parts(folder, parts)
    except UserError:
      if not os.path.isdir(folder):
        continue  # the run that trains there has just removed it
      damaged.append(chosen)
      if step is not None or not set(steps) - set(damaged):
        raise
      continue
    for x in damaged:
      print(
        f'checkpoint {os.path.join(directory, str(x))} is damaged: step '
        f'{chosen} is taken',
        file=sys.stderr,
      )
    return restored


def _steps(directory: str) -> list[int]:
  """Numbers of the complete checkpoints in a folder, ascending."""
  if not os.path.isdir(directory):
    return []
  names = os.listdir(directory)
  return sorted(int(x) for x in names if x.isascii() and x.isdigit())


def _read_parts(folder: str, parts: tuple[str, ...]) -> dict:
  """Some parts of one checkpoint, verified."""
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
    restored = reader.restore(
      path,
      ocp.args.PyTreeRestore(tree, restore_args=kind, partial_restore=True),
    )
    _verify(folder, restored)
    return restored


def _verify(folder: str, tree) -> None:
  """Raises OSError where arrays are not those that were saved.

  Checkpoints of versions that wrote no checksums pass.
  """
  path = os.path.join(folder, 'checksums', 'metadata')
  if not os.path.exists(path):
    return
  with open(path, encoding='utf-8') as f:
    saved = json.load(f)
  # Each process sums what it holds; arrays read as NumPy are whole in each.
  for name, value in checksums(tree).items():
    if saved.get(name) != value:
      raise OSError(f'{name} is damaged: it is not what was saved')


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
