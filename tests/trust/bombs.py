"""Small files that ask for much: images, lists, and descriptions of networks.

Each is to be refused in under a second and 200 MB.
"""

import io
import json
import os
import pathlib
import struct
import time
import zlib
from collections.abc import Callable, Iterator

SECONDS, MEGABYTES = 1.0, 200


# Image files that declare more than they hold


def png(width: int, height: int, depth: int = 8, colour: int = 2) -> bytes:
  """A PNG whose pixels are zeros, as far as they go."""

  def chunk(kind: bytes, data: bytes) -> bytes:
    check = struct.pack('>I', zlib.crc32(kind + data))
    return struct.pack('>I', len(data)) + kind + data + check

  header = struct.pack('>IIBBBBB', width, height, depth, colour, 0, 0, 0)
  rows = zlib.compress(bytes(2**22), 9)
  return (
    b'\x89PNG\r\n\x1a\n'
    + chunk(b'IHDR', header)
    + chunk(b'IDAT', rows)
    + chunk(b'IEND', b'')
  )


def jpeg(width: int, height: int, **options) -> bytes:
  """A small JPEG that says it is of another size."""
  data = bytearray(encoded('JPEG', **options))
  for marker in (b'\xff\xc0', b'\xff\xc2'):
    at = data.find(marker)
    if at >= 0:
      data[at + 5 : at + 9] = struct.pack('>HH', height, width)
  return bytes(data)


def scans(count: int) -> bytes:
  """A progressive JPEG with one of its scans many times over."""
  data = jpeg(8000, 8000, progressive=True)
  starts = [i for i in range(len(data)) if data[i : i + 2] == b'\xff\xda']
  one = data[starts[-1] : -2]
  return data[:-2] + one * count + data[-2:]


def encoded(kind: str, size=(16, 16), mode: str = 'RGB', **options) -> bytes:
  from PIL import Image

  file = io.BytesIO()
  Image.new(mode, size).save(file, kind, **options)
  return file.getvalue()


def patched(data: bytes, at: int, form: str, *values: int) -> bytes:
  new = struct.pack(form, *values)
  return data[:at] + new + data[at + len(new) :]


def tiff(tags: dict[int, tuple[str, int]], big_endian: bool = False) -> bytes:
  """A TIFF of these tags alone: number -> (type 'H' or 'I', value)."""
  order = '>' if big_endian else '<'
  head = (b'MM\0*' if big_endian else b'II*\0') + struct.pack(f'{order}I', 8)
  entries = b''
  for number, (kind, value) in sorted(tags.items()):
    field = struct.pack(f'{order}{kind}', value).ljust(4, b'\0')
    code = {'H': 3, 'I': 4}[kind]
    entries += struct.pack(f'{order}HHI', number, code, 1) + field
  return head + struct.pack(f'{order}H', len(tags)) + entries + bytes(64)


def tiff_of(width: int, height: int, bits=8, bands=1, **more) -> bytes:
  tags = {
    256: ('I', width),
    257: ('I', height),
    258: ('H', bits),
    259: ('H', 1),
    262: ('H', 1),
    273: ('I', 8),
    277: ('H', bands),
    278: ('I', height),
    279: ('I', 64),
  }
  return tiff(tags | more.get('tags', {}), more.get('big_endian', False))


def tiled(side: int, tile: int, compression: int = 1) -> bytes:
  tags = {
    322: ('I', tile),
    323: ('I', tile),
    324: ('I', 8),
    325: ('I', 64),
    259: ('H', compression),
  }
  return tiff_of(side, side, tags=tags)


def jp2(width: int, height: int, raw: bool, boxed: bool = True) -> bytes:
  """A JPEG 2000, as codestream or in its container."""
  options = {'no_jp2': True} if raw else {}
  data = encoded('JPEG2000', **options)
  at = data.find(b'\xff\x51')
  data = patched(data, at + 6, '>II', width, height)
  data = patched(data, at + 22, '>II', width, height)  # of a tile
  box = data.find(b'ihdr')
  if box >= 0 and boxed:
    data = patched(data, box + 4, '>II', height, width)
  return data


