"""The rule for rows of 8-bit integers times a constant int8 matrix; also 1x1 convolutions."""

from __future__ import annotations

from dataclasses import dataclass

from tvm import tirx
from tvm.ir import Expr, Var

from zmq_offload.schedules.emit import elements, index, loop, parallel, product, sequence, when, with_buffers
from zmq_offload.schedules.epilogue import Epilogue
from zmq_offload.schedules.integers.dot_product import DotProduct, dot_product, tile_of
from zmq_offload.schedules.integers.kernel import IntegerKernel, Weights, copy_run, group_of, operand_buffer
from zmq_offload.schedules.machine import CACHE_BYTES, Machine
from zmq_offload.schedules.nests import SERIAL_WORK
from zmq_offload.schedules.products import row_position
from zmq_offload.schedules.rewrite import Unsupported, constant, loads
from zmq_offload.schedules.stages import Stage
from zmq_offload.schedules.tiles import Tile

# Rows of a task if their number is symbolic, in tiles.
_SYMBOLIC_TILES = 8


def dense(machine: Machine, stage: Stage, epilogue: Epilogue) -> tirx.Stmt:
    """Schedule x (..., depth) times weights from `dot_product.pack`.

    All leading axes of x count as rows; their extents may be symbolic. A task takes a block of rows, or a part of the
    columns if rows are few. It copies its rows if the instructions need another datatype, or whole groups; then, for
    each chunk of columns, it goes over its rows in tiles.
    """
    x, weight = (load.source for load in loads(stage.value))
    columns, depth = constant(stage.extents[-1]), constant(stage.reduce_extents[-1])
    if columns is None or depth is None:
        raise Unsupported("a symbolic extent")
    dot = dot_product(machine, str(x.dtype), constant(weight.shape[-1]))
    lead = stage.extents[:-1]
    rows = constant(product(lead))
    tile = Tile(tile_of(machine, dot, rows, columns).rows, constant(weight.shape[2]) or machine.lanes)
    flat = epilogue.flatten_rows() if lead else False
    return _Dense(machine, epilogue, x, Weights(weight, dot), dot, lead, rows, columns, depth, tile, flat).statement()


