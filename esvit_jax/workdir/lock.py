"""A run's directory: one run at a time, always of the same config.

config.json       what is run
run.json          by which command, revision, versions and devices
metrics.jsonl     one JSON object a line; metrics.damaged.jsonl: what was none
checkpoints/      numbered by step
pictures/         PNG files
unreadable.txt    images that could not be read
replay_STEP.npz   the batch of a step without finite numbers; replay/: its state
damaged_STEP      a checkpoint that is not what was saved
diverged_STEP     one whose parameters are of no use
"""

import contextlib
import fcntl
import json
import os

from esvit_jax.errors import UserError, in_one_line, printable, require_local
from esvit_jax.workdir.files import flatten, read_json, write_json, writing

# Fields that say how to watch or place a run, not what it computes.
FREE = (
  'budget',
  'save.',
  'eval.',
  'data.workers',
  'data.data_dir',
  'data.max_pixels',
  'log_every',
  'placement',
  'tensorboard',
  'max_bad_steps',
  'max_rollbacks',
)

# Names that fields of the config had in older versions -> what they are now.
RENAMED: dict[str, str] = {
  'sit.lmbda': 'sit.reconstruction_weight',
  'data.few': 'data.label_fraction',
  'data.max_corrupt': 'data.max_unreadable',
}


def check(path: str, config: dict) -> None:
  """Raises UserError where `path` holds another run, or is no local path."""
  require_local(path, '--workdir')
  if not os.fspath(path).isascii() and printable(path) != os.fspath(path):
    raise UserError(
      f'--workdir={printable(path)} is no name in UTF-8, and checkpoints '
      'cannot be written there: name another'
    )
  file = os.path.join(path, 'config.json')
  if os.path.exists(path) and not os.path.isdir(path):
    raise UserError(f'--workdir={path} is a file; name a directory')
  try:
    if not trained(path):
      return
    there = flatten(read_json(file))
  except (OSError, ValueError) as e:
    raise UserError(
      f'cannot read {file} ({in_one_line(e)}): restore it, as from '
      'config/metadata of a checkpoint, or choose another --workdir; the run '
      'there is as it was'
    ) from e
  here = flatten(json.loads(json.dumps(config)))
  older = {RENAMED[key]: key for key in there if RENAMED.get(key) in here}
  there = {RENAMED.get(key, key): value for key, value in there.items()}
  differ = [
    f'{key}{f" (then {older[key]})" if key in older else ""}: '
    f'{str(there.get(key))[:80]} there, {str(here.get(key))[:80]} here'
    for key in sorted(there.keys() | here.keys())
    if there.get(key) != here.get(key) and not key.startswith(FREE)
  ]
  if differ:
    more = f'; and {len(differ) - 6} more' if len(differ) > 6 else ''
    raise UserError(
      f'{path} holds a run of another config, so it cannot be resumed: '
      f'{"; ".join(differ[:6])}{more}. Choose another --workdir'
    )


@contextlib.contextmanager
def claim(path: str, config: dict):
  """Holds `path` for this process; the lock goes with the process.

  What a user can mend, if nothing has been trained yet, leaves no trace.

  Args:
    path: made if missing.
    config: written to config.json.

  Raises:
    UserError: another process runs there, or it holds another config.
  """
  check(path, config)
  name = os.path.join(path, '.lock')
  with writing(f'--workdir={path}'):
    before = os.listdir(path) if os.path.isdir(path) else None
    os.makedirs(path, exist_ok=True)
    # Unbuffered, so that closing it cannot fail once more.
    lock = open(name, 'ab+', buffering=0)  # noqa: SIM115
  with lock:
    _take(lock, path)
    try:
      with writing(name):
        lock.truncate(0)
        lock.write(str(os.getpid()).encode())
      write_json(os.path.join(path, 'config.json'), config)
      yield path
    except UserError:
      if not before and not trained(path):
        _clear(path)
        if before is None:
          with contextlib.suppress(OSError):  # unreadable.txt may stay
            os.rmdir(path)
      raise


def _take(lock, path: str) -> None:
  """Locks an open file.

  Raises:
    UserError: another process holds it, or it cannot be locked.
  """
  try:
    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
  except BlockingIOError as e:
    lock.seek(0)
    holder = lock.read().decode(errors='replace').strip()
    raise UserError(
      f'{path} is in use by process {holder or "?"}; wait for it to end, or '
      'choose another --workdir'
    ) from e
  except OSError as e:
    raise UserError(f'cannot lock {lock.name}: {e.strerror}') from e


def trained(path: str) -> bool:
  """Whether a run has left something there that another must not touch."""
  checkpoints = os.path.join(path, 'checkpoints')
  if os.path.isdir(checkpoints) and os.listdir(checkpoints):
    return True
  try:
    with open(os.path.join(path, 'metrics.jsonl'), 'rb') as f:
      # The first line is of the network before training.
      return len(f.readlines()) > 1
  except (FileNotFoundError, NotADirectoryError):
    return False


def _clear(path: str) -> None:
  """Removes what a run writes before its first step, as far as it can."""
  for name in ('config.json', 'run.json', 'metrics.jsonl', '.lock'):
    with contextlib.suppress(OSError):
      os.remove(os.path.join(path, name))
  with contextlib.suppress(OSError):
    os.rmdir(os.path.join(path, 'checkpoints'))
