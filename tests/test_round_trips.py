"""What is read and written again is the published file, key by key.

Keys and shapes are those of the published code, as the goldens' manifests
list them.
"""

import json

import golden_mae_sit
import golden_weights
import jax
import numpy as np
import pytest
import safetensors.numpy
import torch_writer
from flax import linen as nn

import esvit_jax
from configs import common
from esvit_jax import convert, models
from esvit_jax.errors import UserError
from esvit_jax.models.backbone import Features
from esvit_jax.models.classifier import Classifier
from esvit_jax.models.positions import mae_table, moco_table
from esvit_jax.weights import (
  directory,
  loading,
  networks,
  reading,
  writing,
)
from esvit_jax.weights.networks import Weights
from esvit_jax.weights.published import arguments, files, masks, shapes

BATCHES = 1234  # that the batch norms have seen


def esvit(name: str) -> dict:
  entry = golden_weights.manifest()[f'backbone_{name}.npz']
  return counted(golden_weights.weights(entry['state_dict']))


def head(width: int, use_bn: bool = False) -> dict:
  """A head of DINO behind `width` channels."""
  keys = golden_weights.manifest()['dino_head.npz']
  keys = keys['keys_bn' if use_bn else 'keys']
  kinds = {k: 'int64' if k.endswith('tracked') else 'float32' for k in keys}
  arrays = {k: (shape, kinds[k]) for k, shape in keys.items()}
  arrays['mlp.0.weight'] = ((arrays['mlp.0.weight'][0][0], width), 'float32')
  return counted(golden_weights.weights(arrays))


def mae_sit(name: str, prefix: str = '', table=mae_table) -> dict:
  """The arrays of a golden whose keys begin with `prefix`, without it."""
  keys = golden_mae_sit.manifest()[name]['keys']
  arrays = golden_mae_sit.weights(keys)
  for key, shape, kind in keys:
    shape = tuple(shape)
    if kind == 'fixed_sincos':
      arrays[key] = table(shape[2], round((shape[1] - 1) ** 0.5))
    elif kind == 'buffer_default':
      arrays[key] = _buffer(key, shape)
  return counted(
    {
      k.removeprefix(prefix): v
      for k, v in arrays.items()
      if k.startswith(prefix)
    }
  )


def _buffer(key: str, shape) -> np.ndarray:
  if key.endswith('relative_position_index'):
    return models.positions.grid_index(14)
  if key.endswith('tracked'):
    return np.zeros(shape, np.int64)
  return np.full(shape, key.endswith('var'), np.float32)


def counted(arrays: dict) -> dict:
  """`arrays` after many batches."""
  return {
    k: np.full_like(v, BATCHES) if k.endswith('batches_tracked') else v
    for k, v in arrays.items()
  }


def prefixed(arrays: dict, prefix: str) -> dict:
  return {prefix + k: v for k, v in arrays.items()}


def with_head(backbone: dict, width: int, name: str = 'head') -> dict:
  """A classifier of 7 classes."""
  rng = np.random.default_rng(0)
  weight = rng.normal(size=(7, width)).astype('f4')
  return backbone | {f'{name}.weight': weight, f'{name}.bias': weight[:, 0]}


