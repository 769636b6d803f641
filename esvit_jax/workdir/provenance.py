"""Where a run comes from: command, revision, versions, devices."""

import importlib.metadata
import pathlib
import platform
import shlex
import subprocess
import sys
import time

import jax

PACKAGES = ('jax', 'jaxlib', 'flax', 'optax', 'orbax-checkpoint', 'numpy')


def record() -> dict:
  """All of it, as JSON."""
  return {
    'command': shlex.join(['python', *sys.orig_argv[1:]]),
    'started': time.strftime('%Y-%m-%d %H:%M:%S %z'),
    'git': revision(pathlib.Path(__file__).parent),
    'python': platform.python_version(),
    'versions': {name: importlib.metadata.version(name) for name in PACKAGES},
    'devices': f'{jax.device_count()} {jax.devices()[0].device_kind}',
    'processes': jax.process_count(),
    'host': platform.node(),
  }


def revision(folder: pathlib.Path) -> str | None:
  """The git revision of a folder, '+' where it was changed; None if none."""

  def git(*words):
    return subprocess.run(
      ['git', '-C', str(folder), *words],
      capture_output=True,
      text=True,
      check=True,
      timeout=10,
    ).stdout.strip()

  try:
    changed = git('status', '--porcelain', '--untracked-files=no')
    return git('rev-parse', '--short=12', 'HEAD') + ('+' if changed else '')
  except (OSError, subprocess.SubprocessError):
    return None
