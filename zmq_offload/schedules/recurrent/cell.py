"""The cells of recurrent networks: what LSTM, GRU and RNN compute of the gates' sums, and their activations.

A cell is emitted for one vector of hidden units. The sums of all its gates are there, so a step has no pass of its own
over the gates.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass

from tvm import tirx
from tvm.ir import Expr, Var

from zmq_offload.schedules.emit import lanes, local
from zmq_offload.schedules.functions.vector_math import vectorizable

Value = Callable[[Expr], Expr]
"""The element of a vector at a lane."""


def _f(value: float) -> Expr:
    return tirx.FloatImm("float32", value)


def _softplus(x: Expr) -> Expr:
    """log(1 + e^x), without overflow."""
    return tirx.Max(x, _f(0.0)) + tirx.log1p(tirx.exp(_f(0.0) - tirx.abs(x)))


ACTIVATIONS: dict[str, Callable[[Expr, Expr, Expr], Expr]] = {
    "Affine": lambda x, alpha, beta: alpha * x + beta,
    "Elu": lambda x, alpha, _: tirx.Select(x >= _f(0.0), x, alpha * (tirx.exp(tirx.Min(x, _f(0.0))) - _f(1.0))),
    "HardSigmoid": lambda x, alpha, beta: tirx.Max(_f(0.0), tirx.Min(_f(1.0), alpha * x + beta)),
    "LeakyRelu": lambda x, alpha, _: tirx.Select(x < _f(0.0), alpha * x, x),
    "Relu": lambda x, *_: tirx.Max(x, _f(0.0)),
    "ScaledTanh": lambda x, alpha, beta: alpha * tirx.tanh(beta * x),
    "Sigmoid": lambda x, *_: tirx.sigmoid(x),
    "Softplus": lambda x, *_: _softplus(x),
    "Softsign": lambda x, *_: tirx.Div(x, _f(1.0) + tirx.abs(x)),
    "Tanh": lambda x, *_: tirx.tanh(x),
    "ThresholdedRelu": lambda x, alpha, _: tirx.Select(x > alpha, x, _f(0.0)),
}
"""ONNX's activation functions of x, alpha and beta."""


@dataclass(frozen=True)
class Activation:
    """An activation function with its constants."""

    name: str
    alpha: float = 0.0
    beta: float = 0.0

    def of(self, x: Expr) -> Expr:
        return ACTIVATIONS[self.name](x, _f(self.alpha), _f(self.beta))


@dataclass(frozen=True)
class Recurrence:
    """The geometry of a recurrent operator, in ONNX's order of gates: i, o, f, c for LSTM, and z, r, h for GRU.

    `activations` has one tuple for each direction. `after_reset` is GRU's linear_before_reset, `coupled` is LSTM's
    input_forget. The last ones say which optional operands there are; `bias` is GRU's recurrent bias of gate h. With
    `quantized` weights there are scales of their columns, and with `zeros` zero points.
    """

    kind: str  # "LSTM", "GRU" or "RNN"
    hidden: int
    reverse: bool  # the only direction, if there is one
    activations: tuple[tuple[Activation, ...], ...]
    clip: float | None = None
    after_reset: bool = False
    coupled: bool = False
    bias: bool = False
    initial_h: bool = False
    initial_c: bool = False
    lengths: bool = False
    quantized: bool = False
    zeros: bool = False

    @property
    def directions(self) -> int:
        return len(self.activations)

    @property
    def gates(self) -> int:
        return {"LSTM": 4, "GRU": 3, "RNN": 1}[self.kind]

    @property
    def phases(self) -> list[tuple[int, int]]:
        """(first, count) of the gates that one product with the state computes. A step of most cells has one phase.

        A GRU that resets the state before the product needs the reset gate of all units before the last gate.
        """
        return [(0, 2), (2, 1)] if self.kind == "GRU" and not self.after_reset else [(0, self.gates)]

    @property
    def has_cell(self) -> bool:
        """Whether there is a second state, c."""
        return self.kind == "LSTM"

    def text(self) -> str:
        """Return the geometry as the attribute of a function."""
        return json.dumps(asdict(self))

    @staticmethod
    def of(text: str) -> Recurrence:
        """Return the geometry that `text` wrote."""
        values = json.loads(text)
        values["activations"] = tuple(tuple(Activation(**a) for a in one) for one in values["activations"])
        return Recurrence(**values)


