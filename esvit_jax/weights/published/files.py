"""Files of published networks: which networks they hold, without guessing.

Training checkpoints nest networks: {'student', 'teacher', 'dino_loss', ...} in
EsViT, DINO and SiT, {'model'} in MAE, {'state_dict'} in MoCo. Other files are a
bare state_dict. Wrappers of modules leave prefixes on all keys. What is
recognised becomes a note for the user; what is not is an error.
"""

import dataclasses
import os
import stat
from collections.abc import Sequence

import numpy as np
import safetensors

from esvit_jax.errors import UserError
from esvit_jax.weights import libraries
from esvit_jax.weights.handover import NETWORKS
from esvit_jax.weights.published import arguments, parts
from esvit_jax.weights.tables import Arrays
from esvit_jax.weights.torch import file as torch_file
from esvit_jax.workdir import parse_json

FORMAT = 'esvit_jax'  # the key of our architecture in safetensors' metadata
OWN = 'esvit_jax'  # the layout of this project's own names
CENTRES = 'dino_loss.'
_FROZEN = 'tch_model.'  # the frozen teacher in files of D-MAE
_LONGEST_HEADER = 2**23  # bytes; each array takes some hundred
_SPARSE = 16  # a file this many times as large as what is on disk has holes
# The two networks of MoCo v3 and v1, which share one state_dict.
_MOCO = {
  'student': ('base_encoder.', 'encoder_q.'),
  'teacher': ('momentum_encoder.', 'encoder_k.'),
}


@dataclasses.dataclass
class File:
  """A file of published networks.

  Attributes:
    path: of the file.
    networks: 'student', 'teacher' or, of a single unnamed network, 'model' ->
      arrays by published key, without prefixes.
    prefixes: network -> prefix of its keys in the file.
    centres: 'center' and 'center_grid' f[1, K], if there are any.
    others: arrays that belong to no network, by their key in the file.
    notes: what was recognised, a line each.
    about: the description that this project's exports carry, if any.
    arguments: of the command line that made the file, if it stores them.
    fields: of the backbone, known from the library that named its arrays.
  """

  path: str = ''
  networks: dict[str, Arrays] = dataclasses.field(default_factory=dict)
  prefixes: dict[str, str] = dataclasses.field(default_factory=dict)
  centres: Arrays = dataclasses.field(default_factory=dict)
  others: Arrays = dataclasses.field(default_factory=dict)
  notes: list[str] = dataclasses.field(default_factory=list)
  about: dict | None = None
  arguments: dict = dataclasses.field(default_factory=dict)
  fields: dict = dataclasses.field(default_factory=dict)

  @property
  def method(self) -> str | None:
    """The method that trained the networks, if their keys tell it."""
    in_one = any(
      prefix.endswith(names)
      for prefix in self.prefixes.values()
      for names in _MOCO.values()
    )
    return 'moco' if in_one else None


def read(path: str, prefix: str | None = None) -> File:
  """Reads a file of torch.save, or a safetensors file by its suffix.

  Args:
    path: the file.
    prefix: of the keys to take, instead of the recognised one; other keys go
      to `others`.

  Raises:
    UserError: the file cannot be read, or its networks not recognised.
  """
  _check_plain(path)
  if path.endswith('.safetensors'):
    tree, about = _read_safetensors(path)
    return recognise(tree, prefix, path, about)
  file = recognise(torch_file.read(path), prefix, path)
  if torch_file.is_legacy(path):
    file.notes.insert(0, "torch's format from before 1.6")
  return file


def recognise(
  tree: dict,
  prefix: str | None = None,
  path: str = '',
  about: dict | None = None,
) -> File:
  """Finds the networks in the tree of a file; see `read`."""
  file = File(path, about=about, arguments=arguments.of_file(tree))
  try:
    states, centres = _states(tree, file.notes)
    for key in (key for s in (*states.values(), centres) for key in s):
      if not key.isprintable() or len(key) > 200:
        raise UserError(f'it has a key that names nothing: {key[:40]!r}')
    for name, state in states.items():
      if prefix is not None:
        _take(name, state, prefix, file)
      else:
        _recognise(name, state, file)
    for name, arrays in file.networks.items():
      found = libraries.recognise(arrays)
      file.networks[name] = found.arrays
      file.fields |= found.fields
      file.notes += [f'{name}: {found.note}'] if found.note else []
  except UserError as e:
    raise UserError(f'{path!r}: {e}') from None
  for key, value in centres.items():
    if key in ('center', 'center_grid'):
      file.centres[key] = value
    else:
      file.others[CENTRES + key] = value
  return file


