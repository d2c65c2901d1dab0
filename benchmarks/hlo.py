"""Reads the text of a compiled XLA program: its traffic, collectives, loops and gathers.

Figures are the compiler's plan, not measurements. Traffic is what all operations of the main computation read from and
write to the device's memory (HBM), with the padding of TPU's tiles.
"""

from __future__ import annotations

import collections
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass, field, replace

_BYTES = {
    "pred": 1, "s8": 1, "u8": 1, "bf16": 2, "f16": 2, "s16": 2, "u16": 2, "f32": 4, "s32": 4, "u32": 4, "s64": 8,
    "u64": 8, "f64": 8,
}  # fmt: skip
_SHAPE = re.compile(r"\b([a-z]+[0-9]*)\[([0-9,]*)\](\{[^}]*\})?")
_INSTRUCTION = re.compile(r"^\s*(?:ROOT )?%([\w.\-]+) = (.*)$")
_HEAD = re.compile(r"^(ENTRY )?%?([\w.\-]+) .*\{$")
_COLLECTIVES = ("all-reduce", "reduce-scatter", "all-gather", "all-to-all", "collective-permute")
_FREE = ("parameter", "constant", "get-tuple-element", "tuple", "bitcast", "after-all", "partition-id")
_SLICES = ("slice", "dynamic-slice", "slice-start", "dynamic-slice-start")


@dataclass(frozen=True, slots=True)
class Array:
    """One array in a type, such as `f32[8,128]{1,0:T(8,128)S(1)}`."""

    dtype: str
    sides: tuple[int, ...]
    padded: float  # bytes, with what the layout's tiles add
    in_hbm: bool  # False in a TPU's vector memory (S(1))


@dataclass(frozen=True, slots=True)
class Instruction:
    """`%name = type opcode(operands), attributes`."""

    name: str
    type: str
    opcode: str
    operands: tuple[str, ...]  # names; for a parameter, its number
    attributes: str


@dataclass
class Program:
    """What was read."""

    collectives: dict[str, int] = field(default_factory=dict)  # kind -> how many
    collective_bytes: float = 0.0  # that one device adds to them
    loops: int = 0
    loops_with_collectives: int = 0
    largest_gather: int = 0  # elements of its result
    traffic: dict[str, float] = field(default_factory=dict)  # dtype -> bytes
    cycles: int = 0  # as a TPU's compiler estimates them; 0 for others
    aliased: int = 0  # outputs that take the place of inputs


def read_program(text: str) -> Program:
    """Reads `compiled.as_text()`."""
    computations, entry = _split(text)
    program, collectives = Program(), collections.Counter[str]()
    calls = {
        name: {called for one in body for called in _called(one)} & set(computations)
        for name, body in computations.items()
    }
    for body in computations.values():
        for one in body:
            kind = one.opcode.removesuffix("-start")
            if kind in _COLLECTIVES:
                collectives[kind] += 1
                program.collective_bytes += sum(array.padded for array in _written(one))
            elif one.opcode == "gather":
                size = max(math.prod(array.sides) for array in _arrays(one.type))
                program.largest_gather = max(program.largest_gather, size)
            elif one.opcode == "while":
                program.loops += 1
                inside = _reached(_called(one), calls)
                program.loops_with_collectives += any(
                    other.opcode.removesuffix("-start") in _COLLECTIVES
                    for name in inside
                    for other in computations.get(name, [])
                )
    program.collectives = dict(collectives)
    program.traffic, program.cycles = _traffic(computations, entry)
    alias = re.search(r"input_output_alias=\{(.*?)\}(?:, \w+=|\n)", text)
    program.aliased = len(re.findall(r"\{[\d, ]*\}: \(", alias.group(1))) if alias else 0
    return program


def _split(text: str) -> tuple[dict[str, list[Instruction]], str]:
    computations: dict[str, list[Instruction]] = {}
    current, entry = "", ""
    for line in text.splitlines():
        head = _HEAD.match(line)
        if head and "=" not in line.split("(")[0]:
            current = head.group(2)
            computations[current] = []
            entry = current if head.group(1) else entry
        elif line.startswith("}"):
            current = ""
        elif current and (found := _INSTRUCTION.match(line)):
            computations[current].append(_instruction(found.group(1), found.group(2)))
    return computations, entry


