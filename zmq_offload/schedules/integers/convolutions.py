"""The rule for dense and grouped convolutions of 8-bit integers over (n, h, w, c)."""

from __future__ import annotations

from dataclasses import dataclass, replace

from tvm import tirx
from tvm.ir import Expr

from zmq_offload.schedules.emit import as_index, elements, index, loop, parallel, sequence, when, with_buffers
from zmq_offload.schedules.epilogue import Epilogue
from zmq_offload.schedules.images import (
    Image,
    Partition,
    band_rows,
    image_of,
    number_or_expression,
    opaque,
    partition,
    result_size,
    symbolic_size,
)
from zmq_offload.schedules.integers.dot_product import DotProduct, dot_product, tile_of
from zmq_offload.schedules.integers.kernel import IntegerKernel, Weights, group_of
from zmq_offload.schedules.integers.operators import joined
from zmq_offload.schedules.integers.windows import Window
from zmq_offload.schedules.machine import CACHE_BYTES, Machine
from zmq_offload.schedules.nests import SERIAL_WORK
from zmq_offload.schedules.rewrite import constant
from zmq_offload.schedules.stages import Program, Stage
from zmq_offload.schedules.tails import rows_after_tiles
from zmq_offload.schedules.tiles import Tile


def conv2d(machine: Machine, program: Program, stage: Stage, epilogue: Epilogue) -> tirx.Stmt:
    """Schedule a dense or grouped convolution with weights from `dot_product.pack`.

    `images.partition` divides the result into tasks. A task copies its window of the input, with the fill value around,
    if the convolution pads, if the instructions need another datatype, or whole groups; then, for each chunk of output
    channels, it goes over its rows in tiles of neighboring results. With a symbolic image size, the numbers of tasks
    and of tiles are computed at run time.
    """
    image, weight = image_of(program, stage)
    conv = image.conv
    dot = dot_product(machine, str(image.buffer.dtype), constant(weight.shape[-1]))
    per_group = conv.out_channels // conv.groups
    symbolic = symbolic_size(stage)
    height, width = result_size(stage)[:2] if symbolic is None else map(number_or_expression, symbolic)
    rows = tile_of(machine, dot, width if isinstance(width, int) else None, per_group).rows
    tile = Tile(rows, constant(weight.shape[2]) or machine.lanes)
    dense = _Dense(machine, stage, epilogue, image, Weights(weight, dot), dot, tile, height, width, per_group)
    return dense.statement() if symbolic is None else dense.symbolic()


