"""Memory traffic of a compiled program, counted in its optimised HLO.

Every instruction of the schedule is a kernel that reads its operands from
memory and writes its result. A budget to hold, not a time: caches and the
choice of kernels on the device at hand are left out.
"""

import math
import re
from typing import NamedTuple

BITS = {
  **{'pred': 8, 's4': 4, 'u4': 4, 's8': 8, 'u8': 8, 's16': 16, 'u16': 16},
  **{'s32': 32, 'u32': 32, 's64': 64, 'u64': 64},
  **{'f16': 16, 'bf16': 16, 'f32': 32, 'f64': 64},
}
ARRAY = re.compile(r'(\w+)\[([\d,]*)\]')
COMPUTATION = re.compile(r'(ENTRY )?%?([\w.\-]+) \(.*\) -> .* \{')
INSTRUCTION = re.compile(r'\s+(ROOT )?%?([\w.\-]+) = (.*)')
NOTHING = {
  *('parameter', 'tuple', 'get-tuple-element', 'bitcast', 'constant', 'iota'),
  *('after-all', 'partition-id', 'opt-barrier', 'copy-done'),
}
PIECES = {'dynamic-slice', 'slice', 'gather'}  # read what they give, no more


class Instruction(NamedTuple):
  """One line of a computation: `name = type op(operands), attributes`."""

  type: str
  op: str
  operands: list[str]
  attributes: str
  root: bool


class Traffic(NamedTuple):
  """Of a program, loops of known length written out.

  Attributes:
    bytes: read and written.
    kernels: number of instructions that run.
  """

  bytes: int
  kernels: int


def traffic(text: str) -> Traffic:
  """Counts the optimised HLO of a program, as `compiled.as_text()` gives it."""
  computations, entry = parse(text)
  return _of(computations, entry)


def size(type_: str) -> int:
  """Bytes of an array or of a tuple of arrays."""
  return sum(
    math.prod(int(n) for n in dims.split(',') if n) * BITS.get(kind, 0) // 8
    for kind, dims in ARRAY.findall(type_)
  )


def parse(text: str) -> tuple[dict[str, dict[str, Instruction]], str]:
  """Computations by name, and which of them is the program."""
  computations, current, entry = {}, {}, ''
  for line in text.splitlines():
    if start := COMPUTATION.match(line):
      current = computations[start[2]] = {}
      entry = start[2] if start[1] else entry
    elif line_ := INSTRUCTION.match(line):
      root, name, definition = line_.groups()
      type_, call = _split(definition, definition.startswith('('))
      op, bracket, arguments = call.partition('(')
      if bracket:
        inside, attributes = _split(bracket + arguments, True)
        operands = re.findall(r'%([\w.\-]+)', inside)
        current[name] = Instruction(type_, op, operands, attributes, bool(root))
  return computations, entry


def _split(text: str, bracketed: bool) -> tuple[str, str]:
  """The first word, or the first bracket with all in it; and what follows."""
  if not bracketed:
    first, _, following = text.partition(' ')
    return first, following
  depth = 0
  for i, letter in enumerate(text):
    depth += (letter == '(') - (letter == ')')
    if depth == 0:
      return text[: i + 1], text[i + 1 :].lstrip()
  return text, ''


def _of(computations, name: str) -> Traffic:
  instructions, total, kernels = computations[name], 0, 0
  for x in instructions.values():
    if x.op in NOTHING or x.op.endswith('-done'):
      continue
    called, times = [], 1
    if x.op == 'while':
      called = re.findall(r'body=%?([\w.\-]+)', x.attributes)
      trips = re.search(r'known_trip_count.*?"n":"?(\d+)', x.attributes)
      times = int(trips[1]) if trips else 1
    elif x.op == 'conditional':
      branches = re.search(r'branch_computations=\{(.*?)\}', x.attributes)
      called = re.findall(r'[\w.\-]+', branches[1] if branches else '')
    elif x.op in ('call', 'async-start'):
      called = re.findall(r'(?:to_apply|calls)=%?([\w.\-]+)', x.attributes)
    if called:
      inner = max(_of(computations, c) for c in called)
      total += times * inner.bytes
      kernels += times * inner.kernels
      continue
    total += _kernel_bytes(computations, instructions, x)
    kernels += 1
  return Traffic(total, kernels)


def _kernel_bytes(computations, instructions, x: Instruction) -> int:
  operands = [instructions[a] for a in x.operands if a in instructions]
  if x.op == 'fusion':
    called = re.search(r'calls=%?([\w.\-]+)', x.attributes)
    if called and called[1] in computations:
      return _fusion_bytes(computations[called[1]])
  if x.op in PIECES:
    return 2 * size(x.type)
  if x.op == 'dynamic-update-slice':
    return 2 * size(operands[1].type)
  return size(x.type) + sum(size(a.type) for a in operands)


def _fusion_bytes(body: dict[str, Instruction]) -> int:
  """Parameters as far as they are read, results as far as they are written."""
  users = {}
  for x in body.values():
    for operand in x.operands:
      users.setdefault(operand, []).append(x)
  names = {id(x): name for name, x in body.items()}

  def read(name: str, depth: int = 0) -> int:
    whole, total = size(body[name].type), 0
    for user in users.get(name, []):
      first = user.operands[0] == name
      if user.op in PIECES and first:
        total += size(user.type)
      elif user.op == 'bitcast' and depth < 4:
        total += read(names[id(user)], depth + 1)
      elif user.op != 'dynamic-update-slice' or not first:
        return whole
    return min(total, whole)

  def written(x: Instruction) -> int:
    while x.op == 'bitcast':
      x = body[x.operands[0]]
    if x.op == 'dynamic-update-slice':
      return size(body[x.operands[1]].type)
    return size(x.type)

  (root,) = (x for x in body.values() if x.root)
  results = [body[a] for a in root.operands] if root.op == 'tuple' else [root]
  reads = sum(read(name) for name, x in body.items() if x.op == 'parameter')
  return reads + sum(map(written, results))
