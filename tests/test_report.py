"""report.html tells all that a run directory holds, and needs nothing else."""

import base64
import fcntl
import html.parser
import itertools
import json
import re
import subprocess
import sys
from importlib import resources

import numpy as np
import pytest
from PIL import Image

from esvit_jax import report
from esvit_jax.errors import UserError
from esvit_jax.report import (
  charts,
  commands,
  comparison,
  curves,
  evaluations,
  records,
  tables,
)
from esvit_jax.report.charts import Rule, Series
from esvit_jax.workdir import figures

VOID = {'meta', 'img', 'path', 'line', 'circle'}
EVIL = '<script>alert("1")</script>&\'<img src=x onerror=y>'


class Page(html.parser.HTMLParser):
  """A page taken apart; raises where its tags do not match."""

  def __init__(self, text: str):
    super().__init__()
    self.open, self.tags, self.words = [], [], []
    self.feed(text)
    self.close()
    assert not self.open

  def handle_starttag(self, tag, attrs):
    assert tag not in VOID, f'{tag} is not closed'
    self.open.append(tag)
    self.tags.append((tag, dict(attrs)))

  def handle_startendtag(self, tag, attrs):
    assert tag in VOID
    self.tags.append((tag, dict(attrs)))

  def handle_endtag(self, tag):
    assert self.open.pop() == tag

  def handle_data(self, data):
    if self.open and self.open[-1] not in ('script', 'style'):
      self.words.append(data)

  @property
  def text(self) -> str:
    return ' '.join(' '.join(self.words).split())

  def all(self, tag: str, **attributes) -> list[dict]:
    wanted = {k.rstrip('_'): v for k, v in attributes.items()}
    return [
      found
      for name, found in self.tags
      if name == tag and wanted.items() <= found.items()
    ]


def config(**changes) -> dict:
  c = {
    'method': 'esvit',
    'seed': 0,
    'batch_size': 64,
    'epochs': 4,
    'steps': 100,
    'model': {'name': 'swin', 'dims': [32, 64]},
    'head': {'out_dim': 256},
    'data': {'source': 'embedded'},
    'optim': {'lr': 0.012},
  }
  return c | changes


def lines(steps=100, every=10, best=74.0) -> list[dict]:
  out = [{'step': 0, 'knn/random_init': 70.4, 'knn/raw_pixels': 82.9}]
  for step in range(every, steps + 1, every):
    share = step / steps
    out.append(
      {
        'step': step,
        'train/loss': 5.0 - 3 * share,
        'train/view_loss': 5.2 - 3 * share,
        'train/teacher_entropy': 2.0 + share,
        'train/teacher_kl_uniform': 1.0,
        'train/feature_spread': 0.7,
        'train/lr': 1e-3 * (1.1 - share),
        'train/teacher_temp': 0.04,
        'train/grad_norm': 2.0 - share,
        'train/epoch': step / 25,
        'train/images_per_s': 320.0,
        'train/data_wait': 0.02,
      }
    )
  out[-1] |= {'knn/teacher': best, 'knn/student': 73.0, 'linear/teacher': 76.0}
  out[-1] |= {'train/feature_rank': 15.1}
  return out


def write(folder, config=None, lines=None, origin=None, evaluations=None):
  folder.mkdir(parents=True, exist_ok=True)
  files = {'config.json': config, 'run.json': origin}
  for name, found in (evaluations or {}).items():
    files[f'eval/{name}.json'] = found
  for name, found in files.items():
    if found is not None:
      (folder / name).parent.mkdir(exist_ok=True)
      (folder / name).write_text(json.dumps(found))
  if lines is not None:
    text = ''.join(json.dumps(line) + '\n' for line in lines)
    (folder / 'metrics.jsonl').write_text(text)
  return str(folder)


def png(path, width=30, height=20):
  path.parent.mkdir(exist_ok=True)
  noise = np.random.default_rng(0).integers(0, 256, (height, width, 3))
  Image.fromarray(noise.astype(np.uint8)).save(path)
  return path.read_bytes()


ORIGIN = {
  'command': 'python -m main --config=configs/quickstart.py --workdir=runs/a',
  'git': 'b19da30abcde+',
  'versions': {'jax': '0.10.2', 'numpy': '2.3.1'},
  'devices': '8 cpu',
}


