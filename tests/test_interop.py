"""Networks of timm, torchvision and Hugging Face, read and written.

tests/interop/make_goldens.py made the goldens with these libraries.
"""

import json
import os
import pathlib
import subprocess
import sys

import jax
import numpy as np
import pytest
from interop import check_exports
from safetensors.numpy import load_file, save_file

import esvit_jax
from esvit_jax import convert, models
from esvit_jax.errors import UserError
from esvit_jax.weights import architecture, exchange, graph, libraries, loading
from esvit_jax.weights.libraries import names as names_lib
from esvit_jax.weights.networks import Weights

GOLDENS = pathlib.Path(__file__).parent / 'goldens' / 'interop'
NAMES = sorted(path.stem for path in GOLDENS.glob('*.npz'))
TOLERANCE = 2e-5


def golden(name):
  """(arrays by key, features by size, what shapes do not tell)."""
  with np.load(GOLDENS / f'{name}.npz') as file:
    parts = {'array': {}, 'features': {}}
    for key in file.files:
      kind, _, rest = key.partition(':')
      if rest:
        parts[kind][rest] = file[key]
    about = json.loads(str(file['about']))
  features = {int(size): x for size, x in parts['features'].items()}
  return parts['array'], features, about


def images(size: int) -> np.ndarray:
  rng = np.random.Generator(np.random.PCG64(size))
  return rng.standard_normal((2, size, size, 3), np.float32)


def fields(about) -> dict:
  """What a user has to say of a file."""
  config = about.get('config', {})
  heads = about.get('heads') or config.get('num_attention_heads')
  size = {'image_size': 56} if 'swin' in config.get('model_type', '') else {}
  return ({'heads': heads} if heads else {}) | size


@pytest.mark.parametrize('name', NAMES)
def test_features_of_their_files_are_theirs(name, tmp_path):
  arrays, features, about = golden(name)
  save_file(arrays, tmp_path / 'a.safetensors')
  given = fields(about)
  if 'swin' in name:
    given['image_size'] = 56
  apply, variables = esvit_jax.load(str(tmp_path / 'a.safetensors'), **given)
  for size, expected in features.items():
    out = apply(variables, images(size))
    if expected.ndim == 4:
      found = np.moveaxis(np.asarray(out.grid), -1, 1)
    else:
      grid = np.asarray(out.grid).reshape(2, -1, expected.shape[-1])
      found = np.concatenate([np.asarray(out.view)[:, None], grid], 1)
    assert found.shape == expected.shape
    np.testing.assert_allclose(found, expected, atol=TOLERANCE)


# Their networks of published sizes, and ours.
KEYS = {
  'timm/swin_tiny_patch4_window7_224': 'swin_tiny',
  'timm/vit_small_patch16_224': 'vit_small',
  'timm/deit_tiny_patch16_224': 'deit_tiny',
  'timm/resnet50': 'resnet50',
  'torchvision/swin_t': 'swin_tiny',
  'torchvision/vit_b_16': 'vit_base',
  'torchvision/resnet50': 'resnet50',
  'hf/swin_tiny': 'swin_tiny',
  'hf/vit_small': 'vit_small',
}


def zeros(name: str) -> Weights:
  """`Weights` of a backbone, all zero."""
  module = models.build({'name': name})
  like = models.abstract_variables(module)
  variables = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), like)
  tree = {
    'params': {'backbone': variables['params']},
    'batch_stats': {'backbone': variables.get('batch_stats', {})},
  }
  about = {'model': architecture.resolved({'name': name}, module)}
  return Weights({**about, 'channels': 3}, {'teacher': tree}, {})


@pytest.mark.parametrize('name', list(KEYS))
def test_exports_have_their_keys_and_shapes(name):
  """Strict loading, without the libraries."""
  theirs = json.loads((GOLDENS / 'keys.json').read_text())[name]
  library, _, _ = name.partition('/')
  arrays, _, _ = exchange.arrays(zeros(KEYS[name]), 'teacher', library)
  found = {k: list(v.shape) for k, v in arrays.items()}
  if KEYS[name] == 'resnet50' and not any('num_batches' in k for k in theirs):
    found = {k: v for k, v in found.items() if 'num_batches' not in k}
  if library == 'hf':
    theirs = {
      k: v for k, v in theirs.items() if 'relative_position_index' not in k
    }
  assert found == theirs


