"""Laws of the convert command: in, out and in again, or one line and nothing.

`torch_writer` makes the published files. The large network is the Swin of the
goldens, the small one a ViT of two blocks.
"""

import argparse
import collections
import hashlib
import json
import os
import re
import subprocess
import sys

import golden_weights
import jax
import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy
import torch_writer as writer

import esvit_jax
from configs import moco, quickstart
from esvit_jax import convert, methods, models, sharding, workdir
from esvit_jax.errors import UserError
from esvit_jax.models.heads import DINOHead
from esvit_jax.run import initial, jobs
from esvit_jax.state import Horizon, Run, TrainState
from esvit_jax.weights import certificate, loading, reading, tables, writing
from esvit_jax.weights.handover import handed_on
from esvit_jax.weights.published import families, files, parts, shapes
from esvit_jax.workdir import checkpoint

VIT = {'dim': 24, 'depth': 2, 'heads': 3, 'patch': 8, 'image_size': 32}
HEADS = '--model.heads=3'
K = 16


def head(width: int, seed: int = 0, use_bn: bool = False) -> dict:
  """A published head of DINO."""
  module = DINOHead(K, hidden=12, bottleneck=8, use_bn=use_bn)
  x = jax.ShapeDtypeStruct((2, width), 'float32')
  abstract = jax.eval_shape(module.init, jax.random.key(0), x)
  variables = golden_weights.random_variables(abstract, seed)
  table = 'dino_head_bn' if use_bn else 'dino_head'
  return tables.to_published(variables, table)


def with_heads(backbone: dict, width: int, seed: int = 0) -> dict:
  """A network of two heads, in which `seed` changes all."""
  moved = {
    k: v + np.float32(0.01 * seed) if v.dtype == np.float32 else v
    for k, v in backbone.items()
  }
  for i, name in enumerate(parts.HEADS):
    moved |= {f'{name}.{k}': v for k, v in head(width, 2 * seed + i).items()}
  return moved


def swin() -> dict:
  entry = golden_weights.manifest()['backbone_swin_small24_w7.npz']
  return golden_weights.weights(entry['state_dict'])


def vit() -> dict:
  module = models.build({'name': 'vit', **VIT})
  abstract = models.abstract_variables(module)
  return tables.to_published(golden_weights.random_variables(abstract), 'vit')


def tensors(arrays: dict, prefix: str = '') -> dict:
  """As torch.save gets a state_dict."""
  return collections.OrderedDict(
    (prefix + k, writer.tensor(v)) for k, v in arrays.items()
  )


def centres() -> dict:
  values = np.arange(K, dtype=np.float32)[None]
  return {'center': values, 'center_grid': -values}


def run(*args) -> int:
  return convert.main([os.fspath(arg) for arg in args])


def same(a, b) -> None:
  """Asserts that two trees are equal to the byte."""
  assert jax.tree.structure(a) == jax.tree.structure(b)
  for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b)):
    x, y = np.asarray(x), np.asarray(y)
    assert (x.dtype, x.shape) == (y.dtype, y.shape)
    assert x.tobytes() == y.tobytes()


def restored(path) -> dict:
  return checkpoint.restore_parts(path, ('params', 'teacher', 'extra'))


@pytest.fixture(scope='module')
def place(tmp_path_factory):
  """A published run, `a.pth`, and its conversion, `run`."""
  folder = tmp_path_factory.mktemp('published')
  tree = {
    'student': tensors(with_heads(swin(), 192, 1), 'module.'),
    'teacher': tensors(with_heads(swin(), 192, 2)),
    'optimizer': {'state': {}, 'param_groups': [{'lr': 1.0}]},
    'epoch': 7,
    'args': argparse.Namespace(arch='swin'),
    'dino_loss': tensors(centres()),
    'fp16_scaler': {},
  }
  writer.save(folder / 'a.pth', tree)
  assert run(folder / 'a.pth', folder / 'run') == 0
  return folder


# There and back.


