"""Sets to transfer to, and which suite holds them.

Names and splits are tfds' (4.9.10); sizes and metrics are ELEVATER's unless
said otherwise. A folder ROOT/NAME goes before tfds: with train.txt and other
lists (data/filelist.py), or with sub-folders train, test, each with one folder
a class.

EsViT's suite is uncertain: its paper gives the number of sets, 18, and neither
the paper nor its code lists them (see UNCERTAIN).
"""

import os
from collections.abc import Callable
from typing import NamedTuple

from esvit_jax.errors import UserError

LISTS = (
  'has no usable tfds set: put it into {root}/{name} as sub-folders train and '
  'test with one folder a class, or as lists train.txt and test.txt'
)


class Set(NamedTuple):
  """A set of labelled images.

  Attributes:
    title: for people.
    source: a tfds set, or '' where there is none fit for real numbers.
    train, test: splits there; in a folder they are `train` and `test`.
    metric: of evals.scores.METRICS.
    flip: whether mirrored images keep their label.
    note: a trap to know of.
  """

  title: str
  source: str
  train: str = 'train'
  test: str = 'test'
  metric: str = 'top1'
  flip: bool = True
  note: str = ''


SETS = {
  'caltech101': Set(
    'Caltech-101',
    'caltech101',
    metric='mean_per_class',
    note='tfds draws its split in the order of the directory',
  ),
  'cifar10': Set('CIFAR-10', 'cifar10'),
  'cifar100': Set('CIFAR-100', 'cifar100'),
  'country211': Set('Country211', ''),
  'dtd': Set('DTD', 'dtd', note='tfds has the first of ten splits'),
  'eurosat': Set(
    'EuroSAT', '', note="CLIP's sample of 5,000 + 5,000 is not in tfds"
  ),
  'fer2013': Set('FER-2013', ''),
  'aircraft': Set(
    'FGVC-Aircraft',
    '',
    metric='mean_per_class',
    note="tfds' decathlon copy has 72 px and no test labels",
  ),
  'food101': Set(
    'Food-101',
    'food101',
    test='validation',
    note="tfds' validation is the official test list",
  ),
  'gtsrb': Set(
    'GTSRB',
    '',
    flip=False,
    note="tfds' decathlon copy has 72 px and no test labels",
  ),
  'hateful_memes': Set('Hateful Memes', '', metric='roc_auc', flip=False),
  'kitti_distance': Set(
    'KITTI distance', '', note='tfds has it for detection only'
  ),
  'mnist': Set('MNIST', 'mnist', flip=False),
  'flowers102': Set(
    'Flowers-102', 'oxford_flowers102', metric='mean_per_class'
  ),
  'pets': Set('Oxford-IIIT Pets', 'oxford_iiit_pet', metric='mean_per_class'),
  'patch_camelyon': Set('PatchCamelyon', 'patch_camelyon'),
  'rendered_sst2': Set('Rendered SST2', '', flip=False),
  'resisc45': Set(
    'RESISC45', '', note="tfds has no test split; CLIP's is 10/10/80"
  ),
  'cars': Set('Stanford Cars', 'cars196', note="tfds' address is dead"),
  'voc2007': Set('VOC-2007', 'voc/2007', metric='map_11'),
  'sun397': Set(
    'SUN397',
    'sun397/standard-part1-120k',
    note="tfds' default config is not the official partition",
  ),
  'stl10': Set('STL-10', 'stl10'),
  'ucf101': Set('UCF101, middle frames', '', note='tfds has videos'),
  'cub200': Set('CUB-200-2011', 'caltech_birds2011'),
  'inat2018': Set(
    'iNaturalist 2018',
    'i_naturalist2018',
    test='validation',
    note='its test labels are not public',
  ),
  'embedded': Set('Fashion-MNIST (embedded)', 'embedded'),
}
_ELEVATER = (
  'caltech101 cifar10 cifar100 country211 dtd eurosat fer2013 aircraft food101 '
  'gtsrb hateful_memes kitti_distance mnist flowers102 pets patch_camelyon '
  'rendered_sst2 resisc45 cars voc2007'
)
_ESVIT = (
  'food101 cifar10 cifar100 sun397 cars aircraft voc2007 dtd pets caltech101 '
  'flowers102 mnist fer2013 stl10 gtsrb patch_camelyon ucf101 hateful_memes'
)
_MAE_LITE = 'flowers102 pets aircraft cars cifar10 cifar100 inat2018'
_SIT = 'flowers102 pets cub200 aircraft stl10 cars cifar10 cifar100'
SUITES = {
  'elevater': tuple(_ELEVATER.split()),
  'esvit': tuple(_ESVIT.split()),
  'mae_lite': tuple(_MAE_LITE.split()),
  'sit': tuple(_SIT.split()),
  'all': tuple(SETS),
}
# Suites of which the list is not known for sure -> why, as printed.
UNCERTAIN = {
  'esvit': 'EsViT gives a mean over 18 sets, but neither its paper nor its '
  'code lists them: this is a likely list, not a confirmed one',
}
# Where a suite's own code scores otherwise.
METRICS = {
  ('mae_lite', 'flowers102'): 'top1',
  ('mae_lite', 'pets'): 'top1',
  ('mae_lite', 'aircraft'): 'top1',
  ('sit', 'flowers102'): 'top1',
  ('sit', 'pets'): 'top1',
  ('sit', 'aircraft'): 'top1',
}
# Splits a suite trains on, where it adds the validation images.
TRAIN = {
  ('mae_lite', 'flowers102'): 'train+validation',
  ('sit', 'flowers102'): 'train+validation',
}
# SiT's table: ViT-S pre-trained and fine-tuned on each set alone, top-1, %.
_PUBLISHED = {
  'random init': (68.8, 47.5, 25.3, 31.1, 77.1, 27.4, 96.9, 77.8),
  'MoCo-v3': (88.9, 69.0, 53.1, 62.5, 95.4, 84.0, 97.3, 83.4),
  'DINO': (82.4, 58.0, 43.6, 49.3, 92.1, 73.0, 96.8, 78.9),
  'MAE': (86.9, 73.0, 59.4, 69.0, None, 91.0, None, None),
  'SiT': (92.8, 84.7, 71.2, 77.8, 96.5, 92.1, 98.2, 85.2),
}
PUBLISHED = {
  method: dict(zip(SUITES['sit'], row)) for method, row in _PUBLISHED.items()
}