def gif(width: int, height: int) -> bytes:
  data = patched(encoded('GIF', mode='P'), 6, '<HH', width, height)
  at = data.find(b',', 13)
  return patched(data, at + 5, '<HH', width, height)


def gif_frame(width: int, height: int) -> bytes:
  """Whose first frame is larger than its screen."""
  data = encoded('GIF', mode='P')
  return patched(data, data.find(b',', 13) + 5, '<HH', width, height)


def webp(width: int, height: int, lossless: bool) -> bytes:
  data = encoded('WEBP', lossless=lossless)
  at = data.find(b'VP8')
  if lossless:
    bits = (width - 1) | (height - 1) << 14
    return patched(data, at + 9, '<I', bits)
  return patched(data, at + 14, '<HH', width, height)


def webp_animation(width: int, height: int) -> bytes:
  from PIL import Image

  file, frames = io.BytesIO(), [Image.new('RGB', (16, 16), x) for x in range(2)]
  frames[0].save(file, 'WEBP', save_all=True, append_images=frames[1:])
  data = file.getvalue()
  at = data.find(b'VP8X') + 12
  size = struct.pack('<I', width - 1)[:3] + struct.pack('<I', height - 1)[:3]
  return data[:at] + size + data[at + 6 :]


def avif(width: int, height: int) -> bytes:
  data = encoded('AVIF')
  return patched(data, data.find(b'ispe') + 8, '>II', width, height)


def bmp(width: int, height: int, compression: int = 0) -> bytes:
  data = patched(encoded('BMP'), 18, '<ii', width, height)
  if compression:  # run lengths of 8 bits
    data = patched(data, 28, '<HI', 8, compression)
  return data


def tga(width: int, height: int) -> bytes:
  return patched(
    encoded('TGA', compression='tga_rle'), 12, '<HH', width, height
  )


def images() -> dict[str, Callable[[], bytes]]:
  """Name of a file -> its bytes."""
  side, huge = 30_000, 60_000
  return {
    'progressive.jpg': lambda: jpeg(side, side, progressive=True),
    'baseline.jpg': lambda: jpeg(huge, huge),
    'gray.jpg': lambda: jpeg(huge, huge, mode='L'),
    'cmyk.jpg': lambda: jpeg(side, side, mode='CMYK'),
    'strip.jpeg': lambda: jpeg(65_500, 2_000),
    'scans.jpg': lambda: scans(2_000),
    'rgb.png': lambda: png(13_300, 13_300),
    'gray.png': lambda: png(40_000, 40_000, 8, 0),
    'deep.png': lambda: png(13_300, 13_300, 16, 2),
    'bits.png': lambda: png(2**20, 2**20, 1, 0),
    'most.png': lambda: png(2**31 - 1, 2**31 - 1),
    'alpha.png': lambda: png(13_300, 13_300, 16, 6),
    'palette.png': lambda: png(side, side, 8, 3),
    'name_only.gif': lambda: png(13_300, 13_300),
    'gray.tif': lambda: tiff_of(side, side),
    'deep.tif': lambda: tiff_of(side, side, 16),
    'floats.tiff': lambda: tiff_of(side, side, 32),
    'order.tif': lambda: tiff_of(side, side, 16, big_endian=True),
    'bands.tif': lambda: tiff_of(4000, 4000, 16, 60_000),
    'tile.tif': lambda: tiled(16, 2**15 * 2),
    'tile_deflate.tif': lambda: tiled(16, 2**15 * 2, 8),
    'most.tif': lambda: tiff_of(2**32 - 1, 2**32 - 1),
    'screen.gif': lambda: gif(65_000, 65_000),
    'frame.gif': lambda: gif_frame(65_000, 65_000),
    'lossy.webp': lambda: webp(16_383, 16_383, False),
    'lossless.webp': lambda: webp(16_383, 16_383, True),
    'animated.webp': lambda: webp_animation(2**16, 2**15),
    'declared.avif': lambda: avif(side, side),
    'boxed.jp2': lambda: jp2(side, side, False),
    'hidden.jp2': lambda: jp2(side, side, False, boxed=False),
    'stream.j2k': lambda: jp2(side, side, True),
    'rgb.bmp': lambda: bmp(side, side),
    'runs.bmp': lambda: bmp(side, side, 1),
    'runs.tga': lambda: tga(65_000, 65_000),
    'gray.pgm': lambda: b'P5 50000 50000 255\n' + bytes(64),
    'words.ppm': lambda: b'P3 50000 50000 255\n1 2 3',
    'bits.pbm': lambda: b'P4 500000 500000\n' + bytes(64),
    'script.png': lambda: b'%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n',
  }