# family -> (tree of a file, the fields it leaves open)
FAMILIES = {
  'EsViT Swin-T': (lambda: {'teacher': esvit('swin_tiny_w7')}, {}),
  'EsViT CvT': (lambda: {'teacher': esvit('cvt_tiny')}, {}),
  'EsViT ViL': (lambda: {'teacher': esvit('vil_2262')}, {}),
  'EsViT ResNet-50': (lambda: {'teacher': esvit('resnet50')}, {}),
  'EsViT DeiT-T': (lambda: {'teacher': esvit('deit_tiny_p16')}, {'heads': 3}),
  'EsViT with heads': (
    lambda: {
      'teacher': esvit('swin_small24_w7')
      | prefixed(head(192), 'head.')
      | prefixed(head(192), 'head_dense.')
    },
    {},
  ),
  'DINO head with batch norm': (
    lambda: {
      'teacher': esvit('deit_tiny_p16') | prefixed(head(192, True), 'head.')
    },
    {'heads': 3},
  ),
  'MAE-Lite': (lambda: {'model': mae_sit('mae_tiny')}, {}),
  'MAE-Lite fine-tuned': (
    lambda: {'model': mae_sit('vit_tiny_gap')},
    {'heads': 12},
  ),
  'MAE-Lite fine-tuned, RPE': (
    lambda: {'model': mae_sit('vit_tiny_rpe2023')},
    {},
  ),
  'MoCo-v3': (
    lambda: {
      'model': {
        k: v
        for k, v in mae_sit('moco', 'base_encoder.', moco_table).items()
        if not k.startswith('momentum')
      }
      | prefixed(mae_sit('moco', 'predictor.'), 'predictor.')
    },
    {},
  ),
  'SiT': (lambda: {'teacher': mae_sit('sit')}, {}),
  'upstream Swin': (
    lambda: {'model': with_head(esvit('swin_small24_w7'), 192) | swin_masks()},
    {},
  ),
  'torchvision ResNet-50': (
    lambda: {'model': with_head(esvit('resnet50'), 2048, 'fc')},
    {},
  ),
  'DeiT': (
    lambda: {'model': with_head(esvit('deit_tiny_p16'), 192)},
    {'heads': 3},
  ),
}


