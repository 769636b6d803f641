"""Reads what torch.save wrote, without torch and without running anything.

The file is a zip: `NAME/data.pkl` is a pickle that describes the tree, and
`NAME/data/N` holds the bytes of storage N (before torch 1.6: see legacy.py).
The zip is mapped into memory, never extracted. The pickle is interpreted by
`torch_pickle`, which can make only arrays and plain containers.
"""

import mmap
import os
import re
import stat
import struct
import zipfile
import zlib

from esvit_jax.errors import UserError
from esvit_jax.weights.torch import legacy
from esvit_jax.weights.torch import pickle as torch_pickle
from esvit_jax.weights.torch.array import RefusedError, Storages, short

_PICKLE = 32 << 20  # bytes of data.pkl
_GROWTH, _SLACK = 8, 64 << 20  # bytes unpacked: 8 times the file + 64 MiB


def read(path: str | os.PathLike) -> dict:
  """Reads a checkpoint that torch.save wrote.

  Tensors and parameters become read-only numpy arrays that view the file
  (nothing is copied until it is used; overwriting the file in place changes
  them). float16 stays float16; bfloat16 becomes float32, which is exact.
  OrderedDict and argparse.Namespace become dict, torch.Size a tuple,
  torch.device and torch.dtype str, numpy scalars Python numbers. Python
  attributes of a state dict (`_metadata`) are dropped.

  Args:
    path: a .pth, .pth.tar, .pt or .ckpt file; the name does not matter.

  Returns:
    The tree: dict, list, tuple, set, str, bytes, numbers, None and arrays.

  Raises:
    UserError: no such file, another format, damage, or a pickle that asks for
      anything else than the above.
  """
  try:
    data = _map(path)
    if legacy.recognised(data[:32]):
      tree = legacy.read(data, _GROWTH * len(data) + _SLACK)
    else:
      archive = _Archive(data)
      storages = Storages(archive.member, archive.order(), archive.limit)
      tree = torch_pickle.run(archive.pickle(), storages)
    if not isinstance(tree, dict):
      raise RefusedError(
        f'holds a {type(tree).__name__} where a checkpoint holds a dict: '
        'torch.save a state_dict or a dict of them'
      )
    return tree
  except RefusedError as error:
    raise UserError(f'{os.fspath(path)!r}: {error}') from None


def is_legacy(path: str | os.PathLike) -> bool:
  """Whether a file is in torch's format from before 1.6."""
  with open(path, 'rb') as file:
    return legacy.recognised(file.read(16))


def _map(path: str | os.PathLike) -> mmap.mmap:
  """Maps a file that torch.save may have written into memory, read-only."""
  try:
    # Looking first: opening a pipe would wait for ever.
    mode = os.stat(path).st_mode
    if stat.S_ISDIR(mode):
      raise RefusedError('is a folder: name the checkpoint file in it')
    if not stat.S_ISREG(mode):
      raise RefusedError('is not a regular file: name a checkpoint file')
    with open(path, 'rb') as file:
      head = file.read(512)
      if not head.startswith(b'PK\3\4') and not legacy.recognised(head):
        raise RefusedError(_other_format(head))
      return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
  except FileNotFoundError:
    raise RefusedError('no such file') from None
  except (OSError, ValueError) as error:
    why = getattr(error, 'strerror', None) or error
    raise RefusedError(f'cannot be read: {why}') from None


def _other_format(head: bytes) -> str:
  """Says what a file is, given how it starts, and what to do."""
  if not head:
    return 'is empty: download or copy it again'
  if head[8:9] == b'{' and int.from_bytes(head[:8], 'little') < 1 << 40:
    return 'is a safetensors file: give it a name that ends in .safetensors'
  kinds = {
    b'PK': 'a zip without members',
    b'\x1f\x8b': 'a gzip file: unpack it first',
    b'\x93NUMPY': 'a NumPy array',
    b'\x89HDF': 'an HDF5 file',
    b'\x80': 'a bare pickle',
  }
  for start, kind in kinds.items():
    if head.startswith(start):
      return f'is {kind}, not a file of torch.save'
  if head[257:262] == b'ustar':
    return 'is a tar file, not one of torch.save: unpack it first'
  text = head.decode('utf-8', 'ignore')
  printable = all(c.isprintable() or c.isspace() for c in text)
  if printable and len(text.encode()) > len(head) - 4:  # 4: a cut character
    return (
      f'is a text file that starts with {short(text.strip()[:40])}, not a '
      'checkpoint: did the download fail?'
    )
  return 'is not a file of torch.save: its format is unknown'


