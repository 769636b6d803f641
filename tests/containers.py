"""One set of images in every container, in the order of the folder."""

import io
import json
import os
import pathlib
import tarfile
import zipfile

import numpy as np
from PIL import Image

CLASSES = ('ant', 'bee')
COUNTS = {'train': 13, 'val': 4}  # of each class


def picture(i: int) -> bytes:
  """A PNG or a JPEG that differs for each i."""
  rng = np.random.default_rng(i)
  pixels = rng.integers(0, 256, (10 + i % 5, 14, 3), np.uint8)
  file = io.BytesIO()
  kind = 'JPEG' if i % 2 else 'PNG'
  exif = Image.Exif()
  if i % 3 == 0:
    exif[0x0112] = 6
  Image.fromarray(pixels).save(file, kind, exif=exif)
  return file.getvalue()


def samples() -> dict[str, bytes]:
  """'train/ant/00.png' -> its bytes, sorted."""
  files = {}
  for split, count in COUNTS.items():
    for name in CLASSES:
      for k in range(count):
        i = len(files)
        files[f'{split}/{name}/{k:02d}{(".png", ".jpg")[i % 2]}'] = picture(i)
  return dict(sorted(files.items()))


def of_split(split: str) -> list[tuple[str, int, bytes]]:
  """(name, label, bytes) of a split, sorted."""
  return [
    (name, CLASSES.index(name.split('/')[1]), record)
    for name, record in samples().items()
    if name.startswith(f'{split}/')
  ]


def add(tar: tarfile.TarFile, name: str, content: bytes) -> None:
  """Adds a member to a tar."""
  member = tarfile.TarInfo(name)
  member.size = len(content)
  tar.addfile(member, io.BytesIO(content))


def as_folder(root: pathlib.Path) -> str:
  for name, record in samples().items():
    path = root / 'birds' / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(record)
  return f'folder:{root / "birds"}'


def as_zip(root: pathlib.Path) -> str:
  with zipfile.ZipFile(root / 'birds.zip', 'w', zipfile.ZIP_DEFLATED) as file:
    for name, record in reversed(samples().items()):
      file.writestr(f'birds/{name}', record)
  return f'zip:{root / "birds.zip"}'


def as_tar(root: pathlib.Path) -> str:
  for k in range(3):
    with tarfile.open(root / f'birds-{k:02d}.tar', 'w') as tar:
      for name, record in list(samples().items())[k::3]:
        add(tar, f'./birds/{name}', record)
  return f'tar:{root}/birds-{{00..02}}.tar'


def as_wds(root: pathlib.Path) -> str:
  (root / 'wds').mkdir()
  (root / 'wds' / 'classes.txt').write_text('\n'.join(CLASSES))
  for split in COUNTS:
    each = of_split(split)
    for k in range(2):
      part = each[k * len(each) // 2 : (k + 1) * len(each) // 2]
      path = root / 'wds' / f'birds-{split}-{k:04d}.tar'
      with tarfile.open(path, 'w') as tar:
        for name, label, record in part:
          key, ending = os.path.splitext(name.replace('/', '_'))
          add(tar, f'{key}.cls', str(label).encode())
          add(tar, f'{key}{ending}', record)
          add(tar, f'{key}.json', json.dumps({'caption': name}).encode())
  return f'wds:{root}/wds/birds-{{train,val}}-{{0000..0001}}.tar'


def as_parquet(root: pathlib.Path) -> str:
  """Bytes and paths, as `datasets` writes them."""
  import pyarrow as pa
  from pyarrow import parquet

  folder = root / 'hf' / 'data'
  folder.mkdir(parents=True)
  features = {
    'image': {'_type': 'Image'},
    'label': {'names': list(CLASSES), '_type': 'ClassLabel'},
  }
  for split in COUNTS:
    each = of_split(split)
    for k in range(2):
      part = each[k * len(each) // 2 : (k + 1) * len(each) // 2]
      rows = [{'bytes': record, 'path': None} for _, _, record in part]
      (folder / part[0][0]).parent.mkdir(parents=True, exist_ok=True)
      (folder / part[0][0]).write_bytes(part[0][2])
      rows[0] = {'bytes': None, 'path': part[0][0]}
      kind = pa.struct({'bytes': pa.binary(), 'path': pa.string()})
      table = pa.table(
        {
          'image': pa.array(rows, kind),
          'label': pa.array([label for _, label, _ in part], pa.int64()),
        }
      ).replace_schema_metadata(
        {'huggingface': json.dumps({'info': {'features': features}})}
      )
      name = f'{split}-{k:05d}-of-00002.parquet'
      parquet.write_table(table, folder / name, row_group_size=5)
  return f'hf:{root / "hf"}'


def as_csv(root: pathlib.Path) -> str:
  """A table beside the folder that `as_folder` writes."""
  lines = ['File_Name,species,split']
  for split in COUNTS:
    for name, label, _ in of_split(split):
      lines.append(f'birds/{name},{CLASSES[label]},{split}')
  (root / 'birds.csv').write_text('\n'.join(lines))
  return f'list:{root / "birds.csv"}'


def as_jsonl(root: pathlib.Path) -> str:
  (root / 'lists').mkdir()
  for split in COUNTS:
    rows = (
      {'path': str(root / 'birds' / name), 'label': CLASSES[label]}
      for name, label, _ in of_split(split)
    )
    text = '\n'.join(json.dumps(row) for row in rows)
    (root / 'lists' / f'{split}.jsonl').write_text(text)
  return f'list:{root / "lists"}'


WRITERS = {
  'folder': as_folder,
  'zip': as_zip,
  'tar': as_tar,
  'wds': as_wds,
  'hf': as_parquet,
  'csv': as_csv,
  'jsonl': as_jsonl,
}