def swin_masks() -> dict:
  """As upstream's constructor at 224 px has them for windows of 7."""
  arrays = {}
  for i, side in enumerate((56, 28, 14)):
    label = np.zeros((side, side))
    cuts = (slice(0, -7), slice(-7, -3), slice(-3, None))
    for n, (rows, columns) in enumerate((a, b) for a in cuts for b in cuts):
      label[rows, columns] = n
    windows = label.reshape(side // 7, 7, side // 7, 7).swapaxes(1, 2)
    windows = windows.reshape(-1, 49)
    other = windows[:, None] != windows[:, :, None]
    arrays[f'layers.{i}.blocks.1.attn_mask'] = np.where(
      other, np.float32(-100), np.float32(0)
    )
  return arrays


def same(found: dict, expected: dict) -> None:
  """Asserts equal keys, shapes, types and values."""
  assert found.keys() == expected.keys()
  for key, value in expected.items():
    assert (found[key].dtype, found[key].shape) == (value.dtype, value.shape)
    np.testing.assert_array_equal(found[key], value, key)


@pytest.mark.parametrize('family', FAMILIES)
def test_written_is_what_was_read(family):
  tree, fields = FAMILIES[family]
  tree = tree()
  (expected,) = tree.values()
  weights = reading.from_file(files.recognise(tree), 'auto', fields)
  same(writing.to_published(weights), expected)


def test_through_directories_and_files_too(tmp_path):
  """With the counts, the centres if asked, and the normalisation."""
  arrays = esvit('cvt_tiny') | prefixed(head(768, True), 'head.')
  centre = np.arange(head(1)['last_layer.weight_g'].size, dtype='f4')[None]
  tree = {'student': arrays, 'teacher': arrays, 'dino_loss': {'center': centre}}
  weights = reading.from_file(files.recognise(tree))
  run, file = str(tmp_path / 'run'), str(tmp_path / 'a.safetensors')
  directory.write(run, weights, 'a.pth')
  again = directory.read(run)
  assert again.about == weights.about
  assert again.about['mean'] == [0.485, 0.456, 0.406]
  same(writing.to_published(again), arrays)
  writing.save(file, again)
  last = loading.load(file)
  assert {k: last.about[k] for k in ('mean', 'std')} == reading.IMAGENET
  same(writing.to_published(last), arrays)
  both = writing.to_published(again, 'both', centres=True)
  np.testing.assert_array_equal(both.pop('dino_loss.center'), centre)
  same(both, prefixed(arrays, 'student.') | prefixed(arrays, 'teacher.'))


def test_esvits_resnet_keeps_its_wrapper():
  arrays = esvit('resnet50')
  heads = prefixed(head(2048), 'head.')
  state = prefixed(arrays, 'backbone.backbone.') | heads
  file = files.recognise({'teacher': prefixed(state, 'module.')})
  weights = reading.from_file(file, 'teacher')
  back = writing.to_published(weights, prefix='backbone.backbone.')
  assert back.keys() == state.keys()
  assert writing.to_published(weights).keys() == arrays.keys() | heads.keys()


def test_mocos_two_networks_are_in_one_state_dict():
  state = mae_sit('moco', table=moco_table)
  file = files.recognise({'state_dict': prefixed(state, 'module.')})
  weights = reading.from_file(file)
  assert weights.handed_on == 'student'
  same(writing.to_published(weights, 'both'), state)


def test_distilled_students_name_the_teacher_that_is_left_out():
  state = mae_sit('dmae')
  file = files.recognise({'model': prefixed(state, 'module.')})
  (note,) = [n for n in file.notes if 'frozen teacher' in n]
  count = sum(k.startswith('tch_model.') for k in state)
  assert f'{count} arrays tch_model.*' in note
  weights = reading.from_file(file)
  expected = {
    k.removeprefix('model.'): v
    for k, v in state.items()
    if not k.startswith('tch_model.')
  }
  same(writing.to_published(weights), expected)
  assert weights.about['model']['heads'] == 12


# Fine-tuned networks of our own.


def classifier(name: str, pool: str, **fields) -> Weights:
  backbone = models.build({'name': name, 'drop_path': 0.0, **fields})
  network = Classifier(backbone, 7, pool)
  image = jax.ShapeDtypeStruct((1, 224, 224, 3), 'float32')
  abstract = jax.eval_shape(network.init, jax.random.key(0), image)
  variables = {'batch_stats': {}} | golden_weights.random_variables(abstract)
  about = {'model': {'name': name, **fields}, 'channels': 3}
  return Weights(about, {'student': variables}, {}, 'student')


SWIN = {'dims': (24, 48, 96, 192), 'depths': (2,) * 4, 'heads': (1, 2, 4, 8)}


@pytest.mark.parametrize(
  ('weights', 'expected'),
  [
    (
      lambda: classifier('swin', 'mean', **SWIN),
      lambda: with_head(esvit('swin_small24_w7'), 192),
    ),
    (
      lambda: classifier('resnet50', 'mean'),
      lambda: with_head(esvit('resnet50'), 2048, 'fc'),
    ),
    (
      lambda: classifier('deit_tiny', 'cls'),
      lambda: with_head(esvit('deit_tiny_p16'), 192),
    ),
    (
      lambda: classifier('vit', 'gap', **MAE_TINY, final_norm=False),
      lambda: with_head(mae_sit('vit_tiny_gap'), 192),
    ),
    (
      lambda: classifier('deit_tiny', 'cls_mean'),
      lambda: (
        esvit('deit_tiny_p16')
        | {
          'head.0.weight': np.zeros((192, 384), 'f4'),
          'head.0.bias': np.zeros(192, 'f4'),
          'head.2.weight': np.zeros((7, 192), 'f4'),
          'head.2.bias': np.zeros(7, 'f4'),
        }
      ),
    ),
  ],
  ids=['Swin', 'ResNet', 'DeiT', 'MAE', 'SiT'],
)
def test_fine_tuned_networks_have_a_published_layout(weights, expected):
  weights, expected = weights(), expected()
  arrays = writing.to_published(weights)
  assert {k: (v.shape, v.dtype) for k, v in arrays.items()} == {
    k: (v.shape, v.dtype) for k, v in expected.items()
  }
  heads = weights.about['model'].get('heads', 3)
  fields = {'heads': heads} if 'depths' not in weights.about['model'] else {}
  if weights.about['model']['name'] == 'resnet50':
    fields = {}
  file = files.recognise({'model': arrays})
  same(writing.to_published(reading.from_file(file, fields=fields)), arrays)


MAE_TINY = {'dim': 192, 'depth': 12, 'heads': 12}


def test_the_view_of_a_fine_tuned_mae_is_its_own_feature():
  """fc_norm of the mean of the patches, as its head sees it."""
  golden, _ = golden_mae_sit.load('vit_tiny_gap')
  images = golden_mae_sit.normal('vit_img', (2, 3, 224, 224))
  file = files.recognise({'model': mae_sit('vit_tiny_gap')})
  weights = reading.from_file(file, 'auto', {'heads': 12})
  assert weights.about['model']['pool'] == 'mean'
  out = networks.forward(weights.backbone)(
    weights.variables(), images.transpose(0, 2, 3, 1)
  )
  np.testing.assert_allclose(out.view, golden['features'], atol=2e-5)
  np.testing.assert_array_equal(out.blocks[-1], out.view)


# What is asked for, and what a file says itself.


def test_heads_are_asked_for_with_the_candidates(tmp_path, capsys):
  path = torch_writer.save(
    tmp_path / 'a.pth', {'model': tensors(mae_sit('vit_tiny_gap'))}
  )
  assert convert.main([str(path), str(tmp_path / 'run')]) == 2
  text = capsys.readouterr().err
  assert text.count('\n') == 1 and str(path) in text
  heads = '3 (vit_tiny, deit_tiny) or 12 (vit_tiny_12h, mae_tiny, moco_tiny)'
  assert f'{heads} heads' in text
  assert '--model.heads=3|12' in text and 'load it with heads=' in text
  with pytest.raises(UserError, match='or 12'):
    esvit_jax.load(path)
  weights = loading.load(path, 'auto', {'heads': 12})
  assert weights.about['model']['heads'] == 12


def test_evaluations_take_the_same_answer():
  published_section = common.evaluation('knn').published
  assert loading.answers(published_section) == {}
  published_section.heads = (12,)
  assert loading.answers(published_section) == {'heads': 12}
  published_section.update({'heads': (1, 3), 'image_size': 384})
  answers = {'heads': (1, 3), 'image_size': 384}
  assert loading.answers(published_section) == answers


@pytest.mark.parametrize('heads', [3, 12])
def test_training_settles_a_choice_by_its_own_model(tmp_path, heads):
  model = {'name': 'vit', 'dim': 192, 'depth': 12, 'heads': heads}
  path = torch_writer.save(
    tmp_path / 'a.pth', {'model': tensors(esvit('deit_tiny_p16'))}
  )
  weights = loading.load_for(model, str(path))
  assert weights.about['model']['heads'] == heads
  run = str(tmp_path / 'run')
  directory.write(run, weights, 'a.pth')
  with pytest.raises(UserError, match='attention heads'):
    loading.load_for(model | {'heads': 6}, run)
  with pytest.raises(UserError, match='says itself that its heads'):
    loading.load(run, fields={'heads': 6})


def tensors(arrays: dict) -> dict:
  return {k: torch_writer.tensor(v) for k, v in arrays.items()}


@pytest.mark.parametrize(
  ('entry', 'method', 'heads'),
  [
    ({'args': {'arch': 'vit_tiny'}}, None, 3),
    ({'args': {'arch': 'deit_small'}}, None, 6),
    ({'config': {'model': 'vit_base'}}, None, 12),
    ({'args': {'model': 'mae_vit_large_patch16'}}, None, 16),
    ({'arch': 'vit_small'}, 'moco', 12),
    ({'args': {'model': 'mae_vit_tiny_patch16'}}, None, None),
    ({'args': {'model': 'vit_small', 'global_pool': 1}}, None, None),
    ({'args': {'arch': 'resnet50'}}, None, None),
    ({}, None, None),
  ],
)
def test_arguments_in_a_file_tell_the_heads(entry, method, heads):
  fields, notes = arguments.fields(arguments.of_file(entry), 'vit', method)
  assert fields.get('heads') == heads and len(notes) == bool(heads)


def test_dinos_resize_is_known_for_its_files():
  arrays = esvit('deit_tiny_p16') | prefixed(head(192), 'head.')
  for prefix, args, extra in (
    ('backbone.', None, 0.1),
    ('', None, 0),
    ('', {'arch': 'vit_tiny', 'norm_last_layer': True}, 0.1),
    ('', {'norm_last_layer': True, 'use_dense_prediction': True}, 0),
  ):
    state = {
      k if k.startswith('head.') else prefix + k: v for k, v in arrays.items()
    }
    tree = {'teacher': state} | ({'args': args} if args else {})
    weights = reading.from_file(files.recognise(tree), 'auto', {'heads': 3})
    assert weights.about['model']['resize_extra'] == extra


def test_a_mask_of_other_windows_is_refused():
  arrays = esvit('swin_small24_w7') | swin_masks()
  key = 'layers.1.blocks.1.attn_mask'
  arrays[key] = arrays[key][::-1]
  with pytest.raises(UserError, match=f'{key} is not the mask'):
    reading.from_file(files.recognise({'model': arrays}))
  module = models.build({'name': 'swin', **SWIN})
  same(masks.of(module), swin_masks())


@pytest.mark.parametrize(
  ('library', 'key'),
  [
    ('Hugging Face', 'vit.encoder.layer.0.attention.attention.query.weight'),
    ('torchvision', 'encoder.layers.encoder_layer_0.ln_1.weight'),
    ('torchvision', 'features.0.0.weight'),
  ],
)
def test_names_of_other_libraries_get_advice_that_helps(library, key):
  tree = {key: np.zeros((3, 3), 'f4')}
  with pytest.raises(UserError, match=library) as error:
    reading.from_file(files.recognise(tree))
  assert '--arch' not in str(error.value)


def test_random_arrays_are_loud_and_not_evaluated(tmp_path, capsys):
  arrays = esvit('deit_tiny_p16')
  del arrays['blocks.3.mlp.fc1.weight']
  torch_writer.save(tmp_path / 'a.pth', tensors(arrays))
  flags = ['--model.heads=3', '--allow-missing=blocks.3.mlp.fc1.weight']
  for source, out in (('a.pth', 'run'), ('run', 'b.safetensors')):
    extra = flags if source == 'a.pth' else []
    paths = [str(tmp_path / source), str(tmp_path / out)]
    assert convert.main([*paths, *extra]) == 0
    assert 'WARNING: 1 backbone arrays are RANDOM' in capsys.readouterr().err
    with pytest.raises(UserError, match=r'fc1\.weight.*train it before'):
      esvit_jax.load(tmp_path / out)


# Windows that a published constructor builds.


@pytest.mark.parametrize(
  ('image_size', 'remark'),
  [
    (224, ''),
    (28, 'builds windows of [7, 3, 1, 0] tokens, not [7, 4, 2, 1]'),
    (192, ''),
  ],
)
def test_windows_of_the_published_constructor(image_size, remark):
  module = models.build({'name': 'swin', **SWIN, 'image_size': image_size})
  weights = Weights(
    {'model': {'name': 'swin', **SWIN, 'image_size': image_size}},
    {'teacher': {'params': {'backbone': {}}, 'batch_stats': {}}},
    {},
  )
  reason = writing.unbuildable(weights)
  assert module == weights.backbone
  assert bool(reason) == bool(remark) and remark in reason
  assert not writing.remarks(weights)


# A network that no published layout holds.


class Toy(nn.Module):
  """One layer."""

  dim: int = 8
  image_size: int | None = None
  dtype: str = 'float32'

  @property
  def num_features(self):
    return self.dim

  @nn.compact
  def __call__(self, groups, train=False):
    features = []
    for x in groups:
      x = nn.Conv(self.dim, (4, 4), 4, name='patches')(x)
      view = x.mean((2, 3))
      features.append(Features(view, x, (x,), (view,)))
    return tuple(features)


def test_a_backbone_of_ones_own_goes_out_and_back(tmp_path, monkeypatch):
  monkeypatch.setitem(models.BACKBONES, 'toy', (Toy, {}))
  image = jax.ShapeDtypeStruct((1, 1, 224, 224, 3), 'float32')
  abstract = jax.eval_shape(Toy().init, jax.random.key(0), (image,))
  backbone = golden_weights.random_variables(abstract)['params']
  params = {'backbone': backbone, 'head': {'kernel': np.ones((8, 7), 'f4')}}
  network = {'params': params, 'batch_stats': {}}
  about = {'model': {'name': 'toy', 'dim': 8}, 'channels': 3}
  weights = Weights(about, {'student': network}, {}, 'student')
  file = str(tmp_path / 'toy.safetensors')
  writing.save(file, weights)
  assert "esvit_jax's names" in writing.remarks(weights)[0]
  again = loading.load(file, 'both')
  jax.tree.map(
    np.testing.assert_array_equal, again.networks['student'], network
  )
  apply, variables = esvit_jax.load(file)
  images = np.ones((2, 32, 32, 3), 'f4')
  assert apply(variables, images).view.shape == (2, 8)
  about['model'] = {'name': 'toy', 'dim': 9}
  with pytest.raises(UserError, match='2 not of its model'):
    writing.save(str(tmp_path / 'b.safetensors'), weights)
    loading.load(str(tmp_path / 'b.safetensors'))


# The public face.


def test_the_public_face():
  assert esvit_jax.BACKBONES is models.BACKBONES
  assert 'esvit' in esvit_jax.METHODS
  assert esvit_jax.train.run and esvit_jax.evaluate.run
  with pytest.raises(AttributeError, match='spam'):
    _ = esvit_jax.spam


# Windows that no image of 224 px gives.


@pytest.mark.parametrize(
  ('rows', 'words'),
  [
    ((23, 23, 23, 23), 'not those of 224 px images.*--model.image_size='),
    ((13, 13, 13, 5), 'which no image size gives here'),
  ],
)
def test_windows_ask_for_the_image_size_where_one_helps(rows, words):
  arrays = esvit('swin_small24_w7')
  for i, side in enumerate(rows):
    for j in range(2):
      at = f'layers.{i}.blocks.{j}.attn.relative_position'
      heads = arrays[f'{at}_bias_table'].shape[1]
      arrays[f'{at}_bias_table'] = np.zeros((side**2, heads), 'f4')
      arrays.pop(f'{at}_index')
  with pytest.raises(UserError, match=words):
    reading.from_file(files.recognise({'model': arrays}))


def test_a_file_of_two_types_of_mask_asks_for_its_size():
  arrays = esvit('swin_small24_w7') | swin_masks()
  del arrays['layers.2.blocks.1.attn_mask']
  with pytest.raises(UserError, match='it has 2 attn_mask, not the 3'):
    reading.from_file(files.recognise({'model': arrays}))


@pytest.mark.parametrize(
  'about',
  [
    {'random': 3},
    {'batches': {'teacher': {'a': 'b'}}},
    {'mean': 'x', 'std': [1.0]},
    {'head': []},
    {'buffers': {'a': 1}, 'batches': []},
    {'layout': 'esvit_jax', 'channels': None},
  ],
)
def test_a_description_of_wrong_types_is_refused(tmp_path, about):
  path = str(tmp_path / 'a.safetensors')
  description = json.dumps({'model': {'name': 'deit_tiny'}} | about)
  arrays = esvit('deit_tiny_p16')
  safetensors.numpy.save_file(arrays, path, {'esvit_jax': description})
  with pytest.raises(UserError, match='description of the arch') as error:
    loading.load(path)
  assert path in str(error.value)


def test_a_name_leaves_the_rest_to_the_shapes():
  arrays = mae_sit('vit_tiny_gap')
  config = shapes.infer(arrays, {'name': 'deit_tiny', 'image_size': 224})
  assert models.build(config).final_norm is False
  assert models.build(config).heads == 3
  config = shapes.infer(mae_sit('mae_tiny'), {'name': 'vit_tiny'})
  built = models.build(config)
  assert (built.heads, built.positions, built.pool) == (3, 'mae', 'mean')


def test_a_directory_of_another_network_is_refused(tmp_path):
  """Such as of a version whose arrays had other names."""
  weights = classifier('deit_tiny', 'cls')
  backbone = weights.networks['student']['params']['backbone']
  backbone['embedding'] = backbone.pop('patch_embed')
  directory.write(str(tmp_path / 'run'), weights, 'a.pth')
  with pytest.raises(UserError, match='4 arrays are not those of its model'):
    loading.load(tmp_path / 'run')
