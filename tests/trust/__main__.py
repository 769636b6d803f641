"""The long matrix: what may break, broken on purpose.

  python -m tests.trust --out=docs/trust.md              # all of it
  python -m tests.trust --out=docs/trust.md --part=kills --seed=7

Each part replaces its own row of the table, so that parts can be run apart.
A part exits with 1, and says what, where something is not as it should be.
"""

import argparse
import collections
import io
import json
import math
import os
import pathlib
import platform
import re
import sys
import tempfile
import time
from typing import NamedTuple

from tests.trust import runs


class Row(NamedTuple):
  """A row of the table.

  Attributes:
    part: what was done.
    figure: what came of it.
    wrong: what is not as it should be, a line each.
  """

  part: str
  figure: str
  wrong: list[str]


def kills(folder: pathlib.Path, seed: int, count=50, seconds=math.inf) -> Row:
  from tests.trust import kills

  done = list(kills.results(folder, count, seed, seconds))
  trained = sum(kill.after > 0 for kill in done)
  return Row(
    f'{len(done)} kills (-9) at random moments of {done[-1].run} runs',
    f'{trained} while it trained; all runs went on, and ended with arrays and '
    'metrics equal to the uninterrupted run, byte for byte',
    [],
  )


def faults(folder: pathlib.Path, seed: int, count=200, seconds=math.inf) -> Row:
  from tests.trust import faults

  done = faults.results(folder, count, seed, seconds)
  wrong = [f'{x.fault}: {x.wrong}' for x in done if x.wrong]
  codes = collections.Counter(x.code for x in done)
  errors = ', '.join(sorted({str(x.fault).split()[0] for x in done}))
  return Row(
    f'{len(done)} write faults ({errors} at open, write, fsync, rename, mkdir '
    f'and unlink)',
    f'{codes[0]} did not end the run, {codes[2]} ended it in one line with '
    f'exit code 2 and the same command went on; {len(wrong)} otherwise',
    wrong,
  )


def bombs(folder: pathlib.Path, seed: int) -> Row:
  from tests.trust import bombs

  done, wrong = list(bombs.results(folder)), []
  for name, line, cost in done:
    if not line or '\n' in line or not cost.fair:
      figures = f'{cost.seconds:.2f} s, {cost.megabytes:.0f} MB'
      wrong.append(f'{name}: {line[:200] or "accepted"}; {figures}')
  slowest = max(cost.seconds for *_, cost in done)
  largest = max(cost.megabytes for *_, cost in done)
  return Row(
    f'{len(done)} bombs: images, and files of weights',
    f'{len(done) - len(wrong)} refused in one line, the slowest in '
    f'{slowest:.2f} s, the largest with {largest:.0f} MB',
    wrong,
  )


def descriptions(folder: pathlib.Path, seed: int) -> Row:
  from tests.trust import descriptions

  run = finished(folder)
  place = folder / 'place'
  place.mkdir()
  answers = [
    *descriptions.results(run, place, seed),
    *descriptions.files(folder / 'network.safetensors', place, seed),
  ]
  wrong = [
    f'{what}, {command}: {code}, {said[-300:]}'
    for what, command, code, said in answers
    if not descriptions.clean(code, said)
  ]
  what = {what for what, *_ in answers}
  refused = sum(code == 2 for _, _, code, _ in answers)
  return Row(
    f'{len(what)} broken descriptions, {len(answers)} questions',
    f'{refused} refused in one line with exit code 2, '
    f'{len(answers) - refused - len(wrong)} answered; {len(wrong)} otherwise',
    wrong,
  )


def flips(folder: pathlib.Path, seed: int, count: int = 60) -> Row:
  from tests.trust import flips

  run = finished(folder)
  (folder / 'place').mkdir()
  done = list(flips.results(run, folder / 'place', count, seed))
  kinds = collections.Counter(what for _, what in done)
  wrong = [f'{x}: {y}' for x, y in done if y not in ('refused', 'equal')]
  return Row(
    f'{len(done)} single bits of a checkpoint flipped',
    f'{kinds["refused"]} noticed and the checkpoint before taken, '
    f'{kinds["equal"]} without effect on any array; {len(wrong)} otherwise',
    wrong,
  )


