"""Import an exported program into Relax. Torch knows the shape and datatype of each result; they are checked."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
import tvm
from tvm import ir, relax, te, tirx
from tvm.relax.frontend.torch.exported_program_translator import ExportedProgramImporter

from zmq_offload.compile.half import without_bfloat16
from zmq_offload.compile.models.exposed import closed_on_error
from zmq_offload.compile.pytorch.converters import CONVERTERS
from zmq_offload.compile.pytorch.shapes import size_of, sizes_of
from zmq_offload.errors import InvalidArgument, OffloadError, one_line
from zmq_offload.protocol.payload import Array

HARMLESS = frozenset({"device", "dtype", "layout", "memory_format", "non_blocking", "pin_memory", "implicit", "copy"})
"""Keyword arguments that do not change values, or whose effect is checked: the datatype."""

ASSERTIONS = ("_assert", "sym_constrain", "_check")
"""Beginnings of the names of operators that only check something."""


@dataclass(frozen=True)
class ImportedProgram:
    """A program in Relax. `main` returns the program's outputs and then the tensors `names`, as one tuple."""

    mod: tvm.IRModule
    inputs: tuple[str, ...]
    outputs: int
    names: tuple[str, ...]


def import_program(program: Any, fixed: Mapping[str, int | str]) -> ImportedProgram:
    """Import a program that `functional` returned, with numbers for some of its symbolic extents.

    Raises InvalidArgument, with operator and node, for what TVM cannot import.
    """
    with _explained("TVM cannot import the program"):
        found = ProgramImporter().translate(program, fixed)
        return replace(found, mod=without_bfloat16(found.mod))


@contextlib.contextmanager
def _explained(what: str) -> Iterator[None]:
    """Turn any other error into InvalidArgument. Torch and TVM fail in many ways on symbolic extents."""
    try:
        yield
    except OffloadError:
        raise
    except Exception as error:
        why = one_line(error) or type(error).__name__
        raise InvalidArgument(f"{what}: {why}; export it with numbers instead of symbolic extents") from error


def functional(program: Any) -> Any:
    """The program without operators that change tensors in place, and without those that TVM does not know.

    Tensors may get other names, so that a program must pass here once only.
    """
    known = set(ProgramImporter().convert_map) | set(CONVERTERS)
    table = torch.export.default_decompositions()
    for operation in list(table.keys()):
        if operation.__name__ in known:
            table.pop(operation)
    with _explained(f"PyTorch {torch.__version__} cannot write the program with fewer operators"):
        return program.run_decompositions(table)


