"""What a process needs before its first computation: memory, compiled programs.

Both are settings of the process, not of a run: they change how long a step
takes, never what it computes.
"""

import glob
import os
import sys

TUNABLES = 'GLIBC_TUNABLES'
HUGE_PAGES = 'glibc.malloc.hugetlb'
TRANSPARENT = '/sys/kernel/mm/transparent_hugepage/enabled'
ACCELERATORS = ('/dev/nvidia[0-9]*', '/dev/accel*', '/dev/vfio/[0-9]*')

CACHE_VARIABLE = 'JAX_COMPILATION_CACHE_DIR'
CACHE_BYTES = 4 * 2**30  # the least recently used programs are dropped first
LEAST_COMPILE_TIME = 0.2  # seconds; below it reading is no quicker


def use_huge_pages() -> None:
  """Starts this process again with memory in huge pages, where it helps.

  XLA takes the temporary memory of a step anew in each step. Beyond 32 MiB
  glibc maps and unmaps it every time, and a third of the CPU time goes into
  page faults; huge pages make them 200 times fewer. glibc reads the setting
  when a process starts, so this must come before anything else.

  Nothing happens where it was done, on other systems, and beside an
  accelerator. `GLIBC_TUNABLES=glibc.malloc.hugetlb=0` turns it off.
  """
  given = os.environ.get(TUNABLES, '')
  if HUGE_PAGES in given or not _can_use_huge_pages():
    return
  settings = [*filter(None, given.split(':')), f'{HUGE_PAGES}=1']
  os.environ[TUNABLES] = ':'.join(settings)
  sys.stdout.flush()
  sys.stderr.flush()
  os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])


def _can_use_huge_pages() -> bool:
  """Whether glibc and kernel have them and JAX will run on the CPU."""
  names = getattr(os, 'confstr_names', {})
  if sys.platform != 'linux' or 'CS_GNU_LIBC_VERSION' not in names:
    return False
  _, _, version = (os.confstr('CS_GNU_LIBC_VERSION') or '').partition(' ')
  major, _, minor = version.partition('.')
  if not minor.isdigit() or (int(major), int(minor)) < (2, 35):
    return False
  try:
    with open(TRANSPARENT, encoding='ascii') as f:
      if '[never]' in f.read():
        return False
  except OSError:
    return False
  platforms = os.environ.get('JAX_PLATFORMS', '')
  return platforms == 'cpu' or not (
    platforms or any(map(glob.glob, ACCELERATORS))
  )


def keep_programs(directory: str = 'auto') -> str:
  """Keeps compiled programs on disk, for the next process to read.

  JAX_COMPILATION_CACHE_DIR comes first; empty, it turns the cache off.

  Args:
    directory: where; 'auto' is esvit_jax/xla in the user's cache folder, ''
      keeps nothing.

  Returns:
    What is wrong with the directory, in one line; '' if nothing is.
  """
  import jax

  variable = os.environ.get(CACHE_VARIABLE)
  directory = directory if variable is None else variable
  if directory == 'auto':
    home = os.environ.get('XDG_CACHE_HOME') or '~/.cache'
    directory = os.path.join(os.path.expanduser(home), 'esvit_jax', 'xla')
  problem = _problem(directory) if directory and '://' not in directory else ''
  jax.config.update(
    'jax_compilation_cache_dir', None if problem else directory or None
  )
  for name, value in (
    ('jax_compilation_cache_max_size', CACHE_BYTES),
    ('jax_persistent_cache_min_compile_time_secs', LEAST_COMPILE_TIME),
  ):
    if name.upper() not in os.environ:
      jax.config.update(name, value)
  return problem


def _problem(directory: str) -> str:
  """Why compiled programs cannot be kept there, or ''."""
  try:
    os.makedirs(directory, mode=0o700, exist_ok=True)
    reason = '' if os.access(directory, os.W_OK | os.X_OK) else 'not writable'
  except OSError as e:
    reason = e.strerror
  if not reason:
    return ''
  return (
    f'compiled programs are not kept: {directory} ({reason}); '
    f'--compilation_cache=FOLDER takes another, --compilation_cache= none'
  )


def settings() -> dict[str, str]:
  """Both as they are in this process, for run.json and the introduction."""
  import jax

  tunables = os.environ.get(TUNABLES, '').split(':')
  return {
    'huge_pages': 'on' if f'{HUGE_PAGES}=1' in tunables else 'off',
    'compilation_cache': jax.config.jax_compilation_cache_dir or 'off',
  }
