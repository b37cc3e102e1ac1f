"""What a profile is made of. No TVM in here."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

VM = "(virtual machine: memory and shapes)"
"""The row for what is no function of the model."""


@dataclass(frozen=True)
class Function:
    """One function of a model: calls and seconds a run (the median of the runs), floating-point operations a run where
    they are known, and the shape that it writes. `model` is the name of an offloaded model that it calls."""

    name: str
    calls: int
    seconds: float
    flops: int | None = None
    output: str = ""
    model: str | None = None


@dataclass(frozen=True)
class Measured:
    """`total` is the median time of a run without the profiler, `profiled` that of one with it, in seconds;
    `reference` that of the other runtime."""

    functions: tuple[Function, ...]
    total: float
    profiled: float
    reference: float | None = None


@dataclass(frozen=True)
class Profile:
    """What was measured of what. `peak` is in operations a second, None where it was not measured; `notes` are what a
    reader must know."""

    title: str
    kind: str
    inputs: str
    target: Any
    threads: int
    repeat: int
    measured: Measured
    peak: float | None
    notes: tuple[str, ...] = ()

    @property
    def sum(self) -> float:
        """Time in functions: what shares are shares of."""
        return sum(f.seconds for f in self.measured.functions) or 1e-12

    def share(self, function: Function) -> float:
        return function.seconds / self.sum

    def rate(self, function: Function) -> float | None:
        """Operations a second, where they are known and there are any."""
        return function.flops / function.seconds if function.flops and function.seconds else None

    def of_peak(self, function: Function) -> float | None:
        rate = self.rate(function)
        return rate / self.peak if rate is not None and self.peak else None

    def shown(self, top: int) -> list[Function]:
        """The `top` functions by time, and the rest as one."""
        functions = list(self.measured.functions)
        if len(functions) <= top + 1:
            return functions
        rest = functions[top:]
        flops = sum(f.flops or 0 for f in rest)
        calls, seconds = sum(f.calls for f in rest), sum(f.seconds for f in rest)
        return [*functions[:top], Function(f"({len(rest)} others)", calls, seconds, flops or None)]

    def whole(self) -> Function:
        """The model as one function, without what the profiler adds."""
        flops = sum(f.flops or 0 for f in self.measured.functions)
        return Function("whole model", 1, self.measured.total, flops or None)
