"""Relax modules from Python as models."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import ClassVar

import tvm
from tvm import ir, relax, tirx

from zmq_offload.byoc.codegen import input_specs
from zmq_offload.byoc.cut import module_graph
from zmq_offload.byoc.graph import Graph
from zmq_offload.common.suggest import did_you_mean
from zmq_offload.compile.models.base import Model, Origins, Shapes
from zmq_offload.compile.onnx.importer import Imported
from zmq_offload.compile.reference import CannotRun, Reference
from zmq_offload.errors import InvalidArgument
from zmq_offload.protocol.payload import Array
from zmq_offload.protocol.tensors import TensorSpec


class RelaxModel(Model):
    """A module whose `main` is not partitioned yet; its tensors have the names of their variables."""

    format: ClassVar[str] = "Relax"

    def __init__(self, mod: tvm.IRModule) -> None:
        self.name = "the module"
        self._mod = relax.transform.CanonicalizeBindings()(relax.transform.Normalize()(mod))
        self._graph(self._mod)

    def inputs(self, shapes: Shapes) -> tuple[TensorSpec, ...]:
        main = self._fixed(shapes)["main"]
        return input_specs([str(p.name) for p in main.params], [p.ty for p in main.params])

    def imported(self, shapes: Shapes, tensors: Iterable[str] = ()) -> Imported:
        mod = self._fixed(shapes)
        return Imported(mod, self._graph(mod, list(tensors)), self.inputs(shapes))

    def uncut(self, shapes: Shapes) -> tvm.IRModule:
        return self._fixed(shapes)

    def reference(self) -> Reference:
        raise CannotRun("a Relax module has no other runtime to compare with")

    def random_inputs(self, specs: Sequence[TensorSpec], shapes: Shapes, number: int) -> dict[str, Array]:
        raise CannotRun("a Relax module has no other runtime to compare with")

    def tensors(self) -> frozenset[str]:
        return frozenset(self._graph(self._mod).tensors)

    def modules(self) -> dict[str, tuple[str, ...]]:
        return {}

    def origins(self) -> Origins:
        graph = self._graph(self._mod)
        sources = {graph.name(b.var): tuple(graph.name(v) for v in graph.used(b.var)) for b in graph.bindings}
        return Origins(frozenset(), sources, frozenset(graph.name(p) for p in graph.params))

    def _graph(self, mod: tvm.IRModule, asked: Sequence[str] = ()) -> Graph:
        graph = module_graph(mod, [name for name in asked if name])
        # A result without a name of its own is called "output 0" there.
        names = {name: name.replace(" ", "_") for name in graph.outputs}
        tensors = {names.get(name, name): value for name, value in graph.tensors.items()}
        return replace(graph, tensors=tensors, outputs=tuple(names[name] for name in graph.outputs))

    def _fixed(self, shapes: Shapes) -> tvm.IRModule:
        """The module with numbers for the symbolic extents that `shapes` fixes. Raises InvalidArgument."""
        params = {str(p.name): p.ty for p in self._mod["main"].params}
        numbers: dict[tirx.Var, int] = {}
        for name, dims in shapes.items():
            if name not in params:
                raise InvalidArgument(
                    f"inputs: the model has no input {name!r}; it has {', '.join(map(repr, params))}"
                    f"{did_you_mean(name, params)}"
                )
            extents = list(params[name].shape)
            if len(dims) != len(extents):
                raise InvalidArgument(f"inputs: {name!r} has {len(extents)} dimensions in the module, not {len(dims)}")
            for dim, extent in zip(dims, extents, strict=True):
                if isinstance(extent, ir.Var) and not isinstance(dim, str):
                    numbers[extent] = int(dim)
                elif isinstance(extent, tirx.IntImm) and dim != int(extent):
                    raise InvalidArgument(f"inputs: {name!r} has the extent {int(extent)} in the module, not {dim}")
        return relax.transform.BindSymbolicVars(numbers)(self._mod) if numbers else self._mod
