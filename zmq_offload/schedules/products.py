"""Rules for matrix products: `dense` for a matrix that is packed before, `matmul` for two operands at run time.

Both compute the result in tiles that fit the vector registers (`tiles.choose_tile`, `microkernel.MicroKernel`).
`dense` reads a matrix that `operators.pack_matrix` packed into chunks of columns when the model was compiled.
`matmul` packs one chunk of its right operand at a time into a panel, where enough rows use the panel.
"""

from __future__ import annotations

from dataclasses import dataclass

from tvm import tirx
from tvm.ir import Expr, TensorLoad, Var

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
from zmq_offload.schedules.tails import covering, rows_after_tiles
from zmq_offload.schedules.tiles import IN_FLIGHT, Tile, choose_tile
from zmq_offload.schedules.weight_panels import Load, with_chunk
from zmq_offload.schedules.weights import widened


@dataclass(frozen=True, eq=False)
class _Share:
    """The contiguous range of `count` items that task `part` of `parts` computes."""

    count: Expr
    part: Expr
    parts: int

    @staticmethod
    def whole(count: Expr) -> _Share:
        """All items: the range of a single task."""
        return _Share(count, index(0), 1)

    @property
    def first(self) -> Expr:
        return tirx.floordiv(self.part * self.count, self.parts) if self.parts > 1 else index(0)

    @property
    def extent(self) -> Expr:
        if self.parts == 1:
            return self.count
        return tirx.floordiv((self.part + 1) * self.count, self.parts) - self.first

    def in_last(self, statement: tirx.Stmt | None) -> tirx.Stmt | None:
        """`statement` for the last task only."""
        if statement is None or self.parts == 1:
            return statement
        return when(tirx.EQ(self.part, index(self.parts - 1)), statement)


def dense(machine: Machine, stage: Stage, epilogue: Epilogue) -> tirx.Stmt:
    """Schedule x (..., depth) times a matrix packed as (chunks, depth, tile columns).

    All leading axes of x count as rows; their extents may be symbolic. A chunk of the matrix is read for all rows of a
    task before the next one. Threads share the rows, or the chunks if there are fewer rows than tiles for all threads.
    """
    x, weight = _operands(stage)
    columns, depth = _static(stage.extents[-1]), _static(stage.reduce_extents[-1])
    lead = stage.extents[:-1]
    tile = Tile(choose_tile(machine, constant(product(lead)), columns).rows, _static(weight.shape[-1]))
    flat = epilogue.flatten_rows() if lead else False
    return _Dense(machine, epilogue, x, weight, lead, columns, depth, tile, flat).statement()