@dataclass(frozen=True, eq=False)
class _Dense:
    machine: Machine
    stage: Stage
    epilogue: Epilogue
    image: Image
    weights: Weights
    dot: DotProduct
    tile: Tile
    height: Expr | int
    width: Expr | int
    per_group: int

    @property
    def depth(self) -> int:
        """Input channels of a group."""
        return self.image.channels // self.image.conv.groups

    @property
    def run(self) -> int:
        """Neighboring values that one row of packed weights covers."""
        conv = self.image.conv
        return conv.kernel[1] * self.depth if joined(conv) else self.depth

    @property
    def copied(self) -> bool:
        """Whether tasks copy their window before use."""
        dot = self.dot
        return bool(
            self.image.padded or self.run % dot.group or dot.shift or dot.operand != str(self.image.buffer.dtype)
        )

    def statement(self) -> tirx.Stmt:
        conv, machine = self.image.conv, self.machine
        chunks = self.per_group // self.tile.columns if conv.groups == 1 else 1
        _, columns = self.image.window((1, self.width))
        row_bytes = columns * self.image.channels * self.dot.operand_bytes * conv.strides[0] if self.copied else 0
        batch = elements(self.stage.extents[:1], unknown=1)
        work = batch * self.height * self.width * conv.out_channels * self.run * conv.kernel[0]
        threads = work // (machine.lanes * self.dot.group) > SERIAL_WORK
        part = partition(
            machine if threads else replace(machine, threads=1), batch, self.height, 1, max(chunks, 1), row_bytes
        )
        bands = -(-self.height // part.rows)

        def task(at: list[Expr]) -> tirx.Stmt:
            batch_, band, group = at
            top = band * part.rows
            rows: Expr = index(part.rows)
            if self.height % part.rows:
                rows = tirx.Min(rows, index(self.height) - top)
            return _Task(self, batch_, top, rows, group, part).statement()

        return parallel([self.stage.extents[0], index(bands), index(part.channels)], task, threads)

    def symbolic(self) -> tirx.Stmt:
        """Emit the tasks of a symbolic size: bands of rows."""
        rows = band_rows(self.image, self.image.channels * self.dot.operand_bytes, CACHE_BYTES)
        height = as_index(self.height)

        def task(at: list[Expr]) -> tirx.Stmt:
            top = at[1] * rows
            here = tirx.Min(index(rows), height - top)
            return _Task(self, at[0], top, here, index(0), Partition(rows, 1, 1)).statement()

        return parallel([self.stage.extents[0], tirx.floordiv(height + (rows - 1), index(rows))], task)


@dataclass(frozen=True, eq=False)
class _Task:
    """One task: some rows, for some of the channels."""

    parent: _Dense
    batch: Expr
    top: Expr
    rows: Expr
    group: Expr  # which part of the channels
    part: Partition

    def statement(self) -> tirx.Stmt:
        p, conv = self.parent, self.parent.image.conv
        if not p.copied:
            return self._channels(None)
        window = Window(p.machine, p.dot, p.image, *p.image.window((self.part.rows, p.width)))
        rows = (self.rows - 1) * conv.strides[0] + (conv.kernel[0] - 1) * conv.dilation[0] + 1
        fill = window.fill(self.batch, self.top * conv.strides[0] - conv.padding[0], rows)
        return with_buffers([window.buffer], sequence([fill, self._channels(window)]))

    def _channels(self, window: Window | None) -> tirx.Stmt:
        p = self.parent
        whole, tail = divmod(p.per_group, p.tile.columns)
        per_group = whole + bool(tail)

        def of_group(g: Expr) -> tirx.Stmt:
            first = tirx.floordiv(self.group * whole, self.part.channels)
            count = tirx.floordiv((self.group + 1) * whole, self.part.channels) - first

            def chunk(c: Expr, columns: int) -> tirx.Stmt:
                return loop(self.rows, lambda y: self._row(window, g, g * per_group, c, columns, y), "row")

            main = loop(count, lambda c: chunk(first + c, p.tile.columns), "chunk") if whole else None
            end = chunk(index(whole), tail) if tail else None
            if end is not None and self.part.channels > 1:
                end = when(tirx.EQ(self.group, index(self.part.channels - 1)), end)
            return sequence([main, end])

        return loop(p.image.conv.groups, of_group, "group")

    def _row(self, window: Window | None, group: Expr, base: Expr, chunk: Expr, columns: int, y: Expr) -> tirx.Stmt:

        def tile(x: Expr, height: int) -> tirx.Stmt:
            return self._tile(window, group, base, chunk, columns, y, x, height)

        height, width = self.parent.tile.rows, self.parent.width
        if not isinstance(width, int):
            main = loop(tirx.floordiv(width, index(height)), lambda t: tile(opaque(t * height), height), "tile")
            return sequence([main, rows_after_tiles(width, height, lambda x, size: tile(opaque(x), size))])
        tiles, rest = divmod(width, height)
        main = loop(tiles, lambda t: tile(t * height, height), "tile") if tiles else None
        return sequence([main, tile(index(tiles * height), rest) if rest else None])

    def _tile(
        self, window: Window | None, group: Expr, base: Expr, chunk: Expr, columns: int, y: Expr, x: Expr, height: int
    ) -> tirx.Stmt:
        """`height` neighboring results for one chunk of channels; y counts from the task's top."""
        p, conv, dot = self.parent, self.parent.image.conv, self.parent.dot
        (kh, kw), (sh, sw), (dh, dw) = conv.kernel, conv.strides, conv.dilation
        steps = dot.steps(p.run)
        reduce = [index(kh), index(steps)] if joined(conv) else [index(kh), index(kw), index(steps)]

        def data(r: int, k: list[Expr]) -> Expr:
            row = y * sh + k[0] * dh
            column = (x + r) * sw + (0 if joined(conv) else k[1] * dw)
            channel = k[-1] * dot.group + (0 if joined(conv) else group * p.depth)
            if window is not None:
                return group_of(dot, window.buffer, [window.position(row, column, channel)])
            return group_of(dot, p.image.buffer, p.image.at(self.batch, self.top * sh + row, column, channel))

        def weights(k: list[Expr], offset: int, width: int) -> Expr:
            step = k[0] * steps + k[1] if joined(conv) else (k[0] * kw + k[1]) * steps + k[2]
            return p.weights.load(base + chunk, step, offset, width)

        def store(r: Expr, c: Expr, value: Expr) -> tirx.Stmt:
            channel = group * p.per_group + chunk * p.tile.columns + c
            return p.epilogue.store(p.image.at(self.batch, self.top + y, x + r, channel), value)

        return IntegerKernel(
            p.machine,
            height,
            columns,
            reduce,
            data,
            weights,
            store,
            p.epilogue.long,
            dot=dot,
            start=p.weights.start(base + chunk),
        ).statement()
