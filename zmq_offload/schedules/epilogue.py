"""The epilogue of a kernel: bias, activation, residual, and whatever else is computed before a result is stored."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from tvm import tirx
from tvm.ir import Expr, Var

from zmq_offload.schedules.access import mergeable, operation_count
from zmq_offload.schedules.emit import INDEX, index, product
from zmq_offload.schedules.functions.vector_math import vectorizable
from zmq_offload.schedules.rewrite import Rewriter, Unsupported
from zmq_offload.schedules.stages import Inliner, Stage, same_indices

# Operations. A bias with a hard-swish and a residual has 12, a sigmoid 40.
_LONG = 30


class Epilogue:
    """Computes `final` at an index from the result of `stage` at the same index, and stores it.

    The stages between them are expanded once, and emitted for every result of a tile. Raises Unsupported if `final`
    has another shape or reads `stage` at another index. `write` replaces the store to `final`'s buffer.
    """

    def __init__(
        self,
        inliner: Inliner,
        stage: Stage,
        final: Stage,
        write: Callable[[list[Expr], Expr], tirx.Stmt] | None = None,
    ) -> None:
        self.final = final
        self._write = write
        self._axes: list[Var] = [tirx.Var(str(a.name), INDEX) for a in final.axes]
        self._total = tirx.Var("total", str(stage.buffer.dtype))
        self._value: Expr = self._total
        if final is not stage:
            at: list[Expr] = list(self._axes)
            outer = inliner.substitute

            def substitute(buffer: Var, indices: list[Expr]) -> Expr | None:
                if not buffer.same_as(stage.buffer):
                    return outer(buffer, indices) if outer else None
                if not same_indices(indices, at):
                    raise Unsupported("an epilogue that reads another element")
                return self._total

            if not same_indices(stage.extents, final.extents):
                raise Unsupported("an epilogue of another shape")
            self._value = vectorizable(Inliner(inliner.program, inliner.kept, substitute).expand(final, at))

    @property
    def long(self) -> bool:
        """Whether its code is many times that of a bias and an activation; that of an exp is."""
        return operation_count(self._value) > _LONG

    def flatten_rows(self) -> bool:
        """Merge all axes but the last if every load allows it; then (0, ..., 0, row, column) addresses an element."""
        value, rows = self._value, self._axes[:-1]
        for at in reversed(range(len(rows) - 1)):
            if not mergeable(value, rows[at], rows[-1], product(self.final.extents[at + 1 : -1])):
                return False
            # The inner axis now stands for both; the outer index is 0.
            value = Rewriter({rows[at]: index(0)}).visit(value)
        return True

    def value(self, at: Sequence[Expr], total: Expr) -> Expr:
        """Return the element at `at`."""
        names: dict[Var, Expr] = dict(zip(self._axes, at, strict=True))
        return Rewriter({**names, self._total: total}).visit(self._value)

    def store(self, at: Sequence[Expr], total: Expr) -> tirx.Stmt:
        """Compute and store the element at `at`."""
        value = self.value(at, total)
        return self._write(list(at), value) if self._write else tirx.BufferStore(self.final.buffer, value, list(at))