class ProgramImporter(ExportedProgramImporter):  # type: ignore[misc]  # TVM has no types
    """TVM's importer with our converters, and with a check of each result."""

    def translate(self, program: Any, fixed: Mapping[str, int | str]) -> ImportedProgram:
        """Import a functional program."""
        self._check_known(program.graph.nodes)
        weights, inputs, _ = self.create_input_vars(program)
        self._arrays = self._weights(program, weights)
        self._symbols = {str(v.name): v for i in inputs.values() for v in relax.analysis.tir_vars_in_type(i.ty)}
        self.block_builder = relax.BlockBuilder()
        variables = {**inputs, **weights}
        with closed_on_error(self.block_builder), self.block_builder.function("main", list(variables.values())):
            with self.block_builder.dataflow():
                names = self._convert_nodes(program.graph.nodes, variables)
                outputs = self._outputs(program)
                result = self.block_builder.emit_output(relax.Tuple([*outputs, *names.values()]))
            self.block_builder.emit_func_output(result)
        mod = relax.transform.BindParams("main", self._arrays)(self.block_builder.get())
        # Torch's bounds of extents; TVM would plan memory for them, and nothing checks them when the model runs.
        mod["main"] = mod["main"].without_attr("tir_var_upper_bound").without_attr("tir_var_lower_bound")
        if fixed:
            values = {name: self._symbols[to] if isinstance(to, str) else to for name, to in fixed.items()}
            mod = relax.transform.BindSymbolicVars(values, "main")(mod)
        return ImportedProgram(mod, tuple(inputs), len(outputs), tuple(names))

    def value(self, argument: Any) -> Any:
        """The value of an argument of a node: an expression of Relax, or what torch has there."""
        return self._retrieve_args(argument)

    def tensor(self, argument: Any, dtype: str) -> relax.Expr:
        """The value of an argument as a tensor of a datatype; a number becomes a constant."""
        value = self.value(argument)
        if not isinstance(value, relax.Expr):
            return relax.const(value, dtype)
        if not isinstance(value.ty, relax.TensorType):  # a symbolic extent
            return self._scalar(value, dtype)
        return value if str(value.ty.dtype.dtype) == dtype else self.emit(relax.op.astype(value, dtype))

    def array(self, argument: Any) -> Array:
        """The value of an argument that is a weight. Raises InvalidArgument if it is computed."""
        found = self._arrays.get(argument.name) if argument.op == "placeholder" else None
        if found is None:
            raise InvalidArgument(f"its weight {argument.name!r} is computed; export the model with constant weights")
        return np.asarray(found.numpy())

    def _scalar(self, size: ir.Expr, dtype: str) -> relax.Expr:
        def filled(extent: ir.Expr) -> te.Tensor:
            return te.compute((), lambda: tirx.Cast(dtype, extent), name="extent")

        return self.block_builder.emit_te(filled, size, primfunc_name_hint="extent")

    def size(self, argument: Any) -> ir.Expr | int:
        """The value of an argument that is a size."""
        return size_of(argument.meta["val"], self._symbols) if isinstance(argument, torch.fx.Node) else argument

    def shape(self, node: Any) -> list[ir.Expr | int]:
        """The shape that torch says a node's result has."""
        return sizes_of(node.meta["val"].shape, self._symbols)

    def dtype(self, node: Any) -> str:
        """The datatype that torch says a node's result has."""
        return str(self._convert_data_type(node.meta["val"].dtype))

    def emit(self, value: relax.Expr) -> relax.Expr:
        return self.block_builder.emit(value)

    def same(self, one: ir.Expr | int, other: ir.Expr | int) -> bool:
        """Whether two sizes are equal for all inputs."""
        return bool(tvm.sym.Analyzer().can_prove_equal(one, other))

    def _check_known(self, nodes: Any) -> None:
        known = set(self.convert_map) | set(CONVERTERS)
        unknown: dict[str, str] = {}
        for node in nodes:
            if node.op == "call_function" and not _is_size(node) and not _asserts(node):
                if node.target.__name__ not in known:
                    unknown.setdefault(str(node.target), node.name)
            elif node.op not in ("placeholder", "output", "get_attr", "call_function"):
                raise InvalidArgument(f"TVM cannot import the node {node.name!r} of kind {node.op}")
        if unknown:
            listed = ", ".join(f"{target} ({name!r})" for target, name in unknown.items())
            raise InvalidArgument(
                f"TVM cannot import the operator {listed}; leave it out of the exported module, or write it with others"
            )

    def _convert_nodes(self, nodes: Any, variables: Mapping[str, relax.Var]) -> dict[str, relax.Expr]:
        """Convert the nodes in order. Returns the tensors by the nodes' names."""
        tensors: dict[str, relax.Expr] = {}
        for node in nodes:
            if node.op == "placeholder" and node.name in variables:
                self.env[node] = variables[node.name]
            elif node.op == "get_attr":
                self.env[node] = getattr(node.graph.owning_module, node.target)
            elif node.op == "call_function":
                if _is_size(node):
                    self.env[node] = self.size(node)
                elif not _asserts(node):
                    self.env[node] = self._converted(node)
                    if isinstance(node.meta.get("val"), torch.Tensor):
                        tensors[node.name] = self.env[node]
        return tensors

    def _converted(self, node: Any) -> Any:
        name = node.target.__name__
        where = f"the operator {node.target} ({node.name!r})"
        read = _Reader(node)
        try:
            own = CONVERTERS.get(name)
            value = own(self, read) if own is not None else self.convert_map[name](read)
            if isinstance(value, relax.Expr):
                value = self.block_builder.normalize(value)
                if not isinstance(value, ir.Var):
                    value = self.emit(value)
        except InvalidArgument as error:
            raise InvalidArgument(f"TVM cannot import {where}: {error}") from None
        except Exception as error:
            raise InvalidArgument(f"TVM cannot import {where}: {one_line(error) or type(error).__name__}") from error
        ignored = read.ignored()
        if ignored:
            raise InvalidArgument(f"TVM cannot import {where} with its argument {ignored}, which it would ignore")
        return self._as_declared(node, value, where) if isinstance(node.meta.get("val"), torch.Tensor) else value

    def _as_declared(self, node: Any, value: Any, where: str) -> relax.Expr:
        """The result with torch's shape and datatype. Raises InvalidArgument if it has others."""
        dtype, shape = self.dtype(node), self.shape(node)
        if not isinstance(value, relax.Expr) or not isinstance(value.ty, relax.TensorType):
            raise InvalidArgument(f"TVM cannot import {where}: its result is not a tensor")
        have = str(value.ty.dtype.dtype)
        if have != dtype:
            raise InvalidArgument(f"TVM cannot import {where}: it computes {have} where torch has {dtype}")
        found = list(value.ty.shape) if isinstance(value.ty.shape, relax.ShapeExpr) else None
        if found is not None and len(found) == len(shape) and all(map(self.same, found, shape)):
            return value
        shown = ["?" if f is None else ",".join(map(str, f)) for f in (found, shape)]
        raise InvalidArgument(
            f"TVM cannot import {where}: it computes the shape [{shown[0]}] where torch has [{shown[1]}]; give numbers "
            "for symbolic extents with --input"
        )

    def _outputs(self, program: Any) -> list[relax.Expr]:
        """The outputs for the user, without the values that the program writes back into its buffers."""
        (node,) = (n for n in program.graph.nodes if n.op == "output")
        kinds = [spec.kind.name for spec in program.graph_signature.output_specs]
        found: list[relax.Expr] = []
        for value, kind in zip(node.args[0], kinds, strict=True):
            if kind not in ("USER_OUTPUT", "LOSS_OUTPUT"):
                continue
            result = self.value(value)
            if not isinstance(result, relax.Expr) or not isinstance(result.ty, relax.TensorType):
                raise InvalidArgument(
                    f"output {len(found)} of the program is not a tensor ({value}); export a module whose outputs are "
                    "tensors"
                )
            found.append(result)
        return found

    def _weights(self, program: Any, variables: Mapping[str, relax.Var]) -> dict[str, tvm.runtime.Tensor]:
        """The program's parameters, buffers and constants, by the names of their variables."""
        tensors = {**dict(program.named_parameters()), **dict(program.named_buffers()), **program.constants}
        specs = {spec.arg.name: spec.target for spec in program.graph_signature.input_specs}
        return {name: self._convert_pytorch_tensor_to_tvm(tensors[specs[name]]) for name in variables}


