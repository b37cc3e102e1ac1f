"""The rule for depthwise convolutions of 8-bit integers: one filter for each channel."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

from tvm import tirx
from tvm.ir import Expr, Var

from zmq_offload.schedules.emit import (
    as_index,
    elements,
    index,
    local,
    loop,
    parallel,
    ramp,
    sequence,
    vectors,
    when,
    with_buffers,
)
from zmq_offload.schedules.epilogue import Epilogue
from zmq_offload.schedules.images import Image, band_rows, image_of, opaque, partition, result_size, symbolic_size
from zmq_offload.schedules.integers.dot_product import DotProduct, lane_product
from zmq_offload.schedules.integers.kernel import IntegerKernel, Weights
from zmq_offload.schedules.integers.operators import Phases
from zmq_offload.schedules.integers.windows import Window
from zmq_offload.schedules.machine import CACHE_BYTES, Machine
from zmq_offload.schedules.nests import SERIAL_WORK
from zmq_offload.schedules.rewrite import constant
from zmq_offload.schedules.stages import Program, Stage
from zmq_offload.schedules.tails import rows_after_tiles

_SYMBOLIC_TILE = 4
"""Results of a tile at most where the width is known at run time only: each size has code of its own."""


def depthwise(machine: Machine, program: Program, stage: Stage, epilogue: Epilogue) -> tirx.Stmt:
    """Schedule a depthwise convolution over (n, h, w, c) with weights from `integer_layout.depthwise`.

    Each lane has a channel, and takes a group of neighboring rows of the input at once. Threads share the batch and
    bands of rows. A band is computed in tiles of a few neighboring results, in as many rows as share groups. With a
    symbolic image size, the numbers of bands and of tiles are computed at run time.
    """
    image, weight = image_of(program, stage)
    dot = lane_product(machine, str(image.buffer.dtype))
    phases = Phases.of(image.conv, dot)
    channels = constant(stage.extents[-1]) or 1
    symbolic = symbolic_size(stage)
    height, width = result_size(stage)[:2] if symbolic is None else symbolic
    return _Depthwise(
        machine, stage, epilogue, image, Weights(weight, dot), dot, phases, height, width, channels
    ).statement()


@dataclass(frozen=True, eq=False)
class _Depthwise:
    machine: Machine
    stage: Stage
    epilogue: Epilogue
    image: Image
    weights: Weights
    dot: DotProduct
    phases: Phases
    height: Expr | int
    width: Expr | int
    channels: int

    def statement(self) -> tirx.Stmt:
        band, threads = self._partition()
        bands = tirx.floordiv(as_index(self.height) + (band - 1), index(band))

        def task(at: list[Expr]) -> tirx.Stmt:
            top = at[1] * band if isinstance(self.height, int) else opaque(at[1] * band)
            return self._band(at[0], top, band, tirx.EQ(at[1], bands - 1))

        return parallel([self.stage.extents[0], bands], task, threads)

    def _partition(self) -> tuple[int, bool]:
        """The rows of a band, and whether threads share the bands."""
        machine, image, rows = self.machine, self.image, self.phases.count
        (kh, kw), stride = image.conv.kernel, image.conv.strides[0]
        size = self.dot.operand_bytes
        if not isinstance(self.height, int) or not isinstance(self.width, int):
            return band_rows(image, self.channels * size, CACHE_BYTES), True
        batch = elements(self.stage.extents[:1], unknown=1)
        work = batch * self.height * self.width * self.channels * kh * kw // (machine.lanes * self.dot.group)
        threads = work > SERIAL_WORK
        _, columns = image.window((1, self.width))
        row_bytes = columns * self.channels * size * stride * rows if image.padded else 0
        shared = machine if threads else replace(machine, threads=1)
        return partition(shared, batch, -(-self.height // rows), 1, 1, row_bytes).rows * rows, threads

    def _band(self, batch: Expr, top: Expr, band: int, last: Expr) -> tirx.Stmt:
        conv, rows = self.image.conv, self.phases.count
        count: Expr = index(band)
        if constant(tirx.floormod(as_index(self.height), index(band))) != 0:
            count = tirx.Min(count, as_index(self.height) - top)
        window = None
        if self.image.padded:
            window = Window(self.machine, self.dot, self.image, *self.image.window((band, self.width)))
        source = _Source(self.image, self.dot, window, batch, top)

        def group(y: Expr, height: int) -> tirx.Stmt:
            return self._rows(source, y, height)

        whole = tirx.floordiv(count, index(rows))
        main = loop(whole, lambda t: group(t * rows, rows), "row")
        if isinstance(self.height, int):
            rest = self.height % rows
            end = when(last, group(whole * rows, rest)) if rest else None
            body = sequence([main if self.height >= rows else None, end])
        else:
            # Rows that share groups would need code for the last ones, too.
            body = loop(count, lambda i: group(opaque(i), 1), "row")
        if window is None:
            return body
        needed = (count - 1) * conv.strides[0] + (conv.kernel[0] - 1) * conv.dilation[0] + 1
        fill = window.fill(batch, top * conv.strides[0] - conv.padding[0], needed)
        return with_buffers([window.buffer], sequence([fill, body]))

    def _rows(self, source: _Source, y: Expr, height: int) -> tirx.Stmt:
        """`height` rows of results from row `y` of the band on."""
        most = max(1, self.machine.registers // (2 * self.phases.count))

        def columns(x: Expr, width: int) -> tirx.Stmt:
            def run(first: Expr, size: int) -> tirx.Stmt:
                if size == 2:  # below the narrowest vector
                    return sequence(self._tile(source, y, height, x, width, first + i, 1) for i in range(2))
                return self._tile(source, y, height, x, width, first, size)

            return vectors(index(0), self.channels, self.machine, run)

        if not isinstance(self.width, int):
            most = min(most, _SYMBOLIC_TILE)
            main = loop(tirx.floordiv(self.width, index(most)), lambda t: columns(opaque(t * most), most), "tile")
            return sequence([main, rows_after_tiles(self.width, most, lambda x, size: columns(opaque(x), size))])
        tile = -(-self.width // -(-self.width // most))
        whole, rest = divmod(self.width, tile)
        main = loop(whole, lambda t: columns(t * tile, tile), "tile") if whole else None
        return sequence([main, columns(index(whole * tile), rest) if rest else None])

    def _tile(self, source: _Source, y: Expr, height: int, x: Expr, width: int, first: Expr, size: int) -> tirx.Stmt:
        """`height` x `width` results of `size` channels."""
        conv = self.image.conv

        def store(row: Expr, c: Expr, value: Expr) -> tirx.Stmt:
            line, column = source.top + y + tirx.floordiv(row, width), x + tirx.floormod(row, width)
            return self.epilogue.store(self.image.at(source.batch, line, column, first + c), value)

        def sums(totals: Sequence[Var]) -> tirx.Stmt:
            taps: dict[int, list[tuple[int, int]]] = {}
            for r in range(width):
                for rx in range(conv.kernel[1]):
                    taps.setdefault(r * conv.strides[1] + rx * conv.dilation[1], []).append((r, rx))
            column = x * conv.strides[1]
            return sequence(
                self._column(source, y, height, column + j, first, size, found, width, totals)
                for j, found in sorted(taps.items())
            )

        return _Kernel(
            self.machine,
            height * width,
            size,
            [],
            lambda row, k: index(0),
            lambda k, at, lanes: index(0),
            store,
            self.epilogue.long,
            dot=self.dot,
            start=self.weights.start(index(0), first),
            body=sums,
        ).statement()

    def _column(
        self,
        source: _Source,
        y: Expr,
        height: int,
        column: Expr,
        first: Expr,
        size: int,
        taps: list[tuple[int, int]],
        width: int,
        totals: Sequence[Var],
    ) -> tirx.Stmt:
        """Add one column of the input: for each of `taps` (r, rx), to result r of each row by filter column rx."""
        dot, conv = self.dot, self.image.conv
        (kernel, kw), stride = conv.kernel, conv.strides[0]
        steps, rows = dot.steps(self.phases.depth), (height - 1) * stride + kernel
        statements, buffers = [], []
        for g in range(steps):
            inputs = range(g * dot.group, min((g + 1) * dot.group, rows))
            if not inputs:
                continue
            values = [source.load(y * stride + i * conv.dilation[0], column, first, size) for i in inputs]
            if size > 1:
                buffers.append(local("column", [size], "int32"))
                statements.append(tirx.BufferStore(buffers[-1], source.joined(values, size), [ramp(0, size)]))
            for q in range(height):
                if not (q * stride < inputs[-1] + 1 and inputs[0] < q * stride + kernel):
                    continue
                for r, rx in taps:
                    total, step = totals[q * width + r], index((q * kw + rx) * steps + g)
                    before = tirx.BufferLoad(total, [ramp(0, size)])
                    if size > 1:
                        left = tirx.BufferLoad(buffers[-1], [ramp(0, size)])
                        kind = left if dot.group == 1 else tirx.reinterpret(f"{dot.operand}x{size * dot.group}", left)
                        after = dot.update(before, kind, self.weights.load(index(0), step, first, size), size)
                    else:
                        after = before
                        for i, value in enumerate(values):
                            weight = tirx.BufferLoad(self.weights.buffer, [index(0), step, first, index(i)])
                            after = after + tirx.Cast("int32", value) * tirx.Cast("int32", weight)
                    statements.append(tirx.BufferStore(total, after, [ramp(0, size)]))
        return with_buffers(buffers, sequence(statements))


@dataclass(frozen=True, eq=False)
class _Source:
    """Where a band reads the input: in a window, or in place."""

    image: Image
    dot: DotProduct
    window: Window | None
    batch: Expr
    top: Expr  # of the band's results

    def load(self, row: Expr, column: Expr, channel: Expr, size: int) -> Expr:
        """Load activations of `size` channels as the instructions read them; `row` counts from the band's first."""
        if self.window is not None:
            return tirx.BufferLoad(self.window.buffer, [ramp(self.window.position(row, column, channel), size)])
        at = self.image.at(self.batch, self.top * self.image.conv.strides[0] + row, column, ramp(channel, size))
        return self.dot.convert(tirx.BufferLoad(self.image.buffer, at), size)

    def joined(self, values: Sequence[Expr], size: int) -> Expr:
        """Return a group of rows: each lane holds one value of each."""
        wide = f"int32x{size}"
        if self.dot.group == 1:
            return tirx.Cast(wide, values[0])
        bits = 32 // self.dot.group
        result = None
        for i, value in enumerate(values):
            part = tirx.Cast(wide, tirx.reinterpret(f"uint{bits}x{size}", value))
            part = tirx.LShift(part, tirx.const(bits * i, wide)) if i else part
            result = part if result is None else tirx.BitwiseOr(result, part)
        assert result is not None
        return result


@dataclass(frozen=True, eq=False)
class _Kernel(IntegerKernel):
    """A tile whose sums `body` emits, for one vector of channels."""

    body: Callable[[Sequence[Var]], tirx.Stmt] = field(kw_only=True)

    def vectors(self) -> list[tuple[int, int]]:
        return [(0, self.columns)]

    def sums(self, totals: Sequence[Var]) -> tirx.Stmt:
        return self.body(totals)
