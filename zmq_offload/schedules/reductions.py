"""Loop nests for reductions: along the vector (sums of rows) and across vectors (pooling, sums of columns)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from tvm import tirx
from tvm.ir import Expr, Var

from zmq_offload.schedules.access import access_pattern, operation_count
from zmq_offload.schedules.emit import (
    elements,
    index,
    lanes,
    local,
    loop,
    nest,
    parallel,
    pieces,
    sequence,
    with_buffers,
)
from zmq_offload.schedules.nests import SERIAL_WORK, NestContext, fresh
from zmq_offload.schedules.rewrite import Rewriter, constant
from zmq_offload.schedules.stages import Inliner, Stage, same_indices
from zmq_offload.schedules.vector_math import extremum, vectorizable

# Independent accumulators that hide the latency of an addition (4 cycles, one or two issued per cycle).
CHAINS = 4


@dataclass(frozen=True, eq=False)
class Reduction:
    """A reduction stage and the stage that is computed from it element by element (itself where there is none)."""

    stage: Stage
    final: Stage

    def result(self, context: NestContext, at: Sequence[Expr], total: Expr) -> tirx.Stmt:
        """Store what `final` is at `at`, `total` being the reduction there."""

        def substitute(buffer: Var, indices: list[Expr]) -> Expr | None:
            return total if buffer.same_as(self.stage.buffer) and same_indices(indices, list(at)) else None

        if self.final is self.stage:
            return context.write(self.final, list(at), total)
        base = context.inliner()
        value = Inliner(base.program, base.kept, _first(substitute, base.substitute)).expand(self.final, at)
        return context.write(self.final, list(at), vectorizable(value))


def _first(one: Callable[..., Expr | None], other: Callable[..., Expr | None] | None) -> Callable[..., Expr | None]:
    def both(buffer: Var, indices: list[Expr]) -> Expr | None:
        answer = one(buffer, indices)
        return answer if answer is not None or other is None else other(buffer, indices)

    return both


def reduction(context: NestContext, nest_: Reduction) -> tirx.Stmt:
    """The nest of a reduction, by what its operands look like along the last axis of the result and of the sum."""
    stage, fixed = nest_.stage, len(context.prefix)
    axes, extents = fresh(stage.axes[fixed:]), stage.extents[fixed:]
    value = vectorizable(context.inliner().expand(stage, [*context.prefix, *axes]))
    work = (
        elements([*extents, *stage.reduce_extents], unknown=16)
        * max(1, operation_count(value))
        // context.machine.lanes
    )
    threads = context.threads and work > SERIAL_WORK
    last = constant(extents[-1]) if axes else None
    if last is not None and last > 1 and access_pattern(value, axes[-1]).contiguous:
        return _across(context, nest_, axes, extents, value, threads)
    inner = constant(stage.reduce_extents[-1])
    if inner is not None and inner >= context.machine.lanes and access_pattern(value, stage.reduce_axes[-1]).contiguous:
        return _within(context, nest_, axes, extents, value, threads)
    return _scalar(context, nest_, axes, extents, value, threads)


def _combine(stage: Stage, total: Expr, value: Expr) -> Expr:
    assert stage.combine is not None
    if stage.combine in (tirx.Max, tirx.Min):
        return extremum(stage.combine, total, value)
    return stage.combine(total, value)


def _across(
    context: NestContext, nest_: Reduction, axes: list[Var], extents: list[Expr], value: Expr, threads: bool
) -> tirx.Stmt:
    """A few vectors of results at once, everything that belongs to them summed up in registers."""
    stage = nest_.stage
    last = constant(extents[-1]) or 1
    dtype = str(stage.buffer.dtype)
    # Few rows: share the columns between the threads too, one vector a task.
    few = elements(extents[:-1], unknown=64) < 2 * context.machine.threads
    group = 1 if few else CHAINS

    def block(head: list[Expr], start: Expr, width: int, count: int) -> tirx.Stmt:
        total = local("total", [count * width], dtype)
        out = [*context.prefix, *head]

        def each(i: int, body: Callable[[Expr, Expr], tirx.Stmt]) -> tirx.Stmt:
            return lanes(width, lambda lane: body(start + i * width + lane, index(i * width) + lane))

        def step(at: list[Expr]) -> tirx.Stmt:
            names = dict(zip([*axes[:-1], *stage.reduce_axes], [*head, *at], strict=True))

            def add(column: Expr, slot: Expr) -> tirx.Stmt:
                operand = Rewriter({**names, axes[-1]: column}).visit(value)
                return tirx.BufferStore(total, _combine(stage, tirx.BufferLoad(total, [slot]), operand), [slot])

            return sequence(each(i, add) for i in range(count))

        init = sequence(each(i, lambda _, s: tirx.BufferStore(total, stage.init, [s])) for i in range(count))
        done = sequence(
            each(i, lambda c, s: nest_.result(context, [*out, c], tirx.BufferLoad(total, [s]))) for i in range(count)
        )
        return with_buffers([total], sequence([init, nest(stage.reduce_extents, step), done]))

    def run(head: list[Expr], at: int, width: int, count: int) -> tirx.Stmt:
        whole, rest = divmod(count, group)
        return sequence(
            [
                loop(whole, lambda i: block(head, at + i * (group * width), width, group), "c") if whole else None,
                block(head, index(at + whole * group * width), width, rest) if rest else None,
            ]
        )

    def columns(head: list[Expr], runs: list[tuple[int, int, int]]) -> tirx.Stmt:
        return sequence(run(head, *piece) for piece in runs)

    runs = pieces(last, context.machine)
    if not (few and threads and len(runs[0:1]) and runs[0][2] > 1):
        return parallel(extents[:-1], lambda head: columns(head, runs), threads)
    at, width, count = runs[0]
    main = parallel([*extents[:-1], index(count)], lambda p: block(p[:-1], at + p[-1] * width, width, 1))
    tail = nest(extents[:-1], lambda head: columns(head, runs[1:])) if runs[1:] else None
    return sequence([main, tail])


def _within(
    context: NestContext, nest_: Reduction, axes: list[Var], extents: list[Expr], value: Expr, threads: bool
) -> tirx.Stmt:
    """One result at a time: partial results in the lanes of several vectors, combined at the end."""
    stage, machine = nest_.stage, context.machine
    inner = constant(stage.reduce_extents[-1]) or 1
    dtype = str(stage.buffer.dtype)
    width = machine.lanes
    chains = min(CHAINS, inner // width)

    def one(at: list[Expr]) -> tirx.Stmt:
        partial, total = local("partial", [chains * width], dtype), local("total", [1], dtype)

        def accumulate(buffer: Var, slot: Expr, reduce: list[Expr]) -> tirx.Stmt:
            names = dict(zip([*axes, *stage.reduce_axes], [*at, *reduce], strict=True))
            operand = Rewriter(names).visit(value)
            return tirx.BufferStore(buffer, _combine(stage, tirx.BufferLoad(buffer, [slot]), operand), [slot])

        def clear(chain: int) -> tirx.Stmt:
            return lanes(width, lambda i: tirx.BufferStore(partial, stage.init, [index(chain * width) + i]))

        def single(k: int, outer: list[Expr]) -> tirx.Stmt:
            return lanes(1, lambda _: accumulate(total, index(0), [*outer, index(k)]))

        def step(outer: list[Expr]) -> tirx.Stmt:
            block = chains * width
            whole, rest = divmod(inner, block)

            def vector(start: Expr, chain: int) -> tirx.Stmt:
                return lanes(width, lambda i: accumulate(partial, index(chain * width) + i, [*outer, start + i]))

            done = whole * block + rest // width * width
            return sequence(
                [
                    loop(whole, lambda i: sequence(vector(i * block + c * width, c) for c in range(chains)), "k"),
                    *(vector(index(whole * block + c * width), c) for c in range(rest // width)),
                    *(single(k, outer) for k in range(done, inner)),
                ]
            )

        init = sequence(
            [
                *(clear(c) for c in range(chains)),
                tirx.BufferStore(total, stage.init, [index(0)]),
            ]
        )
        done = [*context.prefix, *at]
        result = lanes(1, lambda _: nest_.result(context, done, tirx.BufferLoad(total, [index(0)])))
        return with_buffers(
            [partial, total],
            sequence(
                [init, nest(stage.reduce_extents[:-1], step), _fold(stage, partial, total, chains, width), result]
            ),
        )

    return parallel(extents, one, threads)


def _fold(stage: Stage, partial: Var, total: Var, chains: int, width: int) -> tirx.Stmt:
    """Combine the lanes of all chains into `total[0]`: chains first, then halves of the vector."""
    statements = []

    def merge(into: int, source: int, count: int) -> tirx.Stmt:
        def lane(i: Expr) -> tirx.Stmt:
            a, b = tirx.BufferLoad(partial, [index(into) + i]), tirx.BufferLoad(partial, [index(source) + i])
            return tirx.BufferStore(partial, _combine(stage, a, b), [index(into) + i])

        return lanes(count, lane)

    statements = [merge(0, c * width, width) for c in range(1, chains)]
    half = width // 2
    while half:
        statements.append(merge(0, half, half))
        half //= 2
    both = _combine(stage, tirx.BufferLoad(total, [index(0)]), tirx.BufferLoad(partial, [index(0)]))
    return sequence([*statements, tirx.BufferStore(total, both, [index(0)])])


def _scalar(
    context: NestContext, nest_: Reduction, axes: list[Var], extents: list[Expr], value: Expr, threads: bool
) -> tirx.Stmt:
    """One result at a time, one operand at a time."""
    stage = nest_.stage

    def one(at: list[Expr]) -> tirx.Stmt:
        total = local("total", [1], str(stage.buffer.dtype))

        def step(reduce: list[Expr]) -> tirx.Stmt:
            names = dict(zip([*axes, *stage.reduce_axes], [*at, *reduce], strict=True))
            combined = _combine(stage, tirx.BufferLoad(total, [index(0)]), Rewriter(names).visit(value))
            return lanes(1, lambda _: tirx.BufferStore(total, combined, [index(0)]))

        done = [*context.prefix, *at]
        result = lanes(1, lambda _: nest_.result(context, done, tirx.BufferLoad(total, [index(0)])))
        start = tirx.BufferStore(total, stage.init, [index(0)])
        return with_buffers([total], sequence([start, nest(stage.reduce_extents, step), result]))

    return parallel(extents, one, threads)
