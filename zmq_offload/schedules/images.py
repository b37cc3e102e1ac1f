"""Shared by the rules for convolutions: the image they read, padded copies of its windows, the division into tasks."""

from __future__ import annotations

from dataclasses import dataclass

from tvm import tirx
from tvm.ir import Expr, Var

from zmq_offload.schedules.emit import (
    FlatBuffer,
    index,
    lanes,
    loop,
    vectors,
)
from zmq_offload.schedules.machine import CACHE_BYTES, Machine
from zmq_offload.schedules.operators import Conv
from zmq_offload.schedules.rewrite import Unsupported, constant, loads
from zmq_offload.schedules.stages import Program, Stage


@dataclass(frozen=True, eq=False)
class Image:
    """The input of a convolution: its buffer, its size, and the convolution's geometry.

    Height and width may be symbolic: then they are expressions.
    """

    buffer: Var
    conv: Conv
    height: Expr | int
    width: Expr | int
    channels: int
    planes: int = 1  # of a volume
    deep: int = 1  # planes of the result; a volume counts its batch and these as one axis, the batch of its planes

    @property
    def padded(self) -> bool:
        """Whether tasks copy their window before use: it reaches over the edge, or its layout has to change."""
        return any(self.conv.padding) or self.conv.channels_first

    def window(self, size: tuple[int, Expr | int]) -> tuple[int, Expr | int]:
        """Return the rows and columns of the input that a block of results reads."""
        (kh, kw), (sh, sw), (dh, dw) = self.conv.kernel, self.conv.strides, self.conv.dilation
        return (size[0] - 1) * sh + (kh - 1) * dh + 1, (size[1] - 1) * sw + (kw - 1) * dw + 1

    def copy(
        self,
        machine: Machine,
        target: FlatBuffer,
        at: tuple[Expr, Expr, Expr],
        rows: Expr | int,
        columns: Expr | int,
        channel: Expr | int = 0,
    ) -> tirx.Stmt:
        """Copy the window at corner `at` into `target`, with zeros beyond the edges.

        The target is (rows, columns, channels), with the taps of the depth before, for a volume.
        """
        if self.conv.depth is None:
            return self._copy_plane(machine, target, at, rows, columns, channel, [])
        first, count = self.taps(at[0])
        return loop(
            count, lambda t: self._copy_plane(machine, target, at, rows, columns, channel, [t, first + t]), "plane"
        )

    def _copy_plane(
        self,
        machine: Machine,
        target: FlatBuffer,
        at: tuple[Expr, Expr, Expr],
        rows: Expr | int,
        columns: Expr | int,
        channel: Expr | int,
        tap: list[Expr],
    ) -> tirx.Stmt:
        """Copy one plane; `tap` is its place in the target and its tap, for a volume."""
        batch, top, left = at
        channels = constant(target.extents[-1]) or 1
        place = tap[:1]

        def pixel(y: Expr, x: Expr) -> tirx.Stmt:
            def fill(inside: bool) -> tirx.Stmt:
                def run(first: Expr, width: int) -> tirx.Stmt:
                    def lane(i: Expr) -> tirx.Stmt:
                        value = self._load([batch, *tap[1:]], top + y, left + x, channel + first + i)
                        return target.store([*place, y, x, first + i], value if inside else _ZERO)

                    return lanes(width, lane)

                return vectors(index(0), channels, machine, run)

            return tirx.IfThenElse(tirx.all(left + x >= 0, left + x < self.width), fill(True), fill(False))

        def zeros(y: Expr) -> tirx.Stmt:
            def run(x: Expr) -> tirx.Stmt:
                return vectors(
                    index(0),
                    channels,
                    machine,
                    lambda c, w: lanes(w, lambda i: target.store([*place, y, x, c + i], _ZERO)),
                )

            return loop(columns, run, "x")

        def row(y: Expr) -> tirx.Stmt:
            copied = loop(columns, lambda x: pixel(y, x), "x")
            return tirx.IfThenElse(tirx.all(top + y >= 0, top + y < self.height), copied, zeros(y))

        return loop(rows, row, "y")

    def _load(self, plane: list[Expr], y: Expr, x: Expr, channel: Expr) -> Expr:
        if self.conv.channels_first:
            return tirx.BufferLoad(self.buffer, [plane[0], channel, y, x])
        return tirx.BufferLoad(self.buffer, self.source(plane, y, x, channel))

    def at(self, batch: Expr, y: Expr, x: Expr, channel: Expr) -> list[Expr]:
        """Return the indices of an element of the result, or of an image; one-dimensional images have no y."""
        if self.conv.depth is not None:
            return [tirx.floordiv(batch, self.deep), tirx.floormod(batch, self.deep), y, x, channel]
        if len(self.buffer.shape) == 3:
            return [batch, x, channel]
        return [batch, x, y, channel] if self.conv.upright else [batch, y, x, channel]

    def source(self, plane: list[Expr], y: Expr, x: Expr, channel: Expr) -> list[Expr]:
        """Return the indices of an element of the input; `plane` is the batch and, for a volume, its tap."""
        depth = self.conv.depth
        if depth is None:
            return self.at(plane[0], y, x, channel)
        batch, tap = plane
        position = tirx.floormod(batch, self.deep) * depth.stride + tap * depth.dilation - depth.front
        return [tirx.floordiv(batch, self.deep), position, y, x, channel]

    def taps(self, batch: Expr) -> tuple[Expr, Expr]:
        """Return the first tap of the depth that reaches the volume, and how many do; 0 and 1 without a depth."""
        depth = self.conv.depth
        if depth is None:
            return index(0), index(1)
        if not depth.front and not depth.back:
            return index(0), index(depth.kernel)
        position = tirx.floormod(batch, self.deep) * depth.stride - depth.front
        return reaching(depth.kernel, depth.dilation, self.planes, position, position)


