"""A run's directory: one run at a time, always of the same config.

config.json       what is run
run.json          by which command, revision, versions and devices
metrics.jsonl     one JSON object a line
checkpoints/      numbered by step
pictures/         PNG files
unreadable.txt       images that could not be read
"""

import contextlib
import fcntl
import json
import os

from esvit_jax.errors import UserError, require_local
from esvit_jax.workdir.jsonfile import flatten, write_json

# Fields that say how to watch or place a run, not what it computes.
FREE = (
  'budget',
  'save.',
  'eval.',
  'data.workers',
  'data.data_dir',
  'log_every',
  'placement',
  'tensorboard',
  'max_bad_steps',
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
  file = os.path.join(path, 'config.json')
  if os.path.exists(path) and not os.path.isdir(path):
    raise UserError(f'--workdir={path} is a file; name a directory')
  if not trained(path):
    return
  try:
    with open(file, encoding='utf-8') as f:
      there = flatten(json.load(f))
  except (OSError, json.JSONDecodeError) as e:
    raise UserError(
      f'cannot read {file} ({e}); choose another --workdir'
    ) from e
  here = flatten(json.loads(json.dumps(config)))
  older = {RENAMED[key]: key for key in there if RENAMED.get(key) in here}
  there = {RENAMED.get(key, key): value for key, value in there.items()}
  differ = [
    f'{key}{f" (then {older[key]})" if key in older else ""}: '
    f'{there.get(key)} there, {here.get(key)} here'
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
  before = os.listdir(path) if os.path.isdir(path) else None
  try:
    os.makedirs(path, exist_ok=True)
    lock = open(os.path.join(path, '.lock'), 'a+')  # noqa: SIM115
  except OSError as e:
    raise UserError(f'cannot write to --workdir={path}: {e.strerror}') from e
  with lock:
    try:
      fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as e:
      lock.seek(0)
      raise UserError(
        f'{path} is in use by process {lock.read().strip() or "?"}; wait for '
        'it to end, or choose another --workdir'
      ) from e
    lock.truncate(0)
    lock.write(str(os.getpid()))
    lock.flush()
    write_json(os.path.join(path, 'config.json'), config)
    try:
      yield path
    except UserError:
      if not before and not trained(path):
        _clear(path)
        if before is None:
          with contextlib.suppress(OSError):  # unreadable.txt may stay
            os.rmdir(path)
      raise


def trained(path: str) -> bool:
  """Whether a run has left something there that another must not touch."""
  checkpoints = os.path.join(path, 'checkpoints')
  if os.path.isdir(checkpoints) and os.listdir(checkpoints):
    return True
  try:
    with open(os.path.join(path, 'metrics.jsonl'), encoding='utf-8') as f:
      # The first line is of the network before training.
      return len(f.readlines()) > 1
  except OSError:
    return False


def _clear(path: str) -> None:
  """Removes what a run writes before its first step."""
  for name in ('config.json', 'run.json', 'metrics.jsonl', '.lock'):
    with contextlib.suppress(FileNotFoundError):
      os.remove(os.path.join(path, name))
  with contextlib.suppress(FileNotFoundError):
    os.rmdir(os.path.join(path, 'checkpoints'))
