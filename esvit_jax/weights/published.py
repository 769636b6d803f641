"""Files of published networks: what they hold, recognised, never guessed.

Training files nest networks: {'student', 'teacher', 'dino_loss', ...} of EsViT,
DINO and SiT, {'model'} of MAE, {'state_dict'} of MoCo; others are one bare
state_dict. Wrappers leave prefixes on all keys. What was recognised is noted
for the user, and what cannot be is an error.
"""

import json
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import safetensors

from esvit_jax.errors import UserError
from esvit_jax.weights.handover import NETWORKS
from esvit_jax.weights.torch import file as torch_file

Arrays = dict[str, np.ndarray]

FORMAT = 'esvit_jax'  # the key of our architecture in safetensors' metadata
CENTRES = 'dino_loss.'
HEADS = ('head', 'head_dense')
# What pre-training adds to a backbone: MAE's decoder and adapters, heads.
_BESIDE = (
  'mask_token',
  'decoder_',
  'attn_adapter.',
  'hidden_adapter.',
  'head.',
  'head_recons.',
  'fc_norm.',
  'predictor.',
)
_TUTOR = 'tch_model.'  # the frozen teacher in files of D-MAE
# The two networks of MoCo v3 and v1, which live in one state_dict.
_MOCO = {
  'student': ('base_encoder.', 'encoder_q.'),
  'teacher': ('momentum_encoder.', 'encoder_k.'),
}


class File(NamedTuple):
  """A file of published networks.

  Attributes:
    networks: 'student', 'teacher' or, where it holds only one, 'model':
      arrays by published key, without prefixes.
    centres: 'center' and 'center_grid' f[1, K], where there are any.
    others: arrays of neither, by their key in the file.
    notes: what was recognised, a line each.
    about: our own description, if the file carries one.
    method: what trained them, where the keys say it.
  """

  networks: dict[str, Arrays]
  centres: Arrays
  others: Arrays
  notes: list[str]
  about: dict | None
  method: str | None = None

  @property
  def recorded(self) -> str | None:
    """The network that our own description says is handed on."""
    return (self.about or {}).get('handed_on')


def read(path: str, prefix: str | None = None) -> File:
  """Reads a file of torch.save, or a safetensors file by its suffix.

  Args:
    path: the file.
    prefix: what the keys begin with, instead of what is recognised; other
      keys go to `others`.

  Raises:
    UserError: it cannot be read, or not be recognised.
  """
  about = None
  if path.endswith('.safetensors'):
    tree, about = _read_safetensors(path)
  else:
    tree = torch_file.read(path)
  try:
    return _sort(tree, prefix)._replace(about=about)
  except UserError as e:
    raise UserError(f'{path!r}: {e}') from None


def whole(network: Mapping) -> str | None:
  """The table of what a network has beside its backbone, if not DINO's heads.

  Told by a key that only this kind has.
  """
  if 'decoder_embed.weight' in network:
    cut = 'blocks.12.norm1.weight' in network
    return (
      'd2mae' if cut and 'blocks.12.mlp.fc1.weight' not in network else 'mae'
    )
  if 'head_recons.mlp.0.weight' in network:
    return 'sit'
  if 'head.6.weight' in network and 'head.0.weight' in network:
    return 'moco'
  if {'head.weight', 'head.bias', 'blocks.0.norm1.weight'} <= network.keys():
    return 'vit_classifier'
  return None


def beside(key: str, kind: str) -> bool:
  """Whether a key of a `whole` network is not its backbone's."""
  if kind == 'd2mae' and key.startswith('blocks.12.'):
    return True
  return key.startswith(_BESIDE)


def split(network: Mapping) -> dict[str, Arrays]:
  """The 'backbone', 'head' and 'head_dense' of a network's arrays, or 'rest'.

  `rest` is what a network of another kind has beside its backbone, see
  `whole`.
  """
  kind = whole(network)
  if kind:
    rest = {k: v for k, v in network.items() if beside(k, kind)}
    backbone = {k: v for k, v in network.items() if k not in rest}
    return {'backbone': backbone, 'rest': rest}
  heads = [h for h in HEADS if f'{h}.last_layer.weight_v' in network]
  parts = {part: {} for part in ('backbone', *heads)}
  for key, value in network.items():
    part, _, rest = key.partition('.')
    if part in heads:
      parts[part][rest] = value
    else:
      parts['backbone'][key] = value
  return parts


def _read_safetensors(path: str) -> tuple[dict, dict | None]:
  """Its arrays, nested as EsViT's files are, and our description."""
  try:
    with safetensors.safe_open(path, framework='numpy') as file:
      flat = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
      about = json.loads((file.metadata() or {}).get(FORMAT, 'null'))
  except FileNotFoundError:
    raise UserError(f'{path!r}: no such file') from None
  except Exception as e:  # the library raises many kinds
    why = (str(e).splitlines() or ['unknown'])[0][:160]
    raise UserError(
      f'{path!r}: is no sound safetensors file of plain numbers ({why})'
    ) from None
  if about is not None and not (
    isinstance(about, dict) and isinstance(about.get('model'), dict)
  ):
    raise UserError(f'{path!r}: its description of the architecture is broken')
  flat = {  # as torch_file does: exact, and NumPy has no bfloat16
    k: v.astype(np.float32) if v.dtype.name == 'bfloat16' else v
    for k, v in flat.items()
  }
  tree = {}
  roots = (*NETWORKS, CENTRES[:-1])
  nested = all(key.partition('.')[0] in roots for key in flat)
  for key, value in flat.items():
    root, _, rest = key.partition('.')
    if root == roots[-1] or nested:
      tree.setdefault(root, {})[rest] = value
    else:
      tree.setdefault('model', {})[key] = value
  return tree, about


