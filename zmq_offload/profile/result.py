"""The data of a profile. Imports no TVM."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

VM = "(virtual machine: memory and shapes)"
"""The name of the row for the VM's built-in functions."""


@dataclass(frozen=True)
class Function:
    """One function of a model.

    `calls`, `seconds` (the median) and `flops` (floating-point operations, if known) are per run. `output` is the shape
    that it writes, and `model` the name of the offloaded model that it calls.
    """

    name: str
    calls: int
    seconds: float
    flops: int | None = None
    output: str = ""
    model: str | None = None


@dataclass(frozen=True)
class Measured:
    """Times in seconds: `total` is the median of runs without the profiler, `profiled` of runs with it, and
    `reference` of runs in ONNX Runtime."""

    functions: tuple[Function, ...]
    total: float
    profiled: float
    reference: float | None = None


@dataclass(frozen=True)
class Profile:
    """A profile and what it was measured on. `peak` is in operations per second, or None if it was not measured."""

    title: str
    kind: str
    inputs: str
    target: object
    threads: int
    repeat: int
    measured: Measured
    peak: float | None
    notes: tuple[str, ...] = ()

    @property
    def sum(self) -> float:
        """The time in all functions, to which shares refer."""
        return sum(f.seconds for f in self.measured.functions) or 1e-12

    def share(self, function: Function) -> float:
        return function.seconds / self.sum

    def rate(self, function: Function) -> float | None:
        """Operations per second, or None if they are unknown or there are none."""
        return function.flops / function.seconds if function.flops and function.seconds else None

    def of_peak(self, function: Function) -> float | None:
        rate = self.rate(function)
        return rate / self.peak if rate is not None and self.peak else None

    def shown(self, top: int) -> list[Function]:
        """The `top` functions by time, and the others as one row."""
        functions = list(self.measured.functions)
        if len(functions) <= top + 1:
            return functions
        rest = functions[top:]
        flops = sum(f.flops or 0 for f in rest)
        calls, seconds = sum(f.calls for f in rest), sum(f.seconds for f in rest)
        return [*functions[:top], Function(f"({len(rest)} others)", calls, seconds, flops or None)]

    def whole(self) -> Function:
        """The model as one function, measured without the profiler."""
        flops = sum(f.flops or 0 for f in self.measured.functions)
        return Function("whole model", 1, self.measured.total, flops or None)


def flops_of(counts: Mapping[str, object], function: str, rows: int | None) -> int | None:
    """The operations of one call, from `counts` as written next to a library; None if unknown.

    `rows` is the extent of the symbolic batch; None if there is no batch, or other symbolic extents.
    """
    found = counts.get(function)
    if not isinstance(found, list | tuple) or len(found) != 2 or not all(type(n) is int for n in found):
        return None
    fixed, per_row = found
    if per_row and rows is None:
        return None
    return int(fixed + per_row * (rows or 0))
