"""Kernels of matrix products: with a constant matrix packed at build time, and with two operands known at run time."""

from __future__ import annotations

from dataclasses import dataclass

from tvm import tirx
from tvm.ir import Expr, Var

from zmq_offload.schedules.emit import (
    elements,
    index,
    lanes,
    loop,
    nest,
    parallel,
    product,
    ramp,
    scratch,
    sequence,
    vectors,
    when,
    with_buffers,
)
from zmq_offload.schedules.epilogue import Epilogue
from zmq_offload.schedules.machine import CACHE_BYTES, Machine
from zmq_offload.schedules.microkernel import MicroKernel
from zmq_offload.schedules.nests import SERIAL_WORK
from zmq_offload.schedules.rewrite import Unsupported, constant, loads
from zmq_offload.schedules.stages import Stage
from zmq_offload.schedules.tiles import Tile, choose_tile


@dataclass(frozen=True, eq=False)
class _Share:
    """A thread's part of `count` things, as a range."""

    count: Expr
    part: Expr
    parts: int

    @property
    def first(self) -> Expr:
        return tirx.floordiv(self.part * self.count, self.parts) if self.parts > 1 else index(0)

    @property
    def extent(self) -> Expr:
        if self.parts == 1:
            return self.count
        return tirx.floordiv((self.part + 1) * self.count, self.parts) - self.first


