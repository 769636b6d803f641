"""The command line that a training checkpoint stores beside its arrays.

EsViT, DINO, MAE and SiT store its Namespace under `args`, others under
`config`; MoCo-v3 stores the name of its network under `arch`.
"""

import re
from collections.abc import Mapping

# Attention heads by size. DINO, DeiT, EsViT and SiT have 64 channels per head.
# MoCo-v3 and MAE-Lite give ViT-Small 12 heads (arXiv 2104.02057, appendix).
# MAE's own code has no ViT-Tiny or ViT-Small; derived codes differ, so their
# heads are asked for.
_MAE_HEADS = {'base': 12, 'large': 16, 'huge': 16}
_HEADS = {'tiny': 3, 'small': 6, **_MAE_HEADS}
_MOCO_HEADS = {'tiny': 12, 'small': 12, 'base': 12, 'large': 16}
_MAE_FLAGS = {'norm_pix_loss', 'global_pool'}
_NAME = re.compile(r'(?:mae_)?(?:vit|deit)_(tiny|small|base|large|huge)(?:_|$)')


def of_file(tree: Mapping) -> dict:
  """The arguments in a checkpoint's tree; {} if there are none."""
  arguments = {}
  for entry in ('config', 'args'):
    if isinstance(tree.get(entry), Mapping):
      arguments |= tree[entry]
  if isinstance(tree.get('arch'), str):
    arguments.setdefault('arch', tree['arch'])
  return arguments


def fields(
  arguments: Mapping, family: str | None, method: str | None
) -> tuple[dict, list[str]]:
  """Fields of a backbone that arguments tell and arrays do not.

  Args:
    arguments: see `of_file`.
    family: of the backbone.
    method: 'moco' if the keys are MoCo's.

  Returns:
    The fields, and a note for each.
  """
  known, notes = {}, []
  for word in ('arch', 'model'):
    name = arguments.get(word)
    match = _NAME.match(name) if isinstance(name, str) else None
    if family == 'vit' and match and 'heads' not in known:
      mae = name.startswith('mae_') or _MAE_FLAGS & arguments.keys()
      heads = _MAE_HEADS if mae else _HEADS
      heads = _MOCO_HEADS if method == 'moco' else heads
      if match.group(1) in heads:
        known['heads'] = heads[match.group(1)]
        notes.append(f'heads {known["heads"]}, as its {word} is {name}')
  if family == 'swin':
    for word in ('img_size', 'input_size', 'image_size'):
      size = arguments.get(word)
      if type(size) is int and 0 < size <= 2048:
        known['image_size'] = size
        notes.append(f'image_size {size}, as its {word} says')
        break
  return known, notes


def is_dino(arguments: Mapping) -> bool:
  """Whether the command line is of DINO's own code.

  EsViT's code has the same flags, and more for its region task.
  """
  return (
    'norm_last_layer' in arguments and 'use_dense_prediction' not in arguments
  )
