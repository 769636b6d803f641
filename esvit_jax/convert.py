"""python -m esvit_jax.convert IN OUT

Converts published checkpoints (.pth, .pth.tar of EsViT, DINO, MoCo, MAE),
safetensors files and run directories. OUT is a directory to train from,
evaluate or fine-tune or, if it ends in .safetensors, a file with the published
keys. With --to=timm, torchvision, mm or detectron2 it has the keys of that
library, with --to=hf OUT is a folder that transformers loads, and with
--to=stablehlo a graph. Nothing is guessed: keys that are missing, unexpected
or of another shape are listed and refused, unless you allow them.
"""

import argparse
import ast
import json
import os
import sys

from esvit_jax.errors import UserError, require_local
from esvit_jax.weights import (
  certificate,
  directory,
  exchange,
  graph,
  libraries,
  reading,
  tables,
  writing,
)
from esvit_jax.weights.accounting import Allowed
from esvit_jax.weights.libraries import huggingface
from esvit_jax.weights.networks import Weights
from esvit_jax.weights.published import files
from esvit_jax.workdir.files import check_free, write_json
from esvit_jax.workdir.metrics import NETWORKS, SCORES

PUBLISHED, GRAPH = 'published', 'stablehlo'  # of --to


def main(argv: list[str]) -> int:
  """Runs the command line; returns 0, or 2 after a user's mistake."""
  try:
    run(parse(argv))
  except UserError as e:
    print(f'error: {" ".join(str(e).split())}', file=sys.stderr)
    return 2
  return 0


def run(args: argparse.Namespace) -> None:
  """Reads, converts, writes and certifies."""
  require_local(args.source, 'IN')
  require_local(args.out, 'OUT')
  _check_out(args)
  single = args.out.endswith('.safetensors') and args.to == PUBLISHED
  one = single or args.to != PUBLISHED
  which = args.which or ('auto' if one else 'both')
  check_free(args.out)
  weights = _read(args, which)
  notes = list(weights.notes)
  if single:
    notes += writing.remarks(weights, which)
  for note in notes:
    print(note)
  if single and (reason := writing.unbuildable(weights)):
    notes.append(reason)
    print(
      f'WARNING: {reason}: {args.out} loads here, and in no published Swin',
      file=sys.stderr,
    )
  if bad := certificate.not_finite(weights):
    notes.append(tables.listed('arrays are not finite', bad))
    print(
      f'WARNING: {notes[-1]}: no evaluation takes their features',
      file=sys.stderr,
    )
  if random := weights.about.get('random'):
    text = tables.listed('backbone arrays are RANDOM', random)
    print(f'WARNING: {text}: no evaluation takes it', file=sys.stderr)
  certificates = [
    certificate.certify(weights, name) for name in _distinct(weights)
  ]
  more = []
  if args.to == GRAPH:
    more = graph.save(args.out, weights, which)
  elif args.to != PUBLISHED:
    facts = _facts(args.source)
    more = exchange.save(args.out, weights, which, args.to, facts)
  elif single:
    writing.save(args.out, weights, which, args.centres, args.add_prefix)
  else:
    directory.write(args.out, weights, os.path.basename(args.source))
  for note in more:
    print(note)
  notes += more
  if os.path.isdir(args.out):
    beside = os.path.join(args.out, 'certificate.json')
  else:
    beside = f'{os.path.splitext(args.out)[0]}.certificate.json'
  write_json(
    beside,
    {
      'source': os.path.basename(args.source),
      'notes': notes,
      'architecture': weights.about,
      'networks': certificates,
    },
  )
  for network in certificates:
    print('\n'.join(certificate.lines(network)))
  print(f'wrote {args.out} and {beside}')


def _check_out(args: argparse.Namespace) -> None:
  """Raises UserError if the name of OUT does not suit what is asked for."""
  ending = {PUBLISHED: '', 'hf': '', GRAPH: '.stablehlo'}.get(
    args.to, '.safetensors'
  )
  if ending and not args.out.endswith(ending):
    raise UserError(f'--to={args.to} writes a file: end OUT in {ending}')
  if args.to == 'hf' and args.out.endswith('.safetensors'):
    raise UserError('--to=hf writes a folder: give OUT no ending')
  if args.to != PUBLISHED and (args.centres or args.add_prefix):
    raise UserError(
      '--centres and --add-prefix are for the published keys, not for '
      f'--to={args.to}'
    )


