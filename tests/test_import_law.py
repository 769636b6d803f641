"""Who may import whom: data flows one way through the house."""

import ast
import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parent.parent
STANDARD = sys.stdlib_module_names

# room -> (rooms it may import, packages it may import). `errors` is open to
# all, and so is the standard library.
LAW = {
  'main': (
    'train bench evaluate analysis sharding',
    'absl ml_collections',
  ),
  '__init__': ('interop', ''),
  'train': (
    'jobs judge data checkpoint metrics health sharding analysis summary '
    'state workdir provenance interop models',
    'jax numpy',
  ),
  'jobs': (
    'methods data optim sharding state limits metrics interop',
    'jax optax',
  ),
  'evaluate': ('protocols provenance workdir analysis', 'rich'),
  'protocols': (
    'augment analysis data evals interop metrics models sharding train workdir',
    'jax numpy rich',
  ),
  'judge': ('jobs data evals health sharding', 'jax numpy'),
  'bench': (
    'jobs sharding state limits evals protocols',
    'jax numpy optax rich',
  ),
  'summary': ('', 'jax rich'),
  'methods': (
    'models augment prototypes state optim mixing erasing gmml contrastive',
    'jax numpy flax',
  ),
  'models': ('', 'jax numpy flax'),
  'augment': ('crops photometric randaugment', 'jax numpy'),
  'randaugment': ('crops photometric', 'jax numpy'),
  'contrastive': ('models', 'jax'),
  'gmml': ('', 'jax numpy'),
  'mixing': ('erasing', 'jax numpy'),
  'erasing': ('', 'jax numpy'),
  'crops': ('', 'jax numpy'),
  'photometric': ('crops', 'jax numpy'),
  'prototypes': ('', 'jax numpy'),
  'optim': ('', 'jax numpy optax'),
  'state': ('', 'jax numpy optax'),
  'data': ('', 'numpy grain tensorflow_datasets PIL simplejpeg'),
  'checkpoint': ('state', 'jax numpy orbax'),
  'metrics': ('', 'clu'),
  'convert': ('models interop', 'numpy flax'),
  'interop': (
    'convert models checkpoint state workdir',
    'jax numpy flax safetensors',
  ),
  'health': ('', 'numpy'),
  'sharding': ('', 'jax numpy'),
  'limits': ('', ''),
  'workdir': ('', ''),
  'provenance': ('', 'jax'),
  'errors': ('', ''),
  'evals': ('data sharding', 'jax numpy optax'),
  'analysis': (
    'data sharding health',
    'jax numpy matplotlib sklearn threadpoolctl',
  ),
  'configs': ('', 'ml_collections'),
}
# Packages of one room only; all others do without.
OWNED = {
  'orbax': 'checkpoint',
  'grain': 'data',
  'tensorflow_datasets': 'data',
  'PIL': 'data',
  'simplejpeg': 'data',
  'clu': 'metrics',
  'tensorflow': None,
  'torch': None,
  'timm': None,
}
# Imported where they are used, so that runs without them need not have them.
LAZY = {'grain', 'tensorflow_datasets', 'PIL', 'simplejpeg', 'clu'}


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


def imports(file: pathlib.Path) -> list[tuple[str, str | None]]:
  """(module, name of the function it is imported in) for each import."""
  found = []

  def visit(node, function):
    if isinstance(node, ast.Import):
      found.extend((alias.name, function) for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
      assert node.level == 0, f'{file}: imports are absolute'
      if node.module in ('esvit_jax', 'configs'):
        names = (f'{node.module}.{alias.name}' for alias in node.names)
        found.extend((name, function) for name in names)
      else:
        found.append((node.module, function))
    elif isinstance(node, ast.FunctionDef):
      function = node.name
    for child in ast.iter_child_nodes(node):
      visit(child, function)

  visit(ast.parse(file.read_text(encoding='utf-8')), None)
  return found


@pytest.mark.parametrize('file', files(), ids=lambda x: str(x.name))
def test_only_what_the_law_allows(file):
  ours = room(file)
  for module, _ in imports(file):
    top, _, rest = module.partition('.')
    rooms, packages = (set(x.split()) for x in LAW[ours])
    if top == 'esvit_jax':
      allowed = rooms | {ours, 'errors'}
      assert rest.partition('.')[0] in allowed, f'{ours} imports {module}'
    elif top == 'configs':
      assert ours == 'configs', f'{ours} imports {module}'
    elif top not in STANDARD:
      assert top in packages, f'{ours} imports {module}'
    if top in OWNED:
      assert ours == OWNED[top], f'{ours} imports {module}'


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
  assert rooms == ['esvit_jax.errors']


def test_tensorflow_comes_in_by_one_door():
  doors = {
    (room(file), function)
    for file in files()
    for module, function in imports(file)
    if module.partition('.')[0] in ('clu', 'tensorflow')
  }
  assert doors == {('metrics', 'tensorboard_writers')}


def test_methods_take_only_schedules_from_optim():
  for file in sorted(ROOT.glob('esvit_jax/methods/*.py')):
    for node in ast.walk(ast.parse(file.read_text(encoding='utf-8'))):
      if isinstance(node, ast.Attribute) and (
        isinstance(node.value, ast.Name) and node.value.id == 'optim'
      ):
        assert node.attr in ('cosine', 'teacher_temperature')


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
