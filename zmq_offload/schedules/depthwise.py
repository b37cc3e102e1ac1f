"""The kernel of convolutions with one filter a channel."""

from __future__ import annotations

from tvm import tirx
from tvm.ir import Expr

from zmq_offload.schedules.emit import (
    FlatBuffer,
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
from zmq_offload.schedules.images import image_of, result_size
from zmq_offload.schedules.machine import L1_BYTES, Machine
from zmq_offload.schedules.microkernel import MicroKernel
from zmq_offload.schedules.nests import SERIAL_WORK
from zmq_offload.schedules.stages import Program, Stage


def depthwise(machine: Machine, program: Program, stage: Stage, epilogue: Epilogue) -> tirx.Stmt:
    """One filter a channel: vectors of channels, a few neighbouring results at once so that they share loads."""
    image, weight = image_of(program, stage)
    conv = image.conv
    height, width, channels = result_size(stage)
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
            copy = FlatBuffer("window", [copy_height, copy_width, size])

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

            return MicroKernel(
                machine,
                many,
                size,
                [index(kh), index(kw)],
                data,
                lambda k, _, w: tirx.BufferLoad(weight, [k[0], k[1], ramp(first, w)]),
                lambda r, c, value: epilogue.store(image.at(batch_, top + y, x + r, first + c), value),
                rolled_store=epilogue.long,
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