def _sort(tree: dict, prefix: str | None) -> File:
  """Takes the tree of a file apart."""
  notes, centres, others = [], {}, {}
  nested = [
    k for k in (*NETWORKS, 'model', 'state_dict') if _is_state(tree.get(k))
  ]
  if nested:
    if (set(nested) & {*NETWORKS} and set(nested) - {*NETWORKS}) or len(
      nested
    ) > 2:
      raise UserError(
        f'it holds the networks {", ".join(nested)}: save only one kind of them'
      )
    states = {k: tree[k] for k in nested}
    centres = tree.get(CENTRES[:-1], {})
    if not _is_state(centres) and centres:
      raise UserError('its dino_loss holds other things than arrays')
    left = [str(k) for k in tree if k not in (*nested, CENTRES[:-1])]
    notes.append(
      f'a dict of {", ".join([*nested, *(["dino_loss"] * bool(centres))])}'
    )
    if left:
      notes.append(f'left out: {_names(left)}')
  elif _is_state(tree):
    states = {'model': tree}
    notes.append('a bare state_dict')
  else:
    odd = [str(k) for k, v in tree.items() if not isinstance(v, np.ndarray)]
    raise UserError(
      'it holds no state_dict under student, teacher, model or state_dict, '
      f'and is none itself: {_names(odd) or "it is empty"}'
    )
  for key in (key for s in (*states.values(), centres) for key in s):
    if not key.isprintable() or len(key) > 200:
      raise UserError(f'it has a key that names nothing: {key[:40]!r}')
  networks = {}
  for who, state in states.items():
    for name, found in _networks(who, state, prefix, others, notes).items():
      networks[name] = found
  for key in list(centres):
    if key not in ('center', 'center_grid'):
      others[CENTRES + key] = centres[key]
  centres = {k: v for k, v in centres.items() if CENTRES + k not in others}
  method = 'moco' if {*NETWORKS} <= {*networks} - {*nested} else None
  return File(networks, centres, others, notes, None, method)


def _networks(who, state, prefix, others, notes) -> dict[str, Arrays]:
  """The network or networks of one state_dict, without prefixes."""
  if prefix is not None:
    if not prefix.endswith('.') and prefix:
      raise UserError(f"--prefix={prefix}: end it with a dot, '{prefix}.'")
    taken = {k: v for k, v in state.items() if k.startswith(prefix)}
    if not taken:
      raise UserError(
        f'no key of its {who} begins with {prefix!r}: they are '
        f'{_names(list(state), 3)}'
      )
    others |= {k: v for k, v in state.items() if k not in taken}
    notes.append(f'{who}: prefix {prefix!r} as asked for')
    return {who: {k.removeprefix(prefix): v for k, v in taken.items()}}

  state, found = _without('module.', state, state)
  if who not in NETWORKS and any(k.startswith(_MOCO['teacher']) for k in state):
    rest = dict(state)
    networks = {}
    for name, words in _MOCO.items():
      for word in words:
        taken = {k: rest.pop(k) for k in list(rest) if k.startswith(word)}
        if taken:
          notes.append(f'{name}: prefix {found + word!r}')
          networks[name] = {k.removeprefix(word): v for k, v in taken.items()}
    # Published: only the base encoder has a predictor behind it.
    for key in [k for k in rest if k.startswith('predictor.')]:
      networks['student'][key] = rest.pop(key)
    others |= {found + k: v for k, v in rest.items()}
    return networks
  tutor = [k for k in state if k.startswith(_TUTOR)]
  if tutor:
    notes.append(f'{who}: left out the frozen teacher, {len(tutor)} arrays')
    state = {k: v for k, v in state.items() if k not in tutor}
  for word in ('model.', 'backbone.', 'backbone.'):
    body = [
      k
      for k in state
      if k.partition('.')[0] not in HEADS and not k.startswith(_BESIDE)
    ]
    state, more = _without(word, state, body)
    found += more
  twice = [k for k in state if k.startswith('module.')]
  if twice and 'module.' in found:
    raise UserError(
      f"its {who} has 'module.' twice on {len(twice)} keys, such as "
      f'{found}{twice[0]}: two wrappers saved it; save '
      'model.module.state_dict(), or name the whole with --prefix='
    )
  if twice:
    raise UserError(
      f"its {who} has 'module.' on {len(twice)} of {len(state)} keys only, "
      f'such as {twice[0]}: two networks are mixed; name one with --prefix='
    )
  notes.append(f'{who}: prefix {found!r}' if found else f'{who}: no prefix')
  return {who: state}


def _without(word: str, state: Arrays, body: Sequence) -> tuple[Arrays, str]:
  """`state` without `word`, if every key of `body` begins with it."""
  if not body or not all(key.startswith(word) for key in body):
    return state, ''
  return {k.removeprefix(word): v for k, v in state.items()}, word


def _is_state(value) -> bool:
  """Whether this is a state_dict: arrays by name."""
  return (
    isinstance(value, dict)
    and bool(value)
    and all(isinstance(k, str) for k in value)
    and all(isinstance(v, np.ndarray) for v in value.values())
  )


def _names(names: list[str], most: int = 8) -> str:
  """Some names of a file, fit for one line."""
  text = ', '.join(repr(name)[1:-1][:80] for name in names[:most])
  return text + (f' and {len(names) - most} more' if len(names) > most else '')
