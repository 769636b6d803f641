"""Who may import whom: data flows one way through the house."""

import ast
import graphlib
import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parent.parent
STANDARD = sys.stdlib_module_names

# room -> (rooms it may import, packages it may import). `errors` is open to
# all, and so is the standard library. Arrows run down only: a room imports
# rooms that stand below it in this table.
LAW = {
  'main': (
    'experiment train plan bench evaluate report run workdir sharding',
    'absl jax ml_collections',
  ),
  '__init__': ('weights', ''),
  'experiment': ('evaluate train bench analysis workdir', ''),
  'bench': (
    'run protocols evals workdir augment state sharding',
    'jax numpy optax',
  ),
  'plan': ('run workdir augment data state sharding', 'jax numpy'),
  'evaluate': ('protocols report workdir', ''),
  'protocols': (
    'train report analysis run methods detection dense evals weights workdir '
    'augment models data state sharding',
    'jax numpy',
  ),
  'train': ('run workdir data state sharding', 'jax'),
  'run': (
    'report analysis methods evals weights workdir augment models optim data '
    'state sharding',
    'jax numpy flax optax ml_collections',
  ),
  'report': ('workdir', 'jinja2'),
  'analysis': (
    'evals models workdir data sharding',
    'jax numpy scipy matplotlib sklearn threadpoolctl',
  ),
  'convert': ('weights workdir', ''),
  'methods': (
    'dense detection losses augment models schedules state',
    'jax numpy flax',
  ),
  'dense': ('augment models', 'jax numpy scipy'),
  'detection': ('', 'jax numpy pycocotools'),
  'evals': ('augment models data sharding', 'jax numpy optax'),
  'weights': ('models workdir state', 'jax numpy flax safetensors'),
  'losses': ('models', 'jax numpy'),
  'augment': ('', 'jax numpy'),
  'models': ('', 'jax numpy flax'),
  'workdir': ('state', 'jax numpy clu orbax rich'),
  'data': (
    '',
    'numpy scipy grain tensorflow_datasets PIL simplejpeg tifffile imagecodecs '
    'pillow_heif pyarrow array_record pycocotools',
  ),
  'optim': ('schedules', 'jax numpy optax'),
  'schedules': ('', 'jax numpy'),
  'state': ('', 'jax numpy optax'),
  'sharding': ('', 'jax numpy'),
  'errors': ('', ''),
  'configs': ('', 'ml_collections'),
}
# Packages of one place only; all others do without.
OWNED = {
  'orbax': 'workdir.checkpoint',
  'grain': 'data',
  'tensorflow_datasets': 'data',
  'PIL': 'data',
  'simplejpeg': 'data',
  'tifffile': 'data',
  'imagecodecs': 'data',
  'pillow_heif': 'data',
  'pyarrow': 'data.parquet',
  'array_record': 'data',
  'clu': 'workdir.metrics',
  'rich': 'workdir.terminal',
  'matplotlib': 'analysis.plots',
  'jinja2': 'report',
  'tensorflow': None,
  'torch': None,
  'timm': None,
  'transformers': None,
}
# Imported where they are used, so that runs without them need not have them.
LAZY = {
  *('grain', 'tensorflow_datasets', 'PIL', 'simplejpeg', 'clu'),
  *('tifffile', 'imagecodecs', 'pillow_heif', 'pyarrow', 'array_record'),
  'pycocotools',
}


def files():
  return [
    ROOT / 'main.py',
    *sorted(ROOT.glob('esvit_jax/**/*.py')),
    *sorted(ROOT.glob('configs/**/*.py')),
  ]


def room(file: pathlib.Path) -> str:
  """The first name below esvit_jax, or 'main', or 'configs'."""
  parts = file.relative_to(ROOT).with_suffix('').parts
  return parts[1] if parts[0] == 'esvit_jax' else parts[0]


def name(file: pathlib.Path) -> str:
  """'esvit_jax/data/tfds.py' -> 'esvit_jax.data.tfds'."""
  parts = file.relative_to(ROOT).with_suffix('').parts
  return '.'.join(parts).removesuffix('.__init__')