def dense(machine: Machine, stage: Stage, epilogue: Epilogue) -> tirx.Stmt:
    """Rows of x times a packed matrix: rows are shared between the threads, or chunks of columns where rows are few."""
    x, weight = _operands(stage)
    columns = _static(stage.extents[-1])
    depth = _static(stage.reduce_extents[-1])
    rows = product(stage.extents[:-1])
    known = constant(rows)
    tile = Tile(choose_tile(machine, known, columns).rows, _static(weight.shape[-1]))
    lead = stage.extents[:-1]
    zeros: list[Expr] = [index(0)] * (len(lead) - 1) if lead else []
    flat = epilogue.flatten_rows() if lead else False

    def position(row: Expr) -> list[Expr]:
        if not lead:
            return []
        return [*zeros, row] if flat or len(lead) == 1 else _unfold(row, lead)

    def block(first: Expr, height: int, chunk: Expr, width: int) -> tirx.Stmt:
        return MicroKernel(
            machine,
            height,
            width,
            [index(depth)],
            lambda r, k: tirx.BufferLoad(x, [*zeros, first + r, k[0]] if lead else [k[0]]),
            lambda k, at, size: tirx.BufferLoad(weight, [chunk, k[0], ramp(at, size)]),
            lambda r, c, value: epilogue.store([*position(first + r), chunk * tile.columns + c], value),
            epilogue.long,
        ).statement()

    whole, tail = divmod(columns, tile.columns)
    tiles = tirx.floordiv(rows, tile.rows)
    rest = rows - tiles * tile.rows
    by_columns = known is not None and known < machine.threads * tile.rows
    work = elements(lead, unknown=64) * columns * depth // machine.lanes
    threads = machine.threads if work > SERIAL_WORK else 1
    parts = threads
    if not by_columns and threads > 1:
        # Rows of x that stay in cache while all chunks of the matrix go by.
        panel = elements(lead, unknown=threads * 64) * depth * 4
        parts = threads * max(1, -(-panel // (threads * CACHE_BYTES)))

    def over_rows(share: _Share, chunk: Expr, width: int) -> tirx.Stmt:
        def last() -> tirx.Stmt | None:
            if known is None:
                each = loop(rest, lambda r: block(tiles * tile.rows + r, 1, chunk, width), "row")
            elif known % tile.rows:
                each = block(tiles * tile.rows, known % tile.rows, chunk, width)
            else:
                return None
            return each if share.parts == 1 else when(tirx.EQ(share.part, index(share.parts - 1)), each)

        main = None
        if known is None or known >= tile.rows:
            main = loop(share.extent, lambda t: block((share.first + t) * tile.rows, tile.rows, chunk, width), "tile")
        return sequence([main, last()])

    def task(part: Expr) -> tirx.Stmt:
        on_rows = _Share(tiles, part if not by_columns else index(0), 1 if by_columns else parts)
        on_columns = _Share(index(whole), part if by_columns else index(0), parts if by_columns else 1)
        main = None
        if whole:
            main = loop(on_columns.extent, lambda c: over_rows(on_rows, on_columns.first + c, tile.columns), "chunk")
        end = over_rows(on_rows, index(whole), tail) if tail else None
        if end is not None and by_columns and parts > 1:
            end = when(tirx.EQ(part, index(parts - 1)), end)
        return sequence([main, end])

    if by_columns:
        parts = min(parts, max(1, whole + bool(tail)))
    return parallel([index(parts)], lambda p: task(p[0]), parts > 1)


def _operands(stage: Stage) -> tuple[Var, Var]:
    """The two buffers that a product reads, in the order of its factors."""
    found = loads(stage.value)
    if len(found) != 2:
        raise Unsupported("a product of more than two loads")
    return found[0].source, found[1].source


def _static(extent: Expr) -> int:
    value = constant(extent)
    if value is None:
        raise Unsupported("a symbolic extent")
    return value


def _unfold(flat: Expr, extents: list[Expr]) -> list[Expr]:
    indices: list[Expr] = []
    for at in range(len(extents) - 1, -1, -1):
        indices.insert(0, tirx.floormod(flat, extents[at]) if at else flat)
        flat = tirx.floordiv(flat, extents[at])
    return indices


def matmul(machine: Machine, stage: Stage, epilogue: Epilogue) -> tirx.Stmt:
    """Two operands of run time: a panel of the right one is packed for each batch, then used by all rows."""
    a, b = loads(stage.value)
    rows, columns, depth = _static(stage.extents[-2]), _static(stage.extents[-1]), _static(stage.reduce_extents[-1])
    batch = stage.extents[:-2]
    tile = choose_tile(machine, rows, columns)
    whole, tail = divmod(columns, tile.columns)
    # Packing costs as much as computing one row with it.
    pack = rows > 2 and depth * tile.columns * 4 <= 4 * CACHE_BYTES
    names = dict(zip(stage.axes[:-2], range(len(batch)), strict=True))

    def operand(load: tirx.BufferLoad, at: list[Expr], row: Expr, column: Expr) -> Expr:
        lead = [at[names[i]] if isinstance(i, Var) else i for i in load.indices[:-2]]
        return tirx.BufferLoad(load.source, [*lead, row, column])

    def chunk(at: list[Expr], first: Expr, width: int, share: _Share) -> tirx.Stmt:
        panel = scratch("panel", [depth, width])

        def fill(k: Expr) -> tirx.Stmt:
            def run(column: Expr, size: int) -> tirx.Stmt:
                return lanes(
                    size,
                    lambda i: tirx.BufferStore(panel, operand(b, at, k, first + column + i), [k, column + i]),
                )

            return vectors(index(0), width, machine, run)

        def right(k: list[Expr], offset: int, size: int) -> Expr:
            if pack:
                return tirx.BufferLoad(panel, [k[0], ramp(offset, size)])
            return operand(b, at, k[0], ramp(first + offset, size))

        def block(row: Expr, height: int) -> tirx.Stmt:
            def part(start: int, size: int) -> tirx.Stmt:
                return MicroKernel(
                    machine,
                    height,
                    size,
                    [index(depth)],
                    lambda r, k: operand(a, at, row + r, k[0]),
                    lambda k, offset, lanes_: right(k, start + offset, lanes_),
                    lambda r, c, value: epilogue.store([*at, row + r, first + start + c], value),
                    epilogue.long,
                ).statement()

            return sequence(part(start, size) for start, size in _column_runs(width, machine))

        tiles, rest = divmod(rows, tile.rows)
        main = loop(share.extent, lambda t: block((share.first + t) * tile.rows, tile.rows), "tile") if tiles else None
        end = block(index(tiles * tile.rows), rest) if rest else None
        if end is not None and share.parts > 1:
            end = when(tirx.EQ(share.part, index(share.parts - 1)), end)
        body = sequence([main, end])
        return with_buffers([panel], sequence([loop(depth, fill, "k"), body])) if pack else body

    work = elements(batch, unknown=4) * rows * columns * depth // machine.lanes
    threads = work > SERIAL_WORK
    batches = elements(batch, unknown=machine.threads)
    tiles = index(rows // tile.rows)
    # Batches first, then chunks of columns, then rows: the order in which nothing is packed twice.
    by_chunk = threads and batches < 2 * machine.threads and whole >= machine.threads
    parts = machine.threads if threads and batches == 1 and not by_chunk and rows >= 2 * tile.rows else 1

    def task(at: list[Expr], part: Expr) -> tirx.Stmt:
        share = _Share(tiles, part, parts)
        return sequence(
            [
                loop(whole, lambda c: chunk(at, c * tile.columns, tile.columns, share), "chunk") if whole else None,
                chunk(at, index(whole * tile.columns), tail, share) if tail else None,
            ]
        )

    if by_chunk:
        share = _Share(tiles, index(0), 1)
        main = parallel(
            [*batch, index(whole)], lambda p: chunk(p[:-1], p[-1] * tile.columns, tile.columns, share), threads
        )
        end = nest(batch, lambda p: chunk(p, index(whole * tile.columns), tail, share)) if tail else None
        return sequence([main, end])
    return parallel([*batch, index(parts)], lambda p: task(p[:-1], p[-1]), threads)


def _column_runs(width: int, machine: Machine) -> list[tuple[int, int]]:
    """The columns of a panel whose last vector may not be read beyond its end: whole vectors, then the tail's parts."""
    whole = width // machine.lanes * machine.lanes
    parts = [(0, whole)] if whole else []
    start = whole
    for size in machine.widths[1:]:
        if width - start >= size:
            parts.append((start, size))
            start += size
    return parts
