"""The rule for programs without a kernel: element-wise stages and reductions, such as softmax or a normalization.

1. A stage is stored if it is the last, if it is a reduction, or if inlining would compute it several times (`_kept`).
   All others are inlined into their readers.
2. Each stored stage becomes a loop nest. A reduction and the only stage that reads it, element by element, share one
   (`_nests`).
3. If all nests have leading axes in common and use them in step, they run inside one loop over these axes, so that
   intermediate results are one row and stay in cache (`_shared_rows`). Otherwise they run one after the other.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import tvm
from tvm import tirx
from tvm.ir import Expr, Var

from zmq_offload.schedules.access import operation_count
from zmq_offload.schedules.emit import (
    FlatBuffer,
    as_index,
    elements,
    index,
    loop,
    parallel,
    product,
    sequence,
    with_buffers,
)
from zmq_offload.schedules.functions.vector_math import is_cheap
from zmq_offload.schedules.machine import L1_BYTES, Machine
from zmq_offload.schedules.nests import SERIAL_WORK, TASKS_PER_THREAD, NestContext, elementwise
from zmq_offload.schedules.reductions import Reduction, across, reduction
from zmq_offload.schedules.rewrite import constant, loads, same
from zmq_offload.schedules.stages import Inliner, Program, Stage, same_indices
from zmq_offload.schedules.windows import separated

# Rows that a task computes with the same buffers: at most, and if the number of rows is symbolic.
ROWS_PER_TASK, SYMBOLIC_ROWS = 16, 4


@dataclass(frozen=True, eq=False)
class _Nest:
    """A loop nest: an element-wise stage, or a reduction and the stage computed from it."""

    final: Stage
    reduce: Stage | None = None

    def emit(self, context: NestContext) -> tirx.Stmt:
        """Emit the nest."""
        if self.reduce is None:
            return elementwise(context, self.final)
        return reduction(context, Reduction(self.reduce, self.final))

    def sources(self, inliner: Inliner) -> list[tvm.ir.TensorLoad]:
        """Return all loads of stored buffers in it."""
        found = []
        for stage in {id(s): s for s in (self.reduce, self.final) if s}.values():
            found += loads(inliner.expand(stage, list(stage.axes)))
        return found


def generic(program: Program, machine: Machine) -> tirx.Stmt:
    """Emit loop nests for the whole program."""
    program = separated(program)
    kept = _kept(program)
    nests = _nests(program, kept)
    rows = _shared_rows(program, kept, nests) if len(nests) > 1 else 0
    if rows:
        return _row_by_row(program, machine, kept, nests, rows)
    stored = {
        n.final.buffer: FlatBuffer(str(n.final.buffer.name), n.final.extents or [1], _dtype(n)) for n in nests[:-1]
    }
    context = _context(program, machine, kept, stored)
    return with_buffers((f.buffer for f in stored.values()), sequence(n.emit(context) for n in nests))


def _dtype(nest: _Nest) -> str:
    return str(nest.final.buffer.dtype)


def _context(
    program: Program,
    machine: Machine,
    kept: list[Var],
    stored: dict[Var, FlatBuffer],
    at: Sequence[Expr] = (),
    rows: int = 0,
) -> NestContext:
    """Return a context that keeps intermediate results in `stored`, without the leading `rows` axes."""

    def inside(indices: list[Expr]) -> list[Expr]:
        return indices[rows:] or [index(0)]

    def read(buffer: Var, indices: list[Expr]) -> Expr | None:
        return stored[buffer].load(inside(indices)) if buffer in stored else None

    def store(buffer: Var, indices: list[Expr], value: Expr) -> tirx.Stmt:
        if buffer in stored:
            return stored[buffer].store(inside(indices), value)
        return tirx.BufferStore(buffer, value, indices)

    return NestContext(machine, lambda: Inliner(program, kept, read), at, threads=not rows, store=store)


def _consumers(program: Program, stage: Stage) -> list[tuple[Stage, tvm.ir.TensorLoad]]:
    return [(s, e) for s in program.stages for e in loads(s.value) if e.source.same_as(stage.buffer)]


def _kept(program: Program) -> list[Var]:
    """Return the buffers to store: the result, reductions, and stages that inlining would compute several times."""
    kept: list[Var] = []
    for stage in program.stages:
        if stage is program.stages[-1] or stage.reduce_axes or _recomputed(program, stage, kept):
            kept.append(stage.buffer)
    return kept


def _recomputed(program: Program, stage: Stage, kept: list[Var]) -> bool:
    if is_cheap(Inliner(program, kept).expand(stage, list(stage.axes))):
        return False
    readers = {id(s): s for s, _ in _consumers(program, stage)}.values()
    size = elements(stage.extents, unknown=64)
    # Twice or more for each element: by a reader with a larger domain, or by two readers, one of them a reduction.
    reading = [elements([*s.extents, *s.reduce_extents], unknown=64) for s in readers]
    return sum(reading) >= 2 * size and (max(reading) >= 2 * size or any(s.reduce_axes for s in readers))


def _nests(program: Program, kept: list[Var]) -> list[_Nest]:
    """Return the nests in order; a reduction takes the only stage that reads it along, if that has the same domain."""
    stored = [s for s in program.stages if any(s.buffer.same_as(k) for k in kept)]
    nests: list[_Nest] = []
    joined: set[int] = set()
    for at, stage in enumerate(stored):
        if id(stage) in joined:
            continue
        if not stage.reduce_axes:
            nests.append(_Nest(stage))
            continue
        follower = stored[at + 1] if at + 1 < len(stored) else None
        if follower is not None and not follower.reduce_axes and _joins(program, kept, stage, follower, stored):
            joined.add(id(follower))
            nests.append(_Nest(follower, stage))
        else:
            nests.append(_Nest(stage, stage))
    return nests


def _joins(program: Program, kept: list[Var], stage: Stage, follower: Stage, stored: list[Stage]) -> bool:
    if not same_indices(stage.extents, follower.extents):
        return False
    readers = [s for s in stored if s is not stage and _reads(program, kept, s, stage)]
    if readers != [follower]:
        return False
    value = Inliner(program, kept).expand(follower, list(follower.axes))
    return all(
        same_indices(list(e.indices), list(follower.axes)) for e in loads(value) if e.source.same_as(stage.buffer)
    )


def _reads(program: Program, kept: list[Var], reader: Stage, stage: Stage) -> bool:
    value = Inliner(program, kept).expand(reader, list(reader.axes))
    return any(e.source.same_as(stage.buffer) for e in loads(value))


def _shared_rows(program: Program, kept: list[Var], nests: list[_Nest]) -> int:
    """Return how many leading axes all nests share and use in step; 0 if running row by row does not pay."""
    final = nests[-1].final
    most = min(len(n.final.axes) for n in nests)
    inner = [elements(n.final.extents[-1:]) for n in nests if n.reduce is None]
    rows = 0
    while rows < most and all(same(n.final.extents[rows], final.extents[rows]) for n in nests):
        rows += 1
    for n in nests:
        axes = list(n.final.axes)
        for stage in {id(s): s for s in (n.reduce, n.final) if s}.values():
            value = Inliner(program, kept).expand(stage, axes)
            for load in loads(value):
                if any(load.source.same_as(m.final.buffer) for m in nests):
                    rows = min(rows, _common(list(load.indices), axes))
    # Vectors need the last axis of a nest, unless each row is a single value.
    if rows and any(i > 1 for i in inner):
        rows = min(rows, min(len(n.final.axes) for n in nests if n.reduce is None) - 1)
    if rows and any(n.reduce is not None and across(Inliner(program, kept).expand, n.reduce) for n in nests):
        rows = min(rows, len(final.axes) - 1)
    row_bytes = 4 * sum(elements(n.final.extents[rows:], unknown=1024) for n in nests)
    total = elements(final.extents[:rows], unknown=64)
    return rows if total > 1 and row_bytes <= 16 * L1_BYTES else 0


def _common(indices: list[Expr], axes: list[Var]) -> int:
    count = 0
    while count < min(len(indices), len(axes)) and indices[count].same_as(axes[count]):
        count += 1
    return count


def _row_by_row(program: Program, machine: Machine, kept: list[Var], nests: list[_Nest], rows: int) -> tirx.Stmt:
    """Emit all nests inside one loop over the shared axes; intermediate results are one row."""
    final = nests[-1].final
    work = sum(
        elements([*n.final.extents, *(n.reduce.reduce_extents if n.reduce else [])], unknown=16)
        * max(1, operation_count(n.final.value))
        for n in nests
    )
    stored = {
        n.final.buffer: FlatBuffer(str(n.final.buffer.name), n.final.extents[rows:] or [1], _dtype(n))
        for n in nests[:-1]
    }

    outer, last = final.extents[: rows - 1], final.extents[rows - 1]
    known = constant(product(final.extents[:rows]))
    threads = work // machine.lanes > SERIAL_WORK and known != 1
    enough = TASKS_PER_THREAD * machine.threads if threads else 1
    group = SYMBOLIC_ROWS if known is None else max(1, min(ROWS_PER_TASK, known // enough))

    def task(at: list[Expr]) -> tirx.Stmt:
        first = at[-1] * group
        here = tirx.Min(index(group), as_index(last) - first) if group > 1 else index(1)
        rest = constant(last)
        if rest is not None and rest % group == 0:
            here = index(group)

        def row(i: Expr) -> tirx.Stmt:
            context = _context(program, machine, kept, stored, [*at[:-1], first + i], rows)
            return sequence(n.emit(context) for n in nests)

        # Buffers serve all rows of a task: memory from TVM's pool costs 40 ns.
        return with_buffers((f.buffer for f in stored.values()), loop(here, row, "row"))

    tasks = tirx.floordiv(as_index(last) + (group - 1), index(group))
    return parallel([*outer, tasks], task, threads)
