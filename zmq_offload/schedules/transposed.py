"""The rule for transposed convolutions: one ordinary convolution for each residue of the result's position.

With stride s, the results at positions p with (p + padding) % s == r read the same taps of the kernel, r, r + s, ...
Each pair of residues of rows and columns, a *phase*, is therefore a convolution of stride 1, without the zeros that
ONNX's definition inserts between the inputs.
"""

from __future__ import annotations

from collections.abc import Iterator
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
    when,
    with_buffers,
)
from zmq_offload.schedules.epilogue import Epilogue
from zmq_offload.schedules.images import USUAL_WIDTH, Image, image_size, one_number
from zmq_offload.schedules.machine import CACHE_BYTES, Machine
from zmq_offload.schedules.microkernel import MicroKernel
from zmq_offload.schedules.nests import SERIAL_WORK
from zmq_offload.schedules.operators import Conv
from zmq_offload.schedules.rewrite import Unsupported, constant, loads
from zmq_offload.schedules.stages import Stage
from zmq_offload.schedules.tails import rows_after_tiles
from zmq_offload.schedules.tiles import choose_tile
from zmq_offload.schedules.weights import widened

_SYMBOLIC_BAND = 16
"""Rows of the input of a task, for a height that is known at run time only."""


@dataclass(frozen=True)
class _Phase:
    """Positions p of the result along one axis with (p + padding) % stride == residue: p = stride * t + offset."""

    residue: int
    taps: int
    offset: int
    first: int  # first t
    stop: int  # the t after the last one, counted from the input's extent, which may be symbolic


