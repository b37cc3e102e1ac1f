"""A Relax function as a graph of named tensors: what is computed from what, and where it can be cut."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace

from tvm import ir, relax

from zmq_offload.common.suggest import nearest
from zmq_offload.errors import InvalidArgument


@dataclass(frozen=True, eq=False)
class Graph:
    """The body of a Relax function, flattened.

    `params` are its inputs, `bindings` its steps in topological order, and `tensors` maps the names that a user knows
    (ONNX tensor names) to what they became: usually a variable, a constant where it was folded. `outputs` names the
    results in the model's order. `constants` are further names that the user may know: of weights, and of what was
    folded away. Several names may stand for one variable (the two sides of an Identity).
    """

    params: tuple[ir.Var, ...]
    bindings: tuple[relax.Binding, ...]
    tensors: Mapping[str, relax.Expr]
    outputs: tuple[str, ...]
    constants: frozenset[str] = frozenset()
    dataflow: bool = True
    _names: dict[ir.Var, str] = field(default_factory=dict, init=False)
    _used: dict[ir.Var, tuple[ir.Var, ...]] = field(default_factory=dict, init=False)

    def __post_init__(self) -> None:
        for name, value in self.tensors.items():
            if isinstance(value, ir.Var):
                self._names.setdefault(value, name)
        for binding in self.bindings:
            self._used[binding.var] = variables_of(binding.value)

    def name(self, var: ir.Var) -> str:
        """The user's name of a variable; TVM's own where the user has none for it."""
        return self._names.get(var) or str(var.name)

    def named(self, var: ir.Var) -> bool:
        return var in self._names

    def used(self, var: ir.Var) -> tuple[ir.Var, ...]:
        """The variables that `var` is computed from directly; empty for a parameter."""
        return self._used.get(var, ())

    def result_vars(self) -> list[ir.Var]:
        """The variables that are results of the model; a result that is constant has none."""
        return [value for value in map(self.tensors.__getitem__, self.outputs) if isinstance(value, ir.Var)]

    def upstream(self, roots: Iterable[ir.Var], *, stop: Iterable[ir.Var] = ()) -> set[ir.Var]:
        """Everything that `roots` are computed from, the roots included; the walk does not go past `stop`, nor
        include it."""
        stopped, found, todo = set(stop), set[ir.Var](), list(roots)
        while todo:
            var = todo.pop()
            if var not in found and var not in stopped:
                found.add(var)
                todo += self.used(var)
        return found

    def pruned(self) -> Graph:
        """The graph without what no output needs, such as the statistics that a batch normalization also returns."""
        live = self.upstream(self.result_vars()).union(self.params)
        bindings = tuple(b for b in self.bindings if b.var in live)
        tensors = {n: v for n, v in self.tensors.items() if not isinstance(v, ir.Var) or v in live}
        return replace(self, bindings=bindings, tensors=tensors)

    def from_inputs(self) -> set[ir.Var]:
        """The parameters and everything computed from them; what is missing is constant."""
        found = set(self.params)
        for binding in self.bindings:
            if any(v in found for v in self.used(binding.var)):
                found.add(binding.var)
        return found

    def path(self, start: ir.Var, ends: Iterable[ir.Var], *, avoid: Iterable[ir.Var]) -> list[ir.Var]:
        """A way from `start` down to one of `ends` that does not meet `avoid`; empty if there is none."""
        avoided, goal = set(avoid), set(ends)
        source: dict[ir.Var, ir.Var | None] = {start: None}
        for var in (start, *(b.var for b in self.bindings)):
            if var not in source and var not in avoided:
                reached = next((v for v in self.used(var) if v in source), None)
                if reached is not None:
                    source[var] = reached
            if var in goal and var in source:
                way: list[ir.Var] = []
                step: ir.Var | None = var
                while step is not None:
                    way.append(step)
                    step = source[step]
                return way[::-1]
        return []

    def find(self, name: str, option: str) -> ir.Var:
        """The variable of a tensor that can be sent.

        Raises InvalidArgument if there is no such tensor (naming the nearest), or if it is a constant or a shape.
        `option` is what the user gave it as, for the message.
        """
        if name in self.constants or isinstance(self.tensors.get(name), ir.GenericConst):
            raise InvalidArgument(f"{option}: tensor {name!r} is constant, there is nothing to cut there")
        if name not in self.tensors:
            raise InvalidArgument(f"{option}: the model has no tensor {name!r}{nearest(name, self.tensors)}")
        value = self.tensors[name]
        if not isinstance(value, ir.Var) or not isinstance(value.ty, relax.TensorType):
            raise InvalidArgument(f"{option}: {name!r} is a shape, not a tensor that could be sent")
        if value.ty.shape is None:
            raise InvalidArgument(f"{option}: the shape of tensor {name!r} is not known before the model runs")
        return value


def variables_of(value: relax.Expr) -> tuple[ir.Var, ...]:
    """The variables that an expression is computed from."""
    return tuple(v for v in relax.analysis.free_vars(value) if not _is_symbolic(v))


def _is_symbolic(var: ir.Var) -> bool:
    """Whether a variable is a symbolic extent (an integer), which travels inside shapes and not as a tensor."""
    return isinstance(var.ty, ir.PrimType)
