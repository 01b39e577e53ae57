"""Reads the optimized program of a compiler: what is computed, and wasted.

An instruction of its text is a line such as

  %copy.3 = bf16[32,56,56,256]{3,0,2,1:T(8,128)} copy(%fusion.7), ...

within a computation; those that a fusion calls take part in its one pass over
memory.
"""

from __future__ import annotations

import collections
import math
import re
from collections.abc import Iterator
from typing import NamedTuple

_COMPUTATION = re.compile(r"^(?:ENTRY )?%?([\w.-]+) (?:\(.*)?->.*\{$")
_NAME = re.compile(r"^\s+(?:ROOT )?%?([\w.-]+) = ")
_OPCODE = re.compile(r"^ ?([a-z][a-z0-9-]*)\(")
_ARRAY = re.compile(r"\b([a-z]+\d*[a-z0-9]*)\[([\d,]*)\]")
_CALLED = re.compile(r"(?:calls|to_apply)=%?([\w.-]+)")
_BYTES = {
  "pred": 1,
  "s8": 1,
  "u8": 1,
  "s16": 2,
  "u16": 2,
  "bf16": 2,
  "f16": 2,
  "s32": 4,
  "u32": 4,
  "f32": 4,
  "s64": 8,
  "u64": 8,
  "f64": 8,
}
_PRODUCTS = ("convolution", "dot")
_MOVES = ("copy", "transpose", "reshape", "convert", "pad")
# Smaller arrays than an activation of the narrowest stage cost nothing.
_LARGE = 1 << 20


class Instruction(NamedTuple):
  """A line of the program.

  Attributes:
    computation: that it is part of.
    name: unique in the program.
    opcode: such as "convolution".
    arrays: (type, shape) of each array of its result.
    line: its text.
  """

  computation: str
  name: str
  opcode: str
  arrays: tuple[tuple[str, tuple[int, ...]], ...]
  line: str

  @property
  def num_bytes(self) -> int:
    """Bytes of its result, without padding."""
    return sum(
      _BYTES.get(dtype, 0) * math.prod(shape) for dtype, shape in self.arrays
    )


def parse(text: str) -> Iterator[Instruction]:
  """Yields the instructions of a program's text."""
  computation = ""
  for line in text.splitlines():
    if match := _NAME.match(line):
      result, rest = _split_type(line[match.end() :])
      if opcode := _OPCODE.match(rest):
        arrays = tuple(
          (dtype, tuple(map(int, filter(None, sizes.split(",")))))
          for dtype, sizes in _ARRAY.findall(result)
        )
        yield Instruction(computation, match[1], opcode[1], arrays, line)
    elif match := _COMPUTATION.match(line):
      computation = match[1]


def _split_type(text: str) -> tuple[str, str]:
  """Returns (type of the result, the rest) of an instruction's text."""
  depth = 0
  for index, letter in enumerate(text):
    depth += letter in "([{"
    depth -= letter in ")]}"
    if letter == " " and depth == 0:
      return text[:index], text[index:]
  return text, ""


def summarize(text: str) -> dict:
  """Returns what a program computes with, and what it moves.

  Returns:
    all_reduces: {count, bytes} of the sums over replicas, after combining. One
      that the compiler has made a fusion of counts once, though it holds a
      part for each axis of the slice, and its bytes are padded.
    products: {type: number} of convolutions and matrix products, by the type
      of what they multiply.
    moves: {opcode: {count, bytes}} of copies, transposes, conversions and the
      like of a MiB and more, outside of fusions.
    fusions: number of fused kernels.
    instructions: in all computations.
  """
  instructions = list(parse(text))
  types = {each.name: each.arrays for each in instructions}
  fused = {
    name
    for each in instructions
    if each.opcode == "fusion"
    for name in _CALLED.findall(each.line)
  }
  reduces = collections.defaultdict(list)
  for each in instructions:
    if each.opcode in ("all-reduce", "all-reduce-start"):
      part = each.computation in fused
      reduces[each.computation if part else each.name].append(each.num_bytes)
  moves = collections.defaultdict(lambda: {"count": 0, "bytes": 0})
  for each in instructions:
    outside = each.computation not in fused
    if each.opcode in _MOVES and outside and each.num_bytes >= _LARGE:
      moves[each.opcode]["count"] += 1
      moves[each.opcode]["bytes"] += each.num_bytes
  return {
    "all_reduces": {
      "count": len(reduces),
      "bytes": sum(map(max, reduces.values())),
    },
    "products": dict(
      collections.Counter(
        _multiplied_type(each, types)
        for each in instructions
        if each.opcode in _PRODUCTS
      )
    ),
    "moves": dict(moves),
    "fusions": sum(each.opcode == "fusion" for each in instructions),
    "instructions": len(instructions),
  }


def _multiplied_type(instruction: Instruction, types) -> str:
  """Returns the types of an instruction's two operands, "bf16" if alike."""
  operands = instruction.line.partition(f"{instruction.opcode}(")[2]
  names = re.findall(r"%([\w.-]+)", operands)[:2]
  kinds = [types[name][0][0] for name in names if types.get(name)]
  return "*".join(sorted(set(kinds))) or instruction.arrays[0][0]
