"""Files of torch.export.save as models."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
import tvm

from zmq_offload.compile.models.base import Model, Origins, Shapes
from zmq_offload.compile.models.exposed import exposed, only_outputs
from zmq_offload.compile.models.modules import Step, module_outputs
from zmq_offload.compile.onnx.importer import Imported
from zmq_offload.compile.pytorch import inputs as program_inputs
from zmq_offload.compile.pytorch.importer import functional, import_program
from zmq_offload.compile.pytorch.program import output_names, read_program
from zmq_offload.compile.reference import EXTENTS, Reference
from zmq_offload.protocol.payload import Array
from zmq_offload.protocol.tensors import TensorSpec

PASS_ON = ("to", "_to_copy", "view", "reshape", "unsqueeze", "squeeze", "expand", "slice")
"""Operators that do not change values."""


class PyTorchModel(Model):
    format: ClassVar[str] = "PyTorch"

    def __init__(self, file: Path) -> None:
        self.name = str(file)
        self._program = read_program(file)

    @cached_property
    def _functional(self) -> Any:
        return functional(self._program)

    def inputs(self, shapes: Shapes) -> tuple[TensorSpec, ...]:
        return program_inputs.specs_of(self._program, program_inputs.fixed_extents(self._program, shapes))

    def imported(self, shapes: Shapes, tensors: Iterable[str] = ()) -> Imported:
        fixed = program_inputs.fixed_extents(self._program, shapes)
        found = import_program(self._functional, fixed)
        weights = [spec.target for spec in self._program.graph_signature.input_specs if spec.target is not None]
        return exposed(found.mod, found.inputs, output_names(self._program), found.names, weights)

    def uncut(self, shapes: Shapes) -> tvm.IRModule:
        found = import_program(self._functional, program_inputs.fixed_extents(self._program, shapes))
        return only_outputs(found.mod, found.outputs)

    def reference(self) -> Reference:
        program, names = self._program, output_names(self._program)
        signature = program.graph_signature
        weights = {**program.state_dict, **program.constants}
        kinds = {node.name: node.meta["val"].dtype for node in program_inputs.input_nodes(program)}
        kept = [at for at, spec in enumerate(signature.output_specs) if spec.kind.name == "USER_OUTPUT"]

        def run(feeds: Mapping[str, Array]) -> Mapping[str, Array]:
            # Copies, since the program may change its inputs in place.
            flat = [
                torch.tensor(feeds[spec.arg.name], dtype=kinds[spec.arg.name])
                if spec.kind.name == "USER_INPUT"
                else weights[spec.target]
                for spec in signature.input_specs
            ]
            with torch.no_grad():
                results = program.graph_module(*flat)
            return {name: _array(results[at]) for name, at in zip(names, kept, strict=True)}

        return Reference(f"PyTorch {torch.__version__}", run, 1e12)

    def random_inputs(self, specs: Sequence[TensorSpec], shapes: Shapes, number: int) -> dict[str, Array]:
        fixed = program_inputs.fixed_extents(self._program, shapes)
        extents = program_inputs.random_extents(self._program, fixed, EXTENTS[number])
        generator = np.random.default_rng(number)
        sample = {}
        for spec, node in zip(specs, program_inputs.input_nodes(self._program), strict=True):
            shape = [program_inputs.number(size, extents) for size in node.meta["val"].shape]
            users = list(_users(node))
            if spec.dtype.kind == "f":
                values = generator.standard_normal(shape)
                positive = any(_named(user).startswith(("log", "sqrt", "rsqrt", "pow")) for user in users)
                sample[spec.name] = np.asarray(np.abs(values) if positive else values).astype(spec.dtype)
                continue
            rows = [int(u.args[0].meta["val"].shape[0]) for u in users if _named(u).startswith("embedding")]
            small = spec.dtype.kind == "b" or "mask" in spec.name.lower()
            bound = min(rows) if rows else 2 if small else 256 if spec.dtype == np.uint8 else 10
            sample[spec.name] = generator.integers(0, max(1, bound), shape).astype(spec.dtype)
        return sample

    def origins(self) -> Origins:
        program = self._functional
        targets = {s.arg.name: s.target for s in program.graph_signature.input_specs if s.target is not None}
        sources = {
            node.name: tuple(targets.get(source.name, source.name) for source in node.all_input_nodes)
            for node in program.graph.nodes
            if node.op == "call_function"
        }
        (output,) = (node for node in program.graph.nodes if node.op == "output")
        results = output.args[0][-len(output_names(self._program)) :]
        sources.update({name: (node.name,) for name, node in zip(output_names(self._program), results, strict=True)})
        return Origins(
            frozenset(targets.values()), sources, frozenset(n.name for n in program_inputs.input_nodes(program))
        )

    def tensors(self) -> frozenset[str]:
        names = (node.name for node in self._functional.graph.nodes)
        return frozenset((*names, *output_names(self._program), *self.origins().weights))

    def modules(self) -> dict[str, tuple[str, ...]]:
        # Sizes are known without the tensors that they are of. Of a tuple only the elements are tensors.
        steps = [
            Step(
                [node.name] if isinstance(node.meta.get("val"), torch.Tensor) else [],
                [source.name for source in node.all_input_nodes],
                _path(node),
            )
            for node in self._functional.graph.nodes
            if node.op == "call_function" and not isinstance(node.meta.get("val"), int | torch.SymInt)
        ]
        (output,) = (node for node in self._functional.graph.nodes if node.op == "output")
        return module_outputs(steps, {node.name for node in output.all_input_nodes})


def _array(tensor: Any) -> Array:
    """A result as a compiled model gives it: NumPy has no bfloat16."""
    array: Array = (tensor.float() if tensor.dtype == torch.bfloat16 else tensor).numpy()
    return array


def _path(node: Any) -> str:
    """The path of the module that called an operator."""
    stack = list((node.meta.get("nn_module_stack") or {}).values())
    return str(stack[-1][0]) if stack else ""


def _named(node: Any) -> str:
    return str(getattr(node.target, "__name__", ""))


def _users(node: Any) -> Iterable[Any]:
    """The nodes that use a tensor's values, through others that pass the values on."""
    for user in node.users:
        yield user
        if _named(user).partition(".")[0] in PASS_ON:
            yield from _users(user)
