"""Predicts what a split costs, from measured times, the bytes that cross, and the network. Pure.

A model has *points* where it can be cut, each at one or several tensors. The first is its inputs, the last its outputs,
and those between are in the order of the work before them. A split runs on the device up to one point, on the server
from there to another point, and on the device again from there to the end. All times are in seconds, sizes in bytes,
bandwidths in bits per second.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import Literal, NamedTuple, TypeAlias, get_args

import numpy as np

from zmq_offload.protocol import messages
from zmq_offload.protocol.payload import encode_tensors
from zmq_offload.protocol.tensors import TensorSpec

Wire: TypeAlias = Literal["float32", "float16", "int8"]
WIRES: tuple[Wire, ...] = get_args(Wire)

_FRAME = 255
"""Largest frame, in bytes, whose length ZMTP writes in one byte. It takes eight bytes above."""


@dataclass(frozen=True)
class CutPoint:
    """The tensors that cross at a point where a model can be cut."""

    tensors: tuple[TensorSpec, ...]

    @property
    def name(self) -> str:
        return ", ".join(t.name for t in self.tensors)

    def sent(self, wire: Wire) -> tuple[TensorSpec, ...]:
        """The tensors that are sent. Only float32 is encoded. An int8 tensor comes with its scale, two numbers."""
        return tuple(part for tensor in self.tensors for part in _sent(tensor, wire))

    def has_integers(self) -> bool:
        return any(t.dtype.kind in "iu" for t in self.tensors)

    def floats(self) -> int:
        """The bytes of what encodings encode."""
        return sum(t.nbytes for t in self.tensors if t.datatype == "FP32")


Pair: TypeAlias = tuple[int, int]
"""Two points: where the server begins, and where it ends."""


class Crossing(NamedTuple):
    """What crosses if the server runs from one point to another.

    What crosses at a point, and the server neither reads nor computes, stays on the device: the shortcuts of an
    encoder-decoder, around the part that the server computes.
    """

    sent: CutPoint
    received: CutPoint


Crossings: TypeAlias = Mapping[Pair, Crossing]
"""What crosses, for each pair of points that a split can have. Of parallel branches not every pair has a part between
them."""


def in_a_row(points: Sequence[CutPoint]) -> dict[Pair, Crossing]:
    """The crossings of points that follow each other, with all tensors of each."""
    many = len(points)
    return {(a, b): Crossing(points[a], points[b]) for a in range(many) for b in range(a + 1, many)}


def _sent(tensor: TensorSpec, wire: Wire) -> Iterator[TensorSpec]:
    if tensor.datatype != "FP32" or wire == "float32":
        yield tensor
    elif wire == "float16":
        yield TensorSpec(tensor.name, "FP16", tensor.shape)
    elif tensor.nbytes <= 8:  # the scale alone is as large
        yield tensor
    else:
        yield TensorSpec(tensor.name, "INT8", tensor.shape)
        yield TensorSpec(f"{tensor.name}.scale", "FP32", (2,))


def message_bytes(tensors: Sequence[TensorSpec], answer: bool) -> int:
    """The size of a request or reply on the wire: envelope, header, tensors, and ZMTP's framing of each."""
    # Only the lengths count, and the memory is never touched.
    frames = encode_tensors([(t.name, np.empty(t.shape, t.dtype)) for t in tensors])
    session = bytes(messages.SESSION_BYTES)
    many = 2**31  # a number of usual length
    envelope = (
        messages.encode(messages.Result(session, many, 1, many, many, many))
        if answer
        else messages.encode(messages.Request(session, many, "model", 0, many, 0))
    )
    return sum(len(frame) + (2 if len(frame) <= _FRAME else 9) for frame in (envelope, *frames))