@dataclass(frozen=True, eq=False)
class _Dense:
    machine: Machine
    epilogue: Epilogue
    x: Var
    weights: Weights
    dot: DotProduct
    lead: list[Expr]  # extents of the leading axes
    known: int | None  # number of rows, None if symbolic
    columns: int
    depth: int
    tile: Tile
    flat: bool  # the epilogue addresses all leading axes as one

    @property
    def rows(self) -> Expr:
        return product(self.lead)

    @property
    def copied(self) -> bool:
        """Whether a task copies its rows before use."""
        return bool(self.depth % self.dot.group or self.dot.shift or self.dot.operand != str(self.x.dtype))

    @property
    def stride(self) -> int:
        """Values of a row as the kernel reads it."""
        return self.dot.steps(self.depth) * self.dot.group if self.copied else self.depth

    def statement(self) -> tirx.Stmt:
        work = elements(self.lead, unknown=64) * self.columns * self.depth // (self.machine.lanes * self.dot.group)
        threads = self.machine.threads if work > SERIAL_WORK else 1
        height = self.tile.rows
        if self.known is not None and self.known < 2 * threads * height:
            chunks = -(-self.columns // self.tile.columns)
            parts = min(threads, chunks)
            return parallel([index(parts)], lambda p: self._block(index(0), self.known or 0, True, p[0], parts))
        if self.known is None:
            block = height * _SYMBOLIC_TILES
        else:
            fit = CACHE_BYTES // (self.stride * self.dot.operand_bytes) // height
            share = -(-self.known // (threads * height))
            block = height * max(1, min(fit, share))
        blocks = tirx.floordiv(self.rows + (block - 1), index(block))

        def task(p: list[Expr]) -> tirx.Stmt:
            return self._block(p[0] * block, block, tirx.EQ(p[0], blocks - 1), index(0), 1)

        return parallel([blocks], task, threads > 1)

    def _block(self, first: Expr, most: int, last: Expr | bool, part: Expr, parts: int) -> tirx.Stmt:
        """Rows [first, first + most), but at most to the last row, for one of `parts` shares of the chunks."""
        height = self.tile.rows
        whole: Expr
        if self.known is not None and (last is True or self.known % most == 0):
            count, whole = index(most), index(most // height)
        else:
            count = tirx.Min(index(most), self.rows - first)
            whole = tirx.floordiv(count, index(height))
        copy = operand_buffer("rows", self.dot, most * self.stride) if self.copied else None
        fill = None if copy is None else loop(count, lambda r: self._copy_row(copy, first + r, r), "row")
        chunks, tail = divmod(self.columns, self.tile.columns)
        start = tirx.floordiv(part * chunks, parts)
        extent = tirx.floordiv((part + 1) * chunks, parts) - start

        def chunk(c: Expr, width: int) -> tirx.Stmt:
            return self._chunk(copy, first, count, whole, last, c, width)

        main = loop(extent, lambda c: chunk(start + c, self.tile.columns), "chunk") if chunks else None
        end = chunk(index(chunks), tail) if tail else None
        if end is not None and parts > 1:
            end = when(tirx.EQ(part, index(parts - 1)), end)
        body = sequence([fill, main, end])
        return body if copy is None else with_buffers([copy], body)

    def _copy_row(self, copy: Var, row: Expr, slot: Expr) -> tirx.Stmt:
        at = self._left(row)
        return copy_run(
            self.machine,
            self.dot,
            self.depth,
            lambda k: tirx.BufferLoad(self.x, [*at[:-1], k]),
            copy,
            slot * self.stride,
        )

    def _left(self, row: Expr) -> list[Expr]:
        """Indices of the first value of a row of x."""
        return [*([index(0)] * (len(self.lead) - 1) + [row] if self.lead else []), index(0)]

    def _chunk(
        self, copy: Var | None, first: Expr, count: Expr, whole: Expr, last: Expr | bool, chunk: Expr, width: int
    ) -> tirx.Stmt:
        height = self.tile.rows

        def tile(row: Expr, rows: int) -> tirx.Stmt:
            return self._tile(copy, first, row, rows, chunk, width)

        main = None
        if self.known is None or self.known >= height:
            main = loop(whole, lambda t: tile(t * height, height), "tile")
        if self.known is not None:
            rest = self.known % height
            end = tile(whole * height, rest) if rest else None
            if end is not None and isinstance(last, Expr):
                end = when(last, end)
            return sequence([main, end])
        # The rest of a symbolic number of rows: half a tile, a quarter, ..., one row.
        ends, size, done = [], height, whole * height
        while size > 1:
            size = -(-size // 2)
            half, at = size, done
            reps = tirx.floordiv(count - at, index(half))

            def part(t: Expr, at: Expr = at, half: int = half) -> tirx.Stmt:
                return tile(at + t * half, half)

            ends.append(loop(reps, part, "rest"))
            done = at + reps * half
        return sequence([main, *ends])

    def _tile(self, copy: Var | None, first: Expr, row: Expr, rows: int, chunk: Expr, width: int) -> tirx.Stmt:
        def left(r: int, k: list[Expr]) -> Expr:
            step = k[0] * self.dot.group
            if copy is not None:
                return group_of(self.dot, copy, [(row + r) * self.stride + step])
            return group_of(self.dot, self.x, [*self._left(first + row + r)[:-1], step])

        def store(r: Expr, c: Expr, value: Expr) -> tirx.Stmt:
            at = row_position(self.lead, first + row + r, self.flat)
            return self.epilogue.store([*at, chunk * self.tile.columns + c], value)

        return IntegerKernel(
            self.machine,
            rows,
            width,
            [index(self.dot.steps(self.depth))],
            left,
            lambda k, at, size: self.weights.load(chunk, k[0], at, size),
            store,
            self.epilogue.long,
            dot=self.dot,
            start=self.weights.start(chunk),
        ).statement()
