"""report.html: a run, or several, as one page that needs nothing else.

  from esvit_jax import report
  report.build(['runs/quickstart'])            # runs/quickstart/report.html
  report.build(['runs/a', 'runs/b'])           # runs/comparison.html
  report.stages(['runs/c/pretrain', 'runs/c/finetune'], 'runs/c/report.html')

It reads the directories only, so any run can be shown at any time.
"""

import base64
import os
import re
import shlex
import struct
import time
from collections.abc import Sequence
from importlib import resources

from esvit_jax.errors import UserError
from esvit_jax.report import comparison, curves, evaluations, records
from esvit_jax.report.markup import (
  Markup,
  element,
  facts,
  fields,
  join,
)
from esvit_jax.report.records import Record

# What to do with a run in {run}; {recipe} is for images like its own.
COMMANDS = (
  (
    'Evaluate: k nearest neighbours',
    'python -m main --config=configs/eval/knn.py --config.checkpoint={run}',
  ),
  (
    'Evaluate: linear probe',
    'python -m main --config=configs/eval/probe.py --config.checkpoint={run}',
  ),
  (
    'Fine-tune',
    'python -m main --config=configs/eval/finetune.py:{recipe} '
    '--config.checkpoint={run} --workdir={run}_finetuned',
  ),
  (
    'Export in the published layout',
    'python -m esvit_jax.convert {run} {run}.safetensors',
  ),
  ('Build this page again', 'python -m main --mode=report --workdir={run}'),
)
# File name -> title and what is seen, in this order.
CAPTIONS = {
  'views': (
    'What the network sees',
    'A row for each image, its views as they enter the network.',
  ),
  'reconstruction': (
    'Reconstruction',
    'The image, what was left of it, and what the network made of that.',
  ),
  'corrupted': (
    'Corruption',
    'The image, what the student sees of it, and what it made of that.',
  ),
  'matches': (
    'Matched regions',
    'Regions of two views of one image whose features are most alike.',
  ),
  'attention': (
    'Attention',
    'Where the heads look, from the widest to the narrowest.',
  ),
  'pca': (
    'Regions by colour',
    'The first three principal components of region features as red, green '
    'and blue: what has one colour is one thing to the network.',
  ),
  'neighbours': (
    'Nearest neighbours',
    'The left image, then those whose features are nearest to it; where there '
    'are labels, blue has the same and orange another.',
  ),
  'map': (
    'Map of images',
    'Features in two dimensions: near is alike, distances between far groups '
    'mean little.',
  ),
  'heads': (
    'Heads',
    'How widely (entropy) and how far (distance) they look, layer by layer.',
  ),
  'cka': (
    'Layers compared',
    'Similarity (CKA) of what layers represent: 1 is the same up to a '
    'rotation and a scale.',
  ),
}
LEFT_OUT = {'curves'}  # pictures that the page draws itself
MOST_FILES = 100  # unreadable images that are named
WIDE = 2  # pictures of more than this times their height get a row


def build(
  directories: Sequence[str],
  out: str | None = None,
  running: bool | None = None,
) -> str:
  """Writes the page of one run, or of several side by side.

  Args:
    directories: of runs.
    out: where to write; report.html in the run's directory, or
      comparison.html in the folder that holds all of them.
    running: whether they still train; None sees if a process holds them.

  Returns:
    The path written.

  Raises:
    UserError: a directory is none of a run, a file of it is broken, or `out`
      cannot be written.
  """
  if not directories:
    raise UserError('no run to report: give the --workdir of one or more')
  runs = [records.read(x, running) for x in directories]
  if len(runs) == 1:
    out = out or os.path.join(directories[0], 'report.html')
    text = page(runs[0].name, body(runs[0]))
  else:
    common = os.path.commonpath([os.path.abspath(x) for x in directories])
    out = out or os.path.join(common, 'comparison.html')
    text = page(f'{len(runs)} runs', comparison.body(runs))
  return _write(out, text)


def stages(directories: Sequence[str], out: str) -> str:
  """Writes one page of runs that follow one another, all of each.

  Args:
    directories: of runs, in order.
    out: where to write.

  Returns:
    The path written.

  Raises:
    UserError: as `build`.
  """
  runs = [records.read(x) for x in directories]
  name = os.path.basename(os.path.dirname(os.path.abspath(out)))
  content = join(body(run, f'{run.name}-') for run in runs)
  return _write(out, page(name, content))


