"""Pages that follow from the code: recipes and fields of configs."""

import ast
import functools
import importlib
import io
import json
import pathlib
import tokenize

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from esvit_jax import augment, models
from esvit_jax.run import summary

ROOT = pathlib.Path(__file__).parent.parent
RECIPES = ('esvit', 'dino', 'mae_lite', 'moco', 'sit')
# ImageNet-1K, top-1 in percent: linear / k-NN, from EsViT's repository; where
# marked, from its paper (arXiv 2106.09785, v2).
PUBLISHED = {
  'esvit:resnet50_view': '75.0 / 69.1',
  'esvit:resnet50': '75.7 / 71.3',
  'esvit:swin_tiny_view': '77.0 / 74.2',
  'esvit:swin_tiny': '78.0 / 75.7',
  'esvit:swin_small_view': '79.2 / 76.9',
  'esvit:swin_small': '79.5 / 77.7',
  'esvit:swin_base_view': '79.6 / 77.7',
  'esvit:swin_base': '80.4 / 78.9',
  'esvit:swin_tiny_w14_view': '77.9 / 75.5 (paper)',
  'esvit:swin_tiny_w14': '78.7 / 77.0',
  'esvit:swin_small_w14_view': '79.4 / 77.3 (paper)',
  'esvit:swin_small_w14': '80.8 / 79.1',
  'esvit:swin_base_w14_view': '80.5 / 78.3 (paper)',
  'esvit:swin_base_w14': '81.3 / 79.3',
  'esvit:vil_view': '77.3 / 73.9',
  'esvit:vil': '77.5 / 74.5',
  'esvit:cvt_tiny_view': '77.6 / 74.8',
  'esvit:cvt_tiny': '78.5 / 76.7',
}
FUNCTIONS = {
  'Every run': ('common', 'base'),
  'A group of views': ('common', 'view'),
  'EsViT and DINO': ('esvit', 'sections'),
  'MAE and its distillation': ('mae_lite', 'sections'),
  'MoCo-v3': ('moco', 'sections'),
  'SiT': ('sit', 'sections'),
  'Every evaluation': ('common', 'evaluation'),
  'A finished network, as evaluations and fine-tuning take it': (
    'common',
    'add_network',
  ),
  'Experiments': ('common', 'experiment'),
}


def recipes_page() -> str:
  """A table of all published recipes, built from their configs."""
  lines = [
    '# Recipes',
    '',
    'Published recipes on ImageNet-1K. Parameters and GFLOP are those of the '
    'backbone on one global view, a multiplication and an addition counted '
    'as two; published scores are of linear '
    'probing / k-NN, top-1 in percent. None was trained in full with this '
    'code yet: their parts are compared with the published code '
    '([Numbers](numbers.md)).',
    '',
    '| config | method | backbone | M parameters | GFLOP per image | batch '
    '| epochs | published | ours |',
    '|---|---|---|---|---|---|---|---|---|',
  ]
  for name in RECIPES:
    for variant in variants(name):
      c = importlib.import_module(f'configs.{name}').get_config(variant)
      parameters, flops = cost(
        c.model.to_json_best_effort(),
        augment.view_size(c.views.globals.size),
        c.data.channels,
      )
      cells = (
        f'`configs/{name}.py:{variant}`',
        c.method,
        c.model.name,
        f'{parameters / 1e6:.1f}',
        f'{flops / 1e9:.1f}',
        str(c.batch_size),
        str(c.epochs),
        PUBLISHED.get(f'{name}:{variant}', '-'),
        'not run',
      )
      lines.append(f'| {" | ".join(cells)} |')
  return '\n'.join(lines) + '\n'


def variants(name: str) -> list[str]:
  """Those of a file of configs/."""
  return list(importlib.import_module(f'configs.{name}').VARIANTS)


@functools.cache
def cost(model: str, size: tuple[int, int], channels: int):
  """Parameters of a backbone, and operations of one view as XLA counts."""
  backbone = models.build(ConfigDict(json.loads(model)))
  image = jax.ShapeDtypeStruct((1, 1, *size, channels), jnp.float32)
  variables = jax.eval_shape(backbone.init, jax.random.key(0), (image,))
  lowered = jax.jit(backbone.apply).lower(variables, (image,))
  return summary.count(variables), lowered.cost_analysis()['flops']


def config_page() -> str:
  """All fields with their defaults and comments."""
  lines = [
    '# Config reference',
    '',
    'Every field is set on the command line: `--config.optim.lr=1e-3`. '
    'Defaults are those of the file named; recipes change them. Fields of the '
    'network are those of its class in `esvit_jax/models/`.',
  ]
  for title, (name, function) in FUNCTIONS.items():
    lines += ['', f'## {title}', '', f'`configs/{name}.py`', '']
    lines += ['| field | default | meaning |', '|---|---|---|']
    for field, default, comment in fields(name, function):
      comment = comment.replace('|', '\\|')
      lines.append(f'| `{field}` | `{default}` | {comment} |')
  return '\n'.join(lines) + '\n'


def fields(name: str, function: str) -> list[tuple[str, str, str]]:
  """(field, default, comment) of the assignments in a function of a config."""
  text = (ROOT / f'configs/{name}.py').read_text(encoding='utf-8')
  comments = {
    token.start[0]: token.string.lstrip('# ')
    for token in tokenize.generate_tokens(io.StringIO(text).readline)
    if token.type == tokenize.COMMENT
  }
  (body,) = (
    node.body
    for node in ast.parse(text).body
    if isinstance(node, ast.FunctionDef) and node.name == function
  )
  found = []
  for node in body:
    if not isinstance(node, ast.Assign):
      continue
    comment = ' '.join(
      comments[line]
      for line in range(node.lineno, node.end_lineno + 1)
      if line in comments
    )
    names, values = node.targets, [node.value] * len(node.targets)
    if isinstance(names[0], ast.Tuple):
      names, values = names[0].elts, node.value.elts
    for target, value in zip(names, values):
      default = ast.unparse(value)
      if isinstance(target, ast.Attribute) and 'ConfigDict(' not in default:
        field = ast.unparse(target).partition('.')[2]
        found.append((field, default, comment))
  return found
