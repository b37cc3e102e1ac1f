"""Copies of an image's windows for integer convolutions: with the fill value around, as the instructions read them."""

from __future__ import annotations

from dataclasses import dataclass, field

from tvm import tirx
from tvm.ir import Expr, Var

from zmq_offload.schedules.emit import as_index, index, lanes, loop, ramp, sequence
from zmq_offload.schedules.images import Image, opaque
from zmq_offload.schedules.integers.dot_product import DotProduct
from zmq_offload.schedules.integers.kernel import copy_run, operand_buffer, wide_vectors
from zmq_offload.schedules.machine import Machine


@dataclass(frozen=True, eq=False)
class Window:
    """`height` rows of `width` columns, with all channels; columns start at the left edge of the padded image."""

    machine: Machine
    dot: DotProduct
    image: Image
    height: Expr | int
    width: Expr | int
    buffer: Var = field(init=False)

    def __post_init__(self) -> None:
        if not isinstance(self.width, int):
            object.__setattr__(self, "width", opaque(self.width))
        size = as_index(self.height) * self.width * self.image.channels
        object.__setattr__(self, "buffer", operand_buffer("window", self.dot, size))

    def position(self, row: Expr, column: Expr, channel: Expr) -> Expr:
        """Return the index of an element."""
        return (row * self.width + column) * self.image.channels + channel

    def fill(self, batch: Expr, top: Expr, rows: Expr) -> tirx.Stmt:
        """Copy `rows` rows of the image from row `top` on; rows and columns outside get the fill value."""
        image, left = self.image, self.image.conv.padding[1]
        if not isinstance(self.width, int) or not isinstance(image.width, int):
            return loop(rows, lambda y: self._pixels(batch, top + y, y), "y")
        inside = max(0, min(self.width - left, image.width))
        width, right = self.width, self.width - left - inside

        def row(y: Expr) -> tirx.Stmt:
            copied = sequence(
                [
                    self._constant(y, 0, min(left, width)),
                    self._run(batch, top + y, y, inside) if inside else None,
                    self._constant(y, left + inside, right) if right > 0 else None,
                ]
            )
            if not any(image.conv.padding):
                return copied
            outside = self._constant(y, 0, width)
            return tirx.IfThenElse(tirx.all(top + y >= 0, top + y < image.height), copied, outside)

        return loop(rows, row, "y")

    def _pixels(self, batch: Expr, row: Expr, y: Expr) -> tirx.Stmt:
        """Copy a row pixel by pixel, for a width that is known at run time only."""
        image, channels = self.image, self.image.channels

        def outside(x: Expr) -> tirx.Stmt:
            return self._fill_run(self.position(y, x, index(0)), channels)

        def pixel(x: Expr) -> tirx.Stmt:
            column = x - image.conv.padding[1]

            def load(i: Expr) -> Expr:
                if image.conv.channels_first:
                    return tirx.BufferLoad(image.buffer, [batch, i, row, column])
                return tirx.BufferLoad(image.buffer, image.at(batch, row, column, i))

            start = self.position(y, x, index(0))
            copied = copy_run(self.machine, self.dot, channels, load, self.buffer, start)
            if not any(image.conv.padding):
                return copied
            return tirx.IfThenElse(tirx.all(column >= 0, column < image.width), copied, outside(x))

        copied = loop(self.width, pixel, "x")
        if not any(image.conv.padding):
            return copied
        filled = loop(self.width, outside, "x")
        return tirx.IfThenElse(tirx.all(row >= 0, row < image.height), copied, filled)

    def _constant(self, y: Expr, column: int, count: int) -> tirx.Stmt:
        """Columns with the fill value."""
        return self._fill_run(self.position(y, index(column), index(0)), count * self.image.channels)

    def _fill_run(self, start: Expr, count: int) -> tirx.Stmt:
        value = tirx.const(self.image.conv.fill + self.dot.shift, self.dot.operand)

        def run(first: Expr, width: int) -> tirx.Stmt:
            return lanes(width, lambda i: tirx.BufferStore(self.buffer, value, [start + first + i]))

        return wide_vectors(self.machine, self.dot, count, run)

    def _run(self, batch: Expr, source: Expr, y: Expr, count: int) -> tirx.Stmt:
        """Columns inside the image: neighbors in memory, unless the channels are the image's first axis."""
        image, channels = self.image, self.image.channels
        start = self.position(y, as_index(image.conv.padding[1]), index(0))
        if not image.conv.channels_first:

            def load(i: Expr) -> Expr:
                return tirx.BufferLoad(image.buffer, image.at(batch, source, index(0), i))

            return copy_run(self.machine, self.dot, count * channels, load, self.buffer, start)

        def planes(first: Expr, width: int) -> tirx.Stmt:
            """One vector of each channel, interleaved."""
            parts = []
            for c in range(channels):
                value = tirx.BufferLoad(image.buffer, [batch, index(c), source, ramp(first, width)])
                parts.append(self.dot.convert(value, width))
            at = start + first * channels
            if width == 1:
                return sequence(tirx.BufferStore(self.buffer, part, [at + c]) for c, part in enumerate(parts))
            order = [index(c * width + i) for i in range(width) for c in range(channels)]
            return tirx.BufferStore(self.buffer, tirx.Shuffle(parts, order), [ramp(at, width * channels)])

        return wide_vectors(self.machine, self.dot, count, planes)