@pytest.mark.parametrize('name', list(check_exports.CASES))
def test_exports_are_read_back_bit_for_bit(name, tmp_path):
  kind, library = check_exports.CASES[name]
  weights = check_exports.random_weights(kind)
  path = str(tmp_path / ('a' if library == 'hf' else 'a.safetensors'))
  exchange.save(path, weights, 'auto', library, {})
  given = {'heads': 3} if kind == 'vit' and library != 'hf' else {}
  if kind == 'swin' and library != 'hf':
    given['image_size'] = 56
  back = loading.load(path, fields=given)
  ours, theirs = weights.variables(), back.variables()
  assert jax.tree.structure(ours) == jax.tree.structure(theirs)
  jax.tree.map(np.testing.assert_array_equal, ours, theirs)
  model = weights.about['model']
  assert {**back.about['model'], 'name': model['name']} == model


class TestHuggingFaceFolder:
  @pytest.fixture
  def folder(self, tmp_path):
    path = tmp_path / 'folder'
    weights = check_exports.random_weights('vit')
    facts = {'k-NN of the teacher, %': '74.3'}
    exchange.save(str(path), weights, 'auto', 'hf', facts)
    return path

  def test_it_is_whole(self, folder):
    assert sorted(os.listdir(folder)) == [
      *('README.md', 'config.json', 'model.safetensors'),
      'preprocessor_config.json',
    ]
    config = json.loads((folder / 'config.json').read_text())
    assert config['architectures'] == ['ViTModel']
    assert config['layer_norm_eps'] == 1e-6
    processor = json.loads((folder / 'preprocessor_config.json').read_text())
    assert processor['image_mean'] == [0.5] * 3
    assert processor['size'] == {'height': 32, 'width': 32}
    card = (folder / 'README.md').read_text()
    assert '| k-NN of the teacher, % | 74.3 |' in card

  def test_heads_come_from_its_config(self, folder):
    assert loading.load(str(folder)).about['model']['heads'] == 3

  def test_other_arithmetic_is_told(self, folder):
    config = json.loads((folder / 'config.json').read_text())
    config['layer_norm_eps'] = 1e-12
    (folder / 'config.json').write_text(json.dumps(config))
    notes = '\n'.join(loading.load(str(folder)).notes)
    assert 'layer norms add 1e-12' in notes

  @pytest.mark.parametrize(
    ('change', 'words'),
    [
      ({'model_type': 'beit'}, 'holds a beit'),
      ({'hidden_act': 'relu'}, 'activation relu'),
    ],
  )
  def test_other_networks_are_refused(self, folder, change, words):
    config = json.loads((folder / 'config.json').read_text()) | change
    (folder / 'config.json').write_text(json.dumps(config))
    with pytest.raises(UserError, match=words):
      loading.load(str(folder))

  def test_without_weights(self, folder):
    (folder / 'model.safetensors').unlink()
    with pytest.raises(UserError, match='save_pretrained'):
      loading.load(str(folder))


class TestNames:
  def test_what_is_beside_them_is_refused(self, tmp_path):
    arrays, _, _ = golden('hf_vit')
    arrays['encoder.layer.0.layer_scale1.lambda1'] = np.zeros(24, 'f4')
    save_file(arrays, tmp_path / 'a.safetensors')
    with pytest.raises(UserError, match=r'does not have: encoder\.layer\.0'):
      loading.load(str(tmp_path / 'a.safetensors'), fields={'heads': 3})

  def test_a_part_of_queries_keys_and_values_is_missing(self, tmp_path):
    arrays, _, _ = golden('hf_vit')
    del arrays['encoder.layer.0.attention.attention.key.bias']
    save_file(arrays, tmp_path / 'a.safetensors')
    with pytest.raises(UserError, match=r'query\.bias'):
      loading.load(str(tmp_path / 'a.safetensors'), fields={'heads': 3})

  def test_poolers_are_left_out_aloud(self, tmp_path):
    arrays, _, _ = golden('hf_vit')
    save_file(arrays, tmp_path / 'a.safetensors')
    weights = loading.load(str(tmp_path / 'a.safetensors'), fields={'heads': 3})
    assert 'left out: pooler.dense.bias' in '\n'.join(weights.notes)

  def test_heads_of_classes_come_along(self, tmp_path):
    """A Swin of timm's with a head: ours, and back as it was."""
    arrays, _, _ = golden('timm_swin')
    save_file(arrays, tmp_path / 'a.safetensors')
    args = [str(tmp_path / 'a.safetensors'), str(tmp_path / 'b.safetensors')]
    flags = ['--to=timm', '--model.image_size=56']
    assert convert.main([*args, *flags]) == 0
    back = load_file(tmp_path / 'b.safetensors')
    assert back.keys() == arrays.keys()
    for key, value in arrays.items():
      np.testing.assert_array_equal(back[key], value)

  def test_mmdetection_merges_channel_by_channel(self):
    """As nn.Unfold gathers them: channels slow, then rows, then columns."""
    C = 3
    parts = np.arange(4 * C).reshape(2, 2, C)  # column, row, channel
    ours = parts.reshape(-1)
    theirs = names_lib._unfold(ours)
    np.testing.assert_array_equal(theirs, parts.transpose(2, 1, 0).reshape(-1))

  def test_backbones_of_detection_frameworks(self):
    swin, vit = zeros('swin_tiny'), zeros('vit_small')
    arrays, _, _ = exchange.arrays(swin, 'teacher', 'mm')
    assert arrays['norm3.weight'].shape == (768,)
    assert 'stages.0.downsample.reduction.weight' in arrays
    assert 'stages.3.blocks.1.ffn.layers.0.0.bias' in arrays
    arrays, _, _ = exchange.arrays(vit, 'teacher', 'detectron2')
    assert 'backbone.net.blocks.11.attn.qkv.weight' in arrays
    assert not any('cls_token' in key for key in arrays)
    with pytest.raises(UserError, match='--to=detectron2 takes vit'):
      exchange.arrays(swin, 'teacher', 'detectron2')

  def test_networks_that_they_do_not_have(self):
    with pytest.raises(UserError, match='one window in all stages'):
      exchange.arrays(zeros('swin_28'), 'teacher', 'hf')
    with pytest.raises(UserError, match='no network like this vil'):
      exchange.arrays(zeros('vil_2262'), 'teacher', 'timm')

  def test_tables_hold_in_both_directions(self):
    for library, kinds in libraries.LIBRARIES.items():
      for kind, rows in kinds.items():
        published = [row.published for row in rows]
        if kind != 'mae':  # whose decoder has two spellings
          assert len(published) == len(set(published)), (library, kind)