def write_images(folder: pathlib.Path) -> list[pathlib.Path]:
  """All of them, and those that are no plain files."""
  for name, make in images().items():
    (folder / name).write_bytes(make())
  os.mkfifo(folder / 'pipe.png')
  (folder / 'zeros.png').symlink_to('/dev/zero')
  with open(folder / 'sparse.png', 'wb') as file:
    file.write(png(8, 8)[:-12])
    file.truncate(2**40)
  return sorted(folder.iterdir())


# Files of weights whose description asks for much


def safetensors(header: dict | bytes, data: bytes = b'') -> bytes:
  if isinstance(header, dict):
    header = json.dumps(header).encode()
  return struct.pack('<Q', len(header)) + header + data


def described(model: dict, **about) -> bytes:
  """A file that says it is of this network; its arrays are small, but many."""
  about = {'version': 2, 'model': model, 'channels': 3, **about}
  root = 'student.params/backbone/' if about.get('layout') else ''
  header = {'__metadata__': {'esvit_jax': json.dumps(about)}}
  for i in range(140):
    shape, offsets = [1], [4092 + 4 * i, 4096 + 4 * i]
    if i == 0:
      shape, offsets = [1024], [0, 4096]
    array = {'dtype': 'F32', 'shape': shape, 'data_offsets': offsets}
    header[f'{root}norm{i}.weight'] = array
  return safetensors(header, bytes(4096 + 4 * 139))


def shaped(shape: list, offsets: list, dtype: str = 'F32') -> bytes:
  array = {'dtype': dtype, 'shape': shape, 'data_offsets': offsets}
  return safetensors({'norm.weight': array}, bytes(16))


def networks() -> dict[str, Callable[[], bytes]]:
  """Name of a file -> its bytes."""
  own = {'layout': 'esvit_jax'}
  vit = {'name': 'vit', 'dim': 8, 'depth': 1, 'heads': 1, 'patch': 4}
  swin = {'name': 'swin_tiny'}
  return {
    'dim': lambda: described({**vit, 'dim': 2**20}, **own),
    'dims': lambda: described({**swin, 'dims': [2**20] * 4}, **own),
    'depth': lambda: described({**vit, 'depth': 2**20}),
    'depths': lambda: described({**swin, 'depths': [50] * 4}, **own),
    'stages': lambda: described({**swin, 'depths': [1] * 2000}, **own),
    'heads': lambda: described({**vit, 'heads': 2**20}, **own),
    'window': lambda: described({**swin, 'window': 64}, **own),
    'image': lambda: described({**vit, 'image_size': 2048, 'patch': 1}, **own),
    'table': lambda: described(
      {**vit, 'image_size': 2048, 'patch': 1, 'positions': 'mae'}, **own
    ),
    'wide table': lambda: described(
      {**vit, 'dim': 2**20, 'image_size': 2048, 'positions': 'mae'}, **own
    ),
    'channels': lambda: described(vit, **own, **{'channels': 2**31}),
    'many channels': lambda: described(swin, **own, **{'channels': 2**20}),
    'prototypes': lambda: described(
      vit, head={'out_dim': 2**31, 'hidden': 2**20, 'bottleneck': 2**20}
    ),
    'patch': lambda: described({**vit, 'patch': 256, 'dim': 1024}, **own),
    'relative': lambda: described(
      {**vit, 'image_size': 2048, 'patch': 4, 'rel_pos': True}, **own
    ),
    'resnet': lambda: described({'name': 'resnet50', 'width': 2**20}, **own),
    'vil': lambda: described({'name': 'vil_2262', 'window': 64}, **own),
    'cvt': lambda: described({'name': 'cvt_tiny', 'dims': [2**20] * 3}, **own),
    'nested': lambda: safetensors(
      {'__metadata__': {'esvit_jax': '[' * 10**6 + ']' * 10**6}}
    ),
    'digits': lambda: described({**vit, 'dim': 10**4000}, **own),
    'header': lambda: struct.pack('<Q', 2**62) + b'{}',
    'long header': lambda: struct.pack('<Q', 2**26) + b'{',
    'shape': lambda: shaped([2**40], [0, 2**42]),
    'product': lambda: shaped([2**32, 2**32], [0, 16]),
    'beyond': lambda: shaped([2**30], [0, 2**32]),
    'backwards': lambda: shaped([4], [16, 0]),
    'empty': lambda: shaped([0, 2**60], [0, 0]),
    'keys': lambda: safetensors(
      {
        f'k{i}': {'dtype': 'F32', 'shape': [0], 'data_offsets': [0, 0]}
        for i in range(50_000)
      }
    ),
  }