def _facts(source: str) -> dict[str, str]:
  """Source, data and last scores, for a model card."""
  facts = {'converted from': os.path.basename(source.rstrip('/'))}
  if not os.path.isdir(source):
    return facts
  try:
    with open(os.path.join(source, 'config.json'), encoding='utf-8') as f:
      facts['trained on'] = json.load(f)['data']['source']
    with open(os.path.join(source, 'metrics.jsonl'), encoding='utf-8') as f:
      lines = [json.loads(line) for line in f]
  except (OSError, ValueError, KeyError):
    return facts  # a converted directory has none
  for name, value in (item for line in lines for item in line.items()):
    kind, _, network = name.partition('/')
    if kind in SCORES and network in NETWORKS and value is not None:
      title = f'{SCORES[kind]} of the {NETWORKS[network]}, %'
      facts[title] = f'{value:.1f}'
  return facts


def _distinct(weights: Weights) -> list[str]:
  """Names of the networks; only one if student and teacher are the same."""
  networks = weights.networks
  same = networks.get('student') is networks.get('teacher')
  return [name for name in networks if name != 'student' or not same]


class _Parser(argparse.ArgumentParser):
  def error(self, message):
    raise UserError(f'{message} (see --help)')


def parse(argv: list[str]) -> argparse.Namespace:
  """The command line; --help prints the description and exits.

  Raises:
    UserError: a flag is unknown or wrong.
  """
  parser = _Parser(
    prog='python -m esvit_jax.convert',
    description=__doc__.partition('\n\n')[2],
    epilog='--model.FIELD=VALUE sets a field of the model: --model.heads=12',
    allow_abbrev=False,
    formatter_class=argparse.RawDescriptionHelpFormatter,
  )
  add = parser.add_argument
  add('source', metavar='IN', help='.pth, .pth.tar, .safetensors, directory')
  add('out', metavar='OUT', help='a directory, or a name in .safetensors')
  add('--arch', help='such as swin_tiny; by default inferred from shapes')
  add(
    '--which',
    choices=('teacher', 'student', 'both'),
    help='network to convert; default: both for a directory; for a file the '
    'one that the method hands on: the teacher, or the student of MAE, MoCo '
    'and fine-tuning',
  )
  add('--prefix', help='of the keys, if it is not module. or backbone.')
  for kind, what in (('missing', 'start afresh'), ('unexpected', 'leave out')):
    add(
      f'--allow-{kind}',
      action='append',
      default=[],
      metavar='KEY',
      help=f'{what} this {kind} key, or all that match; may be repeated',
    )
  add(
    '--centres', action='store_true', help="write DINO's centres, dino_loss.*"
  )
  add(
    '--add-prefix',
    default='',
    metavar='PREFIX',
    help='prefix of the keys of the backbone in OUT, such as '
    "backbone.backbone. of EsViT's ResNet",
  )
  add(
    '--to',
    choices=(PUBLISHED, *libraries.LIBRARIES, GRAPH),
    default=PUBLISHED,
    help='whose names OUT has, or a graph (default: the published names)',
  )
  args, fields = parser.parse_known_args(argv)
  args.model = dict(_field(flag) for flag in fields)
  if args.arch:
    args.model['name'] = args.arch
  return args


def _field(flag: str) -> tuple[str, object]:
  """'--model.window=14' -> ('window', 14)."""
  name, equals, value = flag.partition('=')
  field = name.removeprefix('--model.')
  if field == name or not equals or field == 'name':
    raise UserError(
      f"unknown flag '{flag}': fields of the model are --model.window=14"
    )
  try:
    return field, ast.literal_eval(value)
  except (ValueError, SyntaxError):
    return field, value


def _read(args, which: str) -> Weights:
  """The weights, with notes on what was recognised."""
  if not args.out.endswith('.safetensors') and (
    args.centres or args.add_prefix
  ):
    raise UserError(
      '--centres and --add-prefix are for OUT in .safetensors: a directory '
      "always has the centres, and esvit_jax's own names"
    )
  allowed = Allowed(args.allow_missing, args.allow_unexpected)
  if huggingface.is_folder(args.source):
    return reading.from_folder(args.source, which, args.model, allowed)
  if os.path.isdir(args.source):
    return _read_directory(args, which)
  file = files.read(args.source, args.prefix)
  return reading.from_file(file, which, args.model, allowed)


def _read_directory(args, which: str) -> Weights:
  if args.to == PUBLISHED and not args.out.endswith('.safetensors'):
    raise UserError(
      f'{args.source} is a run directory already: give OUT a name that ends '
      'in .safetensors'
    )
  if args.model or args.prefix or args.allow_missing or args.allow_unexpected:
    raise UserError(
      f'{args.source} is a run directory, which says itself what it holds: '
      'leave --arch, --model, --prefix and --allow out'
    )
  weights = directory.read(args.source, which)
  note = f'run directory: {weights.about["model"]["name"]}'
  return weights._replace(notes=(note, *weights.notes))


if __name__ == '__main__':
  sys.exit(main(sys.argv[1:]))
