"""Single bits of a checkpoint, flipped: never other weights without a word."""

import pathlib
import random
import shutil
from collections.abc import Iterator

import numpy as np

from tests.trust.descriptions import quiet


def results(
  run: pathlib.Path, place: pathlib.Path, count: int, seed: int = 0
) -> Iterator[tuple[str, str]]:
  """(file, what came of it) for single bits of the newest checkpoint.

  Args:
    run: a finished run, with an older checkpoint.
    place: an empty folder.
    count: bits.
    seed: of which.

  Returns:
    'refused': the older checkpoint was taken, and it was said; 'equal': the
    weights are those that were saved; else what is wrong.
  """
  import esvit_jax

  rng, copy = random.Random(seed), place / 'run'
  right = _arrays(esvit_jax.load(str(run))[1])
  shutil.copytree(run, copy)
  steps = sorted(int(x.name) for x in (copy / 'checkpoints').iterdir())
  newest = copy / 'checkpoints' / str(steps[-1])
  files = [x for x in newest.rglob('*') if x.is_file() and x.stat().st_size]
  sizes = [x.stat().st_size for x in files]
  for _ in range(count):
    (file,) = rng.choices(files, sizes)
    data = file.read_bytes()
    at, bit = rng.randrange(len(data)), 1 << rng.randrange(8)
    harmed = data[:at] + bytes([data[at] ^ bit]) + data[at + 1 :]
    file.write_bytes(harmed)
    loaded = []
    code, said = quiet(lambda: loaded.append(esvit_jax.load(str(copy))[1]))  # noqa: B023
    file.write_bytes(data)
    name = str(file.relative_to(newest))
    if code or 'Traceback' in said:
      yield name, f'exit code {code}: {said[:300]}'
    elif f'step {steps[-2]} is taken' in said:
      yield name, 'refused'
    elif not said and _equal(_arrays(loaded[0]), right):
      yield name, 'equal'
    else:
      yield name, f'other weights: {said[:300]}'


def _arrays(tree) -> list[np.ndarray]:
  import jax

  return [np.asarray(x) for x in jax.tree.leaves(tree)]


def _equal(a, b) -> bool:
  return len(a) == len(b) and all(map(np.array_equal, a, b))