class TestGraph:
  def test_it_runs_without_this_package(self, tmp_path):
    weights = check_exports.random_weights('swin')
    path = str(tmp_path / 'a.stablehlo')
    notes = graph.save(path, weights)
    assert 'view' in notes[0]
    np.save(tmp_path / 'x.npy', images(56))
    code = f"""
import sys, numpy as np, jax.export
graph = jax.export.deserialize(bytearray(open({path!r}, 'rb').read()))
x = np.load({str(tmp_path / 'x.npy')!r})
for n in (1, 2):
  out = graph.call(x[:n])
  np.savez({str(tmp_path)!r} + f'/{{n}}.npz', **out)
assert not any(m.startswith(('esvit_jax', 'flax')) for m in sys.modules)
"""
    subprocess.run([sys.executable, '-c', code], check=True, cwd=tmp_path)
    apply = loading.forward(weights.backbone)
    for n in (1, 2):
      expected = apply(weights.variables(), images(56)[:n])
      with np.load(tmp_path / f'{n}.npz') as out:
        assert sorted(out.files) == ['grid', 'stage0', 'stage1', 'view']
        np.testing.assert_allclose(out['view'], expected.view, atol=1e-5)
        np.testing.assert_allclose(out['grid'], expected.grid, atol=1e-5)
        for i, stage in enumerate(expected.stages):
          np.testing.assert_allclose(out[f'stage{i}'], stage, atol=1e-5)


class TestCommand:
  @pytest.mark.parametrize(
    ('out', 'to', 'words'),
    [
      ('a', 'timm', 'end OUT in .safetensors'),
      ('a.safetensors', 'hf', 'give OUT no ending'),
      ('a', 'stablehlo', 'end OUT in .stablehlo'),
    ],
  )
  def test_names_of_out(self, tiny_run, tmp_path, capsys, out, to, words):
    args = [tiny_run, str(tmp_path / out), f'--to={to}']
    assert convert.main(args) == 2
    assert words in capsys.readouterr().err
    assert not os.listdir(tmp_path)

  def test_a_run_for_timm(self, tiny_run, tmp_path, capsys):
    path = tmp_path / 'a.safetensors'
    assert convert.main([tiny_run, str(path), '--to=timm']) == 0
    out = capsys.readouterr().out
    assert "timm.create_model('swin_tiny_patch4_window7_224'" in out
    assert 'eps=1e-06' in out
    assert 'left out: head' in out
    assert (tmp_path / 'a.certificate.json').exists()
    assert 'layers.1.downsample.norm.weight' in load_file(path)


def test_load_takes_keywords_and_tells_what_it_loaded(tiny_run):
  network = esvit_jax.load(tiny_run, which='student', dtype='bfloat16')
  apply, variables = network
  assert (network.apply, network.variables) == (apply, variables)
  assert network.about['which'] == 'student'
  assert network.about['model']['image_size'] == 28
  assert network.about['path'] == tiny_run
  out = apply(variables, np.zeros((1, 28, 28, 1), np.float32))
  assert out.grid.shape[0] == 1
  with pytest.raises(UserError, match='use float32 or bfloat16'):
    esvit_jax.load(tiny_run, dtype='float31')
  with pytest.raises(UserError, match='image_size'):
    esvit_jax.load(tiny_run, image_size=64)