@pytest.fixture
def run(tmp_path):
  folder = tmp_path / 'night'
  evaluations = {
    'knn': {'name': 'knn', 'figures': {'top1': 74.25, 'k': 20}},
    'probe': {
      'name': 'linear probe',
      'figures': {'top1': 75.5, 'table': [{'lr': 0.1, 'top1': 75.5}]},
      'config': {'probe': {'label_fraction': 0.1}},
    },
  }
  write(folder, config(), lines(), ORIGIN, evaluations)
  for name in ('views', 'matches', 'by_hand'):
    png(folder / 'pictures' / f'{name}.png')
  (folder / 'unreadable.txt').write_text('train/a.jpg\ttruncated\n')
  return folder


def built(*folders, **options) -> Page:
  path = report.build([str(x) for x in folders], **options)
  with open(path, encoding='utf-8') as f:
    return Page(f.read())


# A whole page


def test_a_run_is_told_from_its_title_to_what_comes_next(run):
  page = built(run)
  assert report.build([str(run)]) == str(run / 'report.html')
  told = [
    'finished, 100 steps',
    'night',
    'configs/quickstart.py · esvit · swin · embedded',
    '74.0 %',
    'teacher; untrained network 70.4, raw pixels 82.9',
    '15.1',
    '0:20',  # 100 steps of 64 images at 320 a second
    'Healthy : loss 2.6, chance 5.55',
    'Constant throughout: feature spread 0.7, temperature of the teacher 0.04',
    'linear probe',
    '75.5',
    'label_fraction 0.1',
    'b19da30abcde+',
    'jax 0.10.2, numpy 2.3.1',
    '8 cpu',
    'Config: all 10 fields',
    '0.012',
    'train/a.jpg: truncated',
    ORIGIN['command'],
    f'--config=configs/eval/knn.py --config.checkpoint={run}',
    f'python -m esvit_jax.convert {run} {run}.safetensors',
  ]
  at = 0
  for words in told:  # in this order
    found = page.text.find(words, at)
    assert found >= 0, f'{words!r} is not in {page.text[at:]}'
    at = found


def test_pictures_stand_in_the_page_whole(run):
  images = built(run).all('img')
  given = [run / f'pictures/{x}.png' for x in ('views', 'matches', 'by_hand')]
  assert len(images) == len(given)
  for image, path in zip(images, given):
    kind, _, data = image['src'].partition(',')
    assert kind == 'data:image/png;base64'
    assert base64.b64decode(data) == path.read_bytes()
    assert (image['width'], image['height']) == ('30', '20')
  assert images[0]['alt'].startswith('What the network sees. A row for each')
  assert images[2]['alt'] == 'by_hand.png'


@pytest.mark.parametrize('count', [1, 2])
def test_a_page_loads_nothing(run, tmp_path, count):
  other = write(tmp_path / 'other', config(seed=1), lines())
  path = report.build([str(run), other][:count])
  with open(path, encoding='utf-8') as f:
    text = f.read()
  page = Page(text)
  assert not re.search(r'https?:|@import|\burl\(', text)
  assert not page.all('link') and not page.all('iframe')
  for _, attributes in page.tags:
    for name in ('src', 'href', 'srcset', 'action', 'data', 'poster'):
      value = attributes.get(name) or '#'
      assert value.startswith(('#', 'data:image/png;base64,'))
  policy = page.all('meta', **{'http-equiv': 'Content-Security-Policy'})
  assert "default-src 'none'" in policy[0]['content']


@pytest.mark.parametrize('count', [1, 2])
def test_a_page_can_be_read_without_eyes(run, tmp_path, count):
  other = write(tmp_path / 'other', config(seed=1), lines())
  page = built(*[run, other][:count])
  assert page.all('html')[0]['lang'] == 'en'
  assert len(page.all('h1')) == len(page.all('main')) == 1
  for image in page.all('img'):
    assert image['alt']
  for svg in page.all('svg'):
    assert svg['role'] == 'img' and 'step 100' in svg['aria-label']
  for th in page.all('th'):
    assert th['scope'] in ('row', 'col')
  ids = [a['id'] for _, a in page.tags if 'id' in a]
  assert len(set(ids)) == len(ids)
  targets = [a['href'].removeprefix('#') for a in page.all('a')]
  assert set(targets) <= set(ids)
  assert page.all('meta', name='viewport')


