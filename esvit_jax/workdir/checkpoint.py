"""Saving and restoring a run: the only importer of orbax.

Saves are asynchronous and atomic: a directory that carries a step number is
complete, whatever killed the run. Kept are the last few and the best.
"""

import contextlib
import glob
import json
import logging
import os
import re
import shutil
import sys
import time
import warnings
from collections.abc import Callable

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
from esvit_jax.workdir.files import parse_json, writing

STEP = re.compile('0|[1-9][0-9]{0,9}')  # the name of a checkpoint's folder
UNFINISHED = '.orbax-checkpoint-tmp'

# Orbax tells at INFO what the progress line already says.
logging.getLogger('absl').setLevel(logging.CRITICAL)
# What its tasks fail of is raised, and said in a line; it need not be told as
# the tasks are forgotten.
logging.getLogger('asyncio').setLevel(logging.CRITICAL)


def _print_unraisable(unraisable, shown=sys.unraisablehook) -> None:
  """As Python does, but for tasks that orbax has left when one has failed.

  Their event loop is closed when they end: they have nobody to tell.
  """
  error = str(unraisable.exc_value)
  if unraisable.object is not None or error != 'Event loop is closed':
    shown(unraisable)


sys.unraisablehook = _print_unraisable

# Orbax has every replica write a slice of each array, and compiles a program
# for each slice. Small arrays are written whole, by one: on 8 devices the first
# save of a small network takes a tenth of the time.
ocp.type_handlers.register_type_handler(
  jax.Array,
  ocp.type_handlers.ArrayHandler(min_slice_bytes_for_replica_parallel=2**20),
  override=True,
)


class DamagedError(UserError):
  """A checkpoint's bytes can be read, and are not what was saved."""


class NoneSoundError(UserError):
  """Every checkpoint of a run is damaged or unfit to go on from."""


class Checkpoints:
  """The checkpoints of one run directory.

  Args:
    directory: created if missing.
    keep: how many of the newest stay.
    keep_every: steps at whose multiples they stay too; 0: none.
    config: of the run, written into each checkpoint.

  Raises:
    UserError: the directory cannot be made or read.

  Attributes:
    scores: step -> figure of its evaluation, which may come after the step was
      saved; the checkpoint with the largest stays as well.
  """

  def __init__(
    self,
    directory: str,
    keep: int = 2,
    keep_every: int = 0,
    config: dict | None = None,
  ):
    self.scores: dict[int, float] = {}
    self._config = json.loads(json.dumps(config or {}))

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
      with writing(self.directory):
        os.makedirs(self.directory, exist_ok=True)
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
          config=ocp.args.JsonSave(self._config),
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

    def read():
      with _reading(
        folder,
        'delete that folder to resume from the step before, or choose another '
        '--workdir',
      ):
        restored = self._manager.restore(
          step,
          args=ocp.args.Composite(
            state=ocp.args.StandardRestore(like._asdict())
          ),
        )['state']
        _verify(folder, restored)
        return restored

    return TrainState(**_twice(read, folder))

  def resume(
    self, like: TrainState, fault: Callable[[TrainState], str] = lambda _: ''
  ) -> tuple[TrainState, str]:
    """The newest state that is whole, and what to say of the others.

    The others are moved out of the way, beside `checkpoints/`: damaged ones
    where a whole one is left. A disk that does not give a checkpoint's bytes
    is no reason to move it.

    Args:
      like: as for `restore`.
      fault: what else is wrong with a state, or ''.

    Raises:
      NoneSoundError: there is none.
      UserError: the disk cannot be read.
    """
    with self._writing():
      self._manager.wait_until_finished()
    aside = {}
    for step in sorted(self._manager.all_steps(), reverse=True):
      folder = os.path.join(self.directory, str(step))
      try:
        state = self.restore(like, step)
      except DamagedError as e:
        aside[step] = 'damaged', str(e)
        continue
      if why := fault(state):
        aside[step] = 'diverged', f'the state in {folder} is not sound ({why})'
        continue
      return state, self._set_aside(aside)
    texts = [text for kind, text in aside.values() if kind == 'damaged']
    diverged = {k: v for k, v in aside.items() if v[0] == 'diverged'}
    text = self._set_aside(diverged)
    raise NoneSoundError((texts + text.splitlines() or ['no checkpoint'])[0])

  def _set_aside(self, steps: dict[int, tuple[str, str]]) -> str:
    """Moves checkpoints out of the way; says which, in a line each."""
    lines = []
    for step, (kind, text) in steps.items():
      aside = os.path.join(os.path.dirname(self.directory), f'{kind}_{step}')
      lines.append(f'{text.partition(": ")[0]}; it is now {aside}')
      if jax.process_index() == 0:
        shutil.rmtree(aside, ignore_errors=True)
        with writing(aside):
          os.rename(os.path.join(self.directory, str(step)), aside)
    if steps:
      multihost_utils.sync_global_devices('checkpoints set aside')
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
      # Tasks that were not begun would say so as they are forgotten.
      warnings.filterwarnings('ignore', 'coroutine .* was never awaited')
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
  bad: dict[int, str] = {}
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
      whole = [x for x in steps if x not in bad]
      chosen = whole[-1] if whole else steps[-1]
    folder = os.path.join(directory, str(chosen))
    try:
      restored = _twice(lambda: _read_parts(folder, parts), folder)  # noqa: B023
    except UserError as e:
      if not os.path.isdir(folder):
        continue  # the run that trains there has just removed it
      bad[chosen] = (
        'is damaged' if isinstance(e, DamagedError) else 'cannot be read'
      )
      if step is not None or not set(steps) - set(bad):
        raise
      continue
    for x, why in bad.items():
      print(
        f'checkpoint {os.path.join(directory, str(x))} {why}: step {chosen} '
        'is taken',
        file=sys.stderr,
      )
    return restored


