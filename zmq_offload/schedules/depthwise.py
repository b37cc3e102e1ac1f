"""The rule for depthwise convolutions: one filter for each channel."""

from __future__ import annotations

from dataclasses import dataclass

from tvm import tirx
from tvm.ir import Expr, Var

from zmq_offload.schedules.emit import (
    FlatBuffer,
    as_index,
    elements,
    index,
    loop,
    parallel,
    ramp,
    sequence,
    vectors,
    with_buffers,
)
from zmq_offload.schedules.epilogue import Epilogue
from zmq_offload.schedules.images import Image, band_rows, batch_of, image_of, result_size, symbolic_size
from zmq_offload.schedules.machine import L1_BYTES, Machine
from zmq_offload.schedules.microkernel import MicroKernel
from zmq_offload.schedules.nests import SERIAL_WORK
from zmq_offload.schedules.rewrite import constant
from zmq_offload.schedules.stages import Program, Stage
from zmq_offload.schedules.tails import rows_after_tiles
from zmq_offload.schedules.weights import widened


def depthwise(machine: Machine, program: Program, stage: Stage, epilogue: Epilogue) -> tirx.Stmt:
    """Schedule a depthwise convolution over (n, h, w, c) with filters (kh, kw, c).

    Threads share the batch and bands of rows. Within a band, one vector of channels is computed after the other, so
    that the band's rows of that vector stay in L1 while the window moves over them. A padded image is copied for each
    band and vector, with zeros around. A micro-kernel computes a few neighboring results at once: they share loads.
    """
    image, weight = image_of(program, stage)
    channels = constant(stage.extents[-1]) or 1
    if (symbolic := symbolic_size(stage)) is not None:
        band = band_rows(image, machine.lanes * 4, 2 * L1_BYTES)
        return _Depthwise(
            machine, stage, epilogue, image, weight, *symbolic, channels, band, machine.threads
        ).statement()
    height, width, _ = result_size(stage)
    kh, kw = image.conv.kernel
    kd = 1 if image.conv.depth is None else image.conv.depth.kernel
    batch = elements([batch_of(image, stage)], unknown=image.deep)
    work = batch * height * width * channels * kd * kh * kw // machine.lanes
    threads = machine.threads if work > SERIAL_WORK else 1
    rows = _band_rows(machine, image, height, width, threads)
    return _Depthwise(machine, stage, epilogue, image, weight, height, width, channels, rows, threads).statement()


