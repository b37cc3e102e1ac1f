"""What a split would cost: predicted from measured times, the bytes that cross, and the link. Pure.

A model is a line of *points* where it can be cut: the first is its inputs, the last its outputs, those between are
clean cuts in graph order. A split runs on the device up to one point, on the server from there to another, and on the
device again behind that. All times are in seconds, sizes in bytes, bandwidths in bits a second.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, TypeAlias, get_args

import numpy as np

from zmq_offload.protocol import messages
from zmq_offload.protocol.payload import encode_tensors
from zmq_offload.protocol.tensors import TensorSpec

Wire: TypeAlias = Literal["float32", "float16", "int8"]
WIRES: tuple[Wire, ...] = get_args(Wire)

_FRAME = 255
"""Bytes of a frame up to which ZMTP puts its length into one byte; into eight above."""


@dataclass(frozen=True)
class CutPoint:
    """Where a model can be cut: the tensors that cross there."""

    tensors: tuple[TensorSpec, ...]

    @property
    def name(self) -> str:
        return ", ".join(t.name for t in self.tensors)

    def sent(self, wire: Wire) -> tuple[TensorSpec, ...]:
        """What travels. Only float32 is encoded; int8 has one scale a tensor, which two numbers stand for."""
        return tuple(part for tensor in self.tensors for part in _sent(tensor, wire))

    def has_integers(self) -> bool:
        return any(t.dtype.kind in "iu" for t in self.tensors)


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
    """What a request, or its answer, is on the wire: envelope, header, tensors and ZMTP's framing of each."""
    # Memory that is never touched: only the lengths are looked at.
    frames = encode_tensors([(t.name, np.empty(t.shape, t.dtype)) for t in tensors])
    session = bytes(messages.SESSION_BYTES)
    many = 2**31  # numbers of a usual length
    envelope = (
        messages.encode(messages.Result(session, many, 1, many, many, many))
        if answer
        else messages.encode(messages.Request(session, many, "model", 0, many, 0))
    )
    return sum(len(frame) + (2 if len(frame) <= _FRAME else 9) for frame in (envelope, *frames))


@dataclass(frozen=True)
class Times:
    """What one machine needs: `before[i]` from the inputs to point i, `after[i]` from point i to the outputs (so that
    `before[-1]` and `after[0]` are the whole model); `encode[wire][i]` and `decode[wire][i]` of what crosses there."""

    before: tuple[float, ...]
    after: tuple[float, ...]
    encode: Mapping[Wire, tuple[float, ...]]
    decode: Mapping[Wire, tuple[float, ...]]

    @property
    def whole(self) -> float:
        return self.after[0]

    def between(self, start: int, end: int) -> float:
        """From one point to another. Measured are only the parts before and behind each; where neither of the two is
        the model's end, two differences say it, and their mean is taken."""
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


@dataclass(frozen=True)
class Network:
    """Each way has the bandwidth for itself, and takes half of the round trip."""

    bandwidth: float
    rtt: float

    def occupied(self, nbytes: int) -> float:
        """How long a message keeps one way busy: what the next one waits."""
        return nbytes * 8 / self.bandwidth

    def transfer(self, nbytes: int) -> float:
        """From its first byte's sending to its last byte's arrival."""
        return self.rtt / 2 + self.occupied(nbytes)


@dataclass(frozen=True)
class Overhead:
    """What client, broker and worker add to each request whatever it computes, and to each byte that they copy."""

    request: float = 0.0
    byte: float = 0.0

    def of(self, nbytes: int) -> float:
        return self.request + self.byte * nbytes


@dataclass(frozen=True, order=True)
class Split:
    """From point `start` to point `end` the server runs, what crosses is encoded as `wire`; both the last: no split."""

    start: int
    end: int
    wire: Wire = "float32"


@dataclass(frozen=True)
class Stages:
    """The computing of a split, in seconds: the device's before and behind the request, the server's in it."""

    device: float
    server: float
    rest: float = 0.0


@dataclass(frozen=True)
class Prediction:
    """What a split costs. `device` is the part before the request and `encode` what encoding adds to it, `rest` what
    is behind the answer, decoding included; `server` decodes, computes and encodes. `measured`: its stages were built
    and run, not put together from others."""

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
    busy_up: float = 0.0
    busy_down: float = 0.0
    measured: bool = False

    @property
    def latency(self) -> float:
        """From a frame's beginning to its result, when it is the only one."""
        return self.device + self.encode + self.uplink + self.server + self.downlink + self.rest + self.overhead

    @property
    def device_time(self) -> float:
        """What the device computes for a frame."""
        return self.device + self.encode + self.rest

    @property
    def interval(self) -> float:
        """The time between two results when frames follow each other closely: that of the slowest stage. The device's
        parts are one stage, for it has one processor; a round trip delays all frames and holds up none."""
        return max(self.device_time, self.busy_up, self.server, self.busy_down)


Objective: TypeAlias = Literal["latency", "throughput", "device-time"]
OBJECTIVES: dict[Objective, Callable[[Prediction], float]] = {
    "latency": lambda p: p.latency,
    "throughput": lambda p: p.interval,
    "device-time": lambda p: p.device_time,
}
"""What is to be least, in seconds."""


@dataclass
class Costs:
    """Everything that predictions are made of. `measured` has the stages of splits that were built and run."""

    points: tuple[CutPoint, ...]
    device: Times
    server: Times
    link: Network
    overhead: Overhead = Overhead()
    measured: dict[Split, Stages] = field(default_factory=dict)

    @property
    def local(self) -> Split:
        """The split that is none."""
        last = len(self.points) - 1
        return Split(last, last)

    def predict(self, split: Split) -> Prediction:
        if split.start == split.end:
            return Prediction(split, True, self.device.whole, measured=True)
        start, end, wire = split.start, split.end, split.wire
        sent = message_bytes(self.points[start].sent(wire), answer=False)
        received = message_bytes(self.points[end].sent(wire), answer=True)
        known = self.measured.get(split)
        if known is not None:
            computing = {"device": known.device, "server": known.server, "rest": known.rest}
        else:
            server = self.server.decode[wire][start] + self.server.between(start, end) + self.server.encode[wire][end]
            computing = {
                "device": self.device.before[start],
                "encode": self.device.encode[wire][start],
                "server": server,
                "rest": self.device.decode[wire][end] + self.device.after[end],
            }
        return Prediction(
            split,
            False,
            **computing,
            uplink=self.link.transfer(sent),
            downlink=self.link.transfer(received),
            overhead=self.overhead.of(sent + received),
            sent=sent,
            received=received,
            busy_up=self.link.occupied(sent),
            busy_down=self.link.occupied(received),
            measured=known is not None,
        )


def ranked(costs: Costs, splits: Sequence[Split], objective: Objective) -> list[Prediction]:
    """The best first. What is equal by the objective goes by latency."""
    least = OBJECTIVES[objective]
    return sorted(map(costs.predict, splits), key=lambda p: (least(p), p.latency, p.split))