def write_networks(folder: pathlib.Path) -> list[pathlib.Path]:
  for name, make in networks().items():
    (folder / f'{name}.safetensors').write_bytes(make())
  with open(folder / 'sparse.safetensors', 'wb') as file:
    shape = [2**38]
    array = {'dtype': 'F32', 'shape': shape, 'data_offsets': [0, 2**40]}
    file.write(safetensors({'norm.weight': array}))
    file.truncate(file.tell() + 2**40)
  return sorted(folder.iterdir())


# What it costs to refuse them


class Cost:
  """Seconds of the processor and megabytes of a block."""

  def __enter__(self) -> 'Cost':
    with open('/proc/self/clear_refs', 'w') as file:
      file.write('5')  # the peak is forgotten
    self._before, self._began = resident('VmRSS'), time.process_time()
    return self

  def __exit__(self, *unused) -> None:
    self.seconds = time.process_time() - self._began
    self.megabytes = max(resident('VmHWM') - self._before, 0)

  @property
  def fair(self) -> bool:
    return self.seconds < SECONDS and self.megabytes < MEGABYTES


def resident(field: str) -> float:
  """Megabytes, as the kernel says in /proc/self/status."""
  for line in pathlib.Path('/proc/self/status').read_text().splitlines():
    if line.startswith(field):
      return int(line.split()[1]) / 1024
  raise LookupError(field)


def refused(path: pathlib.Path) -> str:
  """The line by which a file is refused; '' where it is not."""
  from esvit_jax.data import decode, formats, guard
  from esvit_jax.errors import UserError

  if path.suffix == '.safetensors':
    from esvit_jax.weights import loading

    try:
      loading.load(str(path))
    except UserError as e:
      return str(e)
    return ''
  try:
    record = guard.read_file(path)
    guard.check(record)
    formats.header(record)
    decode.decode(record, 3, (512, 512))
  except (OSError, formats.Unreadable) as e:
    return str(e)
  return ''


def results(folder: pathlib.Path) -> Iterator[tuple[str, str, Cost]]:
  """(name, the line, what it cost) of every file."""
  import imagecodecs  # noqa: F401 - what is imported now costs no file
  import simplejpeg  # noqa: F401
  import tifffile  # noqa: F401

  from esvit_jax.weights import loading  # noqa: F401

  (folder / 'images').mkdir()
  (folder / 'networks').mkdir()
  paths = write_images(folder / 'images') + write_networks(folder / 'networks')
  for path in paths:
    with Cost() as cost:
      line = refused(path)
    yield path.name, line, cost