def test_published_ours_safetensors_ours_is_byte_equal(place):
  file, again = place / 'b.safetensors', place / 'again'
  assert run(place / 'run', file, '--which=both', '--centres') == 0
  assert run(file, again) == 0

  found = safetensors.numpy.load_file(file)
  want = {f'dino_loss.{k}': v for k, v in centres().items()}
  for who, seed in (('student', 1), ('teacher', 2)):
    arrays = with_heads(swin(), 192, seed)
    want |= {f'{who}.{k}': v for k, v in arrays.items()}
  same(found, want)
  same(restored(again), restored(place / 'run'))
  parts = restored(again)
  for part in ('params', 'teacher'):
    assert parts[part].keys() == {'backbone', 'head', 'head_dense'}
  np.testing.assert_array_equal(parts['extra']['center'], np.arange(K))

  told = [
    json.loads((place / name).read_text())
    for name in (
      'run/certificate.json',
      'b.certificate.json',
      'again/certificate.json',
    )
  ]
  assert told[0]['networks'] == told[1]['networks'] == told[2]['networks']
  assert told[0]['architecture'] == told[2]['architecture']
  assert 'left out: optimizer, epoch, args, fp16_scaler' in told[0]['notes']


def test_one_network_alone_and_a_vit(tmp_path):
  state = with_heads(vit(), VIT['dim'])
  path = writer.save(tmp_path / 'a.pth', tensors(state))
  paths = [tmp_path / f'{i}.safetensors' for i in range(2)]
  assert run(path, tmp_path / 'run', HEADS) == 0
  assert run(tmp_path / 'run', paths[0]) == 0
  assert run(paths[0], paths[1]) == 0
  for file in paths:
    same(safetensors.numpy.load_file(file), state)
  parts = restored(tmp_path / 'run')
  same(parts['params'], parts['teacher'])
  told = json.loads((tmp_path / 'run/certificate.json').read_text())
  assert 'one network: it is both student and teacher' in told['notes']
  (one,) = told['networks']
  assert one['parameters'] == sum(v.size for v in state.values())


def test_the_metadata_describe_the_architecture(place):
  file = place / 'c.safetensors'
  assert run(place / 'a.pth', file, '--which=student') == 0
  with safetensors.safe_open(file, 'numpy') as f:
    about = json.loads(f.metadata()['esvit_jax'])
  assert about['network'] == 'student'
  assert about['head']['out_dim'] == K and about['channels'] == 3
  assert about['model']['dims'] == [24, 48, 96, 192]
  assert isinstance(models.build(about['model']), models.Swin)
  same(
    safetensors.numpy.load_file(file),
    with_heads(swin(), 192, 1),
  )


def test_running_statistics_come_along(tmp_path):
  state = vit() | {f'head.{k}': v for k, v in head(24, 0, True).items()}
  path = writer.save(tmp_path / 'a.pth', {'teacher': tensors(state)})
  assert run(path, tmp_path / 'run', HEADS) == 0
  assert run(tmp_path / 'run', tmp_path / 'a.safetensors') == 0
  same(safetensors.numpy.load_file(tmp_path / 'a.safetensors'), state)
  extra = restored(tmp_path / 'run')['extra']
  assert extra['student']['head'].keys() == {'norm0', 'norm1'}
  same(extra['student'], extra['teacher'])


def test_bfloat16_is_float32(tmp_path):
  half = {k: v.astype(ml_dtypes.bfloat16) for k, v in vit().items()}
  path = os.fspath(tmp_path / 'a.safetensors')
  safetensors.numpy.save_file(half, path)
  want = {k: v.astype(np.float32) for k, v in half.items()}
  same(files.read(path).networks['model'], want)


# The certificate.


def test_checksums_can_be_made_by_anyone(place):
  told = json.loads((place / 'run/certificate.json').read_text())
  student, teacher = told['networks']
  arrays = with_heads(swin(), 192, 2)
  arrays = {k: v for k, v in arrays.items() if v.dtype == np.float32}
  for name, row in teacher['stages'].items():
    if name == 'dino_loss':
      continue
    keys = sorted(k for k in arrays if k.startswith(name + '.'))
    raw = b''.join(arrays[k].tobytes() for k in keys)
    assert row['sha256'] == hashlib.sha256(raw).hexdigest()
    assert len(keys) == row['arrays']
    total = sum(arrays[k].astype(np.float64).sum() for k in keys)
    np.testing.assert_allclose(row['sum'], total, rtol=1e-12)
  assert set(teacher['stages']) == {
    *(f'layers.{i}' for i in range(4)),
    *('patch_embed', 'norm', 'head', 'head_dense', 'dino_loss'),
  }
  assert teacher['features'] != student['features']