def _write(out: str, text: str) -> str:
  part = f'{out}.{os.getpid()}.tmp'  # evaluations may build it meanwhile
  try:
    # Names of files need not be Unicode.
    with open(part, 'w', encoding='utf-8', errors='replace') as f:
      f.write(text)
    os.replace(part, out)
  except OSError as e:
    raise UserError(f'cannot write {out}: {e.strerror}') from e
  return out


def page(title: str, content: Markup) -> str:
  """A whole document; its policy forbids browsers to load anything."""
  here = resources.files('esvit_jax.report')
  style, script = (
    Markup((here / f'report.{x}').read_text(encoding='utf-8'))
    for x in ('css', 'js')
  )
  policy = (
    "default-src 'none'; img-src data:; style-src 'unsafe-inline'; "
    "script-src 'unsafe-inline'"
  )
  head = element(
    'head',
    element('meta', charset='utf-8'),
    element('meta', http_equiv='Content-Security-Policy', content=policy),
    element(
      'meta', name='viewport', content='width=device-width, initial-scale=1'
    ),
    element('title', f'{title} - esvit_jax'),
    element('style', style),
  )
  built = time.strftime('%Y-%m-%d %H:%M')
  foot = element(
    'footer', f'Built {built} by esvit_jax. This file needs no network.'
  )
  main = element('main', content, foot)
  document = element(
    'html', head, element('body', main, element('script', script)), lang='en'
  )
  return f'<!DOCTYPE html>\n{document}\n'


def body(run: Record, within: str = '') -> Markup:
  """All sections of one run, top to bottom; `within` begins their anchors."""
  sections = (
    ('Health', health(run)),
    ('Curves', curves.of_run(run)),
    ('Pictures', pictures(run)),
    ('Evaluations', evaluations.of_run(run)),
    ('What was run', origin(run)),
    ('Unreadable images', unreadable(run)),
    ('What to do next', commands(run)),
  )
  sections = [(name, x) for name, x in sections if x is not None]
  anchors = [within + name.lower().replace(' ', '-') for name, _ in sections]
  return join(
    [
      header(run),
      element(
        'nav',
        [
          element('a', name, href=f'#{anchor}')
          for anchor, (name, _) in zip(anchors, sections)
        ],
        aria_label='Sections',
      ),
      tiles(run),
      [
        element('section', element('h2', name), content, id=anchor)
        for anchor, (name, content) in zip(anchors, sections)
      ],
    ]
  )


def header(run: Record) -> Markup:
  """Name, status, and what it is in one line."""
  config, (color, status) = run.config, run.status
  what = [
    config_name(run),
    config.get('method'),
    config.get('model.name'),
    config.get('data.source'),
  ]
  return element(
    'header',
    element('div', status, class_=f'status {color}'),
    element('h1', run.name),
    element('p', ' · '.join(str(x) for x in what if x), class_='subtitle'),
  )


def config_name(run: Record) -> str | None:
  """Such as 'configs/quickstart.py', read off the command."""
  found = re.search(r'--config[= ](\S+)', str(run.origin.get('command', '')))
  return found[1] if found else None


def tiles(run: Record) -> Markup | None:
  """The headline: one large number each."""
  cells = []
  for x in run.headline():
    if x.value is None:
      continue
    number = [x.text, element('small', x.sign) if x.sign else None]
    cells.append(
      element(
        'div',
        element('dt', x.label),
        element('dd', number, class_='figure'),
        element('dd', x.note, class_='note') if x.note else None,
      )
    )
  return element('dl', cells, class_='tiles') if cells else None


def health(run: Record) -> Markup:
  """The verdict in words, the gravest first."""
  lines = run.verdict()
  if not lines:
    return element('p', 'Nothing was reported yet.', class_='soft')
  return join(verdict(line) for line in lines)


def verdict(line: str) -> Markup:
  """One line of a verdict, its finding in the colour of what it means."""
  finding, _, said = line.partition(': ')
  color = {'healthy': 'good', 'too early to say': 'wait'}.get(finding, 'bad')
  return element(
    'p',
    element('strong', finding.capitalize()),
    element('span', f': {said}' if said else ''),
    class_=f'verdict {color}',
  )