def test_nothing_of_the_user_is_markup(tmp_path):
  folder = tmp_path / EVIL.replace('/', '')
  evaluation = {
    'name': EVIL,
    'figures': {EVIL: EVIL, 'table': [{EVIL: EVIL}], 'nested': {EVIL: 1}},
    EVIL: EVIL,
    'how': {EVIL: [EVIL]},
  }
  origin = {'command': EVIL, EVIL: EVIL, 'versions': {EVIL: EVIL}}
  measured = [line | {EVIL: i} for i, line in enumerate(lines())]
  settings = config(method=EVIL, **{EVIL: {EVIL: [EVIL]}})
  write(folder, settings, measured, origin, {'a': evaluation})
  png(folder / 'pictures' / (EVIL.replace('/', '') + '.png'))
  (folder / 'unreadable.txt').write_text(f'{EVIL}\t{EVIL}\n')
  other = write(tmp_path / 'b', config(method=EVIL * 2), measured)
  for page in (built(folder), built(folder, other)):
    assert len(page.all('script')) == 1
    assert not page.all('img', src='x')
    assert not any('onerror' in a for _, a in page.tags)
    assert page.text.count(EVIL) >= 3


def test_names_of_files_need_not_be_unicode(tmp_path):
  folder = tmp_path / 'run'
  write(folder, {'name': '\ud800'}, lines())
  (folder / 'unreadable.txt').write_bytes(b'a\xff.jpg\tbroken\n')
  assert 'a�.jpg: broken' in built(folder).text


def test_the_newest_pages_replace_the_old(run):
  before = built(run).text
  write(run, lines=lines(best=79.5))
  after = built(run).text
  assert '74.0 %' in before and '79.5 %' in after and '74.0 %' not in after
  assert not list(run.glob('*.tmp'))


def test_long_runs_are_small_pages(tmp_path):
  many = lines(steps=100_000)
  for i, line in enumerate(many[1:]):
    line['train/loss'] += np.sin(i)
  folder = write(tmp_path / 'long', config(steps=100_000), many)
  page = report.build([folder])
  with open(page, encoding='utf-8') as f:
    assert len(f.read()) < 200_000


def test_a_page_is_built_without_jax(run):
  code = (
    'import sys; from esvit_jax import report\n'
    f'report.build([{str(run)!r}])\n'
    "print({'jax', 'matplotlib', 'PIL'} & set(sys.modules))"
  )
  done = subprocess.run(
    [sys.executable, '-c', code], capture_output=True, text=True, check=True
  )
  assert done.stdout.strip() == 'set()'


def test_commands_name_configs_that_there_are(run):
  root = resources.files('esvit_jax') / '..'
  texts = [x.text for x in commands.of_run(records.read(str(run)))]
  named = re.findall(r'configs/eval/\w+\.py', ' '.join(texts))
  assert len(named) == 3
  assert all((root / name).is_file() for name in named)


def test_paths_in_commands_survive_a_shell(tmp_path):
  folder = write(tmp_path / "it's mine", config(), lines())
  quoted = f"""'{tmp_path}/it'"'"'s mine'"""
  assert f'--config.checkpoint={quoted}' in built(folder).text


# What may be missing


@pytest.mark.parametrize(
  'given, says',
  [
    ({'config': config()}, 'Nothing was measured yet.'),
    ({'config': config()}, 'Nothing was reported yet.'),
    ({'config': config()}, 'None yet: they are drawn'),
    ({'config': config()}, 'that takes labels and a test split'),
    ({'config': config()}, 'not trained'),
    ({'config': config()}, 'run.json, with revision'),
    ({'config': config()}, 'give the same command as before'),
    ({'lines': lines()}, 'config.json is not there.'),
    ({'lines': lines()}, 'stopped at step 100'),
    ({'lines': lines()[:1]}, '70.4'),
    ({'evaluations': {'knn': {'figures': {'top1': 7.5}}}}, 'knn'),
    ({'evaluations': {'knn': {'figures': None}}}, 'knn'),
    ({'evaluations': {'knn': {'figures': [1, 2]}}}, '1, 2'),
    ({'lines': [{'step': 1, 'train/loss': None}]}, 'no finite loss yet'),
  ],
)
def test_what_is_missing_is_said(tmp_path, given, says):
  page = built(write(tmp_path / 'a', **given))
  assert says in page.text
  both = built(write(tmp_path / 'b', config(), lines()), tmp_path / 'a')
  assert '2 runs compared' in both.text