class _Archive:
  """The members of a torch zip, checked, as bytes in memory."""

  def __init__(self, data: mmap.mmap):
    """Reads the list of members.

    Args:
      data: the whole file.

    Raises:
      RefusedError: not a sound zip, or not one of torch.save.
    """
    self.data = data
    self.members = {}
    self.limit = _GROWTH * len(data) + _SLACK
    try:
      with zipfile.ZipFile(_Window(data)) as archive:
        entries = archive.infolist()
    except Exception as error:  # zipfile raises a dozen kinds
      raise RefusedError(
        f'is a zip file cut short or damaged ({short(str(error))}): '
        'download or copy it again'
      ) from None
    names = [entry.orig_filename for entry in entries]
    for name in names:
      _check_name(name)
    if len(set(names)) < len(names):
      raise RefusedError('has two members of one name: refused')
    if sum(entry.file_size for entry in entries) > self.limit:
      raise RefusedError(
        'claims to unpack to more than 8 times its size, which no torch.save '
        'writes: refused'
      )
    self.entries = dict(zip(names, entries))
    pickles = [name for name in names if re.fullmatch(r'[^/]+/data\.pkl', name)]
    if len(pickles) != 1:
      raise RefusedError(
        'is a zip file but not one of torch.save (it has no single '
        'NAME/data.pkl)'
      )
    self.root = pickles[0].removesuffix('data.pkl')
    if self.root + 'constants.pkl' in self.entries:
      raise RefusedError(
        'is a TorchScript program: load it with torch and torch.save its '
        'state_dict()'
      )
    # torch.serialization.set_crc32_options(False) leaves all of them 0.
    self.summed = any(entry.CRC for entry in entries)

  def pickle(self) -> bytes:
    """The description of the tree."""
    if self.entries[self.root + 'data.pkl'].file_size > _PICKLE:
      raise RefusedError('has a pickle of more than 32 MiB: refused')
    return bytes(self.member('data.pkl'))

  def order(self) -> str:
    """Byte order of the storages, '<' or '>'."""
    if self.root + 'byteorder' not in self.entries:
      return '<'
    order = {b'little': '<', b'big': '>'}.get(bytes(self.member('byteorder')))
    if order is None:
      raise RefusedError('names an unknown byte order: it is damaged')
    return order

  def member(self, name: str) -> memoryview:
    """The bytes of one member, read and checked once."""
    if name not in self.members:
      self.members[name] = self._bytes(name)
    return self.members[name]

  def _bytes(self, name: str) -> memoryview:
    """Unpacks a member and checks it against its checksum."""
    entry = self.entries.get(self.root + name)
    if entry is None:
      raise RefusedError(f'lacks its member {short(name)}: it is damaged')
    if entry.flag_bits & 1:
      raise RefusedError(
        'is encrypted: unpack it and zip it without a password'
      )
    begin = entry.header_offset
    header = self.data[begin : begin + 30] if begin >= 0 else b''
    if len(header) < 30 or header[:4] != b'PK\3\4':
      raise RefusedError(f'is damaged at its member {name!r}')
    begin += 30 + sum(struct.unpack('<HH', header[26:]))
    raw = memoryview(self.data)[begin : begin + entry.compress_size]
    if entry.compress_type == zipfile.ZIP_DEFLATED:
      try:
        unzip = zlib.decompressobj(-zlib.MAX_WBITS)
        raw = memoryview(unzip.decompress(raw, entry.file_size + 1))
      except zlib.error as error:
        raise RefusedError(
          f'is damaged at its member {name!r}: {error}'
        ) from None
    elif entry.compress_type != zipfile.ZIP_STORED:
      raise RefusedError(
        'is compressed in a way torch.save does not use: zip it again without '
        'compression'
      )
    if len(raw) != entry.file_size:
      raise RefusedError(
        f'holds another number of bytes in its member {name!r} than it claims: '
        'it is damaged'
      )
    if self.summed and zlib.crc32(raw) != entry.CRC:
      raise RefusedError(
        f'is damaged: the checksum of its member {name!r} differs; download or '
        'copy it again'
      )
    return raw


def _check_name(name: str) -> None:
  """Raises RefusedError for the name of a member that is no relative path."""
  parts = name.removesuffix('/').split('/')
  if (
    {'', '.', '..'} & set(parts)
    or '\\' in name
    or re.match('[A-Za-z]:', name)
    or not name.isprintable()
  ):
    raise RefusedError(
      f'has a member named {short(name)}, which no torch.save writes: refused'
    )


class _Window:
  """A mapped file as zipfile wants it (3.12's mmap lacks seekable)."""

  def __init__(self, data: mmap.mmap):
    self.read, self.seek, self.tell = data.read, data.seek, data.tell

  def seekable(self) -> bool:
    return True