@dataclass(frozen=True)
class Times:
    """The times of one machine.

    `before[i]` is from the inputs to point i, `after[i]` from point i to the outputs, so that `before[-1]` and
    `after[0]` are the whole model. `encode[wire][i]` and `decode[wire][i]` are of the tensors at point i.
    """

    before: tuple[float, ...]
    after: tuple[float, ...]
    encode: Mapping[Wire, tuple[float, ...]]
    decode: Mapping[Wire, tuple[float, ...]]

    @property
    def whole(self) -> float:
        return self.after[0]

    def between(self, start: int, end: int) -> float:
        """The time from one point to another.

        Only the parts before and after each point are measured. If neither point is an end of the model, there are two
        estimates, each a difference of measured times. Their mean is returned.
        """
        if end == len(self.before) - 1:
            return self.after[start]
        if start == 0:
            return self.before[end]
        differences = self.after[start] - self.after[end], self.before[end] - self.before[start]
        return max(0.0, sum(differences) / 2)

    def slowed(self, factor: float) -> Times:
        def all_of(times: Sequence[float]) -> tuple[float, ...]:
            return tuple(factor * t for t in times)

        encode = {wire: all_of(times) for wire, times in self.encode.items()}
        decode = {wire: all_of(times) for wire, times in self.decode.items()}
        return Times(all_of(self.before), all_of(self.after), encode, decode)


class Moment(NamedTuple):
    """A part of a link's time, as a share of all of it, with the bandwidths up and down there, 0 if nothing passes, and
    the round trip."""

    share: float
    up: float
    down: float
    rtt: float = 0.0


@dataclass(frozen=True)
class Network:
    """The network between device and server. Each direction has half of the round trip.

    `down` is the bandwidth back to the device; 0 if it is that up. `moments` are those of a link that changes, whose
    bandwidths are then those that make latencies right on average.
    """

    bandwidth: float
    rtt: float
    down: float = 0.0
    moments: tuple[Moment, ...] = ()

    def up_time(self, nbytes: int) -> float:
        """How long a request occupies the way to the server."""
        return nbytes * 8 / self.bandwidth

    def down_time(self, nbytes: int) -> float:
        """How long a reply occupies the way back."""
        return nbytes * 8 / (self.down or self.bandwidth)

    def interval(self, computing: float, sent: int, received: int) -> float:
        """The time between two results when items are pipelined and a stage takes `computing`.

        A round trip delays items but occupies nothing. Of a link that changes, it is the time for each of many items.
        """
        if not self.moments:
            return max(computing, self.up_time(sent), self.down_time(received))
        rate = sum(
            share / max(computing, sent * 8 / up, received * 8 / down, 1e-9)
            for share, up, down, _ in self.moments
            if up and down
        )
        return 1 / rate


@dataclass(frozen=True)
class Handling:
    """What handling messages takes: of each request, and of each byte of request and reply."""

    request: float = 0.0
    byte: float = 0.0

    def of(self, nbytes: int) -> float:
        return self.request + self.byte * nbytes


@dataclass(frozen=True)
class Overhead(Handling):
    """What client, broker and worker add to the latency of a request; and what client and worker add to the time that
    an item occupies them, when items are pipelined."""

    client: Handling = Handling()
    worker: Handling = Handling()


@dataclass(frozen=True, order=True)
class Split:
    """The server runs from point `start` to point `end`, and `wire` encodes what crosses.

    Both are the last point if the device runs everything.
    """

    start: int
    end: int
    wire: Wire = "float32"


@dataclass(frozen=True)
class Stages:
    """The computing times of a split: the device before the request, the server, the device after the reply.

    `turn` is how long an item occupies the server, with its messages, when another one follows; 0 if it is not known.
    """

    device: float
    server: float
    rest: float = 0.0
    turn: float = 0.0


@dataclass(frozen=True)
class Prediction:
    """What a split costs.

    `device` is the part before the request, and `encode` what encoding adds to it. `server` decodes, computes and
    encodes. `rest` is the part after the reply, with decoding. `interval` is the time between two results when items
    are pipelined: that of the slowest stage, where both parts of the device are one, because it has one processor.
    `measured` says that the stages were compiled and run, not estimated from other times.
    """

    split: Split
    local: bool
    device: float
    encode: float = 0.0
    uplink: float = 0.0
    server: float = 0.0
    downlink: float = 0.0
    rest: float = 0.0
    overhead: float = 0.0
    sent: int = 0
    received: int = 0
    interval: float = 0.0
    measured: bool = False

    @property
    def latency(self) -> float:
        """From an item to its result, when it is the only one."""
        return self.device + self.encode + self.uplink + self.server + self.downlink + self.rest + self.overhead

    @property
    def device_time(self) -> float:
        """How long the device computes for an item."""
        return self.device + self.encode + self.rest