def test_a_picture_that_is_being_drawn_waits_for_the_next_page(run):
  views = run / 'pictures/views.png'
  views.write_bytes(views.read_bytes()[:-20])
  page = built(run)
  assert len(page.all('img')) == 2
  assert 'views.png is not a whole PNG file.' in page.text


def test_a_line_that_is_being_written_waits_for_the_next_page(run):
  with open(run / 'metrics.jsonl', 'a') as f:
    f.write('{"step": 110, "train/lo')
  assert records.read(str(run)).step == 100


@pytest.mark.parametrize(
  'name, text, says',
  [
    ('config.json', '{"a": ', 'config.json is not JSON'),
    ('run.json', '[]', 'run.json is not a JSON object'),
    ('eval/knn.json', 'oh', 'knn.json is not JSON'),
  ],
)
def test_a_broken_file_is_one_line(run, name, text, says):
  (run / name).write_text(text)
  with pytest.raises(UserError, match=says) as error:
    report.build([str(run)])
  assert str(run / name) in str(error.value)
  assert '\n' not in str(error.value)
  assert not (run / 'report.html').exists()


@pytest.mark.parametrize(
  'line', ['nono', '{"step": 1e999}', '{"train/loss": 1}', '7', '[' * 10**5]
)
def test_damaged_lines_are_left_out_and_said(run, line, capsys):
  path = run / 'metrics.jsonl'
  sound = records.read(str(run)).lines
  first, *rest = path.read_text().splitlines(keepends=True)
  path.write_text(''.join([first, line + '\n', *rest]))
  assert records.read(str(run)).lines == sound
  said = capsys.readouterr().err
  assert said.startswith(f'1 lines of {path}') and said.count('\n') == 1


def test_what_is_no_run_is_one_line(tmp_path):
  for given, says in (
    ([], 'no run to report'),
    ([str(tmp_path / 'nowhere')], 'no run directory'),
    ([str(tmp_path)], 'is no run directory'),
  ):
    with pytest.raises(UserError, match=says):
      report.build(given)


def test_a_page_that_cannot_be_written_is_one_line(run):
  with pytest.raises(UserError, match='cannot write /proc/x/y'):
    report.build([str(run)], '/proc/x/y.html')


# What a record knows


def test_status_follows_steps_and_lock(tmp_path):
  def status(**options):
    return records.read(str(tmp_path), **options).status[1]

  write(tmp_path, config(steps=400), lines())
  assert status() == 'stopped at step 100 of 400'
  assert status(running=True) == 'running, step 100 of 400'
  with open(tmp_path / '.lock', 'w') as f:
    fcntl.flock(f, fcntl.LOCK_EX)
    assert status() == 'running, step 100 of 400'
    assert status(running=False) == 'stopped at step 100 of 400'
  assert status() == 'stopped at step 100 of 400'
  write(tmp_path, config(steps=0, epochs=8))  # 25 steps an epoch
  assert status() == 'stopped at step 100 of 200'
  write(tmp_path, config(steps=0, epochs=4))
  assert status() == 'finished, 100 steps'


def test_time_is_the_sum_over_all_reports(tmp_path):
  measured = [
    {'step': 10, 'train/images_per_s': 64.0},
    {'step': 10, 'knn/teacher': 50.0},
    {'step': 30, 'train/images_per_s': 32.0},
  ]
  run = records.read(write(tmp_path, config(), measured))
  assert run.seconds() == pytest.approx(10 + 40)


def test_the_student_is_judged_where_there_is_no_teacher(tmp_path):
  measured = [{'step': 0, 'knn/random_init': 40.0}, {'step': 9}]
  measured[1]['knn/student'] = 61.0
  run = records.read(write(tmp_path, config(method='mae'), measured))
  assert run.headline()[0] == ('k-NN', 61.0, '%', 'student; ' + UNTRAINED)


UNTRAINED = 'untrained network 40.0'


def test_chance_is_of_the_method(tmp_path):
  def chance(**given):
    return records.read(write(tmp_path, **given)).chance

  assert chance(config=config()) == pytest.approx(np.log(256))
  assert chance(config=config(method='mae')) is None
  assert chance(config=config(), origin={'chance': 0.9}) == 0.9
  assert chance(config=config(), origin={'chance': None}) is None