def _read_safetensors(path: str) -> tuple[dict, dict | None]:
  """The arrays, nested as in EsViT's checkpoints, and the description."""
  try:
    _check_header(path)
    with safetensors.safe_open(path, framework='numpy') as file:
      flat = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
      about = parse_json((file.metadata() or {}).get(FORMAT, 'null'))
  except FileNotFoundError:
    raise UserError(f'{path!r}: no such file') from None
  except Exception as e:  # the library raises many kinds
    why = (str(e).splitlines() or ['unknown'])[0][:160]
    raise UserError(
      f'{path!r}: is no sound safetensors file of plain numbers ({why})'
    ) from None
  if about is not None and not _is_description(about):
    raise UserError(f'{path!r}: its description of the architecture is broken')
  flat = {  # as torch_file does: exact, and NumPy has no bfloat16
    k: v.astype(np.float32) if v.dtype.name == 'bfloat16' else v
    for k, v in flat.items()
  }
  tree = {}
  roots = (*NETWORKS, CENTRES[:-1])
  nested = all(key.partition('.')[0] in roots for key in flat)
  for key, value in flat.items():
    root, _, key_of_network = key.partition('.')
    if root == roots[-1] or nested:
      tree.setdefault(root, {})[key_of_network] = value
    else:
      tree.setdefault('model', {})[key] = value
  return tree, about


def _check_plain(path: str) -> None:
  """Raises UserError for a pipe, a device, or a file with large holes."""
  try:
    status = os.stat(path)
  except (OSError, ValueError):
    return  # its reader says what is wrong
  if stat.S_ISDIR(status.st_mode):
    return
  if not stat.S_ISREG(status.st_mode):
    raise UserError(f'{path!r}: it is no file, but a pipe or a device')
  if status.st_size > _SPARSE * max(512 * status.st_blocks, 2**20):
    raise UserError(
      f'{path!r}: it is of {status.st_size / 2**30:.1f} GiB, most of which '
      'were never written'
    )


def _check_header(path: str) -> None:
  """Raises ValueError where a header is longer than any description."""
  with open(path, 'rb') as file:
    length = int.from_bytes(file.read(8), 'little')
  if length > _LONGEST_HEADER:
    raise ValueError(f'its header is of {length} bytes')


def _states(tree: dict, notes: list[str]) -> tuple[dict, dict]:
  """The state_dicts in a tree by name, and DINO's centres."""
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
    centres = tree.get(CENTRES[:-1], {})
    if not _is_state(centres) and centres:
      raise UserError('its dino_loss holds other things than arrays')
    left = [str(k) for k in tree if k not in (*nested, CENTRES[:-1])]
    notes.append(
      f'a dict of {", ".join([*nested, *(["dino_loss"] * bool(centres))])}'
    )
    if left:
      notes.append(f'left out: {_names(left)}')
    return {k: tree[k] for k in nested}, centres
  if _is_state(tree):
    notes.append('a bare state_dict')
    return {'model': tree}, {}
  odd = [str(k) for k, v in tree.items() if not isinstance(v, np.ndarray)]
  raise UserError(
    'it holds no state_dict under student, teacher, model or state_dict, '
    f'and is none itself: {_names(odd) or "it is empty"}'
  )


def _take(name: str, state: Arrays, prefix: str, file: File) -> None:
  """The network of the keys that begin with `prefix`."""
  if not prefix.endswith('.') and prefix:
    raise UserError(f"--prefix={prefix}: end it with a dot, '{prefix}.'")
  taken = {k: v for k, v in state.items() if k.startswith(prefix)}
  if not taken:
    raise UserError(
      f'no key of its {name} begins with {prefix!r}: they are '
      f'{_names(list(state), 3)}'
    )
  file.others |= {k: v for k, v in state.items() if k not in taken}
  file.notes.append(f'{name}: prefix {prefix!r} as asked for')
  file.networks[name] = {k.removeprefix(prefix): v for k, v in taken.items()}
  file.prefixes[name] = prefix