@dataclass(frozen=True, eq=False)
class _Dense:
    machine: Machine
    epilogue: Epilogue
    x: Var
    weight: Var
    lead: list[Expr]  # extents of the leading axes
    columns: int
    depth: int
    tile: Tile
    flat: bool  # the epilogue addresses all leading axes as one

    @property
    def rows(self) -> Expr:
        return product(self.lead)

    @property
    def tiles(self) -> Expr:
        """Whole tiles of rows."""
        return tirx.floordiv(self.rows, self.tile.rows)

    @property
    def by_columns(self) -> bool:
        """Whether threads share the columns, because there are too few rows."""
        known = constant(self.rows)
        return known is not None and known < self.machine.threads * self.tile.rows

    def statement(self) -> tirx.Stmt:
        tasks = self._tasks()
        return parallel([index(tasks)], lambda p: self._task(p[0], tasks), tasks > 1)

    def _tasks(self) -> int:
        work = elements(self.lead, unknown=64) * self.columns * self.depth // self.machine.lanes
        threads = self.machine.threads if work > SERIAL_WORK else 1
        if self.by_columns:
            return min(threads, max(1, -(-self.columns // self.tile.columns)))
        if threads == 1:
            return 1
        # The rows of x of one task stay in cache while all chunks of the matrix pass.
        x_bytes = elements(self.lead, unknown=threads * 64) * self.depth * 4
        return threads * max(1, -(-x_bytes // (threads * CACHE_BYTES)))

    def _task(self, part: Expr, tasks: int) -> tirx.Stmt:
        whole, tail = divmod(self.columns, self.tile.columns)
        if self.by_columns:
            rows, chunks = _Share.whole(self.tiles), _Share(index(whole), part, tasks)
        else:
            rows, chunks = _Share(self.tiles, part, tasks), _Share.whole(index(whole))
        main = None
        if whole:
            main = loop(chunks.extent, lambda c: self._chunk(rows, chunks.first + c, self.tile.columns), "chunk")
        end = self._chunk(rows, index(whole), tail) if tail else None
        body = sequence([main, chunks.in_last(end)])
        if constant(self.rows) is not None:
            return body
        return tirx.IfThenElse(tirx.EQ(self.rows, index(1)), self._single_row(part, tasks), body)

    def _single_row(self, part: Expr, tasks: int) -> tirx.Stmt:
        """The only row of a symbolic number, several chunks at once: one chunk has too few independent sums."""
        width = self.tile.columns
        together = max(1, IN_FLIGHT * self.machine.lanes // width)
        whole, tail = divmod(self.columns, width)
        groups, rest = divmod(whole, together)
        share = _Share(index(groups), part, tasks)
        main = loop(share.extent, lambda g: self._tile(index(0), 1, (share.first + g) * together, together * width))
        single = loop(rest, lambda c: self._tile(index(0), 1, groups * together + c, width)) if rest else None
        end = self._tile(index(0), 1, index(whole), tail) if tail else None
        return sequence([main if groups else None, share.in_last(sequence([single, end]))])

    def _chunk(self, rows: _Share, chunk: Expr, width: int) -> tirx.Stmt:
        """A share of the rows times one chunk of the matrix, of which `width` columns are used."""
        height, known = self.tile.rows, constant(self.rows)
        tiles = elements([self.rows], unknown=64 * rows.parts) // height // rows.parts

        def body(load: Load) -> tirx.Stmt:
            def tile(first: Expr, size: int) -> tirx.Stmt:
                return self._tile(first, size, chunk, width, load)

            main = None
            if known is None or known >= height:
                main = loop(rows.extent, lambda t: tile((rows.first + t) * height, height), "tile")
            first = self.tiles * height
            end = tile(first, known % height) if known is not None and known % height else None
            if known is None:
                end = rows_after_tiles(self.rows, height, tile)
            return sequence([main, rows.in_last(end)])

        return with_chunk(self.machine, self.weight, chunk, tiles, body)

    def _tile(self, first: Expr, height: int, chunk: Expr, width: int, load: Load | None = None) -> tirx.Stmt:
        """Rows from `first` on, columns from those of `chunk` on: `width` of them, several chunks without a `load`."""
        zeros, columns = self._zeros(), self.tile.columns

        def weights(k: list[Expr], at: int, size: int) -> Expr:
            if load is not None:
                return load(k, at, size)
            return widened(tirx.BufferLoad(self.weight, [chunk + at // columns, k[0], ramp(at % columns, size)]))

        return MicroKernel(
            self.machine,
            height,
            width,
            [index(self.depth)],
            lambda r, k: tirx.BufferLoad(self.x, [*zeros, first + r, k[0]] if self.lead else [k[0]]),
            weights,
            lambda r, c, value: self.epilogue.store(
                [*row_position(self.lead, first + r, self.flat), chunk * columns + c], value
            ),
            self.epilogue.long,
        ).statement()

    def _zeros(self) -> list[Expr]:
        """Indices of all leading axes but the last; the last one runs over all rows."""
        return [index(0)] * (len(self.lead) - 1) if self.lead else []


def row_position(lead: list[Expr], row: Expr, flat: bool) -> list[Expr]:
    """Return the indices of a row in a result with leading extents `lead`; `flat` if they count as one axis."""
    if not lead:
        return []
    return [*([index(0)] * (len(lead) - 1)), row] if flat or len(lead) == 1 else _unfold(row, lead)


def _operands(stage: Stage) -> tuple[Var, Var]:
    """Return the two buffers that a product reads, in the order of its factors."""
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


# With so few rows, packing takes longer than it saves.
_FEW = 2


def matmul(machine: Machine, stage: Stage, epilogue: Epilogue) -> tirx.Stmt:
    """Schedule a (..., rows, depth) times b (..., depth, columns), both known at run time only.

    For each batch and each chunk of columns, a panel of b is packed and then used by all rows. If there are at most
    two rows, or if the panel would not stay in the cache, b is read in place. Threads share the batches, the chunks of
    columns or the rows, in this order: with the first two, nothing is packed twice. All extents may be symbolic.
    """
    a, b = loads(stage.value)
    rows, columns, depth = stage.extents[-2], stage.extents[-1], stage.reduce_extents[-1]
    tile = choose_tile(machine, constant(rows), constant(columns) or 2 * machine.lanes)
    # Packing costs as much as computing one row.
    few = (constant(rows) or _FEW + 1) <= _FEW
    pack = not few and elements([depth], unknown=64) * tile.columns * 4 <= 4 * CACHE_BYTES
    return _Matmul(machine, stage, epilogue, a, b, rows, columns, depth, tile, pack).statement()


@dataclass(frozen=True, eq=False)
class _Matmul:
    machine: Machine
    stage: Stage
    epilogue: Epilogue
    a: TensorLoad
    b: TensorLoad
    rows: Expr
    columns: Expr
    depth: Expr
    tile: Tile
    pack: bool

    @property
    def batch(self) -> list[Expr]:
        """Extents of the leading axes."""
        return self.stage.extents[:-2]

    @property
    def tiles(self) -> Expr:
        """Whole tiles of rows."""
        return tirx.floordiv(self.rows, self.tile.rows)

    def statement(self) -> tirx.Stmt:
        work = elements(self.batch, unknown=4) * elements([self.rows, self.columns, self.depth], unknown=64)
        most = self.machine.threads
        threads = work // self.machine.lanes > SERIAL_WORK
        batches = elements(self.batch, unknown=most)
        columns = constant(self.columns)
        if threads and batches < 2 * most and columns is not None and columns // self.tile.columns >= most:
            return self._chunks_in_parallel(columns)
        parts = most if threads and batches == 1 and elements([self.rows], unknown=64) >= 2 * self.tile.rows else 1

        def task(at: list[Expr]) -> tirx.Stmt:
            return self._chunks(at[:-1], _Share(self.tiles, at[-1], parts))

        return parallel([*self.batch, index(parts)], task, threads)

    def _chunks_in_parallel(self, columns: int) -> tirx.Stmt:
        whole, tail = divmod(columns, self.tile.columns)
        rows, width = _Share.whole(self.tiles), self.tile.columns
        main = parallel([*self.batch, index(whole)], lambda p: self._chunk(p[:-1], p[-1] * width, width, rows))
        end = nest(self.batch, lambda p: self._chunk(p, index(whole * width), tail, rows)) if tail else None
        return sequence([main, end])

    def _chunks(self, at: list[Expr], rows: _Share) -> tirx.Stmt:
        columns, width = constant(self.columns), self.tile.columns
        if columns is None:
            lanes_ = self.machine.lanes

            # Chunks of one width that is not above the number of columns; the last one may overlap the one before.
            def chunks(size: int) -> tirx.Stmt:
                return covering(self.columns, size, lambda first: self._chunk(at, first, size, rows))

            body = chunks(1)
            for size in sorted({max(1, lanes_ // 4), lanes_, width} - {1}):
                body = tirx.IfThenElse(self.columns >= size, chunks(size), body)
            return body
        whole, tail = divmod(columns, width)
        main = loop(whole, lambda c: self._chunk(at, c * width, width, rows), "chunk") if whole else None
        end = self._chunk(at, index(whole * width), tail, rows) if tail else None
        return sequence([main, end])

    def _chunk(self, at: list[Expr], first: Expr, width: int, rows: _Share) -> tirx.Stmt:
        """A share of the rows for columns [first, first + width) of batch `at`."""
        panel = scratch("panel", [self.depth, width]) if self.pack else None
        height, known = self.tile.rows, constant(self.rows)

        def tile(row: Expr, count: int) -> tirx.Stmt:
            return self._tile(at, row, count, first, width, panel)

        main = None
        if known is None or known >= height:
            main = loop(rows.extent, lambda t: tile((rows.first + t) * height, height), "tile")
        if known is None:
            end: tirx.Stmt | None = rows_after_tiles(self.rows, height, tile)
        else:
            end = tile(index(known // height * height), known % height) if known % height else None
        body = sequence([main, rows.in_last(end)])
        if panel is None:
            return body
        fill = loop(self.depth, lambda k: self._pack_row(panel, at, k, first, width), "k")
        packed = with_buffers([panel], sequence([fill, body]))
        if known is not None:
            return packed
        few = loop(self.rows, lambda r: self._tile(at, r, 1, first, width, None), "row")
        return tirx.IfThenElse(self.rows <= _FEW, rows.in_last(few), packed)

    def _pack_row(self, panel: Var, at: list[Expr], k: Expr, first: Expr, width: int) -> tirx.Stmt:
        def copy(column: Expr, size: int) -> tirx.Stmt:
            def lane(i: Expr) -> tirx.Stmt:
                value = self._operand(self.b, at, k, first + column + i)
                return tirx.BufferStore(panel, value, [k, column + i])

            return lanes(size, lane)

        return vectors(index(0), width, self.machine, copy)

    def _tile(self, at: list[Expr], row: Expr, height: int, first: Expr, width: int, panel: Var | None) -> tirx.Stmt:
        def right(k: list[Expr], offset: int, size: int) -> Expr:
            if panel is not None:
                return tirx.BufferLoad(panel, [k[0], ramp(offset, size)])
            return self._operand(self.b, at, k[0], ramp(first + offset, size))

        def part(start: int, size: int) -> tirx.Stmt:
            return MicroKernel(
                self.machine,
                height,
                size,
                [self.depth],
                lambda r, k: self._operand(self.a, at, row + r, k[0]),
                lambda k, offset, count: right(k, start + offset, count),
                lambda r, c, value: self.epilogue.store([*at, row + r, first + start + c], value),
                self.epilogue.long,
            ).statement()

        return sequence(part(start, size) for start, size in _exact_vectors(width, self.machine))

    def _operand(self, load: TensorLoad, at: list[Expr], row: Expr, column: Expr) -> Expr:
        """An element, or a vector of columns, of one operand; broadcast batch axes keep their index 0."""
        places = dict(zip(self.stage.axes[:-2], range(len(self.batch)), strict=True))
        lead = [at[places[i]] if isinstance(i, Var) else i for i in load.indices[:-2]]
        return widened(tirx.BufferLoad(load.source, [*lead, row, column]))


def _exact_vectors(width: int, machine: Machine) -> list[tuple[int, int]]:
    """Split the columns of a panel into (start, size) runs that never read past its end: whole vectors, then halves."""
    whole = width // machine.lanes * machine.lanes
    runs = [(0, whole)] if whole else []
    start = whole
    for size in machine.widths[1:]:
        if width - start >= size:
            runs.append((start, size))
            start += size
    return runs