def test_metrics_without_a_panel_get_one(tmp_path):
  measured = [
    {'step': i, 'train/l1_loss': i, 'probe/student': i, 'probe/random_init': 9}
    for i in range(3)
  ]
  page = built(write(tmp_path, config(), measured))
  said = [svg['aria-label'] for svg in page.all('svg')]
  assert any(x.startswith('l1 loss up to step 2: l1 loss') for x in said)
  assert any(x.startswith('probe, % up to step 2: student') for x in said)


# Comparisons


def test_runs_stand_side_by_side(run, tmp_path):
  settings = config(seed=1, optim={'lr': 0.02, 'b1': 0.8})
  origin = ORIGIN | {'git': 'aaaaaaaaaaaa', 'host': 'elsewhere'}
  other = write(tmp_path / 'day', settings, lines(best=77.5), origin)
  assert report.build([str(run), other]) == str(tmp_path / 'comparison.html')
  page = built(run, other)
  _, _, figures = page.text.partition('The newest figures of each run')
  assert '74.0 %' in figures and '77.5 %' in figures
  legend = 2 * len(page.all('svg')) + 2
  assert len(page.all('i', class_='s0') + page.all('i', class_='s1')) == legend
  _, _, differ = page.text.partition('Fields that are not the same in all')
  words = differ.split()[: differ.split().index('Built')]
  expected = (
    'field night day seed 0 1 optim.lr 0.012 0.02 optim.b1 – 0.8 '
    'git b19da30abcde+ aaaaaaaaaaaa'
  )
  assert words == expected.split()


def best(runs) -> list[str]:
  cells = [x for row in comparison.headline(runs).rows for x in row[1:]]
  return [x.text for x in cells if isinstance(x, tables.Cell) and x.best]


def test_the_best_score_is_bold_unless_all_are_alike(tmp_path):
  folders = [
    write(tmp_path / name, config(), lines(best=best))
    for name, best in (('a', 71.0), ('b', 75.0))
  ]
  runs = [records.read(x) for x in folders]
  assert best(runs) == ['75.0 %']
  with open(report.build(folders), encoding='utf-8') as f:
    assert re.findall('<strong>(.*?)</strong>', f.read()) == ['75.0 %']
  same = [records.read(folders[0]), records.read(folders[0])]
  assert not best(same)


def test_runs_of_one_name_are_told_apart(tmp_path):
  folders = [
    write(tmp_path / x, config(), lines()) for x in ('a/x', 'b/x', 'b/y')
  ]
  runs = comparison.distinct([records.read(x) for x in folders])
  assert [x.name for x in runs] == ['a/x', 'b/x', 'b/y']


def test_runs_that_are_the_same_say_so(tmp_path):
  a = write(tmp_path / 'a', config(), lines())
  b = write(tmp_path / 'b', config(), lines())
  page = built(a, b, out=str(tmp_path / 'both.html'))
  assert 'Their configs are the same.' in page.text


# Charts


def pixels(path: str) -> np.ndarray:
  """Corners of a curve, [N, 2]."""
  words = re.split('[ML]', path.replace('h0', ''))[1:]
  return np.array([x.split() for x in words], float)


def drawn(*args) -> charts.Line:
  """The only curve of a chart."""
  (line,) = charts.chart(*args).lines
  return line


def test_a_straight_line_is_drawn_straight():
  points = [(10 * i, 2.0 * i) for i in range(11)]
  xy = pixels(drawn('x', [Series('x', points)], 'zero').path)
  right, bottom = charts.WIDTH - charts.RIGHT, charts.HEIGHT - charts.BOTTOM
  np.testing.assert_allclose(xy[0], (charts.LEFT, bottom))
  assert xy[-1, 0] == right
  for steps in np.diff(xy, axis=0).T:
    np.testing.assert_allclose(steps, steps[0], atol=0.11)
  powers = [(x, 10.0**x) for x in range(5)]
  xy = pixels(drawn('x', [Series('x', powers)], 'log').path)
  np.testing.assert_allclose(np.diff(xy[:, 1]), xy[1, 1] - xy[0, 1], atol=0.11)