def _band_rows(machine: Machine, image: Image, height: int, width: int, threads: int) -> int:
    """Return the rows of a band: one vector of channels should stay in L1, and threads get equal numbers of bands."""
    _, columns = image.window((1, width))
    row_bytes = columns * machine.lanes * 4 * image.conv.strides[0]
    rows = max(1, min(-(-height // threads), max(4, 2 * L1_BYTES // row_bytes)))
    bands = -(-height // rows)
    if bands > 1 and bands % threads:
        bands += threads - bands % threads
        rows = max(1, -(-height // bands))
    return rows


def _tile_width(machine: Machine, width: int) -> int:
    """Return how many neighbors to compute at once: results fill a quarter of the registers, their data another."""
    most = max(1, machine.registers // 4)
    tiles = -(-width // most)
    return -(-width // tiles)


@dataclass(frozen=True, eq=False)
class _Depthwise:
    machine: Machine
    stage: Stage
    epilogue: Epilogue
    image: Image
    weight: Var
    height: Expr | int
    width: Expr | int
    channels: int
    rows: int  # of a band
    threads: int

    def statement(self) -> tirx.Stmt:
        bands = tirx.floordiv(as_index(self.height) + (self.rows - 1), index(self.rows))
        return parallel([batch_of(self.image, self.stage), bands], self._band, self.threads > 1)

    def _band(self, at: list[Expr]) -> tirx.Stmt:
        batch, band = at
        top, rows = band * self.rows, index(self.rows)
        count: Expr = rows
        if constant(as_index(self.height) % rows) != 0:
            count = tirx.Min(rows, as_index(self.height) - top)
        return vectors(
            index(0),
            self.channels,
            self.machine,
            lambda first, size: self._channels(batch, top, count, first, size),
        )

    def _channels(self, batch: Expr, top: Expr, rows: Expr, first: Expr, size: int) -> tirx.Stmt:
        """A band of one vector of channels, [first, first + size)."""
        image, conv = self.image, self.image.conv
        if not image.padded:
            return _Strip(self, batch, top, first, size, None).rows(rows)
        height, width = image.window((self.rows, self.width))
        taps = [] if conv.depth is None else [conv.depth.kernel]
        copy = FlatBuffer("window", [*taps, height, width, size])
        corner = (batch, top * conv.strides[0] - conv.padding[0], index(-conv.padding[1]))
        needed = (rows - 1) * conv.strides[0] + (conv.kernel[0] - 1) * conv.dilation[0] + 1
        fill = image.copy(self.machine, copy, corner, needed, width, first)
        body = _Strip(self, batch, top, first, size, copy).rows(rows)
        return with_buffers([copy.buffer], sequence([fill, body]))


@dataclass(frozen=True, eq=False)
class _Strip:
    """A band of rows from `top` on, of the channels [first, first + size)."""

    parent: _Depthwise
    batch: Expr
    top: Expr
    first: Expr
    size: int
    copy: FlatBuffer | None  # the padded window, None to read the image in place

    def rows(self, count: Expr) -> tirx.Stmt:
        width, most = self.parent.width, max(1, self.parent.machine.registers // 4)
        together = most // width if isinstance(width, int) else 1
        if together < 2:
            return loop(count, self._row, "row")
        # Rows that are narrower than a tile: a tile takes several.
        whole = tirx.floordiv(count, index(together))
        return sequence(
            [
                loop(whole, lambda t: self._tile(t * together, index(0), width, together), "rows"),
                loop(count - whole * together, lambda y: self._row(whole * together + y), "row"),
            ]
        )

    def _row(self, y: Expr) -> tirx.Stmt:
        machine, total = self.parent.machine, self.parent.width
        if not isinstance(total, int):
            most = max(1, machine.registers // 4)
            return sequence(
                [
                    loop(tirx.floordiv(total, index(most)), lambda t: self._tile(y, t * most, most), "tile"),
                    rows_after_tiles(total, most, lambda x, size: self._tile(y, x, size)),
                ]
            )
        width = _tile_width(machine, total)
        whole, rest = divmod(total, width)
        return sequence(
            [
                loop(whole, lambda t: self._tile(y, t * width, width), "tile") if whole else None,
                self._tile(y, index(whole * width), rest) if rest else None,
            ]
        )

    def _tile(self, y: Expr, x: Expr, width: int, rows: int = 1) -> tirx.Stmt:
        """`width` neighboring results in each of `rows` rows."""
        p, image = self.parent, self.parent.image
        (kh, kw), (sh, sw), (dh, dw) = image.conv.kernel, image.conv.strides, image.conv.dilation

        volume = image.conv.depth is not None
        plane, planes = image.taps(self.batch)

        def data(r: int, k: list[Expr]) -> Expr:
            row, column = (y + r // width) * sh + k[-2] * dh, (x + r % width) * sw + k[-1] * dw
            if self.copy is not None:
                return self.copy.load([*k[:-2], row, column, ramp(0, self.size)])
            at = image.source([self.batch, plane + k[0]], self.top * sh + row, column, ramp(self.first, self.size))
            return tirx.BufferLoad(image.buffer, at)

        def weights(k: list[Expr], _: int, size: int) -> Expr:
            row = (plane + k[0]) * kh + k[1] if volume else k[0]
            return widened(tirx.BufferLoad(p.weight, [row, k[-1], ramp(self.first, size)]))

        def store(r: Expr, c: Expr, value: Expr) -> tirx.Stmt:
            line, column = (tirx.floordiv(r, width), tirx.floormod(r, width)) if rows > 1 else (index(0), r)
            return p.epilogue.store(image.at(self.batch, self.top + y + line, x + column, self.first + c), value)

        reduce = [*([planes] if volume else []), index(kh), index(kw)]
        return MicroKernel(
            p.machine,
            rows * width,
            self.size,
            reduce,
            data,
            weights,
            store,
            rolled_store=p.epilogue.long,
            unrolled=True,
            # TVM's simplifier takes long for each index of an image of symbolic width, and rows of taps share no loads.
            serial=0 if isinstance(p.width, int) else len(reduce) - 1,
        ).statement()
