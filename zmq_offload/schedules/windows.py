"""Windows over the last axis, of pools that are not channels-last, as two reductions: one of vectors, one of a row.

A pool over (n, c, h, w) reads columns that are `stride` apart, which has no vector code. Its maximum, or its sum, over
the rows of a window does not depend on the column of the result. So the first reduction computes that for each column
of the operand, in vectors; the second combines the columns of a window. Both work on one row at a time, and together
they do less: a window of 3 x 3 x 3 costs 9 vector operations a column and 3 scalar ones a result, instead of 27.
"""

from __future__ import annotations

from dataclasses import replace

from tvm import tirx
from tvm.ir import Expr, TensorLoad, Var

from zmq_offload.schedules.access import stride_of
from zmq_offload.schedules.emit import INDEX
from zmq_offload.schedules.rewrite import Rewriter, constant, uses
from zmq_offload.schedules.stages import Program, Stage
from zmq_offload.schedules.tvm_internals import POOL_PADDING


def separated(program: Program) -> Program:
    """Return `program` with each reduction over windows split into two, where that pays."""
    return replace(program, stages=[part for stage in program.stages for part in _split(program, stage)])


def _split(program: Program, stage: Stage) -> list[Stage]:
    load = stage.value
    window = _window(stage)
    if window is None or not isinstance(load, TensorLoad):
        return [stage]
    columns, *others = [tirx.Var("column", INDEX), *(tirx.Var(str(a.name), INDEX) for a in stage.axes[:-1])]
    names: dict[Var, Expr] = dict(zip(stage.axes[:-1], others, strict=True))
    extents = [*stage.extents[:-1], load.source.shape[-1]]
    rows = tirx.decl_buffer(extents, str(stage.buffer.dtype), f"{stage.buffer.name}_rows")
    rest = [i for i in range(len(stage.reduce_axes)) if i != window]
    place = [*(Rewriter(names).visit(i) for i in load.indices[:-1]), columns]
    value: Expr = tirx.BufferLoad(load.source, place)
    padding = program.producer(load.source)
    if padding is not None and str(padding.buffer.name) == POOL_PADDING:
        # Few columns are outside, so a padded copy of the operand would cost more than the comparisons of its rows.
        value = Rewriter(dict(zip(padding.axes, place, strict=True))).visit(padding.value)
    first = Stage(
        rows,
        [*others, columns],
        extents,
        value,
        [stage.reduce_axes[i] for i in rest],
        [stage.reduce_extents[i] for i in rest],
        stage.combine,
        stage.init,
    )
    second = replace(
        stage,
        value=tirx.BufferLoad(rows, [*stage.axes[:-1], load.indices[-1]]),
        reduce_axes=[stage.reduce_axes[window]],
        reduce_extents=[stage.reduce_extents[window]],
    )
    return [first, second]


def _window(stage: Stage) -> int | None:
    """Return which reduced axis is that of the columns of a window; None if there is none, or no other."""
    load = stage.value
    if not isinstance(load, TensorLoad) or len(stage.reduce_axes) < 2 or not stage.axes or not load.indices:
        return None
    column = stage.axes[-1]
    *outer, last = load.indices
    here = [i for i, axis in enumerate(stage.reduce_axes) if uses(last, axis)]
    if len(here) != 1:
        return None
    axis, extent = stage.reduce_axes[here[0]], stage.reduce_extents[here[0]]
    if any(uses(i, v) for i in outer for v in (column, axis)):
        return None
    known = [constant(e) for e in (extent, stage.extents[-1], load.source.shape[-1])]
    stride, step = stride_of(last, column), stride_of(last, axis)
    if not stride or not step or any(k is None for k in known) or any(uses(last, a) for a in stage.axes[:-1]):
        return None
    # A row is as long as the operand's: it pays if the windows together read most of it.
    size, results, width = (k or 0 for k in known)
    return here[0] if results > 1 and 2 * results * min(stride, size) >= width else None
