"""Kernels of convolutions over (n, h, w, c): rows of the result in registers, weights packed at build time."""

from __future__ import annotations

from dataclasses import dataclass

from tvm import tirx
from tvm.ir import Expr, Var

from zmq_offload.compile.schedules.emit import (
    Flat,
    elements,
    index,
    lanes,
    loop,
    parallel,
    ramp,
    sequence,
    vectors,
    when,
    with_buffers,
)
from zmq_offload.compile.schedules.epilogue import Epilogue
from zmq_offload.compile.schedules.machine import CACHE_BYTES, L1_BYTES, Machine
from zmq_offload.compile.schedules.microkernel import Block
from zmq_offload.compile.schedules.nests import SERIAL_WORK
from zmq_offload.compile.schedules.operators import Conv
from zmq_offload.compile.schedules.rewrite import Unsupported, constant, loads
from zmq_offload.compile.schedules.stages import Program, Stage
from zmq_offload.compile.schedules.tiles import Tile, choose


@dataclass(frozen=True, eq=False)
class Image:
    """The data of a convolution: the buffer as it comes, its static size, the convolution's geometry."""

    buffer: Var
    conv: Conv
    height: int
    width: int
    channels: int

    @property
    def padded(self) -> bool:
        """Whether windows reach over the edge, or the layout has to change: then parts are copied before use."""
        return any(self.conv.padding) or self.conv.channels_first

    def window(self, size: tuple[int, int]) -> tuple[int, int]:
        """Rows and columns of the data under a block of results."""
        (kh, kw), (sh, sw), (dh, dw) = self.conv.kernel, self.conv.strides, self.conv.dilation
        return (size[0] - 1) * sh + (kh - 1) * dh + 1, (size[1] - 1) * sw + (kw - 1) * dw + 1

    def copy(
        self,
        machine: Machine,
        target: Flat,
        at: tuple[Expr, Expr, Expr],
        rows: Expr | int,
        columns: Expr | int,
        channel: Expr | int = 0,
    ) -> tirx.Stmt:
        """Copy a window into `target` (rows, columns, channels), with zeros beyond the edges; `at` is its corner."""
        batch, top, left = at
        channels = constant(target.extents[-1]) or 1

        def pixel(y: Expr, x: Expr) -> tirx.Stmt:
            def fill(inside: bool) -> tirx.Stmt:
                def run(first: Expr, width: int) -> tirx.Stmt:
                    def lane(i: Expr) -> tirx.Stmt:
                        value = self._load(batch, top + y, left + x, channel + first + i) if inside else _ZERO
                        return target.store([y, x, first + i], value)

                    return lanes(width, lane)

                return vectors(index(0), channels, machine, run)

            return tirx.IfThenElse(tirx.all(left + x >= 0, left + x < self.width), fill(True), fill(False))

        def zeros(y: Expr) -> tirx.Stmt:
            def run(x: Expr) -> tirx.Stmt:
                return vectors(
                    index(0),
                    channels,
                    machine,
                    lambda c, w: lanes(w, lambda i: target.store([y, x, c + i], _ZERO)),
                )

            return loop(columns, run, "x")

        def row(y: Expr) -> tirx.Stmt:
            copied = loop(columns, lambda x: pixel(y, x), "x")
            return tirx.IfThenElse(tirx.all(top + y >= 0, top + y < self.height), copied, zeros(y))

        return loop(rows, row, "y")

    def _load(self, batch: Expr, y: Expr, x: Expr, channel: Expr) -> Expr:
        if self.conv.channels_first:
            return tirx.BufferLoad(self.buffer, [batch, channel, y, x])
        return tirx.BufferLoad(self.buffer, self.at(batch, y, x, channel))

    def at(self, batch: Expr, y: Expr, x: Expr, channel: Expr) -> list[Expr]:
        """Indices of data or result: one-dimensional ones have no y."""
        return [batch, y, x, channel] if len(self.buffer.shape) == 4 else [batch, x, channel]


_ZERO = tirx.FloatImm("float32", 0.0)


def image_of(program: Program, stage: Stage) -> tuple[Image, Var]:
    """The data and the weights that a convolution's stage reads; the copy that pads is the kernel's own business."""
    conv = Conv.of(stage.annotations)
    data, weight = (e.source for e in loads(stage.value))
    pad = program.producer(data)
    if pad is not None and pad.kernel == "pad":
        data = loads(pad.value)[0].source
    sizes = [*([1] if len(data.shape) == 3 else []), *(constant(s) for s in data.shape[1:])]
    if any(s is None for s in sizes) or any(constant(e) is None for e in stage.extents[1:]):
        raise Unsupported("a symbolic image size")
    known = [s or 0 for s in sizes]
    height, width, channels = (known[1], known[2], known[0]) if conv.channels_first else tuple(known)
    return Image(data, conv, height, width, channels), weight


def _result(stage: Stage) -> tuple[int, int, int]:
    """Height, width and channels of the result."""
    sizes = [constant(e) or 0 for e in stage.extents[1:]]
    return (1, sizes[0], sizes[1]) if len(sizes) == 2 else (sizes[0], sizes[1], sizes[2])