@pytest.mark.parametrize('axis', ['zero', 'fit', 'log'])
@pytest.mark.parametrize(
  'values',
  [
    [0.0],
    [7.0, 7.0],
    [-3.0, 2.0],
    [1e-7, 3e-7, 5e-320],
    [3e38, 1.0, None, 2.0],
    [0.9999, 0.99991],
    [1e-4, 1e5],
  ],
)
def test_all_curves_stay_in_their_box(axis, values):
  figure = charts.chart('x', [Series('x', list(enumerate(values)))], axis)
  shown = [x for x in values if x is not None]
  if axis == 'log':
    shown = [x for x in shown if x > charts.TINY]
  if not shown:
    assert figure is None
    return
  xy = pixels(figure.lines[0].path)
  assert len(xy) == len(shown)
  assert (xy[:, 1] >= charts.TOP).all()
  assert (xy[:, 1] <= charts.HEIGHT - charts.BOTTOM).all()
  assert (xy[:, 0] >= charts.LEFT).all()
  assert (xy[:, 0] <= charts.WIDTH - charts.RIGHT).all()
  assert len(figure.values) >= 2


def test_gaps_stay_gaps():
  points = [(0, 1.0), (1, None), (2, 3.0), (3, 2.0), (4, None)]
  path = drawn('x', [Series('x', points)]).path
  assert re.sub('[^MLh]', '', path) == 'MhML'
  assert charts.chart('x', [Series('x', [(0, None)])]) is None


def test_long_curves_keep_their_peaks_and_ends():
  rng = np.random.default_rng(0)
  values = rng.normal(size=20_000)
  values[777], values[12_345] = 50, -60
  points = list(enumerate(values.tolist()))
  kept = charts.thinned(points)
  assert len(kept) <= 2 * charts.BUCKETS + 2
  assert kept[0] == points[0] and kept[-1] == points[-1]
  assert {(777, 50.0), (12_345, -60.0)} <= set(kept)
  assert [x for x, _ in kept] == sorted(x for x, _ in kept)
  assert set(kept) <= set(points)


def test_noisy_curves_have_a_trend_in_their_middle():
  rng = np.random.default_rng(0)
  noisy = [(i, 3 + 0.001 * i + rng.normal()) for i in range(5000)]
  steps, values = np.array(charts.trend(noisy)).T
  np.testing.assert_allclose(values, 3 + 0.001 * steps, atol=0.6)
  assert not drawn('x', [Series('x', noisy[:100])]).trend
  # It is drawn where half of the values are below, not half of the peaks.
  skew = [(i, float(np.exp(rng.normal()))) for i in range(20_000)]
  line = pixels(drawn('x', [Series('x', skew)]).trend)[:, 1]
  scale = charts.value_scale([y for _, y in skew], 'fit')
  height = charts.HEIGHT - charts.TOP - charts.BOTTOM
  expected = charts.HEIGHT - charts.BOTTOM - scale(1.0) * height
  np.testing.assert_allclose(line, expected, atol=1)


def test_the_table_of_figures_has_evaluations_and_the_last_step(tmp_path):
  many = lines(steps=10_000)
  for line in many[37:100:20]:
    line['knn/teacher'] = float(line['step'])
  run = records.read(write(tmp_path, config(), many))
  rows = [cell for row in curves.numbers(run).rows for cell in row]
  assert rows.count('10,000') == 1
  for line in many[37:100:20]:
    assert f'{line["step"]:,}' in rows
  assert rows.count('0.04') < 60


@pytest.mark.parametrize('seed', range(20))
def test_ticks_are_few_round_and_inside(seed):
  rng = np.random.default_rng(seed)
  low = rng.normal() * 10.0 ** rng.integers(-6, 6)
  high = low + 10.0 ** rng.uniform(-6, 6)
  found = np.array(charts.ticks(low, high))
  assert 2 <= len(found) <= 7
  step = found[1] - found[0]
  assert found[0] >= low - 1e-6 * step and found[-1] <= high + 1e-6 * step
  digits = step / 10.0 ** np.floor(np.log10(step) + 1e-6)
  assert np.isclose(digits, [1, 2, 5], rtol=1e-3).any()
  np.testing.assert_allclose(found / step, np.round(found / step), atol=1e-3)