def test_one_changed_number_shows_in_its_stage_alone():
  arrays = {k: v for k, v in swin().items() if v.dtype == np.float32}
  before = certificate.checksums(arrays)
  key = 'layers.2.blocks.1.mlp.fc1.bias'
  arrays[key] = np.nextafter(arrays[key], np.float32(9))
  after = certificate.checksums(arrays)
  assert [k for k in before if before[k] != after[k]] == ['layers.2']


def test_the_features_are_those_of_the_input_it_names(place):
  told = json.loads((place / 'run/certificate.json').read_text())
  images = certificate.fixed_images(3)
  rng = np.random.Generator(np.random.PCG64(0))
  want = rng.standard_normal((2, 224, 224, 3), np.float32)
  np.testing.assert_array_equal(images, want)
  apply, params = esvit_jax.load(place / 'run')
  out = apply(params, images)
  for name in ('view', 'grid'):
    row = told['networks'][1]['features'][name]
    x = np.asarray(getattr(out, name), np.float64)
    np.testing.assert_allclose(row['mean'], x.mean(), atol=1e-6)
    np.testing.assert_allclose(row['std'], x.std(), rtol=1e-6)


# Prefixes and layouts.


@pytest.mark.parametrize(
  'prefix',
  [
    *('', 'module.', 'backbone.', 'module.backbone.', 'model.'),
    *('module.backbone.backbone.', 'module.model.'),
    *('_orig_mod.', 'module._orig_mod.', '_orig_mod.module.backbone.'),
  ],
)
def test_prefixes_are_recognised_and_told(tmp_path, prefix):
  state = {prefix + k: v for k, v in vit().items()}
  outer = re.match(r'((_orig_mod|module)\.)*', prefix).group()
  state |= {f'{outer}head.{k}': v for k, v in head(24).items()}
  path = writer.save(tmp_path / 'a.pth', {'teacher': tensors(state)})
  file = files.read(os.fspath(path))
  found = reading.from_file(file, fields={'heads': 3})
  assert found.networks['teacher']['params'].keys() == {'backbone', 'head'}
  assert f'teacher: prefix {prefix!r}' in file.notes or not prefix
  same(
    writing.to_published(found),
    vit() | {f'head.{k}': v for k, v in head(24).items()},
  )


def test_arrays_that_are_not_finite_are_said(tmp_path, capsys):
  state = vit()
  state['norm.weight'] = np.full_like(state['norm.weight'], np.nan)
  path = writer.save(tmp_path / 'a.pth', tensors(state))
  out = os.fspath(tmp_path / 'run')
  assert convert.main([os.fspath(path), out, '--model.heads=3']) == 0
  said = capsys.readouterr().err
  assert 'WARNING: 1 arrays are not finite: backbone/norm/scale' in said


def test_a_prefix_can_be_named(tmp_path):
  state = tensors(vit(), 'encoder.body.') | tensors(head(24), 'decoder.')
  path = os.fspath(writer.save(tmp_path / 'a.pth', {'model': state}))
  file = files.read(path, 'encoder.body.')
  same(file.networks['model'], vit())
  with pytest.raises(UserError, match=r'8 unexpected: decoder\.mlp'):
    reading.from_file(file, fields={'heads': 3})
  with pytest.raises(UserError, match='no key of its model begins with'):
    files.read(path, 'encoder.bone.')
  with pytest.raises(UserError, match='end it with a dot'):
    files.read(path, 'encoder')


def test_moco_has_two_networks_and_a_rest(tmp_path):
  state = tensors(vit(), 'module.base_encoder.')
  state |= tensors(vit(), 'module.momentum_encoder.')
  state['module.predictor.0.weight'] = writer.tensor(np.zeros((2, 2), 'f4'))
  path = writer.save(tmp_path / 'a.pth.tar', {'state_dict': state, 'epoch': 1})
  file = files.read(os.fspath(path))
  # The predictor is the base encoder's; without a projector it is no MoCo-v3.
  predictor = {'predictor.0.weight': np.zeros((2, 2), 'f4')}
  same(file.networks, {'student': vit() | predictor, 'teacher': vit()})
  config = {'heads': 3}
  with pytest.raises(UserError, match=r'unexpected: predictor\.0'):
    reading.from_file(file, 'both', config)
  assert reading.from_file(file, 'teacher', config).networks.keys() == {
    'teacher'
  }


