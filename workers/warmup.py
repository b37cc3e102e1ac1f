"""What a version is run on before it is announced."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from zmq_offload.artifacts.config import WarmUp
from zmq_offload.artifacts.repository import ModelVersion
from zmq_offload.errors import FailedPrecondition, InvalidArgument, one_line
from zmq_offload.protocol.payload import Array
from zmq_offload.protocol.tensors import ANY, check_tensors, datatype_of


def usual_inputs(model: ModelVersion) -> list[Array] | None:
    """Ones for a model whose configuration says nothing; None if it is not run.

    Only models with float inputs and known shapes (a symbolic batch counts as one row) are run: ones may not make sense
    as integers.
    """
    shapes = _shapes(model)
    if any(ANY in shape for shape in shapes) or any(spec.dtype.kind != "f" for spec in model.inputs):
        return None
    return [np.ones(shape, spec.dtype) for shape, spec in zip(shapes, model.inputs, strict=True)]


def wanted_inputs(model: ModelVersion, wanted: WarmUp, folder: Path) -> list[Array]:
    """What the configuration says; `folder` is the model's. A batch has one row, unless a file has more.

    Raises FailedPrecondition if they cannot be made, or do not fit the signature.
    """
    if wanted.inputs.endswith(".npz"):
        return _from_file(model, folder / wanted.inputs)
    shapes = _shapes(model)
    for spec, shape in zip(model.inputs, shapes, strict=True):
        if ANY in shape:
            raise FailedPrecondition(
                f"warmup: input {spec} has an extent that is not known; give the inputs by a file (inputs = 'FILE.npz')"
            )
    random = np.random.default_rng(0)
    made: list[Array] = []
    for spec, shape in zip(model.inputs, shapes, strict=True):
        if wanted.inputs == "random":  # from 0 to 1, as most networks expect; random bytes could be NaN
            made.append(np.asarray(random.random(shape)).astype(spec.dtype))
        else:
            made.append(np.full(shape, 1 if wanted.inputs == "ones" else 0, spec.dtype))
    return made


def _from_file(model: ModelVersion, file: Path) -> list[Array]:
    try:
        with np.load(file, allow_pickle=False) as arrays:
            found = {spec.name: arrays[spec.name] for spec in model.inputs if spec.name in arrays}
    except Exception as error:  # of any kind: the file may hold anything
        raise FailedPrecondition(f"warmup: {file} cannot be read: {one_line(error)}") from None
    try:
        given = {name: (datatype_of(array.dtype), array.shape) for name, array in found.items()}
        check_tensors(model.inputs, given, what=f"warmup: {file}")
    except InvalidArgument as error:
        raise FailedPrecondition(error.message) from None
    return [np.ascontiguousarray(found[spec.name]) for spec in model.inputs]


def _shapes(model: ModelVersion) -> list[tuple[int, ...]]:
    return [(1, *spec.shape[1:]) if spec.shape[:1] == (ANY,) else spec.shape for spec in model.inputs]