@dataclass(frozen=True)
class Partition:
    """How a result is shared out: rows of a task, parts of a row, parts of the channels."""

    rows: int
    across: int
    channels: int


def partition(machine: Machine, batch: int, height: int, tiles: int, chunks: int, row_bytes: int) -> Partition:
    """Tasks of equal size, by rows where there are enough of them, else by parts of rows or by channels."""
    threads = machine.threads
    options = []
    for across, channels in {(1, 1), (min(threads, max(tiles, 1)), 1), (1, min(threads, max(chunks, 1)))}:
        spread = batch * across * channels
        bands = max(1, -(-threads // spread))
        rows = max(1, -(-height // bands))
        # Copies of rows that overlap cost; so do copies that do not fit the cache.
        while rows > 4 and rows * row_bytes > CACHE_BYTES:
            rows = -(-rows // 2)
        tasks = spread * -(-height // rows)
        rounds = -(-tasks // threads)
        ideal = batch * height / threads
        options.append(
            (rounds * rows / (across * channels) / ideal, across * channels, Partition(rows, across, channels))
        )
    return min(options, key=lambda o: (round(o[0], 2), o[1]))[2]


def conv2d(machine: Machine, program: Program, stage: Stage, epilogue: Epilogue) -> tirx.Stmt:
    """A dense or grouped convolution."""
    image, weight = image_of(program, stage)
    conv = image.conv
    height, width, _ = _result(stage)
    per_group = conv.out_channels // conv.groups
    tile = Tile(choose(machine, width, per_group).rows, constant(weight.shape[-1]) or machine.lanes)
    return _Dense(machine, stage, epilogue, image, weight, tile, height, width, per_group).statement()


@dataclass(frozen=True, eq=False)
class _Dense:
    machine: Machine
    stage: Stage
    epilogue: Epilogue
    image: Image
    weight: Var
    tile: Tile
    height: int
    width: int
    per_group: int

    def statement(self) -> tirx.Stmt:
        conv = self.image.conv
        tiles, rest = divmod(self.width, self.tile.rows)
        chunks = self.per_group // self.tile.columns if conv.groups == 1 else 1
        _, columns = self.image.window((1, self.width))
        row_bytes = columns * self.image.channels * 4 * conv.strides[0] if self.image.padded else 0
        batch = elements(self.stage.extents[:1], unknown=1)
        (kh, kw), depth = conv.kernel, constant(self.stage.reduce_extents[-1]) or 1
        work = batch * self.height * self.width * conv.out_channels * kh * kw * depth // self.machine.lanes
        threads = work > SERIAL_WORK
        machine = self.machine if threads else Machine(self.machine.lanes, self.machine.registers, 1)
        part = partition(machine, batch, self.height, tiles, chunks, row_bytes)
        bands = -(-self.height // part.rows)
        extents = [self.stage.extents[0], index(bands), index(part.across), index(part.channels)]

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


@dataclass(frozen=True, eq=False)
class _Task:
    """One task of a dense convolution: some rows, or a part of one, for some channels."""

    parent: _Dense
    batch: Expr
    top: Expr
    rows: Expr
    first: Expr  # tile
    tiles: Expr
    rest: int  # columns after the last whole tile
    last: Expr | None  # whether this task has those columns, None for always
    group: Expr  # part of the channels
    part: Partition

    def statement(self) -> tirx.Stmt:
        p, image = self.parent, self.parent.image
        if not image.padded:
            return self._channels(None)
        conv = image.conv
        whole = p.width // p.tile.rows
        most = -(-whole // self.part.across) * p.tile.rows + self.rest
        height, width = image.window((self.part.rows, min(most, p.width)))
        copy = Flat("window", [height, width, image.channels])
        corner = (
            self.batch,
            self.top * conv.strides[0] - conv.padding[0],
            self.first * (p.tile.rows * conv.strides[1]) - conv.padding[1],
        )
        kernel_rows = (conv.kernel[0] - 1) * conv.dilation[0] + 1
        rows = (self.rows - 1) * conv.strides[0] + kernel_rows
        fill = image.copy(p.machine, copy, corner, rows, width)
        return with_buffers([copy.buffer], sequence([fill, self._channels(copy)]))

    def _channels(self, copy: Flat | None) -> tirx.Stmt:
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

    def _rows(self, copy: Flat | None, group: Expr, base: Expr, chunk: Expr, columns: int) -> tirx.Stmt:
        height = self.parent.tile.rows

        def row(y: Expr) -> tirx.Stmt:
            main = None
            if self.parent.width >= height:
                main = loop(
                    self.tiles, lambda t: self._block(copy, group, base, chunk, columns, y, t * height, height), "tile"
                )
            end = None
            if self.rest:
                end = self._block(copy, group, base, chunk, columns, y, self.tiles * height, self.rest)
                end = end if self.last is None else when(self.last, end)
            return sequence([main, end])

        return loop(self.rows, row, "row")

    def _block(
        self, copy: Flat | None, group: Expr, base: Expr, chunk: Expr, columns: int, y: Expr, x: Expr, height: int
    ) -> tirx.Stmt:
        """`height` neighbouring results for one chunk of channels; y, x count from the task's corner."""
        p, conv = self.parent, self.parent.image.conv
        (kh, kw), (sh, sw), (dh, dw) = conv.kernel, conv.strides, conv.dilation
        depth = constant(p.stage.reduce_extents[-1]) or 1
        # A window's columns and channels are neighbours in memory and in the packed weights: one loop over both.
        joined = conv.groups == 1 and dw == 1
        reduce = [index(kh), index(kw * depth)] if joined else [index(kh), index(kw), index(depth)]
        left = x + self.first * p.tile.rows

        def data(r: int, k: list[Expr]) -> Expr:
            row = y * sh + k[0] * dh
            column = (x + r) * sw + (0 if joined else k[1] * dw)
            channel = k[1] if joined else group * depth + k[2]
            if copy is not None:
                return copy.load([row, column, channel])
            start = self.first * (p.tile.rows * sw)
            at = p.image.at(self.batch, self.top * sh + row, start + column, channel)
            return tirx.BufferLoad(p.image.buffer, at)

        def weights(k: list[Expr], offset: int, width: int) -> Expr:
            inner = [index(0), k[1]] if joined else [k[1], k[2]]
            return tirx.BufferLoad(p.weight, [base + chunk, k[0], *inner, ramp(offset, width)])

        def store(r: int, c: Expr, value: Expr) -> tirx.Stmt:
            channel = group * p.per_group + chunk * p.tile.columns + c
            return p.epilogue.store(p.image.at(self.batch, self.top + y, left + r, channel), value)

        return Block(p.machine, height, columns, reduce, data, weights, store).statement()


def depthwise(machine: Machine, program: Program, stage: Stage, epilogue: Epilogue) -> tirx.Stmt:
    """One filter a channel: vectors of channels, a few neighbouring results at once so that they share loads."""
    image, weight = image_of(program, stage)
    conv = image.conv
    height, width, channels = _result(stage)
    (kh, kw), (sh, sw), (dh, dw) = conv.kernel, conv.strides, conv.dilation
    at_once = _depthwise_tile(machine, width)
    batch = elements(stage.extents[:1], unknown=1)
    work = batch * height * width * channels * kh * kw // machine.lanes
    threads = machine.threads if work > SERIAL_WORK else 1
    _, columns = image.window((1, width))
    # A band's rows of one vector of channels should stay in L1 while the window moves over them.
    row_bytes = columns * machine.lanes * 4 * sh
    rows = max(1, min(-(-height // threads), max(4, 2 * L1_BYTES // row_bytes)))
    bands = -(-height // rows)
    if bands > 1 and bands % threads:
        bands += threads - bands % threads
        rows = max(1, -(-height // bands))
        bands = -(-height // rows)

    def task(at: list[Expr]) -> tirx.Stmt:
        batch_, band = at
        top = band * rows
        count: Expr = index(rows) if height % rows == 0 else tirx.Min(index(rows), index(height) - top)
        return vectors(index(0), channels, machine, lambda c, lanes_: channel(batch_, top, count, c, lanes_))

    def channel(batch_: Expr, top: Expr, count: Expr, first: Expr, size: int) -> tirx.Stmt:
        copy = None
        if image.padded:
            copy_height, copy_width = image.window((rows, width))
            copy = Flat("window", [copy_height, copy_width, size])

        def row(y: Expr) -> tirx.Stmt:
            whole, rest = divmod(width, at_once)
            return sequence(
                [
                    loop(whole, lambda t: block(y, t * at_once, at_once), "tile") if whole else None,
                    block(y, index(whole * at_once), rest) if rest else None,
                ]
            )

        def block(y: Expr, x: Expr, many: int) -> tirx.Stmt:
            def data(r: int, k: list[Expr]) -> Expr:
                row_, column = y * sh + k[0] * dh, (x + r) * sw + k[1] * dw
                if copy is not None:
                    return copy.load([row_, column, ramp(0, size)])
                return tirx.BufferLoad(image.buffer, image.at(batch_, top * sh + row_, column, ramp(first, size)))

            return Block(
                machine,
                many,
                size,
                [index(kh), index(kw)],
                data,
                lambda k, _, w: tirx.BufferLoad(weight, [k[0], k[1], ramp(first, w)]),
                lambda r, c, value: epilogue.store(image.at(batch_, top + y, x + r, first + c), value),
                unrolled=True,
            ).statement()

        body = loop(count, row, "row")
        if copy is None:
            return body
        corner = (batch_, top * sh - conv.padding[0], index(-conv.padding[1]))
        needed = (count - 1) * sh + (kh - 1) * dh + 1
        fill = image.copy(machine, copy, corner, needed, copy_width, first)
        return with_buffers([copy.buffer], sequence([fill, body]))

    return parallel([stage.extents[0], index(bands)], task, threads > 1)


def _depthwise_tile(machine: Machine, width: int) -> int:
    """Neighbours at once: a quarter of the registers hold results, as many hold the data they share."""
    most = max(1, machine.registers // 4)
    tiles = -(-width // most)
    return -(-width // tiles)
