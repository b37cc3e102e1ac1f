"""TFLite files as models."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import tflite
import tvm
from tvm import relax
from tvm.relax.frontend.tflite.tflite_frontend import get_tensor_name

from zmq_offload.common.suggest import did_you_mean
from zmq_offload.compile.models.base import Model, Origins, Shapes
from zmq_offload.compile.models.exposed import exposed, only_outputs
from zmq_offload.compile.onnx.importer import Imported
from zmq_offload.compile.reference import QUANTIZED_TOLERANCE, CannotRun, Reference
from zmq_offload.compile.tflite.importer import ImportedGraph, import_graph
from zmq_offload.errors import InvalidArgument, OffloadError, one_line
from zmq_offload.protocol.payload import Array
from zmq_offload.protocol.tensors import TensorSpec, datatype_of

DATATYPES = {
    0: "float32", 1: "float16", 2: "int32", 3: "uint8", 4: "int64", 6: "bool", 7: "int16", 9: "int8", 10: "float64",
    12: "uint64", 15: "uint32", 16: "uint16",
}  # fmt: skip
"""Datatypes by their numbers in the file."""


class TFLiteModel(Model):
    format: ClassVar[str] = "TFLite"

    def __init__(self, file: Path) -> None:
        self.name = str(file)
        self._file = file
        data = file.read_bytes()
        try:
            self._model = tflite.Model.GetRootAsModel(data, 0)
            self._graph = self._model.Subgraphs(0)
            self._inputs = self._specs(self._graph.InputsAsNumpy(), "Inputs")
            self._outputs = self._specs(self._graph.OutputsAsNumpy(), "Outputs")
            self._known, self._origins = self._names(), self._sources()
        except InvalidArgument:
            raise
        except Exception as error:  # a damaged file can break any field
            raise InvalidArgument(
                f"{file} is damaged or only a part of a file: {one_line(error)}; copy it again"
            ) from None
        if not self._outputs:
            raise InvalidArgument(f"{file} has no output; convert the model again")

    def _specs(self, indices: Any, kind: str) -> dict[str, TensorSpec]:
        """The tensors at `indices`, by their names in the file. A signature, if it is the only one, names them."""
        known = self._signature(kind)
        found = {}
        for index in np.asarray(indices).reshape(-1):
            tensor = self._graph.Tensors(int(index))
            name = get_tensor_name(self._graph, int(index))
            if tensor.Type() not in DATATYPES:
                raise InvalidArgument(
                    f"{self._file}: tensor {name!r} has a datatype that messages lack (TFLite's {tensor.Type()}), "
                    "such as text; convert the model without the operators that use it"
                )
            shape = tuple(int(d) for d in tensor.ShapeAsNumpy()) if tensor.ShapeLength() else ()
            datatype = datatype_of(np.dtype(DATATYPES[tensor.Type()]))
            found[name] = TensorSpec(known.get(int(index), name), datatype, shape)
        return found

    def _signature(self, kind: str) -> dict[int, str]:
        if self._model.SignatureDefsLength() != 1:
            return {}
        signature = self._model.SignatureDefs(0)
        entries = [getattr(signature, kind)(at) for at in range(getattr(signature, f"{kind}Length")())]
        return {int(entry.TensorIndex()): entry.Name().decode() for entry in entries}

    def _import(self, shapes: Shapes) -> ImportedGraph:
        specs = self.inputs(shapes)
        variables = [
            relax.Var(name, relax.TensorType(list(spec.shape), str(spec.dtype)))
            for name, spec in zip(self._inputs, specs, strict=True)
        ]
        try:
            return import_graph(self._model, variables, specs != tuple(self._inputs.values()))
        except OffloadError:
            raise
        except Exception as error:
            raise InvalidArgument(
                f"TVM cannot import {self._file}: {one_line(error)}; convert the model again"
            ) from error

    def inputs(self, shapes: Shapes) -> tuple[TensorSpec, ...]:
        specs = {spec.name: spec for spec in self._inputs.values()}
        for name, dims in shapes.items():
            if name not in specs:
                listed = ", ".join(map(str, specs.values()))
                raise InvalidArgument(
                    f"--input: the model has no input {name!r}; it has {listed}{did_you_mean(name, specs)}"
                )
            given, open_ = ",".join(map(str, dims)), self._open(name)
            if len(dims) != len(open_) or any(
                isinstance(dim, str) or (not may and dim != own)
                for dim, own, may in zip(dims, specs[name].shape, open_, strict=True)
            ):
                shape = ",".join("?" if may else str(own) for own, may in zip(specs[name].shape, open_, strict=True))
                raise InvalidArgument(
                    f"--input {name!r} is [{given}], the file has [{shape}]; give numbers, others only where it has '?'"
                )
            specs[name] = TensorSpec(name, specs[name].datatype, tuple(int(dim) for dim in dims))
        return tuple(specs.values())

    def _open(self, name: str) -> list[bool]:
        """For each dimension of an input whether the file leaves it open."""
        for index, spec in zip(self._graph.InputsAsNumpy(), self._inputs.values(), strict=True):
            if spec.name == name:
                tensor = self._graph.Tensors(int(index))
                signature = tensor.ShapeSignatureAsNumpy() if tensor.ShapeSignatureLength() else spec.shape
                return [int(d) < 0 for d in signature]
        return []

    def imported(self, shapes: Shapes, tensors: Iterable[str] = ()) -> Imported:
        inputs = self.inputs(shapes)
        found = self._import(shapes)
        outputs = [spec.name for spec in self._outputs.values()]
        constants = self.tensors() - set(found.names) - {spec.name for spec in inputs}
        return exposed(found.mod, [spec.name for spec in inputs], outputs, found.names, sorted(constants))

    def uncut(self, shapes: Shapes) -> tvm.IRModule:
        found = self._import(shapes)
        return only_outputs(found.mod, found.outputs)

    def reference(self) -> Reference:
        try:
            import ai_edge_litert
            from ai_edge_litert.interpreter import Interpreter
        except ImportError:
            raise CannotRun("LiteRT is not installed; pip install ai-edge-litert") from None
        try:
            interpreter = Interpreter(model_path=str(self._file), num_threads=1)
            interpreter.allocate_tensors()
        except Exception as error:
            raise CannotRun(f"LiteRT cannot run the file: {one_line(error)}") from None
        places = {detail["name"]: detail["index"] for detail in interpreter.get_input_details()}
        inputs = {spec.name: places[name] for name, spec in self._inputs.items()}
        outputs = dict(zip(self._outputs.values(), interpreter.get_output_details(), strict=True))

        def run(feeds: Mapping[str, Array]) -> Mapping[str, Array]:
            for name, index in inputs.items():
                interpreter.resize_tensor_input(index, feeds[name].shape)
            interpreter.allocate_tensors()
            for name, index in inputs.items():
                interpreter.set_tensor(index, feeds[name])
            interpreter.invoke()
            return {spec.name: interpreter.get_tensor(detail["index"]) for spec, detail in outputs.items()}

        tensors = (self._graph.Tensors(at).Quantization() for at in range(self._graph.TensorsLength()))
        quantized = any(meaning is not None and meaning.ScaleLength() for meaning in tensors)
        name = f"LiteRT {getattr(ai_edge_litert, '__version__', '')}".strip()
        return Reference(name, run, 1e11, QUANTIZED_TOLERANCE if quantized else 0.0)

    def random_inputs(self, specs: Sequence[TensorSpec], shapes: Shapes, number: int) -> dict[str, Array]:
        generator = np.random.default_rng(number)
        sample: dict[str, Array] = {}
        for spec in specs:
            if spec.dtype.kind == "f":
                sample[spec.name] = generator.standard_normal(spec.shape).astype(spec.dtype)
                continue
            # Quantized values use all of a byte; wider integers may be indices.
            limits = np.iinfo(spec.dtype) if spec.dtype.kind in "iu" and spec.dtype.itemsize == 1 else None
            low, high = (limits.min, limits.max + 1) if limits else (0, 2 if spec.dtype.kind == "b" else 10)
            sample[spec.name] = generator.integers(low, high, spec.shape).astype(spec.dtype)
        return sample

    def tensors(self) -> frozenset[str]:
        return self._known

    def _names(self) -> frozenset[str]:
        names = {get_tensor_name(self._graph, at) for at in range(self._graph.TensorsLength())}
        return frozenset(names | {spec.name for spec in (*self._inputs.values(), *self._outputs.values())})

    def modules(self) -> dict[str, tuple[str, ...]]:
        return {}

    def origins(self) -> Origins:
        return self._origins

    def _sources(self) -> Origins:
        sources: dict[str, tuple[str, ...]] = {}
        known = {name: spec.name for name, spec in {**self._inputs, **self._outputs}.items()}
        for number in range(self._graph.OperatorsLength()):
            operation = self._graph.Operators(number)
            used = tuple(self._name(int(at)) for at in np.asarray(operation.InputsAsNumpy()).reshape(-1) if at >= 0)
            for at in np.asarray(operation.OutputsAsNumpy()).reshape(-1):
                made = self._name(int(at))
                sources[known.get(made, made)] = tuple(known.get(name, name) for name in used)
        inputs = frozenset(spec.name for spec in self._inputs.values())
        used_names = {name for names in sources.values() for name in names}
        return Origins(frozenset(used_names - set(sources) - inputs), sources, inputs)

    def _name(self, index: int) -> str:
        return str(get_tensor_name(self._graph, index))