def imports(file: pathlib.Path) -> list[tuple[str, str | None]]:
  """(module, name of the function it is imported in) for each import."""
  found = []

  def visit(node, function):
    if isinstance(node, ast.Import):
      found.extend((alias.name, function) for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
      assert node.level == 0, f'{file}: imports are absolute'
      ours = node.module.partition('.')[0] in ('esvit_jax', 'configs')
      for alias in node.names:
        full = f'{node.module}.{alias.name}' if ours else node.module
        found.append((full, function))
    elif isinstance(node, ast.FunctionDef):
      function = node.name
    for child in ast.iter_child_nodes(node):
      visit(child, function)

  visit(ast.parse(file.read_text(encoding='utf-8')), None)
  return found


@pytest.mark.parametrize('file', files(), ids=lambda x: str(x.name))
def test_only_what_the_law_allows(file):
  ours = room(file)
  for imported, _ in imports(file):
    top, _, rest = imported.partition('.')
    rooms, packages = (set(x.split()) for x in LAW[ours])
    if top == 'esvit_jax':
      allowed = rooms | {ours, 'errors'}
      assert rest.partition('.')[0] in allowed, f'{ours} imports {imported}'
    elif top == 'configs':
      assert ours == 'configs', f'{ours} imports {imported}'
    elif top not in STANDARD:
      assert top in packages, f'{ours} imports {imported}'
    if top in OWNED:
      owner = f'esvit_jax.{OWNED[top]}'
      ok = OWNED[top] and f'{name(file)}.'.startswith(f'{owner}.')
      assert ok, f'{file.name} imports {imported}'


def test_arrows_between_rooms_run_down():
  below = list(LAW)
  for ours, (rooms, _) in LAW.items():
    for theirs in rooms.split():
      assert below.index(theirs) > below.index(ours), f'{ours} -> {theirs}'


def test_no_circle_among_files():
  known = {name(file): file for file in files()}
  graph = {}
  for ours, file in known.items():
    targets = {imported for imported, _ in imports(file)}
    # `from esvit_jax.room import name` may mean a file or what is in one.
    graph[ours] = {
      x if x in known else x.rpartition('.')[0] for x in targets
    } & set(known)
  graphlib.TopologicalSorter(graph).prepare()  # raises CycleError


def test_the_law_knows_every_room():
  assert set(LAW) == {room(file) for file in files()}


@pytest.mark.parametrize('file', files(), ids=lambda x: str(x.name))
def test_what_may_be_missing_is_imported_late(file):
  for module, function in imports(file):
    if module.partition('.')[0] in LAZY:
      assert function, f'{file.name} imports {module} at its top'


def test_main_answers_before_it_imports():
  top = [
    module for module, function in imports(ROOT / 'main.py') if not function
  ]
  rooms = [x for x in top if x.startswith('esvit_jax')]
  assert {x.rpartition('.')[0] for x in rooms} == {'esvit_jax.errors'}
  assert 'jax' not in top


def test_tensorflow_comes_in_by_one_door():
  doors = {
    (room(file), function)
    for file in files()
    for module, function in imports(file)
    if module.partition('.')[0] in ('clu', 'tensorflow')
  }
  assert doors == {('workdir', 'tensorboard_writers')}


def modules_after(code: str) -> set[str]:
  """Packages that a fresh interpreter holds after `code`."""
  code += "\nimport sys; print('|', *{m.split('.')[0] for m in sys.modules})"
  out = subprocess.run(
    [sys.executable, '-W', 'ignore', '-c', code],
    cwd=ROOT,
    capture_output=True,
    text=True,
    check=True,
  ).stdout
  return set(out.rpartition('|')[2].split())


def test_training_needs_no_tensorflow():
  held = modules_after('import esvit_jax.train')
  assert 'jax' in held
  assert not held & {'tensorflow', 'torch', 'tensorboard', *LAZY}


@pytest.mark.parametrize(
  'argv',
  [
    "['main', '--help']",
    "['main', '--config=configs/quickstart.py', '--workdir=x']",
    "['main', '--config=configs/quickstart.py', '--config.batch_sze=1']",
  ],
)
def test_flags_are_read_without_jax(argv):
  code = f'import sys, main\nsys.argv = {argv}\n'
  code += 'try: main.parse(sys.argv)\nexcept ValueError: pass\n'
  assert 'jax' not in modules_after(code)


def test_help_helps():
  out = subprocess.run(
    [sys.executable, '-m', 'main', '--help'],
    cwd=ROOT,
    capture_output=True,
    text=True,
    check=True,
  ).stdout
  for word in ('--config', '--workdir', '--mode', 'configs/common.py'):
    assert word in out
  for file in (ROOT / 'configs').rglob('[!_]*.py'):
    assert file.stem == 'common' or f'{file.relative_to(ROOT)}\n' in out