def resolve(suite: str) -> dict[str, Set]:
  """The rows of a suite, or of names with commas between them.

  Raises:
    UserError: no such suite or set.
  """
  if suite in SUITES:
    rows = {}
    for name in SUITES[suite]:
      row = SETS[name]
      rows[name] = row._replace(
        metric=METRICS.get((suite, name), row.metric),
        train=TRAIN.get((suite, name), row.train),
      )
    return rows
  names = [name.strip() for name in suite.split(',') if name.strip()]
  for name in names or ['']:
    if name not in SETS:
      raise UserError(
        f"no suite or set '{name}': suites are {', '.join(SUITES)}; sets "
        f'{", ".join(SETS)}'
      )
  return {name: SETS[name] for name in names}


def score_each(
  rows: dict[str, Set], score: Callable[[str, Set], float], out
) -> tuple[dict[str, float], dict[str, str]]:
  """Scores set after set; those that fail are reported and left out.

  Args:
    rows: as `resolve` gives them.
    score: (name, set) -> percent.
    out: where to print.

  Returns:
    Scores by name, and reasons of failure by name.

  Raises:
    UserError: all failed.
  """
  scores, failed = {}, {}
  for name, row in rows.items():
    try:
      scores[name] = score(name, row)
      print(f'{row.title}: {scores[name]:.2f} ({row.metric})', file=out)
    except UserError as e:
      failed[name] = str(e)
      print(f'{row.title}: left out: {e}', file=out)
  if not scores:
    first, reason = next(iter(failed.items()))
    raise UserError(
      f'none of {len(rows)} sets could be evaluated, the first, '
      f'{rows[first].title}, because: {reason}'
    )
  return scores, failed


def locate(section, root: str, name: str, row: Set) -> None:
  """Sets the source and the splits of a set.

  Args:
    section: `data` of a config, changed in place.
    root: a folder whose sub-folder `name` goes before tfds; '' for none.
    name: of the set.
    row: the set.

  Raises:
    UserError: it is not there and tfds has none that is fit.
  """
  folder = os.path.join(root, name) if root else ''
  section.split, section.test_split = row.train, row.test
  if folder and os.path.isdir(folder):
    lists = any(x.endswith('.txt') for x in os.listdir(folder))
    section.source = f'{"list" if lists else "folder"}:{folder}'
    section.split, section.test_split = 'train', 'test'
  elif row.source == 'embedded':
    section.source = 'embedded'
  elif row.source:
    section.source = f'tfds:{row.source}'
  else:
    raise UserError(LISTS.format(root=root or 'ROOT', name=name))
