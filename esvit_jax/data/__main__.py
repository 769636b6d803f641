"""What a set of images holds, and how to store it for fast reading.

python -m esvit_jax.data check folder:/data/birds --out=birds_check
python -m esvit_jax.data stats folder:/data/scans --channels=5
python -m esvit_jax.data pack folder:/data/birds /data/packed/birds
"""

import argparse
import os
import sys

from esvit_jax import data
from esvit_jax.data import check, check_page, pack
from esvit_jax.data.statistics import as_fields, statistics
from esvit_jax.errors import UserError


def run_stats(args: argparse.Namespace) -> int:
  """Prints mean and standard deviation as fields of a config."""
  print(as_fields(statistics(_source(args, args.split or 'train'))))
  return 0


def run_check(args: argparse.Namespace) -> int:
  """Reads every image and says what there is, and what is wrong."""
  found = check.check(_sources(args), args.workers)
  print(check_page.text(found))
  if args.out:
    print(f'page   {check_page.write(found, args.out)}')
  return 0


def run_pack(args: argparse.Namespace) -> int:
  """Writes array_record files that `tfds:NAME` reads."""
  options = pack.Options(
    args.short_side, args.quality, args.shard, args.max_unreadable
  )
  place = os.path.normpath(args.destination)
  packed = pack.pack(_sources(args), place, options, args.workers)
  for split in packed:
    left_out = f', {len(split.unreadable)} unreadable' * bool(split.unreadable)
    print(
      f'{split.name}: {sum(split.lengths):,} images in {len(split.lengths)} '
      f'files{left_out}'
    )
    for line in split.unreadable:
      print(f'  left out: {line}')
  folder, name = os.path.split(os.path.abspath(os.path.expanduser(place)))
  print(f'--config.data.source=tfds:{name} --config.data.data_dir={folder}')
  return 0


def _source(args: argparse.Namespace, split: str) -> data.Source:
  return data.open_source(vars(args), split)


def _sources(args: argparse.Namespace) -> dict[str, data.Source]:
  """The split that is asked for, or all."""
  names = data.split_names(args.source, args.data_dir)
  if args.split:
    names = [args.split]
  return {name: _source(args, name) for name in names}


def parser() -> argparse.ArgumentParser:
  """The verbs and their flags."""
  summary, _, examples = __doc__.partition('\n\n')
  top = argparse.ArgumentParser(
    'python -m esvit_jax.data',
    description=summary,
    epilog=examples,
    formatter_class=argparse.RawDescriptionHelpFormatter,
  )
  verbs = top.add_subparsers(dest='verb', required=True)
  for name, run in RUN.items():
    verb = verbs.add_parser(name, help=run.__doc__, description=run.__doc__)
    verb.add_argument('source', help='as data.source: folder:/path, ...')
    if name == 'pack':
      verb.add_argument('destination', help='folder; its name is the set')
    verb.add_argument('--channels', type=int, default=3)
    verb.add_argument('--split', default='', help='one split; all by default')
    verb.add_argument('--data_dir', default='', help='where tfds keeps sets')
    verb.add_argument('--workers', type=int, default=os.cpu_count())
    if name == 'check':
      verb.add_argument('--out', default='', help='folder for page and JSON')
    if name == 'pack':
      usual = pack.Options()
      verb.add_argument(
        '--short_side',
        type=int,
        default=usual.short_side,
        help='pixels to shrink to; 0 keeps all',
      )
      verb.add_argument(
        '--quality', type=int, default=usual.quality, help='of JPEGs, 1 to 100'
      )
      verb.add_argument(
        '--shard', type=int, default=usual.shard, help='images a file'
      )
      verb.add_argument(
        '--max_unreadable', type=float, default=usual.max_unreadable
      )
  return top


def main(argv: list[str]) -> int:
  """Does what the arguments say; returns the exit status."""
  args = parser().parse_args(argv)
  try:
    return RUN[args.verb](args)
  except UserError as e:
    print(f'error: {e}', file=sys.stderr)
    return 2


RUN = {'check': run_check, 'pack': run_pack, 'stats': run_stats}


if __name__ == '__main__':
  sys.exit(main(sys.argv[1:]))