def reaching(kernel: int, dilation: int, size: int, first: Expr, last: Expr) -> tuple[Expr, Expr]:
    """Return the first tap that reaches an image of `size`, and how many do, for windows that start in [first, last].

    Taps between the two may read padding only.
    """
    start = tirx.Max(tirx.floordiv((dilation - 1) - last, dilation), index(0))
    stop = tirx.Min(tirx.floordiv((size + dilation - 1) - first, dilation), index(kernel))
    return start, tirx.Max(stop - start, index(0))


_ZERO = tirx.FloatImm("float32", 0.0)


def image_of(program: Program, stage: Stage) -> tuple[Image, Var]:
    """Return the image and the weights that a convolution reads, looking through the stage that pads."""
    conv = Conv.of(stage.annotations)
    data, weight = (e.source for e in loads(stage.value))
    pad = program.producer(data)
    if pad is not None and pad.kernel == "pad":
        data = loads(pad.value)[0].source
    if conv.depth is not None and any(constant(s) is None for s in (*data.shape[1:], *stage.extents[1:])):
        raise Unsupported("a symbolic size of a volume")
    height, width, channels = image_size(data, conv)
    deep = (data.shape[1], stage.extents[1]) if conv.depth is not None else (index(1), index(1))
    planes, results = (constant(s) or 1 for s in deep)
    return Image(data, conv, height, width, channels, planes, results), weight


def image_size(data: Var, conv: Conv) -> tuple[Expr | int, Expr | int, int]:
    """Return height, width and channels of the input."""
    sizes = [*([1] if len(data.shape) == 3 else []), *(number_or_expression(s) for s in data.shape[1:][-3:])]
    height, width, channels = (sizes[1], sizes[2], sizes[0]) if conv.channels_first else tuple(sizes)
    if not isinstance(channels, int):
        raise Unsupported("a symbolic number of channels")
    return (width, height, channels) if conv.upright else (height, width, channels)


def number_or_expression(extent: Expr) -> Expr | int:
    """Return a literal as a number, anything else as `one_number`."""
    value = constant(extent)
    return one_number(extent) if value is None else value


def one_number(extent: Expr) -> Expr:
    """Return a symbolic extent so that TVM's simplifier does not look into it.

    It needs minutes for tiles of an extent such as `W * 4` or `W // 4 * 2`.
    """
    if isinstance(extent, tirx.IntImm | Var):
        return extent
    return opaque(extent)


def opaque(value: Expr) -> Expr:
    """Return a number so that TVM's simplifier takes it as one, and does not look for what it is made of."""
    return tirx.call_intrin(str(value.ty), "tirx.reinterpret", value)


def result_size(stage: Stage) -> tuple[int, int, int]:
    """Return height, width and channels of the result. Raises Unsupported if one of them is symbolic."""
    sizes = [constant(e) for e in stage.extents[1:]]
    known = [s for s in sizes if s is not None][-3:]
    if None in sizes:
        raise Unsupported("a symbolic image size")
    if len(known) == 2:
        return 1, known[0], known[1]
    height, width, channels = known
    return (width, height, channels) if Conv.of(stage.annotations).upright else (height, width, channels)


def symbolic_size(stage: Stage) -> tuple[Expr, Expr] | None:
    """Return height and width of the result if one of them is symbolic."""
    sizes = [*([index(1)] if len(stage.extents) == 3 else []), *stage.extents[1:-1]]
    if all(constant(s) is not None for s in sizes):
        return None
    sizes = [one_number(s) for s in sizes]
    return (sizes[1], sizes[0]) if Conv.of(stage.annotations).upright else (sizes[0], sizes[1])


USUAL_WIDTH = 128
"""The width of an image that is known at run time only, where sizes of tasks and panels are estimated."""
_MOST_ROWS = 16


def band_rows(image: Image, pixel_bytes: int, cache: int) -> int:
    """Return the rows of a task of a symbolic image, whose window fits `cache` if the image is not unusually wide.

    The number does not depend on the size: TVM's simplifier needs minutes for extents that do.
    """
    _, columns = image.window((1, USUAL_WIDTH))
    return max(4, min(_MOST_ROWS, cache // (columns * pixel_bytes * image.conv.strides[0])))


def batch_of(image: Image, stage: Stage) -> Expr:
    """Return the extent of the batch of the result; of its planes, for a volume."""
    return stage.extents[0] if image.conv.depth is None else stage.extents[0] * stage.extents[1]


@dataclass(frozen=True)
class Partition:
    """How a result is divided into tasks: rows of a task, parts of a row, parts of the channels."""

    rows: int
    across: int
    channels: int


def partition(machine: Machine, batch: int, height: int, tiles: int, chunks: int, row_bytes: int) -> Partition:
    """Divide a result into equal tasks: bands of rows, and with too few rows also parts of a row or of the channels."""
    threads = machine.threads
    options = []
    for across, channels in {(1, 1), (min(threads, max(tiles, 1)), 1), (1, min(threads, max(chunks, 1)))}:
        spread = batch * across * channels
        bands = max(1, -(-threads // spread))
        rows = max(1, -(-height // bands))
        # Small bands copy overlapping rows more often; large ones do not fit the cache.
        while rows > 4 and rows * row_bytes > CACHE_BYTES:
            rows = -(-rows // 2)
        tasks = spread * -(-height // rows)
        rounds = -(-tasks // threads)
        ideal = batch * height / threads
        options.append(
            (rounds * rows / (across * channels) / ideal, across * channels, Partition(rows, across, channels))
        )
    return min(options, key=lambda o: (round(o[0], 2), o[1]))[2]