PARTS = {
  'kills': kills,
  'faults': faults,
  'bombs': bombs,
  'descriptions': descriptions,
  'flips': flips,
}


def finished(folder: pathlib.Path) -> pathlib.Path:
  """A finished run with an evaluation, and its network as a file beside it."""
  import jax

  from esvit_jax import train
  from esvit_jax.weights import loading, writing

  jax.config.update('jax_compilation_cache_dir', str(folder / 'cache'))
  run = folder / 'run'
  train.run(
    runs.config(runs.images(folder / 'images')), str(run), io.StringIO()
  )
  (run / 'eval').mkdir()
  (run / 'eval/knn.json').write_text(
    json.dumps(
      {
        'name': 'knn',
        'figures': {'top1': 70.1, 'table': {'a': {'x': 1.0}}},
        'network': 'teacher',
        'config': {'task': 'knn'},
        'run': {'git': 'x'},
      }
    )
  )
  network = loading.load(str(run))
  writing.save(str(folder / 'network.safetensors'), network)
  return run


HEAD = '| what was done | what came of it | seed | took | date | machine |'


def written(path: pathlib.Path, part: str, cells: list[str]) -> None:
  """Puts a row into the table of a Markdown file, in place of its last one."""
  text = path.read_text(encoding='utf-8') if path.exists() else ''
  if HEAD not in text:
    text = f'{text.rstrip()}\n\n{HEAD}\n|---|---|---|---|---|---|\n'.lstrip()
  row = f'| {" | ".join(cells)} | <!-- {part} -->\n'
  old = re.compile(rf'^\|.*<!-- {part} -->\n', re.M)
  if old.search(text):
    text = old.sub(lambda _: row, text)
  else:
    at = text.index(HEAD) + len(HEAD)
    end = re.compile(r'\n(?!\|)').search(text, at)
    at = end.start() + 1 if end else len(text)
    text = text[:at] + row + text[at:]
  path.write_text(text, encoding='utf-8')


def machine() -> str:
  return f'{os.cpu_count()} {platform.machine()} cores, {platform.system()}'


def main() -> int:
  parser = argparse.ArgumentParser(
    'python -m tests.trust', description=__doc__.splitlines()[0]
  )
  parser.add_argument('--out', type=pathlib.Path, default='docs/trust.md')
  parser.add_argument('--part', choices=PARTS, action='append')
  parser.add_argument('--seed', type=int, default=0)
  parser.add_argument('--count', type=int, help='of kills, faults or flips')
  parser.add_argument('--minutes', type=float, help='for kills or faults')
  arguments = parser.parse_args()
  os.environ.update(runs.ENVIRONMENT)
  failed = False
  for part in arguments.part or PARTS:
    began = time.monotonic()
    options = {}
    if arguments.count and part in ('kills', 'faults', 'flips'):
      options['count'] = arguments.count
    if arguments.minutes and part in ('kills', 'faults'):
      options['seconds'] = 60 * arguments.minutes
    with tempfile.TemporaryDirectory() as folder:
      row = PARTS[part](pathlib.Path(folder), arguments.seed, **options)
    minutes = (time.monotonic() - began) / 60
    cells = [row.part, row.figure, str(arguments.seed), f'{minutes:.1f} min']
    cells += [time.strftime('%Y-%m-%d'), machine()]
    written(arguments.out, part, cells)
    print(f'{part}: {row.part}: {row.figure} ({minutes:.1f} min)', flush=True)
    for line in row.wrong:
      print(f'  WRONG {line}', flush=True)
    failed = failed or bool(row.wrong)
  return int(failed)


if __name__ == '__main__':
  sys.exit(main())