@dataclass(frozen=True, eq=False)
class Slots:
    """Where a cell reads and writes, each as a function of the lane.

    `gate` has the sums of a gate of this phase, product and input together; `product` and `projected` have them apart.
    """

    gate: Callable[[int], Value]
    product: Callable[[int], Value]
    projected: Callable[[int], Value]
    state: Value  # h before this step
    cell: Value  # c before this step
    bias: Value  # GRU's recurrent bias of gate h
    kept: Callable[[str], Value]  # what an earlier phase kept
    keep: Callable[[str, Expr, Expr], tirx.Stmt]  # name, lane, value
    set_state: Sequence[Callable[[Expr, Expr], tirx.Stmt]]  # all places of the new h; lane, value
    set_cell: Callable[[Expr, Expr], tirx.Stmt]


class Cell:
    """Emits the statements of one vector of hidden units."""

    def __init__(self, recurrence: Recurrence, activations: Sequence[Activation], width: int) -> None:
        self._recurrence = recurrence
        self._activations = activations
        self._width = width
        self.buffers: list[Var] = []
        self.statements: list[tirx.Stmt] = []

    def emit(self, phase: int, slots: Slots) -> None:
        """Emit a phase of a step."""
        kind = self._recurrence.kind
        if kind == "LSTM":
            self._lstm(slots)
        elif kind == "RNN":
            self._state(slots, self._named("h", self._activated(0, slots.gate(0))))
        elif phase == 0 and len(self._recurrence.phases) == 2:
            self._reset(slots)
        else:
            self._gru(slots)

    def _lstm(self, slots: Slots) -> None:
        i = self._named("i", self._activated(0, slots.gate(0)))
        if self._recurrence.coupled:
            f = self._named("f", lambda at: _f(1.0) - i(at))
        else:
            f = self._named("f", self._activated(0, slots.gate(2)))
        g = self._named("g", self._activated(1, slots.gate(3)))
        c = self._named("c", lambda at: f(at) * slots.cell(at) + i(at) * g(at))
        o = self._named("o", self._activated(0, slots.gate(1)))
        self._store(lambda at: slots.set_cell(at, c(at)))
        h = self._activated(2, c, clipped=False)  # as ONNX Runtime does
        self._state(slots, self._named("h", lambda at: o(at) * h(at)))

    def _reset(self, slots: Slots) -> None:
        z = self._named("z", self._activated(0, slots.gate(0)))
        r = self._named("r", self._activated(0, slots.gate(1)))
        self._store(lambda at: slots.keep("update", at, z(at)))
        self._store(lambda at: slots.keep("reset", at, r(at) * slots.state(at)))

    def _gru(self, slots: Slots) -> None:
        if self._recurrence.after_reset:
            z = self._named("z", self._activated(0, slots.gate(0)))
            r = self._named("r", self._activated(0, slots.gate(1)))
            product, projected = slots.product(2), slots.projected(2)
            n = self._activated(1, lambda at: projected(at) + r(at) * (product(at) + slots.bias(at)))
        else:
            z, n = slots.kept("update"), self._activated(1, slots.gate(0))
        n = self._named("n", n)
        self._state(slots, self._named("h", lambda at: (_f(1.0) - z(at)) * n(at) + z(at) * slots.state(at)))

    def _activated(self, which: int, x: Value, clipped: bool = True) -> Value:
        clip = self._recurrence.clip if clipped else None

        def value(at: Expr) -> Expr:
            inner = x(at)
            if clip is not None:
                inner = tirx.Max(_f(-clip), tirx.Min(_f(clip), inner))
            named = tirx.Var("x", "float32")
            return tirx.Let(named, inner, self._activations[which].of(named))

        return value

    def _named(self, name: str, value: Value) -> Value:
        buffer = local(name, [self._width])
        self.buffers.append(buffer)
        self._store(lambda at: tirx.BufferStore(buffer, value(at), [at]))
        return lambda at: tirx.BufferLoad(buffer, [at])

    def _state(self, slots: Slots, h: Value) -> None:
        for place in slots.set_state:
            self._store(lambda at, place=place: place(at, h(at)))  # type: ignore[misc]

    def _store(self, body: Callable[[Expr], tirx.Stmt]) -> None:
        def store(at: Expr) -> tirx.Stmt:
            statement = body(at)
            if not isinstance(statement, tirx.BufferStore):
                raise TypeError(f"a cell emits a {type(statement).__name__}; it must be a store")
            return tirx.BufferStore(statement.buffer, vectorizable(statement.value), list(statement.indices))

        self.statements.append(lanes(self._width, store))
