"""The rule for dense and grouped convolutions over (n, h, w, c)."""

from __future__ import annotations

from dataclasses import dataclass, replace

from tvm import tirx
from tvm.ir import Expr, Var

from zmq_offload.schedules.emit import (
    FlatBuffer,
    as_index,
    elements,
    index,
    loop,
    parallel,
    sequence,
    when,
    with_buffers,
)
from zmq_offload.schedules.epilogue import Epilogue
from zmq_offload.schedules.images import (
    USUAL_WIDTH,
    Image,
    Partition,
    band_rows,
    batch_of,
    image_of,
    partition,
    reaching,
    result_size,
    symbolic_size,
)
from zmq_offload.schedules.machine import CACHE_BYTES, Machine
from zmq_offload.schedules.microkernel import MicroKernel
from zmq_offload.schedules.nests import SERIAL_WORK
from zmq_offload.schedules.rewrite import constant
from zmq_offload.schedules.stages import Program, Stage
from zmq_offload.schedules.tails import rows_after_tiles
from zmq_offload.schedules.tiles import Tile, choose_tile
from zmq_offload.schedules.weight_panels import Load, with_chunk


def conv2d(machine: Machine, program: Program, stage: Stage, epilogue: Epilogue) -> tirx.Stmt:
    """Schedule a dense or grouped convolution with packed weights (chunks, kd * kh, kw, c, tile columns).

    `images.partition` divides the result into tasks. A task copies its window of the input, with zeros around, if the
    convolution pads; then, for each chunk of output channels, it goes over its rows in tiles of neighboring results.
    A micro-kernel sums each tile over the window. Without groups and dilation, the columns and channels of a window
    are neighbors in memory, so one loop runs over both. Taps of the depth and of dilated rows and columns that read
    padding only are left out. With a symbolic image size, the numbers of tasks and of tiles are computed at run time.
    """
    image, weight = image_of(program, stage)
    conv = image.conv
    per_group = conv.out_channels // conv.groups
    lanes = constant(weight.shape[-1]) or machine.lanes
    if (symbolic := symbolic_size(stage)) is not None:
        tile = Tile(choose_tile(machine, constant(symbolic[1]), per_group).rows, lanes)
        return _Dense(machine, stage, epilogue, image, weight, tile, *symbolic, per_group).symbolic()
    height, width, _ = result_size(stage)
    tile = Tile(choose_tile(machine, width, per_group).rows, lanes)
    return _Dense(machine, stage, epilogue, image, weight, tile, height, width, per_group).statement()