class _Reader:
    """A node that keeps a record of the keyword arguments that a converter reads."""

    def __init__(self, node: Any) -> None:
        self._node = node
        self.kwargs = _Read(node.kwargs)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._node, name)

    def ignored(self) -> str | None:
        """A keyword argument that was not read and is not the default; None if there is none."""
        schema = getattr(self._node.target, "_schema", None)
        usual = {a.name: a.default_value for a in schema.arguments} if schema is not None else {}
        for name, value in self._node.kwargs.items():
            if name not in self.kwargs.read and name not in HARMLESS and value != usual.get(name):
                return f"{name}={value}"
        return None


class _Read(dict[str, Any]):
    """A dictionary that keeps a record of the keys that were asked for."""

    def __init__(self, content: Mapping[str, Any]) -> None:
        super().__init__(content)
        self.read: set[str] = set()

    def __getitem__(self, key: str) -> Any:
        self.read.add(key)
        return super().__getitem__(key)

    def __contains__(self, key: object) -> bool:
        self.read.add(str(key))
        return super().__contains__(key)

    def get(self, key: str, default: Any = None) -> Any:
        self.read.add(key)
        return super().get(key, default)

    def __or__(self, other: Any) -> Any:
        self.read.update(self)
        return dict(self) | other

    def __ror__(self, other: Any) -> Any:
        self.read.update(self)
        return other | dict(self)


def _is_size(node: Any) -> bool:
    """Whether a node computes a size or a condition on sizes, which torch has computed already."""
    return isinstance(node.meta.get("val"), int | torch.SymInt)


def _asserts(node: Any) -> bool:
    name = node.target.__name__
    return name.startswith(ASSERTIONS) or isinstance(node.meta.get("val"), torch.SymBool)