# Architectures.


@pytest.mark.parametrize(
  ('name', 'fields'),
  [
    ('swin_tiny', {'window': 14}),
    ('swin_tiny', {}),
    ('swin_small', {}),
    ('vit_tiny', {}),
    ('vit_tiny', {'patch': 8}),
    ('swin', {'dims': (8, 16), 'depths': (1, 3), 'heads': (2, 4)}),
  ],
)
def test_named_and_own_networks_are_told_by_their_shapes(name, fields):
  module = models.build({'name': name, **fields})
  abstract = models.abstract_variables(module)
  variables = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), abstract)
  state = tables.to_published(variables, families.NAMES[type(module)])
  heads = {'heads': 3} if name == 'vit_tiny' else {}
  config = shapes.infer(state, heads)
  assert config['name'] == name
  found = models.build({**config, 'drop_path': 0.0})
  assert found == models.build({'name': name, **fields, 'drop_path': 0.0})


def test_what_shapes_do_not_say_is_asked_for(tmp_path):
  path = writer.save(tmp_path / 'a.pth', tensors(vit()))
  with pytest.raises(UserError, match=r'with --model\.heads='):
    loading.load(os.fspath(path))
  path = writer.save(tmp_path / 'b.pth', tensors(head(24)))
  with pytest.raises(UserError, match='of no backbone known'):
    loading.load(os.fspath(path))
  path = writer.save(
    tmp_path / 'c.pth', tensors(head(24)) | {'epoch': 3, 'a': 4}
  )
  with pytest.raises(UserError, match='and is none itself: epoch, a'):
    loading.load(os.fspath(path))


# Refusals: one line, exit code 2, nothing written.


class Exploit:
  def __reduce__(self):
    return os.system, ('touch canary',)


def change(**arrays):
  """A ViT with some arrays changed, or (None) taken out."""
  state = vit() | {k.replace('__', '.'): v for k, v in arrays.items()}
  return tensors({k: v for k, v in state.items() if v is not None})


REFUSED = {
  'missing': (lambda: change(norm__bias=None), [], '1 missing: norm.bias'),
  'unexpected': (
    lambda: change(head__weight=np.zeros(3, 'f4')),
    [],
    '1 unexpected: head.weight',
  ),
  'shape': (
    lambda: change(norm__bias=np.zeros(3, 'f4')),
    [],
    'norm.bias (3,), not (24,)',
  ),
  'float64': (
    lambda: change(norm__bias=np.zeros(24)),
    [],
    'norm.bias float64, not float32',
  ),
  'many': (
    lambda: tensors({k: v for k, v in vit().items() if '.mlp.' not in k}),
    ['--allow-missing=*fc2*'],
    '4 missing: blocks.',
  ),
  'nearly all': (
    lambda: tensors({k: v for k, v in vit().items() if 'qkv.weight' in k}),
    ['--arch=vit_tiny'],
    'and 140 more',
  ),
  'no positions': (
    lambda: change(pos_embed=None),
    [],
    'looks like vit, but lacks pos_embed',
  ),
  'module twice': (
    lambda: tensors(vit(), 'module.module.'),
    [],
    "'module.' twice on 30 keys",
  ),
  'module on some': (
    lambda: tensors(vit()) | tensors(vit(), 'module.'),
    [],
    'on 30 of 60 keys only',
  ),
  'another architecture': (
    lambda: change(),
    ['--arch=swin_tiny'],
    'not those of the swin',
  ),
  'another depth': (lambda: change(), ['--model.depth=9'], '84 missing'),
  'absurd size': (
    lambda: change(),
    ['--model.depth=999999999'],
    'no such file has that',
  ),
  'odd size': (lambda: change(), ['--model.depth=2.5'], 'can be built'),
  'no such network': (
    lambda: {'student': change()},
    ['--which=teacher'],
    'has no teacher, only student',
  ),
  'region head alone': (
    lambda: change() | tensors(head(24), 'head_dense.'),
    [],
    'head_dense but no head',
  ),
  'centre': (
    lambda: {
      'teacher': change() | tensors(head(24), 'head.'),
      'dino_loss': {'center': writer.tensor(np.zeros((1, 3), 'f4'))},
    },
    [],
    'not float32[1, 16]',
  ),
  'unexpected centre': (
    lambda: {'teacher': change(), 'dino_loss': tensors({'c': np.zeros(3)})},
    [],
    '1 unexpected: dino_loss.c',
  ),
  'idle permission': (
    lambda: change(),
    ['--allow-missing=norm.bia'],
    'no key like that is missing',
  ),
  'malicious': (lambda: {'teacher': Exploit()}, [], 'nothing was run'),
  'malicious key': (
    lambda: tensors({'a\nb' + chr(27): np.zeros(3, 'f4')}),
    [],
    'a key that names nothing',
  ),
  'unknown flag': (
    lambda: change(),
    ['--windows=7'],
    "unknown flag '--windows=7'",
  ),
  'unknown field': (
    lambda: change(),
    ['--model.window=7'],
    "no field 'window'",
  ),
}


