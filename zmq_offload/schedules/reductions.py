"""Loop nests for reductions: across vectors (pooling, sums of columns), along them (sums of rows), or scalar.

Each emits the reduction together with the element-wise stage that follows, such as a mean's division.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

from tvm import tirx
from tvm.ir import Expr, Var

from zmq_offload.schedules.access import access_pattern, breakpoints, operation_count, specialized, stride_of
from zmq_offload.schedules.emit import (
    elements,
    index,
    lanes,
    local,
    loop,
    nest,
    parallel,
    pieces,
    ramp,
    sequence,
    with_buffers,
)
from zmq_offload.schedules.functions.vector_math import extremum, vectorizable
from zmq_offload.schedules.integers.byte_vectors import byte_machine
from zmq_offload.schedules.nests import SERIAL_WORK, NestContext, fresh
from zmq_offload.schedules.rewrite import Rewriter, constant, loads, same, uses
from zmq_offload.schedules.stages import Inliner, Stage, same_indices
from zmq_offload.schedules.tails import vectors_after

# Independent accumulators: they hide the latency of an addition (4 cycles, with one or two issued per cycle).
CHAINS = 4
# Elements between the operands of neighboring results, at most, for which vectors pay: the stride of a pool's window.
_SHUFFLED = 4


@dataclass(frozen=True, eq=False)
class Reduction:
    """A reduction, and the element-wise stage computed from it (`final is stage` if there is none)."""

    stage: Stage
    final: Stage

    def result(self, context: NestContext, at: Sequence[Expr], total: Expr) -> tirx.Stmt:
        """Store `final` at `at`, where the reduction is `total`."""

        def substitute(buffer: Var, indices: list[Expr]) -> Expr | None:
            return total if buffer.same_as(self.stage.buffer) and same_indices(indices, list(at)) else None

        if self.final is self.stage:
            return context.write(self.final, list(at), total)
        base = context.inliner()
        value = Inliner(base.program, base.kept, _first(substitute, base.substitute)).expand(self.final, at)
        return context.write(self.final, list(at), vectorizable(value, context.machine.scales))


def _first(one: Callable[..., Expr | None], other: Callable[..., Expr | None] | None) -> Callable[..., Expr | None]:
    def both(buffer: Var, indices: list[Expr]) -> Expr | None:
        answer = one(buffer, indices)
        return answer if answer is not None or other is None else other(buffer, indices)

    return both


def reduction(context: NestContext, pair: Reduction) -> tirx.Stmt:
    """Emit a reduction, in the first of three forms that suits its operands.

    1. Operands of neighboring results are neighbors, or a few elements apart: vectors of results (`_Across`).
    2. Operands are contiguous along the last reduced axis: vectors of partial results (`_Along`).
    3. Otherwise one result and one operand at a time (`_Scalar`).
    """
    stage, fixed = pair.stage, len(context.prefix)
    axes, extents = fresh(stage.axes[fixed:]), stage.extents[fixed:]
    value = vectorizable(context.inliner().expand(stage, [*context.prefix, *axes]), context.machine.scales)
    context = replace(context, machine=byte_machine(context.machine, value, str(stage.buffer.dtype)))
    count = elements([*extents, *stage.reduce_extents], unknown=16)
    work = count * max(1, operation_count(value)) // context.machine.lanes
    threads = context.threads and work > SERIAL_WORK
    last = constant(extents[-1]) if axes else None
    form: type[_Across | _Along | _Scalar] = _Scalar
    if last is not None and last > 1 and _has_vectors(value, axes[-1], last):
        form = _Across
    else:
        inner = constant(stage.reduce_extents[-1])
        wide = inner is None or inner >= context.machine.lanes
        if wide and access_pattern(value, stage.reduce_axes[-1]).contiguous:
            form = _Along
    return form(context, pair, axes, extents, value, threads).statement()


def across(expand: Callable[[Stage, list[Expr]], Expr], stage: Stage) -> bool:
    """Return whether `reduction` computes vectors of results of `stage`."""
    if not stage.axes or (constant(stage.extents[-1]) or 1) == 1:
        return False
    value, last = vectorizable(expand(stage, list(stage.axes))), constant(stage.extents[-1])
    return _has_vectors(value, stage.axes[-1], last) if last else access_pattern(value, stage.axes[-1]).contiguous


def _segments(value: Expr, axis: Var, extent: int) -> list[tuple[int, int, Expr]]:
    """Split `extent` where a comparison of the index changes the value, as at the edges of a padding."""
    found: list[tuple[int, int, Expr]] = []
    for start, stop in pairwise(breakpoints(value, axis, extent)):
        part = specialized(value, axis, start, stop)
        if found and same(found[-1][2], part):
            start = found.pop()[0]
        found.append((start, stop, part))
    return found


def _has_vectors(value: Expr, axis: Var, extent: int) -> bool:
    """Return whether vectors along `axis` load few cache lines: LLVM shuffles elements that are a few places apart."""

    def near(part: Expr) -> bool:
        pattern = access_pattern(part, axis)
        return pattern.contiguous or (
            pattern.linear
            and all(0 <= (stride_of(load.indices[-1], axis) or 0) <= _SHUFFLED for load in loads(part) if load.indices)
            and not any(uses(i, axis) for load in loads(part) for i in load.indices[:-1])
        )

    return all(near(part) for _, _, part in _segments(value, axis, extent))


def _combine(stage: Stage, total: Expr, value: Expr) -> Expr:
    assert stage.combine is not None
    if stage.combine in (tirx.Max, tirx.Min):
        return extremum(stage.combine, total, value)
    return stage.combine(total, value)


@dataclass(frozen=True, eq=False)
class _Nest:
    """A reduction's nest: `value` is the operand at `axes` and the stage's reduce axes."""

    context: NestContext
    pair: Reduction
    axes: list[Var]
    extents: list[Expr]
    value: Expr
    threads: bool

    @property
    def stage(self) -> Stage:
        return self.pair.stage

    @property
    def dtype(self) -> str:
        return str(self.stage.buffer.dtype)

    def _accumulate(self, total: Var, slot: Expr, at: Sequence[Expr], reduce: Sequence[Expr]) -> tirx.Stmt:
        """Combine the operand at `at` and `reduce` into `total[slot]`."""
        names = dict(zip([*self.axes, *self.stage.reduce_axes], [*at, *reduce], strict=True))
        operand = Rewriter(names).visit(self.value)
        combined = _combine(self.stage, tirx.BufferLoad(total, [slot]), operand)
        return tirx.BufferStore(total, combined, [slot])

    def _initialize(self, total: Var, slot: Expr) -> tirx.Stmt:
        return tirx.BufferStore(total, self.stage.init, [slot])

    def _store(self, at: Sequence[Expr], total: Var, slot: Expr) -> tirx.Stmt:
        """Store the result at `at`, from `total[slot]`."""
        return self.pair.result(self.context, [*self.context.prefix, *at], tirx.BufferLoad(total, [slot]))


class _Across(_Nest):
    """Vectors of neighboring results: a few at once, each summed up in registers over all reduced axes."""

    def statement(self) -> tirx.Stmt:
        last, machine = constant(self.extents[-1]) or 1, self.context.machine
        # With few rows, threads also share the columns: one vector for each task.
        few = elements(self.extents[:-1], unknown=64) < 2 * machine.threads
        group = 1 if few else CHAINS
        segments = _segments(self.value, self.axes[-1], last)
        if len(segments) > 1:
            return parallel(self.extents[:-1], lambda head: self._segmented(head, segments, group), self.threads)
        runs = pieces(last, machine)
        if not (few and self.threads and runs and runs[0][2] > 1):
            return parallel(self.extents[:-1], lambda head: self._columns(head, runs, group), self.threads)
        at, width, count = runs[0]
        main = parallel(
            [*self.extents[:-1], index(count)], lambda p: self._vectors(p[:-1], at + p[-1] * width, width, 1)
        )
        tail = nest(self.extents[:-1], lambda head: self._columns(head, runs[1:], group)) if runs[1:] else None
        return sequence([main, tail])

    def _segmented(self, head: list[Expr], segments: list[tuple[int, int, Expr]], group: int) -> tirx.Stmt:
        def part(start: int, stop: int, value: Expr) -> tirx.Stmt:
            runs = [(start + at, width, count) for at, width, count in pieces(stop - start, self.context.machine)]
            return replace(self, value=value)._columns(head, runs, group)

        return sequence(part(*segment) for segment in segments)

    def _columns(self, head: list[Expr], runs: list[tuple[int, int, int]], group: int) -> tirx.Stmt:
        return sequence(self._run(head, *run, group) for run in runs)

    def _run(self, head: list[Expr], at: int, width: int, count: int, group: int) -> tirx.Stmt:
        """`count` vectors from column `at` on, `group` at once."""
        whole, rest = divmod(count, group)
        step = group * width
        return sequence(
            [
                loop(whole, lambda i: self._vectors(head, at + i * step, width, group), "c") if whole else None,
                self._vectors(head, index(at + whole * step), width, rest) if rest else None,
            ]
        )

    def _vectors(self, head: list[Expr], start: Expr, width: int, count: int) -> tirx.Stmt:
        """`count` vectors of results, complete."""
        total = local("total", [count * width], self.dtype)

        def each(body: Callable[[Expr, Expr], tirx.Stmt]) -> tirx.Stmt:
            """`body(column, slot)` for every lane."""

            def one(i: int) -> tirx.Stmt:
                return lanes(width, lambda lane: body(start + i * width + lane, index(i * width) + lane))

            return sequence(one(i) for i in range(count))

        def step(reduce: list[Expr]) -> tirx.Stmt:
            return each(lambda column, slot: self._accumulate(total, slot, [*head, column], reduce))

        init = each(lambda _, slot: self._initialize(total, slot))
        done = each(lambda column, slot: self._store([*head, column], total, slot))
        return with_buffers([total], sequence([init, nest(self.stage.reduce_extents, step), done]))


class _Along(_Nest):
    """One result at a time: partial results in the lanes of several vectors, combined at the end."""

    @property
    def inner(self) -> int | None:
        """Extent of the last reduced axis, None if it is symbolic."""
        return constant(self.stage.reduce_extents[-1])

    @property
    def chains(self) -> int:
        """Vectors of partial results."""
        return CHAINS if self.inner is None else min(CHAINS, self.inner // self.context.machine.lanes)

    def statement(self) -> tirx.Stmt:
        return parallel(self.extents, self._one, self.threads)

    def _one(self, at: list[Expr]) -> tirx.Stmt:
        width = self.context.machine.lanes
        partial, total = local("partial", [self.chains * width], self.dtype), local("total", [1], self.dtype)

        def clear(chain: int) -> tirx.Stmt:
            return lanes(width, lambda i: self._initialize(partial, index(chain * width) + i))

        init = [*(clear(c) for c in range(self.chains)), self._initialize(total, index(0))]
        sums = nest(self.stage.reduce_extents[:-1], lambda outer: self._row(at, outer, partial, total))
        result = lanes(1, lambda _: self._store(at, total, index(0)))
        return with_buffers([partial, total], sequence([sequence(init), sums, self._fold(partial, total), result]))

    def _row(self, at: list[Expr], outer: list[Expr], partial: Var, total: Var) -> tirx.Stmt:
        """The last reduced axis: all chains in a loop, then single vectors, then narrower ones or single elements."""
        width, chains = self.context.machine.lanes, self.chains
        block = chains * width

        def vector(start: Expr, chain: int, size: int = width) -> tirx.Stmt:
            slot = index(chain * width)
            return lanes(size, lambda i: self._accumulate(partial, slot + i, at, [*outer, start + i]))

        def single(k: int) -> tirx.Stmt:
            return lanes(1, lambda _: self._accumulate(total, index(0), at, [*outer, index(k)]))

        def all_chains(i: Expr) -> tirx.Stmt:
            return sequence(vector(i * block + c * width, c) for c in range(chains))

        if self.inner is None:
            extent = self.stage.reduce_extents[-1]
            blocks, whole = tirx.floordiv(extent, index(block)), tirx.floordiv(extent, index(width))
            return sequence(
                [
                    loop(blocks, all_chains, "k"),
                    loop(whole - blocks * chains, lambda i: vector((blocks * chains + i) * width, 0), "k"),
                    vectors_after(
                        whole * width, extent - whole * width, self.context.machine, lambda k, size: vector(k, 0, size)
                    ),
                ]
            )
        blocks_, rest = divmod(self.inner, block)
        done = blocks_ * block + rest // width * width
        return sequence(
            [
                loop(blocks_, all_chains, "k"),
                *(vector(index(blocks_ * block + c * width), c) for c in range(rest // width)),
                *(single(k) for k in range(done, self.inner)),
            ]
        )

    def _fold(self, partial: Var, total: Var) -> tirx.Stmt:
        """Combine all lanes into `total[0]`: chains first, in pairs, then halves of the vector.

        Shuffles make the halves. LLVM takes loads of them apart into single numbers.
        """
        width = self.context.machine.lanes
        lower, upper = (local(name, [width], self.dtype) for name in ("lower", "upper"))

        def merge(a: Var, start: int, b: Var, other: int, count: int) -> tirx.Stmt:
            def lane(i: Expr) -> tirx.Stmt:
                operands = (tirx.BufferLoad(a, [index(start) + i]), tirx.BufferLoad(b, [index(other) + i]))
                return tirx.BufferStore(partial, _combine(self.stage, *operands), [index(start) + i])

            return lanes(count, lane)

        def split(into: Var, start: int, half: int) -> tirx.Stmt:
            both = tirx.BufferLoad(partial, [ramp(0, 2 * half)])
            return tirx.BufferStore(
                into, tirx.Shuffle([both], [index(start + i) for i in range(half)]), [ramp(0, half)]
            )

        statements, apart = [], 1
        while apart < self.chains:
            pairs = range(0, self.chains - apart, 2 * apart)
            statements += [merge(partial, c * width, partial, (c + apart) * width, width) for c in pairs]
            apart *= 2
        half = width // 2
        while half:
            statements += [split(lower, 0, half), split(upper, half, half), merge(lower, 0, upper, 0, half)]
            half //= 2
        both = _combine(self.stage, tirx.BufferLoad(total, [index(0)]), tirx.BufferLoad(partial, [index(0)]))
        return with_buffers([lower, upper], sequence([*statements, tirx.BufferStore(total, both, [index(0)])]))


class _Scalar(_Nest):
    """One result at a time, one operand at a time."""

    def statement(self) -> tirx.Stmt:
        return parallel(self.extents, self._one, self.threads)

    def _one(self, at: list[Expr]) -> tirx.Stmt:
        total = local("total", [1], self.dtype)

        def step(reduce: list[Expr]) -> tirx.Stmt:
            return lanes(1, lambda _: self._accumulate(total, index(0), at, reduce))

        result = lanes(1, lambda _: self._store(at, total, index(0)))
        start = self._initialize(total, index(0))
        return with_buffers([total], sequence([start, nest(self.stage.reduce_extents, step), result]))
