"""The loops of a recurrent function: threads, time steps, chunks of hidden units, tiles of batch entries.

A step computes chunks of hidden units: the micro-kernel multiplies the state by the chunk's columns of all gates, and
the cell turns these sums into the new state. The state has two buffers that steps use in turn, since all units of the
old one are read until the last chunk is done. The last chunk ends at the last unit and overlaps the one before, so that
all vectors are full.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

from tvm import tirx
from tvm.ir import Expr, Var

from zmq_offload.schedules.emit import (
    INDEX,
    FlatBuffer,
    elements,
    index,
    lanes,
    loop,
    parallel,
    ramp,
    scratch,
    sequence,
    vectors,
    with_buffers,
)
from zmq_offload.schedules.machine import Machine
from zmq_offload.schedules.microkernel import MicroKernel
from zmq_offload.schedules.nests import SERIAL_WORK
from zmq_offload.schedules.recurrent.cell import Cell, Recurrence, Slots
from zmq_offload.schedules.recurrent.integers import QuantizedState
from zmq_offload.schedules.recurrent.tiles import Phase, vector_width
from zmq_offload.schedules.rewrite import constant

# Vector operations of one step above which threads share its hidden units: each step then starts a parallel loop.
_STEP_WORK = 2 * SERIAL_WORK
_ZERO = tirx.FloatImm("float32", 0.0)


@dataclass(frozen=True, eq=False)
class _Rows:
    """A range of batch entries."""

    first: Expr
    count: Expr


@dataclass(frozen=True, eq=False)
class _Step:
    """One phase of step `s`, counted from the first step of a direction."""

    phase: Phase
    direction: Expr
    s: Expr

    @property
    def old(self) -> Expr:
        """Which of the two states was computed before this step."""
        return tirx.floormod(self.s, 2)

    @property
    def new(self) -> Expr:
        return tirx.floormod(self.s + 1, 2)


@dataclass(frozen=True, eq=False)
class Loops:
    """Emits the body of a recurrent function, whose buffers `operands` names."""

    recurrence: Recurrence
    machine: Machine
    operands: dict[str, Var]
    steps: Expr
    batch: Expr
    plan: list[Phase]
    packed: bool

    @cached_property
    def buffers(self) -> dict[str, FlatBuffer]:
        """The states, each (2, directions, batch, hidden), and what the first of two phases keeps for the second."""
        r = self.recurrence
        state = [index(2), index(r.directions), self.batch, index(r.hidden)]
        found = {"h": FlatBuffer("h", state)}
        if r.has_cell:
            found["c"] = FlatBuffer("c", state)
        if len(self.plan) > 1:
            found |= {name: FlatBuffer(name, state[1:]) for name in ("update", "reset")}
        return found

    @cached_property
    def integers(self) -> QuantizedState | None:
        """The state in int8, if the weights are."""
        r = self.recurrence
        if not r.quantized:
            return None
        return QuantizedState(self.machine, r.hidden, self.batch * r.directions, self.operands, self.packed)

    def statement(self) -> tirx.Stmt:
        body = self._by_step() if self._share_steps() else self._by_sequence()
        quantized = self.integers.buffers if self.integers else []
        return with_buffers([*(b.buffer for b in self.buffers.values()), *quantized], body)

    # -- threads ---------------------------------------------------------------------------------------------------

    def _step_work(self) -> int:
        """Vector operations of one step in one direction."""
        r = self.recurrence
        return elements([self.batch], unknown=1) * r.gates * r.hidden**2 // self.machine.lanes

    def _batch_shares(self) -> int:
        """Shares of the batch that threads compute on their own: they never wait for each other."""
        known = constant(self.batch) or 1
        most = -(-self.machine.threads // self.recurrence.directions)
        return max(n for n in range(1, most + 1) if known % n == 0)

    def _share_steps(self) -> bool:
        """Whether threads share the hidden units of each step."""
        tasks = self.recurrence.directions * self._batch_shares()
        return tasks < self.machine.threads and self._step_work() > _STEP_WORK

    def _by_sequence(self) -> tirx.Stmt:
        """Each task computes all steps of a direction, for a share of the batch."""
        shares = self._batch_shares()
        work = self._step_work() * elements([self.steps], unknown=64) * self.recurrence.directions
        threads = self.machine.threads > 1 and work > SERIAL_WORK
        each = self.batch if shares == 1 else index((constant(self.batch) or 1) // shares)

        def task(at: list[Expr]) -> tirx.Stmt:
            direction, rows = at[0], _Rows(at[1] * each, each)

            def step(s: Expr) -> tirx.Stmt:
                chunks = (
                    self._chunks(_Step(phase, direction, s), rows, index(0), index(phase.chunks), sums)
                    for phase in self.plan
                )
                return sequence([self._quantize(direction, s, rows), *chunks])

            sums = self._sums()
            loops = with_buffers([sums], loop(self.steps, step, "step"))
            return sequence([self._begin(direction, rows), loops, self._end(direction, rows)])

        return parallel([index(self.recurrence.directions), index(shares)], task, threads)

    def _by_step(self) -> tirx.Stmt:
        """In each step, tasks compute shares of the hidden units."""
        directions, rows = self.recurrence.directions, _Rows(index(0), self.batch)

        def shared(phase: Phase, s: Expr) -> tirx.Stmt:
            parts = min(max(self.machine.threads // directions, 1), phase.chunks)

            def task(at: list[Expr]) -> tirx.Stmt:
                first, end = (tirx.floordiv((at[1] + i) * phase.chunks, parts) for i in (0, 1))
                sums = self._sums()
                return with_buffers([sums], self._chunks(_Step(phase, at[0], s), rows, first, end - first, sums))

            return parallel([index(directions), index(parts)], task)

        def step(s: Expr) -> tirx.Stmt:
            quantized = loop(directions, lambda d: self._quantize(d, s, rows), "d") if self.integers else None
            return sequence([quantized, *(shared(phase, s) for phase in self.plan)])

        return sequence(
            [
                loop(directions, lambda d: self._begin(d, rows), "d"),
                loop(self.steps, step, "step"),
                loop(directions, lambda d: self._end(d, rows), "d"),
            ]
        )

    def _sums(self) -> Var:
        return scratch("sums", [max(phase.rows * phase.columns for phase in self.plan)])

    # -- the states before and after -------------------------------------------------------------------------------

    def _begin(self, direction: Expr, rows: _Rows) -> tirx.Stmt:
        """Store the initial states."""

        def copy(name: str) -> tirx.Stmt:
            given = self.operands.get(f"initial_{name}")

            def value(row: Expr, unit: Expr) -> Expr:
                if given is None:
                    return _ZERO
                return tirx.BufferLoad(given, [direction, row, unit])

            return self._over_state(
                rows, lambda row, unit: self.buffers[name].store([index(0), direction, row, unit], value(row, unit))
            )

        return sequence(copy(name) for name in ("h", "c") if name in self.buffers)

    def _end(self, direction: Expr, rows: _Rows) -> tirx.Stmt:
        """Store the last states as results."""

        def copy(name: str) -> tirx.Stmt:
            last, state = self.operands[f"last_{name}"], self.buffers[name]
            at, lengths = tirx.floormod(self.steps, 2), self.operands.get("lengths")

            def value(row: Expr, unit: Expr) -> Expr:
                found = state.load([at, direction, row, unit])
                if lengths is None:
                    return found
                # As ONNX Runtime does, a sequence of length 0 gives 0, not the initial state.
                return tirx.Select(tirx.Cast(INDEX, tirx.BufferLoad(lengths, [row])) > 0, found, _ZERO)

            return self._over_state(
                rows, lambda row, unit: tirx.BufferStore(last, value(row, unit), [direction, row, unit])
            )

        return sequence(copy(name) for name in ("h", "c") if name in self.buffers)

    def _over_state(self, rows: _Rows, store: Callable[[Expr, Expr], tirx.Stmt]) -> tirx.Stmt:
        def row(r: Expr) -> tirx.Stmt:
            return vectors(
                index(0),
                self.recurrence.hidden,
                self.machine,
                lambda first, width: lanes(width, lambda lane: store(rows.first + r, first + lane)),
            )

        return loop(rows.count, row, "row")

    # -- a step ----------------------------------------------------------------------------------------------------

    def _quantize(self, direction: Expr, s: Expr, rows: _Rows) -> tirx.Stmt | None:
        """Quantize the states before step `s`."""
        integers, state = self.integers, self.buffers["h"]
        if integers is None:
            return None

        def row(r: Expr) -> tirx.Stmt:
            place = [tirx.floormod(s, 2), direction, rows.first + r]
            return integers.quantize(direction * self.batch + rows.first + r, lambda unit: state.load([*place, unit]))

        return loop(rows.count, row, "row")

    def _chunks(self, step: _Step, rows: _Rows, first: Expr, count: Expr, sums: Var) -> tirx.Stmt:
        """A range of chunks of hidden units, each for all tiles of `rows`."""
        height, known = step.phase.rows, constant(rows.count)

        def tiles(chunk: Expr, row: Expr, many: Expr | int, size: int) -> tirx.Stmt:
            return loop(many, lambda t: self._tile(step, chunk, row + t * size, size, sums), "tile")

        def chunk(c: Expr) -> tirx.Stmt:
            if known is not None:
                whole, rest = divmod(known, height)
                main = tiles(first + c, rows.first, whole, height) if whole else None
                return sequence([main, tiles(first + c, rows.first + whole * height, 1, rest) if rest else None])
            row, left, parts = rows.first, rows.count, []
            for size in sorted({height, min(height, 2), 1}, reverse=True):
                many = tirx.floordiv(left, size)
                parts.append(tiles(first + c, row, many, size))
                row, left = row + many * size, left - many * size
            return sequence(parts)

        return loop(count, chunk, "chunk")

    def _tile(self, step: _Step, chunk: Expr, row: Expr, height: int, sums: Var) -> tirx.Stmt:
        """The product of the states of `height` batch entries and a chunk's columns, then the cells."""
        phase, direction = step.phase, step.direction
        hidden, columns = self.recurrence.hidden, phase.columns
        whole = hidden % phase.units == 0
        start = chunk * phase.units if whole else tirx.min(chunk * phase.units, index(hidden - phase.units))
        reset = self.buffers["reset"] if phase.first else None

        def left(r: int, k: list[Expr]) -> Expr:
            place = [direction, row + r, k[0]]
            return self.buffers["h"].load([step.old, *place]) if reset is None else reset.load(place)

        base = ((direction * phase.chunks + chunk) * hidden) * columns + phase.offset
        weight = self.operands["weight"]

        def right(k: list[Expr], at: int, size: int) -> Expr:
            if self.packed:
                return tirx.BufferLoad(weight, [ramp(base + k[0] * columns + at, size)])
            gate, unit = divmod(at, phase.units)
            return tirx.BufferLoad(weight, [direction, start + ((phase.first + gate) * hidden + unit), k[0]])

        def store(r: Expr, column: Expr, value: Expr) -> tirx.Stmt:
            return tirx.BufferStore(sums, value, [r * columns + column])

        if self.integers is not None:
            first = direction * self.batch + row
            product = self.integers.product(phase, direction, chunk, start, first, height, store)
        else:
            product = MicroKernel(self.machine, height, columns, [index(hidden)], left, right, store).statement()
        cells = loop(height, lambda r: self._cells(step, row + r, start, sums, r * columns), "cell")
        return sequence([product, cells])

    def _cells(self, step: _Step, row: Expr, start: Expr, sums: Var, base: Expr) -> tirx.Stmt:
        """The cells of one batch entry and the units of a chunk."""
        r, time = self.recurrence, step.s
        if r.directions == 2:
            time = step.s + step.direction * (self.steps - 1 - step.s * 2)
        elif r.reverse:
            time = self.steps - 1 - step.s
        width = vector_width(self.machine, r.hidden)

        def vector(v: Expr) -> tirx.Stmt:
            unit, at = start + v * width, base + v * width
            compute = self._cell(step, time, row, unit, sums, at)
            if not r.lengths:
                return compute
            inside = time < tirx.Cast(INDEX, tirx.BufferLoad(self.operands["lengths"], [row]))
            return tirx.IfThenElse(inside, compute, self._unchanged(step, time, row, unit))

        return loop(step.phase.units // width, vector, "v")

    def _cell(self, step: _Step, time: Expr, row: Expr, unit: Expr, sums: Var, base: Expr) -> tirx.Stmt:
        """The cells of one batch entry and one vector of units, whose sums begin at `base`."""
        r, operands, buffers = self.recurrence, self.operands, self.buffers
        phase, direction = step.phase, step.direction

        def product(gate: int) -> Callable[[Expr], Expr]:
            return lambda lane: tirx.BufferLoad(sums, [base + gate * phase.units + lane])

        def projected(gate: int) -> Callable[[Expr], Expr]:
            column = (direction * r.gates + (phase.first + gate)) * r.hidden + unit
            return lambda lane: tirx.BufferLoad(operands["x"], [time, row, column + lane])

        def bias(lane: Expr) -> Expr:
            return tirx.BufferLoad(operands["bias"], [direction, unit + lane]) if r.bias else _ZERO

        def state(name: str) -> Callable[[Expr], Expr]:
            return lambda lane: buffers[name].load([step.old, direction, row, unit + lane])

        def set_state(name: str) -> Callable[[Expr, Expr], tirx.Stmt]:
            return lambda lane, value: buffers[name].store([step.new, direction, row, unit + lane], value)

        def result(lane: Expr, value: Expr) -> tirx.Stmt:
            return tirx.BufferStore(operands["y"], value, [time, direction, row, unit + lane])

        slots = Slots(
            gate=lambda gate: lambda lane: product(gate)(lane) + projected(gate)(lane),
            product=product,
            projected=projected,
            state=state("h"),
            cell=state("c"),
            bias=bias,
            kept=lambda name: lambda lane: buffers[name].load([direction, row, unit + lane]),
            keep=lambda name, lane, value: buffers[name].store([direction, row, unit + lane], value),
            set_state=[set_state("h"), result],
            set_cell=set_state("c"),
        )

        def emitted(which: int) -> tirx.Stmt:
            cell = Cell(r, r.activations[which], vector_width(self.machine, r.hidden))
            cell.emit(self.plan.index(phase), slots)
            return with_buffers(cell.buffers, sequence(cell.statements))

        if len(set(r.activations)) == 1:
            return emitted(0)
        return tirx.IfThenElse(tirx.EQ(direction, index(0)), emitted(0), emitted(1))

    def _unchanged(self, step: _Step, time: Expr, row: Expr, unit: Expr) -> tirx.Stmt:
        """A step after the end of a sequence: the states stay, and the result is 0."""
        if step.phase is not self.plan[-1]:
            return tirx.Evaluate(0)
        width, direction = vector_width(self.machine, self.recurrence.hidden), step.direction

        def copy(state: FlatBuffer) -> tirx.Stmt:
            def lane(i: Expr) -> tirx.Stmt:
                place = [direction, row, unit + i]
                return state.store([step.new, *place], state.load([step.old, *place]))

            return lanes(width, lane)

        y = lanes(width, lambda i: tirx.BufferStore(self.operands["y"], _ZERO, [time, direction, row, unit + i]))
        return sequence([y, *(copy(self.buffers[name]) for name in ("h", "c") if name in self.buffers)])