@pytest.mark.parametrize('low, high', [(0.5, 0.7), (1, 1e6), (0.2, 30)])
def test_ticks_of_a_logarithm_are_few_and_inside(low, high):
  found = charts.log_ticks(low, high)
  assert 2 <= len(found) <= 7
  assert low <= min(found) + 1e-6 and max(found) <= high + 1e-6


@pytest.mark.parametrize(
  'number, text',
  [
    (0, '0'),
    (0.25, '0.25'),
    (5e-4, '0.0005'),
    (5e-5, '5e-5'),
    (1.2345e-6, '1.23e-6'),
    (1200, '1,200'),
    (12_500, '12.5k'),
    (999_900, '1M'),
    (1.25e6, '1.25M'),
    (-3.5, '-3.5'),
  ],
)
def test_numbers_are_short(number, text):
  assert charts.short(number) == text


def test_read_outs_have_the_figures_themselves():
  points = [(1_234_567, 0.123456), (1_234_568, None), (1_234_569, 7.0)]
  figure = charts.chart('x', [Series('x', points)])
  assert figure.step == '1,234,569'
  assert figure.lines[0].newest == '7'
  assert figure.lines[0].numbers == '1234567 0.12346 1234569 7'


# Tables and style


def test_like_numbers_of_a_column_have_like_decimals():
  found = tables.table(['', 'a', 'b'], [('x', 70.0, 1e-5), ('y', 69.25, 2.0)])
  assert found.rows == [['x', '70.00', '1e-05'], ['y', '69.25', '2']]
  assert [x.style for x in found.columns] == ['', 'number', 'number']


def colors() -> list[dict]:
  """The variables of report.css: light, then dark."""
  templates = resources.files('esvit_jax.report') / 'templates'
  text = (templates / 'page.css').read_text()
  blocks = re.findall(r':root \{(.*?)\}', text, re.DOTALL)
  found = [dict(re.findall(r'--(\w+): (#\w{6});', x)) for x in blocks]
  assert len(found) == 2 and '(prefers-color-scheme: dark)' in text
  return found


def luminance(color: str) -> float:
  x = np.array([int(color[i : i + 2], 16) / 255 for i in (1, 3, 5)])
  x = np.where(x <= 0.04045, x / 12.92, ((x + 0.055) / 1.055) ** 2.4)
  return float(x @ [0.2126, 0.7152, 0.0722])


@pytest.mark.parametrize('theme', [0, 1])
def test_colours_can_be_read_in_both_themes(theme):
  """WCAG 2.2: 4.5 for text, 3 for lines."""
  found = colors()[theme]
  names = {'ink', 'soft', 'link', 'good', 'wait', 'bad'}
  names |= {f's{i}' for i in range(charts.COLORS)}
  assert names <= set(found) and set(colors()[0]) == set(colors()[1])
  for name in names:
    for ground in ('page', 'card'):
      pair = sorted(luminance(found[x]) for x in (name, ground))
      contrast = (pair[1] + 0.05) / (pair[0] + 0.05)
      least = 3 if re.fullmatch(r's\d', name) else 4.5
      assert contrast >= least, f'{name} on {ground}: {contrast:.2f}'


# Evaluations


@pytest.mark.parametrize(
  'name, text',
  [
    ('top1', 'top-1 accuracy, %'),
    ('top1_k20', 'top-1 accuracy, %, k = 20'),
    ('no_name_yet', 'no_name_yet'),
  ],
)
def test_figures_have_names_with_units(name, text):
  assert figures.title(name) == text


def test_figures_of_blocks_are_rows_not_columns(tmp_path):
  blocks = {f'block{i}': {'entropy': 2.0 + i, 'distance': 30} for i in range(9)}
  evaluation = {'figures': {'same_layer': 1.0, 'attention': blocks}}
  path = write(tmp_path, config(), lines(), None, {'layers': evaluation})
  (found,) = evaluations.of_run(records.read(path))
  table = found.tables[-1]
  assert [x.title for x in table.columns] == ['', 'entropy', 'distance']
  assert [row[0] for row in table.rows] == list(blocks)


def test_compared_runs_show_their_evaluations(tmp_path):
  folders = [
    write(tmp_path / x, config(), lines(), None, {'knn': {'figures': y}})
    for x, y in (('a', {'top1': 71.0}), ('b', {'top1': 72.5, 'top5': 91.0}))
  ]
  _, _, text = built(*folders).text.partition('Evaluations')
  assert 'knn: top-1 accuracy, % 71 72.5' in text
  assert 'knn: top-5 accuracy, % – 91' in text


