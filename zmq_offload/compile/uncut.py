"""Compile and run a whole model as one library, to compare a split one with."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from zmq_offload.compile.build import build_library
from zmq_offload.compile.models.read import read_model
from zmq_offload.compile.onnx.shapes import Dim
from zmq_offload.compile.target import TargetLike, resolve_target
from zmq_offload.protocol.payload import Array
from zmq_offload.runtime.forks import THREADS
from zmq_offload.runtime.machine import Machine, load_library, loading


def compile_uncut(
    model: str | os.PathLike[str],
    library: str | os.PathLike[str],
    *,
    inputs: Mapping[str, Sequence[Dim]] | None = None,
    target: TargetLike = None,
) -> None:
    """Compile an ONNX model, without a cut, into one shared library.

    Parameters
    ----------
    model : path
        ONNX file.
    library : path
        File to write, for `UncutModel`.
    inputs : mapping of str to sequence of int or str, optional
        Input shapes, as for `compile_model`.
    target : str, dict or tvm.target.Target, optional
        TVM target. Default: this machine's CPU.

    Raises
    ------
    InvalidArgument
        A model, shape or target that cannot be used.
    FailedPrecondition
        The library cannot be linked.
    Internal
        TVM fails to compile.

    Examples
    --------
    >>> compile_uncut("m.onnx", "m.so", inputs={"x": (1, 3, 320, 320)})  # doctest: +SKIP
    >>> (y,) = UncutModel("m.so")(x)  # doctest: +SKIP
    """
    chosen = resolve_target(target)
    build_library(read_model(model).uncut(inputs or {}), Path(library), chosen)


class UncutModel:
    """A library from `compile_uncut`, ready to run. Not safe for concurrent calls.

    Call it with the model's inputs in order, NumPy arrays of the model's datatypes and shapes. It returns a list of
    the outputs.

    Parameters
    ----------
    library : path
        File that `compile_uncut` wrote.

    Raises
    ------
    FailedPrecondition
        The library cannot be loaded, or this is a forked child of a process in which TVM ran.

    Examples
    --------
    >>> (y,) = UncutModel("m.so")(x)  # doctest: +SKIP
    """

    def __init__(self, library: str | os.PathLike[str]) -> None:
        with loading(library):
            self._machine = Machine(load_library(library))

    def __call__(self, *inputs: Array) -> list[Array]:
        THREADS.use()
        return self._machine.run(inputs)