@pytest.mark.parametrize('case', REFUSED)
def test_refused_in_one_line(tmp_path, capsys, monkeypatch, case):
  make, flags, words = REFUSED[case]
  if case != 'another architecture':
    flags = [HEADS, *flags]
  monkeypatch.chdir(tmp_path)
  path = writer.save(tmp_path / 'a.pth', make())
  for out in ('out', 'out.safetensors'):
    assert run(path, out, *flags) == 2
    text = capsys.readouterr()
    assert words in text.err
    assert text.err.count('\n') == 1 and text.err.startswith('error: ')
    assert 'wrote' not in text.out
  assert os.listdir(tmp_path) == ['a.pth']


@pytest.mark.parametrize(
  ('name', 'raw', 'words'),
  [
    ('a.pth', b'<html>not found', 'text file'),
    ('a.pth.tar', bytes(range(256)), 'format is unknown'),
    ('a.pth', b'PK\3\4' + bytes(99), 'cut short or damaged'),
    ('a.safetensors', b'<html>not found', 'no sound safetensors'),
    ('a.safetensors', b'', 'no sound safetensors'),
    ('a.safetensors', b'\xff' * 99, 'no sound safetensors'),
    ('a.safetensors', b'\2\0\0\0\0\0\0\0{}', 'is none itself: it is empty'),
  ],
)
def test_other_files_are_refused_in_one_line(
  tmp_path, capsys, name, raw, words
):
  (tmp_path / name).write_bytes(raw)
  assert run(tmp_path / name, tmp_path / 'out') == 2
  text = capsys.readouterr().err
  assert words in text and text.count('\n') == 1
  assert os.listdir(tmp_path) == [name]


@pytest.mark.parametrize(
  ('about', 'words'),
  [
    ('{', 'no sound safetensors'),
    ('[]', 'description of the architecture is broken'),
    ('{"model": {"name": "spam"}}', "no backbone 'spam'"),
    ('{"model": {"name": "vit", "depth": 99999999}}', 'no such file has that'),
    ('{"model": {"name": "swin", "window": 4096}}', 'no such file has that'),
    (
      '{"model": {"name": "vit", "dim": 0, "depth": 1, "heads": 0}}',
      'heads of vit is 0',
    ),
  ],
)
def test_a_hostile_description_is_refused(tmp_path, capsys, about, words):
  path = tmp_path / 'a.safetensors'
  safetensors.numpy.save_file(vit(), path, {'esvit_jax': about})
  assert run(path, tmp_path / 'out') == 2
  text = capsys.readouterr().err
  assert words in text and text.count('\n') == 1
  assert os.listdir(tmp_path) == ['a.safetensors']


def test_places_are_checked_first(tmp_path, capsys):
  path = writer.save(tmp_path / 'a.pth', change())
  (tmp_path / 'full').mkdir()
  (tmp_path / 'full' / 'x').touch()
  for out, words in (
    ('full', 'exists'),
    ('a.pth', 'exists'),
    ('no/out', 'no folder'),
  ):
    assert run(path, tmp_path / out, HEADS) == 2
    assert words in capsys.readouterr().err
  assert run(tmp_path / 'none.pth', tmp_path / 'out') == 2
  assert 'no such file' in capsys.readouterr().err
  assert run(tmp_path / 'full', tmp_path / 'out.safetensors') == 2
  assert 'config.json' in capsys.readouterr().err
  assert run(path) == 2
  assert 'required: OUT' in capsys.readouterr().err
  assert sorted(os.listdir(tmp_path)) == ['a.pth', 'full']


