"""The models of the contract as libraries in a repository, for servers that run nothing else."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

import tvm
from msgspec.structs import replace
from tvm import relax

from tests.transports.models import MODELS
from zmq_offload.artifacts.repository import LIBRARY, ModelVersion, Repository
from zmq_offload.protocol.tensors import ANY, TensorSpec

ENTRY = "compute"
"""The function of each library, as one of several that a library may have."""

_SIZE = 700
"""Of the matrices that `slow` multiplies, in about a second. Nothing stops it."""


def contract_repository(folder: Path, names: Collection[str] = tuple(MODELS)) -> Path:
    """Write these models. The libraries of those whose names say so return something else than they should."""
    repository = Repository(folder)
    for name in names:
        for version in MODELS[name]:

            def build(place: Path, name: str = name, version: int = version) -> ModelVersion:
                inputs, outputs = MODELS[name][version]
                made = tvm.compile(_module(name, inputs), target=tvm.target.Target({"kind": "llvm"}))
                made.export_library(str(place / LIBRARY))
                described = ModelVersion(name, version, inputs, outputs, {"kind": "llvm"}, tvm.__version__, "")
                return replace(described, entry=ENTRY)

            repository.write(name, version, build)
    return folder


def _module(name: str, inputs: tuple[TensorSpec, ...]) -> tvm.IRModule:
    builder = relax.BlockBuilder()
    rows = tvm.tirx.Var("rows", "int64")
    given = []
    for number, spec in enumerate(inputs):
        shape = [rows if extent == ANY else extent for extent in spec.shape]
        given.append(relax.Var(f"x{number}", relax.TensorType(shape, str(spec.dtype))))
    with builder.function(ENTRY, given):
        if name == "fails":
            builder.emit(relax.op.assert_op(relax.const(False, "bool"), format="division by zero"))
        builder.emit_func_output(builder.emit(_result(name, given)))
    return builder.get()


def _result(name: str, given: list[relax.Var]) -> relax.Expr:
    if name == "typed":
        return relax.Tuple(given)
    if name == "wrong-shape":
        return relax.op.ones([3], "float32")
    if name == "wrong-type":
        return relax.op.ones([2], "float64")
    twice = relax.op.multiply(given[0], relax.const(2.0, "float32"))
    if name == "slow":
        square = relax.op.full([_SIZE, _SIZE], relax.const(0.0, "float32"))
        return relax.op.add(twice, relax.op.sum(relax.op.matmul(square, square)))
    return twice
