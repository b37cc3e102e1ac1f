"""The kernel of transposed convolutions: one ordinary convolution for each residue of the result's position."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from tvm import tirx
from tvm.ir import Expr, Var

from zmq_offload.schedules.emit import (
    FlatBuffer,
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
from zmq_offload.schedules.images import Image
from zmq_offload.schedules.machine import CACHE_BYTES, Machine
from zmq_offload.schedules.microkernel import MicroKernel
from zmq_offload.schedules.nests import SERIAL_WORK
from zmq_offload.schedules.operators import Conv
from zmq_offload.schedules.rewrite import Unsupported, constant, loads
from zmq_offload.schedules.stages import Stage
from zmq_offload.schedules.tiles import choose_tile


@dataclass(frozen=True)
class _Phase:
    """Positions p of the result with (p + padding) % stride == residue, along one axis: p = stride * t + offset."""

    residue: int
    taps: int
    offset: int
    first: int  # the range of t
    last: int


def _phases(size: int, kernel: int, stride: int, padding: int) -> list[_Phase]:
    """The phases of an axis of the result."""
    phases = []
    for residue in range(min(stride, size + padding)):
        offset = residue - padding
        first = max(0, -(offset // stride))
        last = (size - 1 - offset) // stride
        if last >= first:
            phases.append(_Phase(residue, max(0, -(-(kernel - residue) // stride)), offset, first, last))
    return phases


def transposed(machine: Machine, stage: Stage, epilogue: Epilogue) -> tirx.Stmt:
    """A transposed convolution; stage reads (data, weights)."""
    data, weight = (e.source for e in loads(stage.value))
    conv = Conv.of(stage.annotations)
    sizes = [constant(s) for s in (*data.shape[1:], *stage.extents[1:])]
    if any(s is None for s in sizes):
        raise Unsupported("a symbolic image size")
    h, w, channels, oh, ow, _ = (s or 0 for s in sizes)
    (kh, kw), (sh, sw), (top, left, *_) = conv.kernel, conv.strides, conv.padding
    rows, columns = _phases(oh, kh, sh, top), _phases(ow, kw, sw, left)
    if any(p.taps == 0 for p in (*rows, *columns)):
        raise Unsupported("positions that nothing contributes to")
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

    def statement(self) -> tirx.Stmt:
        image, conv = self.image, self.image.conv
        above = max(p.taps for p in self.rows) - 1
        before = max(p.taps for p in self.columns) - 1
        first = min(p.first for p in self.rows)
        steps = max(p.last for p in self.rows) - first + 1
        width = max(p.last for p in self.columns) + 1
        edges = above or before or first + steps > image.height or width > image.width
        batch = elements(self.stage.extents[:1], unknown=1)
        (kh, kw) = conv.kernel
        work = batch * image.height * image.width * image.channels * kh * kw * conv.out_channels
        threads = work // self.machine.lanes > SERIAL_WORK
        share = max(1, -(-steps // self.machine.threads)) if batch < self.machine.threads else steps
        while edges and share > 4 and share * width * image.channels * 4 > CACHE_BYTES:
            share = -(-share // 2)
        bands = -(-steps // share)

        def task(at: list[Expr]) -> tirx.Stmt:
            top = at[1] * share + first
            count: Expr = index(share)
            if steps % share:
                count = tirx.Min(count, index(steps) - at[1] * share)
            if not edges:
                return sequence(self._phase(at[0], top, count, p, q, None, 0, 0) for p, q in self._pairs())
            window = FlatBuffer("window", [share + above, width + before, image.channels])
            corner = (at[0], top - above, index(-before))
            fill = image.copy(self.machine, window, corner, count + above, width + before)
            body = [self._phase(at[0], top, count, p, q, window, above, before) for p, q in self._pairs()]
            return with_buffers([window.buffer], sequence([fill, *body]))

        return parallel([self.stage.extents[0], index(bands)], task, threads)

    def _pairs(self) -> Iterator[tuple[_Phase, _Phase]]:
        return ((p, q) for p in self.rows for q in self.columns)

    def _phase(
        self,
        batch: Expr,
        top: Expr,
        count: Expr,
        p: _Phase,
        q: _Phase,
        window: FlatBuffer | None,
        above: int,
        before: int,
    ) -> tirx.Stmt:
        """All results of one pair of residues in rows [top, top + count) of t."""
        conv, width = self.image.conv, q.last - q.first + 1
        lanes = constant(self.weight.shape[-1]) or 1
        height = choose_tile(self.machine, width, conv.out_channels).rows
        whole, tail = divmod(conv.out_channels, lanes)

        def block(t: Expr, x: Expr, many: int, chunk: Expr, columns: int) -> tirx.Stmt:
            def data(r: int, k: list[Expr]) -> Expr:
                if window is not None:
                    return window.load([t - k[0] + above, x + q.first + r - k[1] + before, k[2]])
                return tirx.BufferLoad(self.image.buffer, [batch, top + t - k[0], x + q.first + r - k[1], k[2]])

            def weights(k: list[Expr], offset: int, size: int) -> Expr:
                y, z = k[0] * conv.strides[0] + p.residue, k[1] * conv.strides[1] + q.residue
                return tirx.BufferLoad(self.weight, [chunk, y, z, k[2], ramp(offset, size)])

            def store(r: Expr, c: Expr, value: Expr) -> tirx.Stmt:
                y = (top + t) * conv.strides[0] + p.offset
                z = (x + q.first + r) * conv.strides[1] + q.offset
                return self.epilogue.store([batch, y, z, chunk * lanes + c], value)

            reduce = [index(p.taps), index(q.taps), index(self.image.channels)]
            long = self.epilogue.long
            return MicroKernel(self.machine, many, columns, reduce, data, weights, store, long).statement()

        def row(t: Expr, chunk: Expr, columns: int) -> tirx.Stmt:
            tiles, rest = divmod(width, height)
            body = sequence(
                [
                    loop(tiles, lambda x: block(t, x * height, height, chunk, columns), "tile") if tiles else None,
                    block(t, index(tiles * height), rest, chunk, columns) if rest else None,
                ]
            )
            inside = tirx.all(top + t >= p.first, top + t <= p.last)
            same = p.first == min(r.first for r in self.rows) and p.last == max(r.last for r in self.rows)
            return body if same else when(inside, body)

        def chunk(at: Expr, columns: int) -> tirx.Stmt:
            return loop(count, lambda t: row(t, at, columns), "row")

        return sequence(
            [
                loop(whole, lambda c: chunk(c, lanes), "chunk") if whole else None,
                chunk(index(whole), tail) if tail else None,
            ]
        )
