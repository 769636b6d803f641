"""Broken descriptions: each is answered in one line, and nothing is lost.

A finished run and an exported file are copied, one file of the copy is broken,
and every command that reads it is asked.
"""

import contextlib
import io
import json
import os
import pathlib
import random
import shutil
import struct
import sys
import tempfile
from collections.abc import Callable, Iterator

DEEP = '[' * 100_000 + ']' * 100_000
# What may stand where a value is expected.
ODD = (
  *(None, True, -1, 0, 2**31, 2**63, -(2**63), 10**30, 1e308, -1e308, 1e-320),
  *('', 'x', '\x1b[31m', '\ud800', 'a' * 10_000, [], [[]], {}, {'a': {}}),
  *([None], [1, 'a'], [1e308] * 3, {'': 0}, '\u202eabc', '../../etc', '\0'),
)


def texts(text: str, rng: random.Random) -> Iterator[tuple[str, str]]:
  """(what was done, text) for JSON as a whole."""
  yield 'empty', ''
  yield 'blank', ' \n\n'
  yield 'half', text[: len(text) // 2]
  yield 'zeros', '\0' * len(text)
  yield 'deep', DEEP
  yield 'deep objects', '{"a":' * 5000 + '1' + '}' * 5000
  yield 'a list', '[1, 2]'
  yield 'a number', '7'
  yield 'null', 'null'
  yield 'a string', '"text"'
  yield 'constants', '{"model": NaN, "data": Infinity, "method": -Infinity}'
  yield 'digits', '{"steps": ' + '9' * 5000 + '}'
  yield 'twice', text + text
  yield 'marked', '\ufeff' + text
  for _ in range(4):
    at = rng.randrange(len(text))
    yield f'byte {at}', text[:at] + chr(rng.randrange(128)) + text[at + 1 :]


def values(tree: dict, rng: random.Random, count: int) -> Iterator[tuple]:
  """(what was done, text): values of other types in a JSON object."""
  paths = list(_paths(tree))
  for _ in range(count):
    path, odd = rng.choice(paths), rng.choice(ODD)
    new = json.loads(json.dumps(tree))
    node = new
    for key in path[:-1]:
      node = node[key]
    if rng.random() < 0.2:
      del node[path[-1]]
      odd = 'missing'
    else:
      node[path[-1]] = odd
    name = '.'.join(map(str, path))
    yield f'{name} {str(odd)[:20]!r}', json.dumps(new)


def _paths(tree: dict, prefix=()) -> Iterator[tuple]:
  for key, value in tree.items():
    yield (*prefix, key)
    if isinstance(value, dict):
      yield from _paths(value, (*prefix, key))


def lines(text: str, rng: random.Random) -> Iterator[tuple[str, str]]:
  """(what was done, text) for metrics.jsonl."""
  first, *rest = text.splitlines()
  whole = json.loads(rest[-1])
  inserted = {
    'words': 'this is no JSON',
    'zeros': '\0' * 50,
    'deep': DEEP,
    'no step': '{"train/loss": 1.0}',
    'a step in words': '{"step": "five"}',
    'a huge step': '{"step": 1e308}',
    'a long step': '{"step": ' + '9' * 400 + '}',
    'a list': '[1]',
    'null': 'null',
    'huge losses': json.dumps({'step': 4, 'train/loss': 1e308}),
    'small losses': json.dumps({'step': 4, 'train/loss': -1e308}),
    'constants': '{"step": 4, "train/loss": NaN, "train/lr": Infinity}',
    'lists': '{"step": 4, "train/loss": [1, 2]}',
    'words for numbers': '{"step": 4, "train/loss": "low"}',
    'huge figures': json.dumps(
      {k: 1e308 if k != 'step' else x for k, x in whole.items()}
    ),
    'odd names': '{"step": 4, "\\u001b[31m/<script>": 1.0, "\\ud800": 2}',
  }
  for what, line in inserted.items():
    yield what, '\n'.join([first, line, *rest, ''])
  yield (
    'huge losses in turn',
    '\n'.join(
      json.dumps(
        {'step': i, 'train/loss': 1e308 * (-1) ** i, 'train/lr': 1e308}
      )
      for i in range(40)
    ),
  )
  for _ in range(6):
    at = rng.randrange(len(text))
    yield f'byte {at}', text[:at] + chr(rng.randrange(256)) + text[at + 1 :]


def folders(rng: random.Random) -> Iterator[tuple[str, str]]:
  """(what was done, name) of folders beside the checkpoints."""
  for name in (
    *('²', '007', '-1', '1e3', '9' * 30, ' 5', '٣', '5 ', '3.orbax', '.5'),
    *('caf\udce9', '\x1b[31m', 'a\nb', '18446744073709551616', '0x10'),
  ):
    yield f'checkpoints/{name!r}', name


# What is asked of a harmed run or file


def quiet(call: Callable) -> tuple[int, str]:
  """(exit code, what was said on stderr), as main.py gives them."""
  import main

  with tempfile.TemporaryFile('w+', errors='backslashreplace') as file:
    # Also what threads and libraries write, which know no sys.stderr.
    sys.stderr.flush()
    before = os.dup(2)
    os.dup2(file.fileno(), 2)
    try:
      with (
        contextlib.redirect_stderr(file),
        contextlib.redirect_stdout(io.StringIO()),
      ):
        code = main.guarded(call)
    finally:
      file.flush()
      os.dup2(before, 2)
      os.close(before)
    file.seek(0)
    return code, file.read()


def questions(directory: str) -> dict[str, Callable]:
  """Name -> a command that reads a run."""
  import esvit_jax
  from configs.eval import knn
  from esvit_jax import report
  from esvit_jax.protocols import setup
  from esvit_jax.report import next_step
  from esvit_jax.run import replay
  from esvit_jax.workdir import check

  def evaluate():
    config = knn.get_config()
    config.checkpoint = directory
    setup.prepare(config, directory, io.StringIO())

  def resume():
    with open(f'{directory}/config.sound', encoding='utf-8') as f:
      check(directory, json.load(f))

  return {
    'report': lambda: report.build([directory]),
    'next step': lambda: next_step(directory),
    'load': lambda: esvit_jax.load(directory),
    'evaluate': evaluate,
    'replay': lambda: replay.recompute(directory, io.StringIO()),
    'resume': resume,
  }


def harmed(run: pathlib.Path, seed: int) -> Iterator[tuple[str, str, bytes]]:
  """(what was done, path in the run, new content)."""
  rng = random.Random(seed)
  for name, count in (
    ('config.json', 24),
    ('run.json', 8),
    ('eval/knn.json', 14),
  ):
    text = (run / name).read_text(encoding='utf-8')
    for what, new in texts(text, rng):
      yield f'{name}: {what}', name, new.encode(errors='replace')
    for what, new in values(json.loads(text), rng, count):
      yield f'{name}: {what}', name, new.encode(errors='replace')
    yield f'{name}: not UTF-8', name, b'\xff\xfe' + text.encode('utf-16-le')
  text = (run / 'metrics.jsonl').read_text(encoding='utf-8')
  for what, new in lines(text, rng):
    yield f'metrics.jsonl: {what}', 'metrics.jsonl', new.encode('latin-1')
  for what, name in folders(rng):
    yield what, os.path.join('checkpoints', name, 'state'), b''


def results(run: pathlib.Path, place: pathlib.Path, seed: int = 0) -> Iterator:
  """(what was done, command, exit code, what was said) of each question.

  Args:
    run: a finished run.
    place: an empty folder.
    seed: of what is done.
  """
  copy = place / 'run'
  for what, name, content in harmed(run, seed):
    shutil.copytree(run, copy)
    shutil.copy(copy / 'config.json', copy / 'config.sound')
    path = os.path.join(copy, name)
    os.makedirs(os.path.dirname(path), exist_ok=True)
    with open(path, 'wb') as f:
      f.write(content)
    for command, ask in questions(str(copy)).items():
      yield (what, command, *quiet(ask))
    shutil.rmtree(copy)


def files(source: pathlib.Path, place: pathlib.Path, seed: int = 0) -> Iterator:
  """As `results`, of the metadata of an exported safetensors file."""
  import esvit_jax

  data = source.read_bytes()
  length = struct.unpack('<Q', data[:8])[0]
  header = json.loads(data[8 : 8 + length])
  about = json.loads(header['__metadata__']['esvit_jax'])
  text, rng = json.dumps(about), random.Random(seed)
  for what, new in (*texts(text, rng), *values(about, rng, 40)):
    header['__metadata__']['esvit_jax'] = new
    raw = json.dumps(header).encode(errors='replace')
    path = place / 'harmed.safetensors'
    path.write_bytes(struct.pack('<Q', len(raw)) + raw + data[8 + length :])
    ask = lambda: esvit_jax.load(str(path))  # noqa: B023, E731
    yield (f'metadata: {what}', 'load', *quiet(ask))


def clean(code: int, said: str) -> bool:
  """Whether an answer is one a user can live with.

  Either the command did its work, with lines of notes at most; or it ended in
  one line and with 2.
  """
  if 'Traceback' in said or any(x in said for x in '\x1b\0'):
    return False
  errors = [x for x in said.splitlines() if x.startswith('error: ')]
  return (code, len(errors)) in ((0, 0), (2, 1)) and len(said) < 2000