def _phases(extent: Expr | int, kernel: int, stride: int, padding: tuple[int, int]) -> list[_Phase]:
    """Return the phases of an axis of the result: of (extent - 1) * stride + kernel positions, without the padding."""
    phases = []
    for residue in range(stride):
        offset = residue - padding[0]
        first = max(0, -(offset // stride))
        stop = (kernel - sum(padding) - 1 - offset) // stride
        if not isinstance(extent, int) or extent + stop > first:
            phases.append(_Phase(residue, max(0, -(-(kernel - residue) // stride)), offset, first, stop))
    return phases


def _sum(extent: Expr | int, more: int) -> Expr | int:
    """An extent and a number; of a symbolic extent as one number, see `images.one_number`."""
    return extent + more if isinstance(extent, int) else one_number(extent + more)


def transposed(machine: Machine, stage: Stage, epilogue: Epilogue) -> tirx.Stmt:
    """Schedule a transposed convolution over (n, h, w, c) with packed weights (chunks, kh, kw, c, tile columns).

    Threads share the batch and bands of t, the input's rows. Each task copies the rows that it reads into a window
    with zeros around, where a phase reads beyond the edges, and then runs all phases on it. Of a symbolic image, the
    numbers of tasks and tiles are computed at run time. Kernels smaller than the stride, whose results are partly
    constant, are left to TVM.
    """
    data, weight = (e.source for e in loads(stage.value))
    conv = Conv.of(stage.annotations)
    h, w, channels = image_size(data, conv)
    (kh, kw), (sh, sw), (top, left, bottom, right) = conv.kernel, conv.strides, conv.padding
    rows, columns = _phases(h, kh, sh, (top, bottom)), _phases(w, kw, sw, (left, right))
    if any(p.taps == 0 for p in (*rows, *columns)):
        raise Unsupported("results to which no input contributes")
    return _Kernel(machine, stage, epilogue, Image(data, conv, h, w, channels), weight, rows, columns).statement()


@dataclass(frozen=True, eq=False)
class _Kernel:
    machine: Machine
    stage: Stage
    epilogue: Epilogue
    image: Image
    weight: Var
    rows: list[_Phase]
    columns: list[_Phase]

    @property
    def above(self) -> int:
        """Rows of the window above t: taps beyond the first."""
        return max(p.taps for p in self.rows) - 1

    @property
    def before(self) -> int:
        """Columns of the window before t."""
        return max(p.taps for p in self.columns) - 1

    @property
    def first(self) -> int:
        """The first t of all rows."""
        return min(p.first for p in self.rows)

    @property
    def stop(self) -> int:
        """The t after the last one of all rows, counted from the image's height."""
        return max(p.stop for p in self.rows)

    def statement(self) -> tirx.Stmt:
        image, after = self.image, max(q.stop for q in self.columns)
        steps, width = _sum(image.height, self.stop - self.first), _sum(image.width, after + self.before)
        edges = bool(self.above or self.before or self.stop > 0 or after > 0)
        share = self._band(steps, width, edges)
        whole = isinstance(steps, int) and steps % share == 0
        bands = tirx.floordiv(as_index(steps) + (share - 1), index(share))

        def task(at: list[Expr]) -> tirx.Stmt:
            top = at[1] * share + self.first
            count = index(share) if whole else tirx.Min(index(share), steps - at[1] * share)
            if not edges:
                return sequence(self._phases(at[0], top, count, None))
            window = FlatBuffer("window", [share + self.above, width, image.channels])
            corner = (at[0], top - self.above, index(-self.before))
            fill = image.copy(self.machine, window, corner, count + self.above, width)
            return with_buffers([window.buffer], sequence([fill, *self._phases(at[0], top, count, window)]))

        return parallel([self.stage.extents[0], bands], task, self._threads())

    def _threads(self) -> bool:
        image, (kh, kw) = self.image, self.image.conv.kernel
        batch = elements(self.stage.extents[:1], unknown=1)
        if not isinstance(image.height, int) or not isinstance(image.width, int):
            return True
        work = batch * image.height * image.width * image.channels * kh * kw * image.conv.out_channels
        return work // self.machine.lanes > SERIAL_WORK

    def _band(self, steps: Expr | int, width: Expr | int, edges: bool) -> int:
        """Return the number of t in a task: an equal share for each thread, whose window fits the cache."""
        batch = elements(self.stage.extents[:1], unknown=1)
        share = _SYMBOLIC_BAND
        if isinstance(steps, int):
            share = max(1, -(-steps // self.machine.threads)) if batch < self.machine.threads else steps
        columns = width if isinstance(width, int) else USUAL_WIDTH
        while edges and share > 4 and share * columns * self.image.channels * 4 > CACHE_BYTES:
            share = -(-share // 2)
        return share

    def _phases(self, batch: Expr, top: Expr, count: Expr, window: FlatBuffer | None) -> Iterator[tirx.Stmt]:
        for p in self.rows:
            for q in self.columns:
                yield _PhaseKernel(self, batch, top, p, q, window).statement(count)


@dataclass(frozen=True, eq=False)
class _PhaseKernel:
    """The results of the phases `p` of rows and `q` of columns, for t from `top` on."""

    parent: _Kernel
    batch: Expr
    top: Expr
    p: _Phase
    q: _Phase
    window: FlatBuffer | None  # the padded input, None to read the image in place

    @property
    def lanes(self) -> int:
        """Output channels of a chunk of packed weights."""
        return constant(self.parent.weight.shape[-1]) or 1

    def statement(self, count: Expr) -> tirx.Stmt:
        whole, tail = divmod(self.parent.image.conv.out_channels, self.lanes)

        def chunk(at: Expr, columns: int) -> tirx.Stmt:
            return loop(count, lambda t: self._row(t, at, columns), "row")

        return sequence(
            [
                loop(whole, lambda c: chunk(c, self.lanes), "chunk") if whole else None,
                chunk(index(whole), tail) if tail else None,
            ]
        )

    def _row(self, t: Expr, chunk: Expr, columns: int) -> tirx.Stmt:
        kernel = self.parent
        width = _sum(kernel.image.width, self.q.stop - self.q.first)
        known = width if isinstance(width, int) else None
        height = choose_tile(kernel.machine, known, kernel.image.conv.out_channels).rows

        def tile(x: Expr, rows: int) -> tirx.Stmt:
            return self._tile(t, x, rows, chunk, columns)

        if known is None:
            # Every phase has a tile of each power of two: with a power of two as the largest, half of the code.
            height = 1 << (height.bit_length() - 1)
            tiles, rest = tirx.floordiv(width, index(height)), rows_after_tiles(width, height, tile)
        else:
            tiles = index(known // height)
            rest = tile(tiles * height, known % height) if known % height else None
        main = loop(tiles, lambda x: tile(x * height, height), "tile") if known is None or known >= height else None
        body = sequence([main, rest])
        if self.p.first == kernel.first and self.p.stop == kernel.stop:
            return body
        stop = kernel.image.height + self.p.stop
        return when(tirx.all(self.top + t >= self.p.first, self.top + t < stop), body)

    def _tile(self, t: Expr, x: Expr, height: int, chunk: Expr, columns: int) -> tirx.Stmt:
        kernel, p, q = self.parent, self.p, self.q
        conv, image = kernel.image.conv, kernel.image

        def data(r: int, k: list[Expr]) -> Expr:
            column = x + q.first + r - k[1]
            if self.window is not None:
                return self.window.load([t - k[0] + kernel.above, column + kernel.before, k[2]])
            return tirx.BufferLoad(image.buffer, image.at(self.batch, self.top + t - k[0], column, k[2]))

        def weights(k: list[Expr], offset: int, size: int) -> Expr:
            y, z = k[0] * conv.strides[0] + p.residue, k[1] * conv.strides[1] + q.residue
            return widened(tirx.BufferLoad(kernel.weight, [chunk, y, z, k[2], ramp(offset, size)]))

        def store(r: Expr, c: Expr, value: Expr) -> tirx.Stmt:
            y = (self.top + t) * conv.strides[0] + p.offset
            z = (x + q.first + r) * conv.strides[1] + q.offset
            return kernel.epilogue.store(image.at(self.batch, y, z, chunk * self.lanes + c), value)

        reduce = [index(p.taps), index(q.taps), index(image.channels)]
        long = kernel.epilogue.long
        return MicroKernel(kernel.machine, height, columns, reduce, data, weights, store, long).statement()