Objective: TypeAlias = Literal["latency", "throughput", "device-time"]
OBJECTIVES: dict[Objective, Callable[[Prediction], float]] = {
    "latency": lambda p: p.latency,
    "throughput": lambda p: p.interval,
    "device-time": lambda p: p.device_time,
}
"""The figure to minimize, in seconds, by the name of the objective."""


@dataclass
class Costs:
    """Everything that predictions need. `measured` has the stages of splits that were compiled and run."""

    points: tuple[CutPoint, ...]
    crossings: Crossings
    device: Times
    server: Times
    network: Network
    overhead: Overhead = Overhead()
    measured: dict[Split, Stages] = field(default_factory=dict)

    @property
    def local(self) -> Split:
        """The split that runs everything on the device."""
        last = len(self.points) - 1
        return Split(last, last)

    def named(self, split: Split) -> tuple[str, str]:
        """The tensors at which a split is cut, and those until which the server computes: "" for the outputs."""
        crossing = self.crossings[split.start, split.end]
        return crossing.sent.name, "" if split.end == self.local.end else crossing.received.name

    def predict(self, split: Split) -> Prediction:
        if split.start == split.end:
            return Prediction(split, True, self.device.whole, interval=self.device.whole, measured=True)
        crossing = self.crossings[split.start, split.end]
        sent, received = _size(crossing.sent, split.wire, False), _size(crossing.received, split.wire, True)
        known = self.measured.get(split)
        stages = self._estimated(split, crossing) if known is None else (known.device, 0.0, known.server, known.rest)
        device, encode, server, rest = stages
        network, overhead = self.network, self.overhead
        device_turn = device + encode + rest + overhead.client.of(sent + received)
        server_turn = server + overhead.worker.of(sent + received)
        if known is not None and known.turn:
            server_turn = known.turn
        return Prediction(
            split,
            False,
            device,
            encode,
            server=server,
            rest=rest,
            uplink=network.rtt / 2 + network.up_time(sent),
            downlink=network.rtt / 2 + network.down_time(received),
            overhead=overhead.of(sent + received),
            sent=sent,
            received=received,
            interval=network.interval(max(device_turn, server_turn), sent, received),
            measured=known is not None,
        )

    def over(self, network: Network) -> Costs:
        """The same over another network; what is measured of either is measured of both."""
        return replace(self, network=network)

    def _estimated(self, split: Split, crossing: Crossing) -> tuple[float, float, float, float]:
        """The device, encoding there, the server, and the device again."""
        start, end, wire = split.start, split.end, split.wire
        device, server = self.device, self.server
        there = _part(crossing.sent, self.points[start])
        back = _part(crossing.received, self.points[end])
        coding = server.decode[wire][start] * there + server.encode[wire][end] * back
        return (
            device.before[start],
            device.encode[wire][start] * there,
            server.between(start, end) + coding,
            device.decode[wire][end] * back + device.after[end],
        )


@lru_cache(maxsize=1 << 16)
def _size(point: CutPoint, wire: Wire, answer: bool) -> int:
    return message_bytes(point.sent(wire), answer)


def _part(some: CutPoint, point: CutPoint) -> float:
    """How much of a point's tensors these are, for encodings: their time is that of the bytes."""
    return some.floats() / max(1, point.floats())


def ranked(costs: Costs, splits: Sequence[Split], objective: Objective) -> list[Prediction]:
    """The predictions, best first; those equal by the objective are ordered by latency."""
    least = OBJECTIVES[objective]
    return sorted(map(costs.predict, splits), key=lambda p: (least(p), p.latency, p.split))