def test_a_network_has_one_colour_in_all_charts(tmp_path):
  """Whichever of teacher and student was measured first."""
  measured = [
    {'step': i, 'knn/student': i, 'knn/teacher': i, 'linear/student': 1.5 * i}
    for i in range(1, 4)
  ]
  measured[-1]['linear/teacher'] = 7.0
  run = records.read(write(tmp_path, config(), measured))
  for chart in curves.of_run(run).charts:
    styles = {x.label: x.style for x in chart.lines}
    assert styles == {'teacher': 's0', 'student': 's1'}
    # Where their dots lie on one another, both are seen.
    first, second = (x.dot_size for x in chart.lines)
    assert first > second


def test_accuracies_of_fine_tuning_share_a_chart(tmp_path):
  measured = [
    {'step': i, 'train/accuracy': 10.0 * i, 'accuracy/student': 9.0 * i}
    for i in range(1, 4)
  ]
  run = records.read(write(tmp_path, config(), measured))
  (chart,) = curves.of_run(run).charts
  assert chart.title == 'accuracy, %'
  assert {x.label for x in chart.lines} == {'student', 'training batches'}
  assert len({x.style for x in chart.lines}) == 2


def test_the_loss_of_the_tile_is_that_of_the_verdict(tmp_path):
  measured = lines()
  measured[-1]['train/loss'] = 9.0
  run = records.read(write(tmp_path, config(), measured))
  loss = next(x for x in run.headline() if x.label == 'loss')
  assert any(f'loss {loss.text}' in line for line in run.verdict())


def test_compared_runs_have_baselines_in_their_charts(tmp_path):
  a = write(tmp_path / 'a', config(), lines())
  other = lines()
  other[0]['knn/random_init'] = 60.0
  b = write(tmp_path / 'b', config(), other)
  runs = [records.read(x) for x in (a, b)]
  knn = next(x for x in curves.of_runs(runs) if x.title.startswith('k-NN'))
  rules = [(label, style) for *_, label, style in knn.rules]
  assert rules.count(('raw pixels', '')) == 1  # the same in both
  assert {style for _, style in rules} == {'', 's0', 's1'}


def test_labels_of_rules_and_steps_do_not_collide():
  close = [Rule(80.0, 'raw pixels'), Rule(79.9, 'untrained network')]
  points = [(0, 50.0), (1_250_000, 81.0)]
  chart = charts.chart('x', [Series('x', points)], 'fit', close)
  (_, first, side, *_), (_, second, *_) = chart.rules
  assert side == 'left'  # the curve ends close to it
  assert abs(first - second) >= charts.LINE - 1
  places = [x.place for x in chart.steps]
  width = charts.LETTER * max(len(x.text) for x in chart.steps)
  assert all(b - a > width for a, b in itertools.pairwise(places))


# Commands


@pytest.mark.parametrize(
  'settings, devices, says',
  [
    ({}, '1 cpu', 'finetune.py:embedded'),
    ({}, '8 NVIDIA H100', 'own.py'),
    ({'data': {'source': 'folder:x'}}, '8 NVIDIA H100', 'finetune.py:impr'),
    (
      {'method': 'sit', 'data': {'source': 'folder:x'}},
      '1 cpu',
      'finetune.py:deit',
    ),
    ({'method': 'finetune'}, '1 cpu', 'esvit_jax.convert'),
  ],
)
def test_the_next_step_fits_the_run(tmp_path, settings, devices, says):
  origin = ORIGIN | {'devices': devices}
  path = write(tmp_path, config(**settings), lines(), origin)
  assert says in report.next_step(path)


def test_runs_without_labels_are_told_what_needs_none(tmp_path):
  unlabelled = [
    {k: v for k, v in line.items() if k.partition('/')[0] in ('step', 'train')}
    for line in lines()
  ]
  settings = config(data={'source': 'folder:x'})
  path = write(tmp_path, settings, unlabelled, ORIGIN)
  texts = [x.text for x in commands.of_run(records.read(path))]
  assert not any('knn.py' in x or 'probe.py' in x for x in texts)
  assert 'configs/eval/embedding.py' in report.next_step(path)
