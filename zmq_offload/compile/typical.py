"""Numbers for symbolic extents, to count bytes and work with.

With 1 for each, an image of 8*H by 8*W would have one pixel on all levels of a network, and the shares of work would be
wrong.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from tvm import ir, relax, tirx

from zmq_offload.byoc.carried import element_bytes
from zmq_offload.byoc.extents import Extents
from zmq_offload.byoc.graph import Graph

USUAL = 64
"""About the extent of a symbolic dimension. An input's first one is mostly a batch, and counts as 1."""

_COMPUTED: dict[type, Callable[[int, int], int]] = {
    tirx.Add: int.__add__,
    tirx.Sub: int.__sub__,
    tirx.Mul: int.__mul__,
    tirx.FloorDiv: int.__floordiv__,
    tirx.FloorMod: int.__mod__,
    tirx.Min: min,
    tirx.Max: max,
}


class Typical:
    """A model's tensors for one choice of its symbolic extents.

    `inputs` has the chosen shapes of those inputs that have symbols which no input before them has.
    """

    def __init__(self, graph: Graph) -> None:
        self._symbols: dict[str, int] = {}
        self.inputs: dict[str, tuple[int, ...]] = {}
        arithmetic = Extents()
        shapes = [(graph.name(p), list(p.ty.shape or ())) for p in graph.params]
        for _, shape in shapes:
            for dim in shape[:1]:
                self._choose(dim, 1, arithmetic)
        shown: set[str] = set()
        for name, shape in shapes:
            for dim in shape:
                self._choose(dim, USUAL, arithmetic)
            symbols = {str(symbol.name) for dim in shape for symbol in arithmetic.symbols(dim)}
            if symbols - shown:
                self.inputs[name] = tuple(map(self._value, shape))
                shown |= symbols

    def extents(self, ty: ir.Type) -> list[int]:
        """The extents of a tensor."""
        shape = ty.shape if isinstance(ty, relax.TensorType) and ty.shape is not None else ()
        return [max(self._value(dim), 1) for dim in shape]

    def nbytes(self, variables: Sequence[ir.Var]) -> int:
        """The size of tensors."""
        return sum(math.prod(self.extents(v.ty)) * element_bytes(v.ty) for v in variables)

    def _choose(self, dim: ir.Expr, size: int, arithmetic: Extents) -> None:
        """Numbers for the new symbols of a dimension that shall have about that size."""
        multiple, _, rest = arithmetic.linear(dim) or (1, None, 0)
        for symbol in arithmetic.symbols(dim):
            self._symbols.setdefault(str(symbol.name), max((size - rest) // multiple, 1))

    def _value(self, dim: ir.Expr) -> int:
        """An extent in numbers; 1 for what only the run tells."""
        if isinstance(dim, tirx.IntImm):
            return int(dim)
        if isinstance(dim, tirx.Var):
            return self._symbols.get(str(dim.name), 1)
        computed = _COMPUTED.get(type(dim))
        if computed is None or (isinstance(dim, tirx.FloorDiv | tirx.FloorMod) and not self._value(dim.b)):
            return 1
        return computed(self._value(dim.a), self._value(dim.b))