def pictures(run: Record) -> Markup:
  """All pictures with their captions, those of CAPTIONS first."""
  names = {os.path.splitext(os.path.basename(x))[0]: x for x in run.pictures}
  order = [x for x in CAPTIONS if x in names]
  order += [x for x in names if x not in CAPTIONS and x not in LEFT_OUT]
  if not order:
    return element(
      'p',
      'None yet: they are drawn at evaluations.',
      class_='soft',
    )
  figures = []
  for name in order:
    title, caption = CAPTIONS.get(name, (f'{name}.png', ''))
    embedded = _embed(names[name])
    if embedded is None:
      text = f'{name}.png is not a whole PNG file.'
      figures.append(element('p', text, class_='soft'))
      continue
    image, width, height = embedded
    head = [element('h3', title), element('p', caption) if caption else None]
    alt = f'{title}. {caption}' if caption else title
    figures.append(
      element(
        'figure',
        element('figcaption', head),
        element('img', src=image, alt=alt, width=width, height=height),
        class_='picture wide' if width > WIDE * height else 'picture',
      )
    )
  return element('div', figures, class_='pictures')


def _embed(path: str) -> tuple[str, int, int] | None:
  """A picture as a data URL, its width and height; None if it is broken."""
  try:
    with open(path, 'rb') as f:
      data = f.read()
  except OSError:
    return None
  # It may be in the middle of being drawn.
  if data[:8] != b'\x89PNG\r\n\x1a\n' or b'IEND' not in data[-12:]:
    return None
  width, height = struct.unpack('>II', data[16:24])
  url = f'data:image/png;base64,{base64.b64encode(data).decode()}'
  return url, width, height


def origin(run: Record) -> Markup:
  """Where it comes from, and every field of its config."""
  names = {'git': 'git revision', 'command': None}
  rows = [
    (names.get(key, key), x)
    for key, x in run.origin.items()
    if names.get(key, key) and x is not None and key != 'chance'
  ]
  parts = [element('div', facts(rows), class_='facts') if rows else None]
  if not rows:
    text = 'run.json, with revision, versions and devices, is not there.'
    parts.append(element('p', text, class_='soft'))
  if run.config:
    parts.append(
      element(
        'details',
        element('summary', f'Config: all {len(run.config)} fields'),
        fields(run.config),
      )
    )
  else:
    text = 'config.json is not there.'
    parts.append(element('p', text, class_='soft'))
  return join(parts)


def unreadable(run: Record) -> Markup | None:
  """Images that could not be read; None where all could."""
  if not run.corrupt:
    return None
  count = len(run.corrupt)
  shown = [
    element('li', ': '.join(x for x in line.split('\t') if x))
    for line in run.corrupt[:MOST_FILES]
  ]
  more = count - len(shown)
  return join(
    [
      element(
        'p',
        f'{count:,} of the images could not be read; others stood in for '
        'them.' + (f' The first {len(shown)} are:' if more else ''),
      ),
      element('ul', shown, class_='files mono scroll'),
      element('p', f'{more:,} more are in corrupt.txt.') if more else None,
    ]
  )


def commands(run: Record) -> Markup:
  """What can be done with the run, ready to be copied."""
  given = run.origin.get('command')
  if isinstance(given, (list, tuple)):
    given = shlex.join(str(x) for x in given)
  directory = shlex.quote(os.path.normpath(run.directory))
  small = run.config.get('data.source') == 'embedded'
  recipe = 'embedded' if small else 'impr'
  rows = [
    (title, text.format(run=directory, recipe=recipe))
    for title, text in COMMANDS
  ]
  if given:
    finished = run.status[0] == 'finished'
    rows.insert(0, ('Run it again' if finished else 'Resume', given))
  parts = [
    element(
      'div', element('h3', title), element('pre', command), class_='command'
    )
    for title, command in rows
  ]
  if not given:
    text = (
      'To resume, give the same command as before, with the same --workdir.'
    )
    parts.insert(0, element('p', text, class_='soft'))
  return join(parts)