@dataclass(frozen=True, eq=False)
class _Dense:
    machine: Machine
    stage: Stage
    epilogue: Epilogue
    image: Image
    weight: Var
    tile: Tile
    height: Expr | int
    width: Expr | int
    per_group: int

    def statement(self) -> tirx.Stmt:
        conv = self.image.conv
        tiles, rest = divmod(self.width, self.tile.rows)
        chunks = self.per_group // self.tile.columns if conv.groups == 1 else 1
        _, columns = self.image.window((1, self.width))
        kd = 1 if conv.depth is None else conv.depth.kernel
        row_bytes = kd * columns * self.image.channels * 4 * conv.strides[0] if self.image.padded else 0
        planes = batch_of(self.image, self.stage)
        batch = elements([planes], unknown=self.image.deep)
        (kh, kw), depth = conv.kernel, constant(self.stage.reduce_extents[-1]) or 1
        work = batch * self.height * self.width * conv.out_channels * kd * kh * kw * depth // self.machine.lanes
        threads = work > SERIAL_WORK
        machine = self.machine if threads else replace(self.machine, threads=1)
        part = partition(machine, batch, self.height, tiles, chunks, row_bytes)
        bands = -(-self.height // part.rows)
        extents = [planes, index(bands), index(part.across), index(part.channels)]

        def task(at: list[Expr]) -> tirx.Stmt:
            batch_, band, across, group = at
            top = band * part.rows
            rows: Expr = index(part.rows)
            if self.height % part.rows:
                rows = tirx.Min(rows, index(self.height) - top)
            first = tirx.floordiv(across * tiles, part.across)
            count = tirx.floordiv((across + 1) * tiles, part.across) - first
            last = tirx.EQ(across, index(part.across - 1)) if part.across > 1 else None
            body = _Task(self, batch_, top, rows, first, count, rest, last, group, part)
            return body.statement()

        return parallel(extents, task, threads)

    def symbolic(self) -> tirx.Stmt:
        """The tasks of a symbolic size: bands of rows; or parts of the only row."""
        height, width = as_index(self.height), as_index(self.width)
        rows = band_rows(self.image, self.image.channels * 4, CACHE_BYTES) if constant(height) != 1 else 1
        across = self.machine.threads if constant(height) == 1 else 1
        part = Partition(rows, across, 1)
        tiles = tirx.floordiv(width, index(self.tile.rows))

        def task(at: list[Expr]) -> tirx.Stmt:
            batch, band, share = at
            top = band * rows
            first = tirx.floordiv(share * tiles, across)
            count = tirx.floordiv((share + 1) * tiles, across) - first
            last = tirx.EQ(share, index(across - 1)) if across > 1 else None
            here = tirx.Min(index(rows), height - top) if rows > 1 else index(1)
            return _Task(self, batch, top, here, first, count, None, last, index(0), part).statement()

        return parallel([self.stage.extents[0], tirx.floordiv(height + (rows - 1), index(rows)), index(across)], task)


@dataclass(frozen=True, eq=False)
class _Task:
    """One task: some rows, or a part of each, for some of the channels."""

    parent: _Dense
    batch: Expr
    top: Expr
    rows: Expr
    first: Expr  # first tile of each row
    tiles: Expr
    rest: int | None  # columns after the last whole tile; None if their number is symbolic
    last: Expr | None  # whether this task computes those columns; None if all tasks do
    group: Expr  # which part of the channels
    part: Partition

    def statement(self) -> tirx.Stmt:
        p, image = self.parent, self.parent.image
        if not image.padded:
            return self._channels(None)
        conv = image.conv
        if self.rest is None:
            most = self.tiles * p.tile.rows + p.tile.rows if self.part.across > 1 else p.width
        else:
            most = min(-(-(p.width // p.tile.rows) // self.part.across) * p.tile.rows + self.rest, p.width)
        height, width = image.window((self.part.rows, most))
        taps = [] if conv.depth is None else [conv.depth.kernel]
        copy = FlatBuffer("window", [*taps, height, width, image.channels])
        corner = (
            self.batch,
            self.top * conv.strides[0] - conv.padding[0],
            self.first * (p.tile.rows * conv.strides[1]) - conv.padding[1],
        )
        kernel_rows = (conv.kernel[0] - 1) * conv.dilation[0] + 1
        rows = (self.rows - 1) * conv.strides[0] + kernel_rows
        fill = image.copy(p.machine, copy, corner, rows, width)
        return with_buffers([copy.buffer], sequence([fill, self._channels(copy)]))

    def _channels(self, copy: FlatBuffer | None) -> tirx.Stmt:
        p = self.parent
        groups = p.image.conv.groups
        whole, tail = divmod(p.per_group, p.tile.columns)
        per_group = whole + bool(tail)

        def of_group(g: Expr) -> tirx.Stmt:
            first = tirx.floordiv(self.group * whole, self.part.channels)
            count = tirx.floordiv((self.group + 1) * whole, self.part.channels) - first
            main = None
            if whole:
                main = loop(count, lambda c: self._rows(copy, g, g * per_group, first + c, p.tile.columns), "chunk")
            end = self._rows(copy, g, g * per_group, index(whole), tail) if tail else None
            if end is not None and self.part.channels > 1:
                end = when(tirx.EQ(self.group, index(self.part.channels - 1)), end)
            return sequence([main, end])

        return loop(groups, of_group, "group")

    def _rows(self, copy: FlatBuffer | None, group: Expr, base: Expr, chunk: Expr, columns: int) -> tirx.Stmt:
        height, width = self.parent.tile.rows, self.parent.width
        usual = USUAL_WIDTH if self.rest is None else width
        tiles = self.part.rows * -(-usual // height) // self.part.across

        def row(y: Expr, load: Load) -> tirx.Stmt:
            def block(x: Expr, count: int) -> tirx.Stmt:
                return self._block(copy, load, group, chunk, columns, y, x, count)

            main = None
            if self.rest is None or width >= height:
                main = loop(self.tiles, lambda t: block(t * height, height), "tile")
            end = None
            if self.rest is None:
                end = rows_after_tiles(width - self.first * height, height, block)
            elif self.rest:
                end = block(self.tiles * height, self.rest)
            if end is not None and self.last is not None:
                end = when(self.last, end)
            return sequence([main, end])

        def rows(load: Load) -> tirx.Stmt:
            return loop(self.rows, lambda y: row(y, load), "row")

        return with_chunk(self.parent.machine, self.parent.weight, base + chunk, tiles, rows)

    def _block(
        self, copy: FlatBuffer | None, load: Load, group: Expr, chunk: Expr, columns: int, y: Expr, x: Expr, height: int
    ) -> tirx.Stmt:
        """`height` neighboring results for one chunk of channels; y and x count from the task's corner."""
        p, conv = self.parent, self.parent.image.conv
        (kh, kw), (sh, sw), (dh, dw) = conv.kernel, conv.strides, conv.dilation
        depth = constant(p.stage.reduce_extents[-1]) or 1
        # A window's columns and channels are neighbors in memory and in the packed weights: one loop over both.
        joined = conv.groups == 1 and dw == 1
        left = x + self.first * p.tile.rows
        plane, planes = p.image.taps(self.batch)
        above, rows = self._taps(0, self.top + y, 1)
        before, columns_ = self._taps(1, left, height)
        reduce = [planes, rows, index(kw * depth)] if joined else [planes, rows, columns_, index(depth)]

        def data(r: int, k: list[Expr]) -> Expr:
            row = y * sh + (above + k[1]) * dh
            column = (x + r) * sw + (0 if joined else (before + k[2]) * dw)
            channel = k[2] if joined else group * depth + k[3]
            if copy is not None:
                return copy.load([*([] if conv.depth is None else k[:1]), row, column, channel])
            start = self.first * (p.tile.rows * sw)
            at = p.image.source([self.batch, plane + k[0]], self.top * sh + row, start + column, channel)
            return tirx.BufferLoad(p.image.buffer, at)

        def weights(k: list[Expr], offset: int, width: int) -> Expr:
            inner = [index(0), k[2]] if joined else [before + k[2], k[3]]
            row = (plane + k[0]) * kh + above + k[1]
            return load([row, *inner], offset, width)

        def store(r: Expr, c: Expr, value: Expr) -> tirx.Stmt:
            channel = group * p.per_group + chunk * p.tile.columns + c
            return p.epilogue.store(p.image.at(self.batch, self.top + y, left + r, channel), value)

        return MicroKernel(p.machine, height, columns, reduce, data, weights, store, p.epilogue.long).statement()

    def _taps(self, axis: int, first: Expr, count: int) -> tuple[Expr, Expr]:
        """Return the first tap of rows (axis 0) or columns that `count` results from `first` on need, and how many."""
        image, conv = self.parent.image, self.parent.image.conv
        kernel, stride, dilation, pad = (a[axis] for a in (conv.kernel, conv.strides, conv.dilation, conv.padding))
        if kernel == 1 or (axis and dilation == 1) or not image.padded:
            return index(0), index(kernel)
        size = (image.height, image.width)[axis]
        return reaching(kernel, dilation, size, first * stride - pad, (first + count - 1) * stride - pad)
