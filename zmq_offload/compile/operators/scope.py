"""What converters know of a model's symbolic extents: their arithmetic, the known values, and advice to the user."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

from tvm import ir, relax, tirx

from zmq_offload.byoc.extents import Extent, Extents
from zmq_offload.compile.operators.shape_arithmetic import Ratio
from zmq_offload.compile.operators.shape_values import Value
from zmq_offload.compile.operators.tvm_importer import Expr


@dataclass(frozen=True)
class Place:
    """Where a symbol is in the model's inputs: a dimension that is `multiple` times it."""

    symbol: str
    input: str
    axis: int
    multiple: int

    def __str__(self) -> str:
        return f"{self.symbol}, dimension {self.axis} of input {self.input!r}"


def _nothing(_: str) -> None:
    return None


@dataclass(frozen=True)
class Scope:
    """The extents of one model. `known` finds the known value of a tensor by its name."""

    extents: Extents = field(default_factory=Extents)
    known: Callable[[str], Value | None] = _nothing
    places: tuple[Place, ...] = ()
    counted: dict[str, str] = field(default_factory=dict)
    """Symbols that count values, as NonZero does, and the tensor whose extent each is."""

    at_most: dict[str, Extent] = field(default_factory=dict)
    """The number of which a symbol counts a part, by the symbol's name: none of nothing."""

    places_kept: dict[str, Expr] = field(default_factory=dict)
    """What NonZero computes of a tensor, by its name: two nodes of one tensor count the same number."""

    most: dict[str, int] = field(default_factory=dict)
    """The largest value of a symbol, by its name: a table ends there."""

    lost: Callable[[str], tuple[str, Sequence[object]] | None] = _nothing
    """For a tensor: where in the computation of it a value stopped to be known, and of which extents it is made."""

    def note(self, tensor: str, dims: Iterable[Extent], least: int) -> None:
        """Note what the shape of a result tells. Its extents are at least `least`."""
        for dim in dims:
            if not isinstance(dim, int):
                self.extents.assume(dim, least)
                for symbol in self.extents.symbols(dim):
                    if all(symbol.name != place.symbol for place in self.places):
                        self.counted.setdefault(str(symbol.name), tensor)

    def limit(self, place: Extent, extent: int) -> bool:
        """Note that a place in a table of `extent` rows has to be inside; False if that cannot be checked."""
        found = self.extents.linear(place)
        if found is None or all(found[1].name != p.symbol for p in self.places):
            return False
        factor, symbol, rest = found
        name, most = str(symbol.name), (extent - rest) // factor
        if most < 1:
            return False
        self.most[name] = min(most, self.most.get(name, most))
        return True

    def to_fix(self, values: Iterable[object]) -> str:
        """What to do about extents that have to be numbers."""
        values = list(values)
        counted = self._counted(values)
        if counted:
            return counted
        places = self._of(values)
        if not places:
            return "export the model with fixed shapes"
        return f"fix {' and '.join(map(str, places))}"

    def to_equal(self, a: Extent, b: Extent) -> str:
        """What to do about extents that have to be equal."""
        sizes = self.extents.multiple_needed(a, b)
        if sizes is not None:
            return self.to_divide([a, b], next(iter(sizes.values())))
        places = self._of([a, b])
        if len({place.symbol for place in places}) > 1 and all(isinstance(v, tirx.Var) for v in (a, b)):
            return f"give both the same name: {' and '.join(map(str, places))}"
        return self.to_fix([a, b])

    def to_divide(self, values: Sequence[object], size: int) -> str:
        """What to do about extents that have to be a multiple of `size`."""
        counted = self._counted(values)
        if counted:
            return counted
        stated = [
            f"{size * p.multiple}*{p.symbol} for dimension {p.axis} of input {p.input!r}" for p in self._of(values)
        ]
        return f"state a divisor: {' and '.join(stated)}; or fix {'them' if len(stated) > 1 else 'it'}"

    def _counted(self, values: Iterable[object]) -> str:
        """What to do about values made of an extent that only the values of the inputs tell; empty if none is."""
        tensor = next((self.counted[name] for name in self._names(values) if name in self.counted), None)
        if tensor is None:
            return ""
        return f"the shape of {tensor!r} depends on the values of the inputs: export a model that ends before it"

    def _names(self, values: Iterable[object]) -> list[str]:
        """The symbols of the values."""
        plain = [value.above if isinstance(value, Ratio) else value for value in values]
        symbols = [s for v in plain if isinstance(v, ir.Expr) for s in self.extents.symbols(v)]
        return list(dict.fromkeys(str(symbol.name) for symbol in symbols))

    def _of(self, values: Iterable[object]) -> list[Place]:
        names = self._names(values)
        found: dict[str, Place] = {}
        for place in self.places:
            if place.symbol in names:
                found.setdefault(place.symbol, place)
        return list(found.values())


def places_of(inputs: Iterable[tuple[str, Expr]], extents: Extents) -> tuple[Place, ...]:
    """Where each symbol is in the inputs."""
    found = []
    for name, param in inputs:
        dims = param.ty.shape.values if isinstance(param.ty.shape, relax.ShapeExpr) else ()
        for axis, dim in enumerate(dims):
            linear = extents.linear(dim)
            if linear is not None:
                found.append(Place(str(linear[1].name), name, axis, linear[0]))
    return tuple(found)