def _recognise(name: str, state: Arrays, file: File) -> None:
  """The network or networks of one state_dict, without prefixes."""
  prefix = ''
  for word in ('_orig_mod.', 'module.', '_orig_mod.'):
    state, more = _without(word, state, state)
    prefix += more
  if name not in NETWORKS and any(
    k.startswith(_MOCO['teacher']) for k in state
  ):
    _recognise_moco(state, prefix, file)
    return
  frozen = [k for k in state if k.startswith(_FROZEN)]
  if frozen:
    file.notes.append(
      f'{name}: left out the frozen teacher, {len(frozen)} arrays {_FROZEN}*'
    )
    state = {k: v for k, v in state.items() if k not in frozen}
  for word in ('model.', 'backbone.', 'backbone.'):
    body = [
      k
      for k in state
      if k.partition('.')[0] not in parts.HEADS
      and not k.startswith(parts.BESIDE)
    ]
    state, more = _without(word, state, body)
    prefix += more
  _check_wrappers(name, state, prefix)
  file.notes.append(
    f'{name}: prefix {prefix!r}' if prefix else f'{name}: no prefix'
  )
  file.networks[name], file.prefixes[name] = state, prefix


def _recognise_moco(state: Arrays, prefix: str, file: File) -> None:
  """MoCo's two networks; only the base encoder has a predictor behind it."""
  others = dict(state)
  for name, words in _MOCO.items():
    for word in words:
      taken = {k: others.pop(k) for k in list(others) if k.startswith(word)}
      if taken:
        file.notes.append(f'{name}: prefix {prefix + word!r}')
        file.networks[name] = {k.removeprefix(word): taken[k] for k in taken}
        file.prefixes[name] = prefix + word
  for key in [k for k in others if k.startswith('predictor.')]:
    if 'student' in file.networks:
      file.networks['student'][key] = others.pop(key)
  file.others |= {prefix + k: v for k, v in others.items()}


def _check_wrappers(name: str, state: Arrays, prefix: str) -> None:
  """Raises UserError if prefixes of a wrapper remain on some keys."""
  left = [k for k in state if k.startswith('module.')]
  if left and 'module.' in prefix:
    raise UserError(
      f"its {name} has 'module.' twice on {len(left)} keys, such as "
      f'{prefix}{left[0]}: two wrappers saved it; save '
      'model.module.state_dict(), or convert it with --prefix='
    )
  if left:
    raise UserError(
      f"its {name} has 'module.' on {len(left)} of {len(state)} keys only, "
      f'such as {left[0]}: two networks are mixed; convert one with --prefix='
    )


def _without(word: str, state: Arrays, body: Sequence) -> tuple[Arrays, str]:
  """Removes the prefix `word` if all keys in `body` have it."""
  if not body or not all(key.startswith(word) for key in body):
    return state, ''
  return {k.removeprefix(word): v for k, v in state.items()}, word


def _is_description(about) -> bool:
  """Whether a JSON value has the form of `Weights.about`."""
  kinds = {
    'model': dict,
    'channels': int,
    'mean': list,
    'std': list,
    'head': dict,
    'batches': dict,
    'buffers': list,
    'random': list,
    'layout': str,
    'handed_on': str,
  }
  return (
    isinstance(about, dict)
    and 'model' in about
    and ('channels' in about or 'layout' not in about)
    and all(type(v) is kinds.get(k, type(v)) for k, v in about.items())
    and all(type(v) is str for v in about.get('random', ()))
    and all(
      type(v) in (int, float) for k in ('mean', 'std') for v in about.get(k, ())
    )
    and all(
      type(counts) is dict and all(type(n) is int for n in counts.values())
      for counts in about.get('batches', {}).values()
    )
  )


def _is_state(value) -> bool:
  """Whether this is a state_dict: arrays by name."""
  return (
    isinstance(value, dict)
    and bool(value)
    and all(isinstance(k, str) for k in value)
    and all(isinstance(v, np.ndarray) for v in value.values())
  )


def _names(names: list[str], most: int = 8) -> str:
  """Some names in a file, for one line."""
  text = ', '.join(repr(name)[1:-1][:80] for name in names[:most])
  return text + (f' and {len(names) - most} more' if len(names) > most else '')