def _instruction(name: str, rest: str) -> Instruction:
    end = next((i for i, c, depth in _depths(rest) if c == " " and depth == 0), len(rest))
    opcode, _, more = rest[end + 1 :].partition("(")
    close = next((i for i, c, depth in _depths("(" + more) if c == ")" and depth == 0), len(more)) - 1
    opcode, inside = opcode.strip(), more[:close]
    operands = (inside,) if opcode == "parameter" else tuple(re.findall(r"%([\w.\-]+)", inside))
    return Instruction(name, rest[:end], opcode, operands, more[close + 1 :])


def _depths(text: str) -> Iterator[tuple[int, str, int]]:
    depth = 0
    for place, character in enumerate(text):
        depth += (character in "([{") - (character in ")]}")
        yield place, character, depth


def _called(one: Instruction) -> set[str]:
    return set(re.findall(r"(?:calls|body|condition|to_apply)=%?([\w.\-]+)", one.attributes))


def _reached(names: set[str], calls: dict[str, set[str]]) -> set[str]:
    reached, todo = set(names), list(names)
    while todo:
        new = calls.get(todo.pop(), set()) - reached
        reached |= new
        todo.extend(new)
    return reached


def _arrays(text: str) -> Iterator[Array]:
    for dtype, dims, layout in _SHAPE.findall(text):
        if dtype not in _BYTES:
            continue
        sides = tuple(int(side) for side in dims.split(",") if side)
        size = float(math.prod(sides))
        tile = re.search(r"T\((\d+)(?:,(\d+))?\)", layout)
        order = re.match(r"\{([0-9,]+)", layout)
        if tile and order and sides:
            minor, steps = [int(place) for place in order.group(1).split(",")], [1] * len(sides)
            if tile.group(2) and len(minor) >= 2:
                steps[minor[0]], steps[minor[1]] = int(tile.group(2)), int(tile.group(1))
            elif not tile.group(2):
                steps[minor[0]] = int(tile.group(1))
            size = float(math.prod(-(-side // step) * step for side, step in zip(sides, steps, strict=True)))
        yield Array(dtype, sides, size * _BYTES[dtype], "S(" not in layout)


def _traffic(computations: dict[str, list[Instruction]], entry: str) -> tuple[dict[str, float], int]:
    traffic: collections.Counter[str] = collections.Counter()
    types = {one.name: one.type for one in computations[entry]}
    cycles = 0
    for one in computations[entry]:
        estimate = re.search(r'"estimated_cycles":"?(\d+)', one.attributes)
        cycles += int(estimate.group(1)) if estimate else 0
        if one.opcode in _FREE or one.opcode.endswith("-done"):
            continue
        called = re.search(r"calls=%?([\w.\-]+)", one.attributes)
        sliced = _sliced(computations[called.group(1)]) if called and called.group(1) in computations else {}
        wrote = _written(one)
        if one.opcode in _SLICES:
            whole = next(_arrays(types.get(one.operands[0], "")))
            read = [replace(array, in_hbm=whole.in_hbm) for array in wrote]
        else:
            read = [
                array
                for place, operand in enumerate(one.operands)
                for array in _arrays(sliced.get(place, types.get(operand, "")))
            ]
        for array in read + wrote:
            if array.in_hbm:
                traffic[array.dtype] += array.padded
    return dict(traffic.most_common()), cycles


def _written(one: Instruction) -> list[Array]:
    """Returns the results of an instruction. The type of a "-start" instruction also has operands and contexts."""
    arrays, count = list(_arrays(one.type)), len(one.operands)
    if one.opcode == "copy-start":  # (result, operand, context)
        return arrays[:1]
    if one.opcode in ("all-gather-start", "collective-permute-start"):  # (operands, results, contexts)
        return arrays[count : 2 * count]
    if one.opcode.endswith("-start") and one.type.startswith("(("):  # ((operands), results, context)
        return arrays[count : len(arrays) - 1]
    return arrays


def _sliced(body: list[Instruction]) -> dict[int, str]:
    """Returns the places of parameters of which a fusion reads only slices, and the types of these slices."""
    users: dict[str, list[Instruction]] = collections.defaultdict(list)
    for one in body:
        for operand in one.operands:
            users[operand].append(one)
    found = {}
    for one in body:
        if one.opcode == "parameter" and users[one.name]:
            slices = [user for user in users[one.name] if user.opcode in _SLICES]
            if len(slices) == len(users[one.name]):
                found[int(one.operands[0])] = " ".join(user.type for user in slices)
    return found