def test_what_is_named_is_let_through(tmp_path, capsys):
  state = {k: v.astype('f2') for k, v in vit().items()}
  state['norm.bias'] = np.zeros(3, 'f2')
  del state['blocks.1.mlp.fc1.weight']
  state |= {f'decoder.{i}': np.zeros(2, 'f4') for i in range(9)}
  path = writer.save(tmp_path / 'a.pth', tensors(state))
  flags = [
    '--allow-unexpected=decoder.*',
    '--allow-unexpected=norm.bias',
    '--allow-missing=norm.bias',
    '--allow-missing=blocks.1.mlp.fc1.weight',
  ]
  out = tmp_path / 'out.safetensors'
  assert run(path, out, HEADS, *flags) == 0
  text = capsys.readouterr().out
  for line in (
    '29 arrays made float32 from float16',
    'model backbone: 10 left out: norm.bias, decoder.0',
    '2 started afresh: blocks.1.mlp.fc1.weight, norm.bias',
  ):
    assert line in text
  found = safetensors.numpy.load_file(out)
  for key, value in vit().items():
    if key == 'norm.bias':
      assert not found[key].any()
    elif key == 'blocks.1.mlp.fc1.weight':
      assert 0 < found[key].std() < 0.1
    else:
      want = value.astype('f2').astype('f4')
      np.testing.assert_array_equal(found[key], want, strict=True)


# Features in three lines, and our own runs.


def test_features_are_the_same_from_every_form(place):
  assert run(place / 'run', place / 'd.safetensors') == 0
  images = np.random.default_rng(0).normal(size=(2, 224, 224, 3)).astype('f4')
  outs = []
  for name in ('a.pth', 'run', 'd.safetensors'):
    apply, params = esvit_jax.load(place / name)
    outs.append(apply(params, images))
  assert outs[0].view.shape == (2, 192) and outs[0].grid.shape == (2, 7, 7, 192)
  for out in outs[1:]:
    same(out, outs[0])
  apply, params = esvit_jax.load(place / 'run', 'student')
  assert np.abs(apply(params, images).view - outs[0].view).max() > 1e-3
  with pytest.raises(UserError, match='use auto, student, teacher'):
    esvit_jax.load(place / 'run', 'both')


def test_to_import_the_package_is_cheap():
  code = 'import sys, esvit_jax; sys.exit("jax" in sys.modules)'
  subprocess.run([sys.executable, '-c', code], check=True)


def test_the_command_runs(tmp_path):
  """Also where there is no accelerator, and with nothing but its arguments."""
  (tmp_path / 'a.pth').write_text('hello')
  done = subprocess.run(
    [sys.executable, '-m', 'esvit_jax.convert', tmp_path / 'a.pth', 'out'],
    capture_output=True,
    text=True,
    check=False,
  )
  assert done.returncode == 2 and done.stdout == ''
  assert 'is a text file' in done.stderr and done.stderr.count('\n') == 1


def test_our_runs_go_out_and_are_trained_from_again(tmp_path):
  config = quickstart.get_config('debug')
  job = jobs.prepare(config, sharding.mesh(jax.devices()[:1]))
  rng = np.random.default_rng(0)
  like = job.state._replace(opt_state={})
  state = jax.tree.map(lambda x: rng.normal(size=x.shape).astype(x.dtype), like)
  checkpoints = checkpoint.Checkpoints(tmp_path / 'run/checkpoints')
  checkpoints.save(state._replace(step=np.int32(3)))
  checkpoints.close()
  workdir.write_json(os.fspath(tmp_path / 'run/config.json'), config.to_dict())

  file = tmp_path / 'a.safetensors'
  assert run(tmp_path / 'run', file, '--which=both', '--centres') == 0
  apply, params = esvit_jax.load(file)
  same(params['params'], state.teacher['backbone'])
  shape = (3, *[config.eval.size] * 2, config.data.channels)
  images = rng.normal(size=shape).astype(np.float32)
  out = apply(params, images)
  want = jax.jit(job.method.features)(state.teacher, {}, images)
  np.testing.assert_allclose(out.view, want.view, atol=1e-5)
  apply, params = esvit_jax.load(tmp_path / 'run')
  same(apply(params, images), out)

  assert run(file, tmp_path / 'again') == 0
  blank = jax.tree.map(jax.numpy.zeros_like, state)
  again = initial.continue_from(blank, restored(tmp_path / 'again'))
  for part in ('params', 'teacher', 'extra'):
    same(getattr(again, part), getattr(state, part))


