"""A Relax function as a graph of named tensors, for finding where it can be cut."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import NamedTuple

from tvm import ir, relax

from zmq_offload.common.suggest import nearest
from zmq_offload.errors import InvalidArgument


class Step(NamedTuple):
    """A binding, its fields read once."""

    var: ir.Var
    value: relax.Expr


@dataclass(frozen=True, eq=False)
class Graph:
    """The body of a Relax function, flattened.

    `params` are its inputs, `bindings` its steps in topological order. `tensors` maps the names that a user knows, such
    as ONNX tensor names, to variables, or to constants if they were folded. `outputs` names the results in the model's
    order. `constants` are further known names, of weights and of tensors folded away. Several names may stand for one
    variable, such as the two sides of an Identity. `dataflow` says whether all bindings are in dataflow blocks.

    `steps` are the bindings again. TVM makes a new Python object each time that a binding's variable is read, and its
    comparison of two objects is slow. In `steps`, `used` and `tensors` each variable is one object, which sets and
    dictionaries find by its identity.
    """

    params: tuple[ir.Var, ...]
    bindings: tuple[relax.Binding, ...]
    tensors: Mapping[str, relax.Expr]
    outputs: tuple[str, ...]
    constants: frozenset[str] = frozenset()
    dataflow: bool = True
    _names: dict[ir.Var, str] = field(default_factory=dict, init=False)
    _used: dict[ir.Var, tuple[ir.Var, ...]] = field(default_factory=dict, init=False)
    steps: tuple[Step, ...] = field(default=(), init=False)

    def __post_init__(self) -> None:
        steps = tuple(Step(binding.var, binding.value) for binding in self.bindings)
        one = {var: var for var in (*self.params, *(step.var for step in steps))}
        tensors = {n: one.get(v, v) if isinstance(v, ir.Var) else v for n, v in self.tensors.items()}
        object.__setattr__(self, "steps", steps)
        object.__setattr__(self, "tensors", tensors)
        for name, value in tensors.items():
            if isinstance(value, ir.Var):
                self._names.setdefault(value, name)
        for step in steps:
            self._used[step.var] = tuple(one.get(v, v) for v in variables_of(step.value))

    def name(self, var: ir.Var) -> str:
        """Return the user's name of a variable, or TVM's if the user has none for it."""
        return self._names.get(var) or str(var.name)

    def named(self, var: ir.Var) -> bool:
        """Return whether the user has a name for a variable."""
        return var in self._names

    def used(self, var: ir.Var) -> tuple[ir.Var, ...]:
        """Return the variables from which `var` is computed directly; none for a parameter."""
        return self._used.get(var, ())

    def result_vars(self) -> list[ir.Var]:
        """Return the variables that are results of the model; constant results have none."""
        return [value for value in map(self.tensors.__getitem__, self.outputs) if isinstance(value, ir.Var)]

    def upstream(self, roots: Iterable[ir.Var], *, stop: Iterable[ir.Var] = ()) -> set[ir.Var]:
        """Return the roots and all variables from which they are computed. The search does not go past `stop`."""
        stopped, found, todo = set(stop), set[ir.Var](), list(roots)
        while todo:
            var = todo.pop()
            if var not in found and var not in stopped:
                found.add(var)
                todo += self.used(var)
        return found

    def pruned(self) -> Graph:
        """Return the graph without bindings that no output needs, such as the statistics of a batch normalization."""
        live = self.upstream(self.result_vars()).union(self.params)
        bindings = tuple(b for b, step in zip(self.bindings, self.steps, strict=True) if step.var in live)
        tensors = {n: v for n, v in self.tensors.items() if not isinstance(v, ir.Var) or v in live}
        return replace(self, bindings=bindings, tensors=tensors)

    def from_inputs(self) -> set[ir.Var]:
        """Return the parameters and all variables computed from them; any other variable is constant."""
        found = set(self.params)
        for step in self.steps:
            if any(v in found for v in self.used(step.var)):
                found.add(step.var)
        return found

    def path(self, start: ir.Var, ends: Iterable[ir.Var], *, avoid: Iterable[ir.Var]) -> list[ir.Var]:
        """Return a path from `start` to one of `ends` that avoids `avoid`; empty if there is none."""
        avoided, goal = set(avoid), set(ends)
        source: dict[ir.Var, ir.Var | None] = {start: None}
        for var in (start, *(s.var for s in self.steps)):
            if var not in source and var not in avoided:
                reached = next((v for v in self.used(var) if v in source), None)
                if reached is not None:
                    source[var] = reached
            if var in goal and var in source:
                found: list[ir.Var] = []
                step: ir.Var | None = var
                while step is not None:
                    found.append(step)
                    step = source[step]
                return found[::-1]
        return []

    def find(self, name: str, option: str) -> ir.Var:
        """Return the variable of a tensor that can be sent. `option` names the command-line option, for messages.

        Raises InvalidArgument if there is no such tensor, or if it is a constant, a shape, or of unknown shape.
        """
        if name in self.constants or isinstance(self.tensors.get(name), ir.GenericConst):
            raise InvalidArgument(f"{option}: tensor {name!r} is constant; cut at one computed from an input")
        if name not in self.tensors:
            raise InvalidArgument(f"{option}: the model has no tensor {name!r}{nearest(name, self.tensors)}")
        value = self.tensors[name]
        if not isinstance(value, ir.Var) or not isinstance(value.ty, relax.TensorType):
            raise InvalidArgument(f"{option}: {name!r} is a shape; cut at a tensor")
        if value.ty.shape is None:
            raise InvalidArgument(f"{option}: tensor {name!r} has a shape that only the run determines; cut elsewhere")
        return value


def variables_of(value: relax.Expr) -> tuple[ir.Var, ...]:
    """Return the variables from which an expression is computed."""
    return tuple(v for v in relax.analysis.free_vars(value) if not _is_symbolic(v))


def _is_symbolic(var: ir.Var) -> bool:
    """Return whether a variable is a symbolic extent: an integer, part of shapes and not a tensor."""
    return isinstance(var.ty, ir.PrimType)