def saved_config(path: str) -> dict:
  """The config in the newest checkpoint of a run directory, {} if none.

  Checkpoints of versions that wrote none have none.
  """
  directory = os.path.join(path, 'checkpoints')
  for step in reversed(_steps(directory)):
    file = os.path.join(directory, str(step), 'config', 'metadata')
    with contextlib.suppress(OSError, ValueError):
      with open(file, encoding='utf-8') as f:
        config = parse_json(f.read())
      return config if isinstance(config, dict) else {}
  return {}


def _steps(directory: str) -> list[int]:
  """Numbers of the complete checkpoints in a folder, ascending."""
  if not os.path.isdir(directory):
    return []
  return sorted(int(x) for x in os.listdir(directory) if STEP.fullmatch(x))


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
    saved = parse_json(f.read())
  # Each process sums what it holds; arrays read as NumPy are whole in each.
  for name, value in checksums(tree).items():
    if saved.get(name) != value:
      raise OSError(f'{name} is damaged: it is not what was saved')


def _twice(read: Callable, folder: str):
  """What `read` gives, of its second call where the first fails.

  A cable or a file server that fails once has not damaged anything.

  Raises:
    UserError: as `read`, or the disk does not give the bytes of the folder.
    DamagedError: it does, and `read` fails all the same.
  """
  try:
    return read()
  except UserError as e:
    first = e
  if not os.path.isdir(folder):
    raise first
  try:
    value = read()
  except UserError as e:
    _require_readable(folder)
    raise DamagedError(str(e)) from e
  print(
    f'{str(first).partition(": ")[0]}: it was read again, and is sound',
    file=sys.stderr,
  )
  return value


def _require_readable(folder: str) -> None:
  """Raises UserError where the disk does not give all bytes of a folder."""

  def fail(error):
    raise error

  try:
    for place, _, names in os.walk(folder, onerror=fail):
      for name in names:
        with open(os.path.join(place, name), 'rb') as f:
          while f.read(2**24):
            pass
  except OSError as e:
    raise UserError(
      f'cannot read {e.filename or folder} ({e.strerror}): mend the disk, and '
      'the same command goes on; or move that checkpoint away'
    ) from e


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
    time.sleep(0.3)  # for reads in flight, while the hook is off
    raise UserError(
      f'cannot read checkpoint {folder} ({_first_line(e)}): {remedy}'
    ) from e
  finally:
    sys.unraisablehook = hook


def _first_line(error: Exception) -> str:
  text = str(error).strip(' \n\'"').splitlines() or [type(error).__name__]
  return text[0][:100]