# The network that is handed on.


@pytest.mark.parametrize(
  ('networks', 'recorded', 'method', 'network'),
  [
    (('student', 'teacher'), None, None, 'teacher'),
    (('student', 'teacher'), None, 'moco', 'student'),
    (('student', 'teacher'), 'student', 'a method of your own', 'student'),
    (('student',), None, 'mae', 'student'),
    (('teacher',), 'student', 'moco', 'teacher'),
  ],
)
def test_one_network_is_handed_on(networks, recorded, method, network):
  assert handed_on(networks, recorded, method) == network


def saved_run(folder, networks, **files):
  """A run directory of a small ViT: its teacher is its student plus one."""
  params = golden_weights.random_variables(
    models.abstract_variables(models.build({'name': 'vit', **VIT}))
  )
  params = {'backbone': params['params']}
  teacher = jax.tree.map(lambda x: x + 1, params)
  state = TrainState(
    np.int32(1),
    params,
    teacher if 'teacher' in networks else None,
    {name: {} for name in networks},
    {},
  )
  checkpoints = checkpoint.Checkpoints(folder / 'checkpoints')
  checkpoints.save(state)
  checkpoints.close()
  config = {'model': {'name': 'vit', **VIT}, 'data': {'channels': 3}}
  for name, value in ({'config': config} | files).items():
    extra = config if name == 'config' else {}
    workdir.write_json(os.fspath(folder / f'{name}.json'), extra | value)
  return params


@pytest.mark.parametrize(
  ('networks', 'files', 'network'),
  [
    # MAE and fine-tuning have a student only.
    (('student',), {'config': {'method': 'mae'}}, 'student'),
    (
      ('student', 'teacher'),
      {'config': {'method': 'own'}, 'run': {'network': 'student'}},
      'student',
    ),
    (('student', 'teacher'), {'config': {'method': 'moco'}}, 'student'),
    (('student', 'teacher'), {'config': {'method': 'sit'}}, 'teacher'),
  ],
)
def test_all_hand_on_the_same_network(tmp_path, networks, files, network):
  """Load, export without flags, and a converted directory of the export."""
  (tmp_path / 'run').mkdir()
  params = saved_run(tmp_path / 'run', networks, **files)['backbone']
  shift = 0 if network == 'student' else 1
  want = jax.tree.map(lambda x: x + shift, params)
  both, single = tmp_path / 'both.safetensors', tmp_path / 'one.safetensors'
  assert run(tmp_path / 'run', single) == 0
  assert run(tmp_path / 'run', both, '--which=both') == 0
  assert run(both, tmp_path / 'again') == 0
  for name in ('run', single, both, tmp_path / 'again'):
    _, variables = esvit_jax.load(tmp_path / name)
    same(jax.device_get(variables['params']), want)


def moco_variables() -> dict:
  config = moco.get_config('tiny,debug')
  method = methods.METHODS['moco'](config, Run(Horizon(10, 5)))
  params, _, extra = jax.eval_shape(method.init, jax.random.key(0))
  return golden_weights.random_variables(
    {'params': params, 'batch_stats': extra['student']}
  )


def test_published_moco_hands_on_its_base_encoder(tmp_path):
  arrays = tables.to_published(moco_variables(), 'moco')
  state = tensors(arrays, 'module.base_encoder.')
  kept = {k: v + 1 for k, v in arrays.items() if not k.startswith('predictor')}
  state |= tensors(kept, 'module.momentum_encoder.')
  path = writer.save(tmp_path / 'a.pth.tar', {'state_dict': state})
  assert run(path, tmp_path / 'run', '--model.heads=2') == 0
  assert run(tmp_path / 'run', tmp_path / 'a.safetensors') == 0
  same(safetensors.numpy.load_file(tmp_path / 'a.safetensors'), arrays)
