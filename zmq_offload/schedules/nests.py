"""Loop nests for element-wise stages, which include transposes, concatenations, paddings and gathers.

A nest writes one buffer. `NestContext` says where in it: loops around several nests may fix the leading axes, so that
softmax and similar programs run row by row with one row's intermediate results in cache.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

from tvm import tirx
from tvm.ir import Expr, Var

from zmq_offload.schedules.access import (
    AccessPattern,
    access_pattern,
    breakpoints,
    mergeable,
    operation_count,
    specialized,
    stride_of,
)
from zmq_offload.schedules.emit import (
    INDEX,
    as_index,
    elements,
    index,
    lanes,
    loop,
    nest,
    parallel,
    ramp,
    sequence,
    vectors,
)
from zmq_offload.schedules.functions.vector_math import vectorizable
from zmq_offload.schedules.integers.byte_vectors import TILE, byte_machine, is_byte_transpose, transposed_tile
from zmq_offload.schedules.machine import Machine
from zmq_offload.schedules.rewrite import Rewriter, constant, loads, uses
from zmq_offload.schedules.stages import Inliner, Stage
from zmq_offload.schedules.tails import vectors_after

# Vector operations below which a parallel loop does not pay. Measured: it costs 1.5 to 3.5 us, in which one core does
# some 10,000 of them.
SERIAL_WORK = 8192
# Iterations of a parallel loop for each thread that share the work evenly enough.
TASKS_PER_THREAD = 8


@dataclass(frozen=True, eq=False)
class NestContext:
    """Where a nest is emitted: the values of its leading axes, whether it may start threads, where its results go."""

    machine: Machine
    inliner: Callable[[], Inliner]
    prefix: Sequence[Expr] = ()
    threads: bool = True
    store: Callable[[Var, list[Expr], Expr], tirx.Stmt] | None = None  # None: to the stage's buffer

    def write(self, stage: Stage, indices: list[Expr], value: Expr) -> tirx.Stmt:
        """Emit `stage.buffer[indices] = value`, wherever the buffer is kept."""
        if self.store is not None:
            return self.store(stage.buffer, indices, value)
        return tirx.BufferStore(stage.buffer, value, indices)


def fresh(axes: Sequence[Var]) -> list[Var]:
    """Return new loop variables with the names of `axes`."""
    return [tirx.Var(str(a.name), INDEX) for a in axes]


def elementwise(context: NestContext, stage: Stage) -> tirx.Stmt:
    """Emit `stage`, an element-wise function of its indices, over its whole domain.

    Neighboring axes that are neighbors in every load are merged. The last axis is vectorized, in segments within which
    no comparison of indices changes its result; so a concatenation becomes one copy loop for each operand. A
    transpose runs in square tiles. A segment that is not linear in the index is scalar.
    """
    fixed = len(context.prefix)
    axes, extents = fresh(stage.axes[fixed:]), list(stage.extents[fixed:])
    value = vectorizable(context.inliner().expand(stage, [*context.prefix, *axes]), context.machine.scales)
    context = replace(context, machine=byte_machine(context.machine, value, str(stage.buffer.dtype)))
    indices: list[Expr] = list(axes)
    if not axes:
        return lanes(1, lambda _: context.write(stage, list(context.prefix), value))
    while len(axes) > 1 and mergeable(value, axes[-2], axes[-1], extents[-1]):
        # From here on the last axis stands for both, and the index of the outer one is 0.
        value = Rewriter({axes[-2]: index(0)}).visit(value)
        indices = [index(0) if i.same_as(axes[-2]) else i for i in indices]
        axes, extents = [*axes[:-2], axes[-1]], [*extents[:-2], extents[-2] * extents[-1]]
    return _Elementwise(context, stage, axes, extents, indices, value).statement()


@dataclass(frozen=True, eq=False)
class _Elementwise:
    """An element-wise nest after its axes are merged."""

    context: NestContext
    stage: Stage
    axes: list[Var]
    extents: list[Expr]
    indices: list[Expr]
    value: Expr

    def statement(self) -> tirx.Stmt:
        work = elements(self.extents, unknown=16) * max(1, operation_count(self.value)) // self.context.machine.lanes
        threads = self.context.threads and work > SERIAL_WORK
        extent = constant(self.extents[-1])
        if extent is None:
            return self._symbolic(threads)
        outer = self.extents[:-1]
        if threads and not outer:
            return self._blocks(extent)
        cuts = breakpoints(self.value, self.axes[-1], extent)
        segments = [(a, b, specialized(self.value, self.axes[-1], a, b)) for a, b in pairwise(cuts)]
        patterns = [access_pattern(v, self.axes[-1]) for _, _, v in segments]
        if outer and len(segments) == 1 and not patterns[0].contiguous and patterns[0].linear:
            across = self._gathered_axis()
            if across is not None:
                return self._tiled(across, extent, threads)

        def row(at: list[Expr]) -> tirx.Stmt:
            return sequence(
                self._run(at, index(a), b - a, v, p) for (a, b, v), p in zip(segments, patterns, strict=True)
            )

        return self._outer(outer, row, threads)

    def _outer(self, extents: list[Expr], row: Callable[[list[Expr]], tirx.Stmt], threads: bool) -> tirx.Stmt:
        """Emit as many leading axes as give all threads enough tasks as one parallel loop, the others as loops."""
        enough = TASKS_PER_THREAD * self.context.machine.threads
        split = 0
        while split < len(extents) and elements(extents[:split], unknown=1) < enough:
            split += 1
        return parallel(extents[:split], lambda head: nest(extents[split:], lambda tail: row([*head, *tail])), threads)

    def _write(self, at: Sequence[Expr], value: Expr) -> tirx.Stmt:
        """Emit one element, with the axes replaced by `at`."""
        names = dict(zip(self.axes, at, strict=True))
        indices = [names.get(i, i) if isinstance(i, Var) else i for i in self.indices]
        return self.context.write(self.stage, [*self.context.prefix, *indices], Rewriter(names).visit(value))

    def _run(self, outer: list[Expr], start: Expr, extent: int, value: Expr, pattern: AccessPattern) -> tirx.Stmt:
        """Emit a run along the last axis, in vectors if the access is linear."""
        if not pattern.linear:
            return loop(extent, lambda i: lanes(1, lambda _: self._write([*outer, start + i], value)))
        return vectors(
            start,
            extent,
            self.context.machine,
            lambda first, width: lanes(width, lambda lane: self._write([*outer, first + lane], value)),
        )

    def _blocks(self, extent: int) -> tirx.Stmt:
        """Emit a single axis: blocks for the threads, then the tail."""
        block = self.context.machine.lanes * 32
        pattern = access_pattern(self.value, self.axes[-1])

        def task(at: list[Expr]) -> tirx.Stmt:
            return self._run([], at[0] * block, block, self.value, pattern)

        count = extent // block
        tail = extent - count * block
        return sequence(
            [
                parallel([index(count)], task) if count else None,
                self._run([], index(count * block), tail, self.value, pattern) if tail else None,
            ]
        )

    def _symbolic(self, threads: bool) -> tirx.Stmt:
        """Emit a last axis of symbolic extent: whole vectors, then narrower ones."""
        extent, machine = self.extents[-1], self.context.machine
        vector = access_pattern(self.value, self.axes[-1]).contiguous
        whole = tirx.floordiv(extent, index(machine.lanes)) if vector else index(0)
        start = whole * machine.lanes

        def several(at: list[Expr], first: Expr, width: int) -> tirx.Stmt:
            return lanes(width, lambda lane: self._write([*at, first + lane], self.value))

        def row(at: list[Expr], shared: bool) -> tirx.Stmt:
            if not vector:
                return loop(extent, lambda i: several(at, i, 1))
            blocks = parallel([whole], lambda b: several(at, b[0] * machine.lanes, machine.lanes), shared)
            tail = vectors_after(start, extent - start, machine, lambda first, width: several(at, first, width))
            return sequence([blocks, tail])

        if len(self.axes) == 1:
            return row([], threads)
        return self._outer(self.extents[:-1], lambda at: row(at, False), threads)

    def _gathered_axis(self) -> int | None:
        """Return the axis that is contiguous in a load where the last axis is not: the one that a transpose swaps."""
        for load in loads(self.value):
            if not load.indices or not any(uses(i, self.axes[-1]) for i in load.indices[:-1]):
                continue
            for at, axis in enumerate(self.axes[:-1]):
                if stride_of(load.indices[-1], axis) == 1 and constant(self.extents[at]) is not None:
                    return at
        return None

    def _tiled(self, across: int, extent: int, threads: bool) -> tirx.Stmt:
        """Emit square tiles over the last axis and the one it is swapped with, so that cache lines are loaded once."""
        tile = TILE
        height = constant(self.extents[across]) or 1
        others = [*self.extents[:across], as_index(-(-height // tile)), *self.extents[across + 1 : -1]]
        pattern = access_pattern(self.value, self.axes[-1])
        rows = height if height < tile else tile
        in_registers = is_byte_transpose(self.value, self.axes[across], self.axes[-1])

        def columns(at: list[Expr], start: Expr, count: int) -> tirx.Stmt:
            first = at[across] * tile
            here = index(rows) if height % tile == 0 or height < tile else tirx.Min(index(tile), index(height) - first)

            def line(i: Expr) -> tirx.Stmt:
                return self._run([*at[:across], first + i, *at[across + 1 :]], start, count, self.value, pattern)

            slow = loop(here, line)
            if not in_registers or count != tile or height < tile:
                return slow
            fast = self._byte_tile(at, across, first, start)
            return fast if height % tile == 0 else tirx.IfThenElse(first + tile <= height, fast, slow)

        def body(at: list[Expr]) -> tirx.Stmt:
            whole, rest = divmod(extent, tile)
            return sequence(
                [
                    loop(whole, lambda i: columns(at, i * tile, tile)) if whole else None,
                    columns(at, index(whole * tile), rest) if rest else None,
                ]
            )

        return self._outer(others, body, threads)

    def _byte_tile(self, at: list[Expr], across: int, first: Expr, start: Expr) -> tirx.Stmt:
        """Emit a tile of a transpose of bytes in registers."""
        others = {axis: place for i, (axis, place) in enumerate(zip(self.axes[:-1], at, strict=True)) if i != across}
        value = Rewriter(others).visit(self.value)

        def store(row: int, vector: Expr) -> tirx.Stmt:
            names = {**others, self.axes[across]: first + row, self.axes[-1]: ramp(start, TILE)}
            indices = [names.get(i, i) if isinstance(i, Var) else i for i in self.indices]
            return self.context.write(self.stage, [*self.context.prefix, *indices], vector)

        return transposed_tile(value, self.axes[across], self.axes[-1], (first, start), store)
