"""Innermost loops in assembly text, by their back edges."""

from __future__ import annotations

import re
from dataclasses import dataclass, field

_LABEL = re.compile(r"^([.\w$]+):")
_X86_JUMP = re.compile(r"^\s+j(\w+)\s+([.\w$]+)\s*$")
_ARM_JUMP = re.compile(r"^\s+(b|b\.\w+|cbn?z|tbn?z)\s+(?:.*,\s*)?([.\w$]+)\s*$")
_END = re.compile(r"^\s+(ret\w*|jmp\s+\*|br\s|ud2|brk)")


@dataclass
class _Block:
    label: str
    lines: list[str] = field(default_factory=list)
    next: set[str] = field(default_factory=set)


def _blocks(assembly: str) -> list[_Block]:
    """Basic blocks in the order of the text, with the labels of those that may follow."""
    blocks, open_ = [_Block("")], True
    for line in assembly.splitlines():
        if label := _LABEL.match(line):
            if open_:
                blocks[-1].next.add(label[1])
            blocks.append(_Block(label[1]))
            open_ = True
            continue
        if not re.match(r"^\s+[a-z]", line):
            continue
        if not open_:
            blocks.append(_Block(f"after {len(blocks)}"))
            open_ = True
        blocks[-1].lines.append(line)
        jump = _X86_JUMP.match(line) or _ARM_JUMP.match(line)
        if jump:
            blocks[-1].next.add(jump[2])
            following = f"after {len(blocks)}"
            if jump[1] in ("mp", "b"):
                open_ = False
            else:
                blocks[-1].next.add(following)
                blocks.append(_Block(following))
        elif _END.match(line):
            open_ = False
    return blocks


def innermost_loops(assembly: str) -> list[list[str]]:
    """The instructions of each loop that has no other loop inside.

    A jump to a label above it closes a loop: the blocks from which the jump is reached without passing the label.
    """
    blocks = _blocks(assembly)
    places = {b.label: i for i, b in enumerate(blocks)}
    before: dict[int, set[int]] = {i: set() for i in range(len(blocks))}
    edges = [(i, places[n]) for i, b in enumerate(blocks) for n in b.next if n in places]
    for source, target in edges:
        before[target].add(source)
    loops: dict[int, set[int]] = {}
    for source, head in edges:
        if head > source:
            continue
        body, waiting = {head}, [source]
        while waiting:
            if (at := waiting.pop()) not in body:
                body.add(at)
                waiting += before[at]
        loops[head] = loops.get(head, set()) | body
    innermost = [b for b in loops.values() if not any(other < b for other in loops.values())]
    return [[line for i in sorted(body) for line in blocks[i].lines] for body in innermost]


_SCALAR = re.compile(
    r"^\s+(v?(add|sub|mul|div|sqrt|max|min|u?comi|cmp\w*|round|rndscale|fn?m\w+)s[sd]\s"  # x86
    r"|f(n?m(add|sub|ul)|add|sub|div|sqrt|cmpe?|csel|max\w*|min\w*|rint\w)\s+[sdh]\d"  # ARM
    r"|(callq?|bl)\s+\w+f(@PLT)?$)"  # a function of the C library
)


def scalar_arithmetic(loop: list[str]) -> list[str]:
    """The instructions of a loop that compute one floating-point number, or call the C library for one."""
    return [line.strip() for line in loop if _SCALAR.match(line)]
