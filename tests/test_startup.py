"""A process starts with huge pages and with a place for compiled programs."""

import os
import subprocess
import sys

import jax
import pytest

from esvit_jax.run import startup

CPU = {'JAX_PLATFORMS': 'cpu'}


def run(code: str, **environment) -> str:
  """What a fresh interpreter prints after `code`."""
  kept = {k: v for k, v in os.environ.items() if k != startup.TUNABLES}
  return subprocess.run(
    [sys.executable, '-c', code],
    env=kept | CPU | environment,
    capture_output=True,
    text=True,
    check=True,
  ).stdout


FAULTS = """
from esvit_jax.run import startup
startup.use_huge_pages()
import resource, jax, jax.numpy as jnp

@jax.jit
def step(x):  # 128 MiB of temporary memory, as XLA takes them
  y = jax.lax.fori_loop(0, 2, lambda i, y: y * 1.5, jnp.outer(x, x))
  return y.sum()

x = jnp.ones(5792)
step(x).block_until_ready()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(4):
  step(x).block_until_ready()
faults = resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
print(startup.settings()['huge_pages'], faults / 4)
"""


@pytest.mark.skipif(
  not startup._can_use_huge_pages(), reason='no huge pages on this machine'
)
def test_a_step_has_few_page_faults():
  """A page is 4 KiB: 128 MiB would be 32,768 faults a step."""
  state, faults = run(FAULTS).split()
  assert state == 'on'
  assert float(faults) < 2000
  state, faults = run(FAULTS, GLIBC_TUNABLES='glibc.malloc.hugetlb=0').split()
  assert state == 'off'
  assert float(faults) > 20_000


def test_other_tunables_stay_and_the_process_starts_again_once():
  code = """
import os, sys
from esvit_jax.run import startup
startup._can_use_huge_pages = lambda: True
print('started', os.environ.get('GLIBC_TUNABLES'), flush=True)
startup.use_huge_pages()
print('goes on')
"""
  assert run(code, GLIBC_TUNABLES='glibc.malloc.check=0').splitlines() == [
    'started glibc.malloc.check=0',
    'started glibc.malloc.check=0:glibc.malloc.hugetlb=1',
    'goes on',
  ]


@pytest.mark.parametrize(
  'change',
  [
    {'platform': 'darwin'},
    {'libc': 'glibc 2.34'},
    {'libc': None},
    {'JAX_PLATFORMS': 'cuda'},
    {'accelerator': True},
    {'kernel': 'always madvise [never]'},
    {'kernel': None},
  ],
)
def test_where_it_does_not_apply_nothing_happens(change, monkeypatch, tmp_path):
  kernel = tmp_path / 'enabled'
  kernel.write_text('always [madvise] never')
  monkeypatch.setattr(startup, 'TRANSPARENT', str(kernel))
  monkeypatch.setattr(startup, 'ACCELERATORS', ())
  monkeypatch.setattr(sys, 'platform', 'linux')
  monkeypatch.setattr(os, 'confstr', lambda name: 'glibc 2.36')
  monkeypatch.setenv('JAX_PLATFORMS', '')
  monkeypatch.delenv(startup.TUNABLES, raising=False)
  monkeypatch.setattr(os, 'execv', lambda *args: pytest.fail('started again'))
  assert startup._can_use_huge_pages()

  if 'platform' in change:
    monkeypatch.setattr(sys, 'platform', change['platform'])
  if 'libc' in change:
    monkeypatch.setattr(os, 'confstr', lambda name: change['libc'])
  if 'JAX_PLATFORMS' in change:
    monkeypatch.setenv('JAX_PLATFORMS', change['JAX_PLATFORMS'])
  if 'accelerator' in change:
    monkeypatch.setattr(startup, 'ACCELERATORS', (str(kernel),))
  if change.get('kernel'):
    kernel.write_text(change['kernel'])
  elif 'kernel' in change:
    kernel.unlink()
  assert not startup._can_use_huge_pages()
  startup.use_huge_pages()


@pytest.fixture
def cache_settings():
  """Settings of the cache come back after a test."""
  names = [
    'jax_compilation_cache_dir',
    'jax_compilation_cache_max_size',
    'jax_persistent_cache_min_compile_time_secs',
  ]
  before = {name: getattr(jax.config, name) for name in names}
  yield
  for name, value in before.items():
    jax.config.update(name, value)


@pytest.mark.parametrize(
  'directory, variable, kept',
  [
    ('auto', None, '{home}/esvit_jax/xla'),
    ('{home}/here', None, '{home}/here'),
    ('', None, 'off'),
    ('auto', '{home}/there', '{home}/there'),
    ('auto', '', 'off'),
  ],
)
def test_where_programs_are_kept(
  directory, variable, kept, monkeypatch, tmp_path, cache_settings
):
  home = str(tmp_path)
  monkeypatch.setenv('XDG_CACHE_HOME', home)
  monkeypatch.delenv(startup.CACHE_VARIABLE, raising=False)
  if variable is not None:
    monkeypatch.setenv(startup.CACHE_VARIABLE, variable.format(home=home))
  assert startup.keep_programs(directory.format(home=home)) == ''
  expected = kept.format(home=home)
  assert startup.settings()['compilation_cache'] == expected
  if kept != 'off':
    assert os.path.isdir(expected)
    assert jax.config.jax_compilation_cache_max_size == startup.CACHE_BYTES


def test_a_place_that_cannot_be_written_is_left_alone(
  monkeypatch, tmp_path, cache_settings
):
  monkeypatch.delenv(startup.CACHE_VARIABLE, raising=False)
  (tmp_path / 'file').write_text('')
  problem = startup.keep_programs(str(tmp_path / 'file' / 'cache'))
  assert 'Not a directory' in problem and '--compilation_cache' in problem
  assert startup.settings()['compilation_cache'] == 'off'
  monkeypatch.setattr(os, 'access', lambda path, mode: False)
  assert 'not writable' in startup.keep_programs(str(tmp_path / 'cache'))


PROGRAM = """
import sys, warnings, jax, jax.numpy as jnp
from esvit_jax.run import startup
jax.config.update('jax_persistent_cache_min_compile_time_secs', 0)
startup.LEAST_COMPILE_TIME = 0
assert startup.keep_programs(sys.argv[1]) == ''
hits = []
jax.monitoring.register_event_listener(
  lambda name, **_: hits.append(name) if name.endswith('cache_hits') else 0
)
print(float(jax.jit(lambda x: jnp.sin(x).sum())(jnp.arange(8.0))), len(hits))
"""


def test_programs_are_read_again_and_damage_costs_a_warning(tmp_path):
  variables = ('JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS', 'JAX_COMPILATION')
  kept = {k: v for k, v in os.environ.items() if not k.startswith(variables)}

  def values():
    out = subprocess.run(
      [sys.executable, '-c', PROGRAM, str(tmp_path)],
      env=kept | CPU,
      capture_output=True,
      text=True,
      check=True,
    )
    value, hits = out.stdout.split()
    return value, int(hits), out.stderr

  value, hits, _ = values()
  assert hits == 0
  assert values()[:2] == (value, len(list(tmp_path.glob('*-cache'))))
  for file in tmp_path.glob('*-cache'):
    file.write_bytes(b'damaged')
  again, hits, warned = values()
  assert (again, hits) == (value, 0)
  assert 'persistent compilation cache' in warned
