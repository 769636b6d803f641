"""python -m esvit_jax.convert IN OUT

Published checkpoints (.pth, .pth.tar of EsViT, DINO, MoCo, MAE), safetensors
files and run directories, into one another. OUT is a directory to train from,
evaluate or fine-tune or, if it ends in .safetensors, a file with the published
keys. Nothing is guessed: what is missing, unexpected or of another shape is
listed and refused unless you name it.
"""

import argparse
import ast
import os
import sys

from esvit_jax.errors import UserError
from esvit_jax.weights import certificate, export, published
from esvit_jax.weights import networks as weights_lib
from esvit_jax.weights.accounting import Allowed
from esvit_jax.weights.networks import Weights
from esvit_jax.workdir import write_json


def main(argv: list[str]) -> int:
  """Runs the command line; returns 0, or 2 for what the user can mend."""
  try:
    args = parse(argv)
    if args is not None:
      run(args)
  except UserError as e:
    print(f'error: {" ".join(str(e).split())}', file=sys.stderr)
    return 2
  return 0


def run(args: argparse.Namespace) -> None:
  """Reads, converts, writes and certifies."""
  single = args.out.endswith('.safetensors')
  which = args.which or ('auto' if single else 'both')
  export.check_free(args.out)
  weights, notes = _read(args, which)
  for note in notes:
    print(note)
  networks = weights.networks
  names = list(networks)
  if networks.get('student') is networks.get('teacher'):
    names.remove('student')
  certificates = [certificate.certify(weights, who) for who in names]
  if single:
    export.save(args.out, weights, which)
    beside = args.out.removesuffix('.safetensors') + '.certificate.json'
  else:
    export.save_run(args.out, weights, os.path.basename(args.source))
    beside = os.path.join(args.out, 'certificate.json')
  write_json(
    beside,
    {
      'source': os.path.basename(args.source),
      'notes': notes,
      'architecture': weights.about,
      'networks': certificates,
    },
  )
  for one in certificates:
    print('\n'.join(certificate.lines(one)))
  print(f'wrote {args.out} and {beside}')


class _Parser(argparse.ArgumentParser):
  def error(self, message):
    raise UserError(f'{message} (see --help)')


def parse(argv: list[str]) -> argparse.Namespace | None:
  """The command line, or None after --help.

  Raises:
    UserError: flags that are none.
  """
  parser = _Parser(
    prog='python -m esvit_jax.convert',
    description=__doc__.partition('\n\n')[2],
    allow_abbrev=False,
    formatter_class=argparse.RawDescriptionHelpFormatter,
    add_help=False,
  )
  add = parser.add_argument
  add('source', metavar='IN', help='.pth, .pth.tar, .safetensors, directory')
  add('out', metavar='OUT', help='a directory, or a name in .safetensors')
  add('--arch', help='such as swin_tiny; otherwise told by the shapes')
  add(
    '--which',
    choices=('teacher', 'student', 'both'),
    help='network to take; default: both into a directory, into a file the '
    'one that the method hands on: the teacher, or the student of MAE, MoCo '
    'and fine-tuning',
  )
  add('--prefix', help='of the keys, where it is none of module. backbone.')
  for kind, what in (('missing', 'start afresh'), ('unexpected', 'leave out')):
    add(
      f'--allow-{kind}',
      action='append',
      default=[],
      metavar='KEY',
      help=f'{what} this {kind} key, or all that match; may be repeated',
    )
  add('--allow-fp16', action='store_true', help='take float16 as float32')
  add('--help', '-h', action='store_true', help='show this')
  text = parser.format_help().replace(
    '  --allow-fp16', '  --model.FIELD=VALUE\n  --allow-fp16'
  )
  if '--help' in argv or '-h' in argv:
    print(text)
    return None
  args, rest = parser.parse_known_args(argv)
  args.model = dict(_field(flag) for flag in rest)
  if args.arch:
    args.model['name'] = args.arch
  return args


def _field(flag: str) -> tuple[str, object]:
  """'--model.window=14' -> ('window', 14)."""
  name, equals, value = flag.partition('=')
  field = name.removeprefix('--model.')
  if field == name or not equals or field == 'name':
    raise UserError(f"what is '{flag}'? Fields look like --model.window=14")
  try:
    return field, ast.literal_eval(value)
  except (ValueError, SyntaxError):
    return field, value


def _read(args, which: str) -> tuple[Weights, list[str]]:
  """The weights asked for, and what was recognised."""
  if os.path.isdir(args.source):
    if not args.out.endswith('.safetensors'):
      raise UserError(
        f'{args.source} is a run directory already: give OUT a name that ends '
        'in .safetensors'
      )
    named = [
      name
      for name in ('arch', 'prefix', 'allow_missing', 'allow_unexpected')
      if getattr(args, name)
    ]
    if named or args.model or args.allow_fp16:
      raise UserError(
        f'{args.source} is a run directory, which says itself what it holds: '
        'leave the flags but --which out'
      )
    weights = weights_lib.from_run(args.source, which)
    return weights, [f'run directory: {weights.about["model"]["name"]}']
  file = published.read(args.source, args.prefix)
  allowed = Allowed(args.allow_missing, args.allow_unexpected, args.allow_fp16)
  try:
    weights = weights_lib.from_file(file, which, args.model, allowed)
  except UserError as e:
    raise UserError(f'{args.source!r}: {e}') from None
  return weights, file.notes


if __name__ == '__main__':
  sys.exit(main(sys.argv[1:]))
