"""The tensors that a load test sends, and the outputs that it expects."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from zmq_offload.common.suggest import did_you_mean
from zmq_offload.errors import FailedPrecondition, InvalidArgument, NotFound
from zmq_offload.protocol import limits
from zmq_offload.protocol.payload import Array
from zmq_offload.protocol.tensors import ANY, DATATYPES, TensorSpec, check_tensors, datatype_of

T = TypeVar("T")

TOLERANCE = 1e-3
"""Relative and absolute: another batch size or another CPU adds up sums in another order."""


def served_signature(models: Sequence[Mapping[str, Any]], name: str, version: int | None) -> tuple[TensorSpec, ...]:
    """The inputs of a model, from the broker's list of served models. Raises NotFound if it is not in the list."""
    of_name = [model for model in models if model["name"] == name and version in (None, model["version"])]
    if not of_name:
        listing = ", ".join(f"{model['name']} (version {model['version']})" for model in models) or "nothing"
        wanted = f"model {name!r}" + ("" if version is None else f" version {version}")
        meant = did_you_mean(name, (model["name"] for model in models))
        raise NotFound(f"{wanted} is not served; served are: {listing}{meant}")
    latest = max(of_name, key=lambda model: model["version"])
    return tuple(TensorSpec.from_json(tensor) for tensor in latest["inputs"])


def parse_shape(text: str) -> tuple[str, str, tuple[int, ...]]:
    """Name, datatype and shape of "x=1,3,320,320" or "x=1,3,320,320:UINT8"."""
    name, _, rest = text.partition("=")
    dims, _, datatype = rest.partition(":")
    try:
        shape = tuple(int(part) for part in dims.split(",")) if dims else ()
    except ValueError:
        shape = (-1,)
    if not name or not rest or any(extent < 0 for extent in shape):
        raise InvalidArgument(
            f"{text!r} is not a shape; use NAME=EXTENTS or NAME=EXTENTS:DATATYPE, e.g. x=1,3,320,320:FP32"
        )
    datatype = datatype or "FP32"
    if datatype not in DATATYPES:
        raise InvalidArgument(
            f"shape {text!r} has datatype {datatype!r}; use one of {', '.join(DATATYPES)}"
            f"{did_you_mean(datatype, DATATYPES)}"
        )
    TensorSpec(name, datatype, shape).check()
    return name, datatype, shape


def parse_file(text: str) -> tuple[str, Array]:
    """Name and array of "x=features.npy". Raises FailedPrecondition if the file cannot be read."""
    name, _, file = text.partition("=")
    if not name or not file:
        raise InvalidArgument(f"{text!r} does not name a file; use NAME=FILE.npy")
    try:
        array = np.load(Path(file), allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        reason = getattr(error, "strerror", None) or error
        raise FailedPrecondition(f"{file} cannot be read as a .npy file: {reason}") from None
    if not isinstance(array, np.ndarray):
        raise FailedPrecondition(f"{file} holds several arrays; give one .npy file for each tensor")
    return name, array


def once(option: str, pairs: Iterable[tuple[str, T]]) -> dict[str, T]:
    """The values of a repeatable option by name. Raises InvalidArgument for a name that is given twice."""
    found: dict[str, T] = {}
    for name, value in pairs:
        if name in found:
            raise InvalidArgument(f"{option}: {name!r} is given twice; give it once")
        found[name] = value
    return found


def check_expected(expected: Mapping[str, Array], outputs: Mapping[str, Array]) -> None:
    """Raises InvalidArgument if `expected` has other names, shapes or datatypes than `outputs`, a first result."""
    for name, wanted in expected.items():
        got = outputs.get(name)
        if got is None:
            has = ", ".join(map(repr, outputs)) or "none"
            raise InvalidArgument(
                f"--expect: the model has no output {name!r}; it has {has}{did_you_mean(name, outputs)}"
            )
        if (got.shape, got.dtype) != (wanted.shape, wanted.dtype.newbyteorder("=")):
            raise InvalidArgument(
                f"--expect: {name!r} is {wanted.dtype}{list(wanted.shape)}; the model's output is "
                f"{got.dtype}{list(got.shape)}"
            )


def make_inputs(
    signature: Sequence[TensorSpec],
    files: Mapping[str, Array],
    shapes: Mapping[str, tuple[str, tuple[int, ...]]],
    what: str,
    seed: int = 0,
    max_frame_bytes: int = limits.MESSAGE_BYTES,
) -> dict[str, Array]:
    """The inputs of a request: arrays from `files`, and random data for all others.

    `shapes` are datatypes and shapes by name. They fill in symbolic extents of the signature, or describe all inputs
    of a model without one. Raises InvalidArgument for an input that the model does not take, and for one of more than
    `max_frame_bytes`, before its memory is allocated.
    """
    rng = np.random.default_rng(seed)
    if not signature:
        if not files and not shapes:
            raise InvalidArgument(f"{what} takes any tensors; describe them with --shape or --input")
        made = {name: _random(rng, name, *described, max_frame_bytes) for name, described in shapes.items()}
        return made | dict(files)
    inputs = {}
    for spec in signature:
        if spec.name in files:
            inputs[spec.name] = files[spec.name]
            continue
        _, shape = shapes.get(spec.name, (spec.datatype, spec.shape))
        shape = tuple(1 if extent == ANY else extent for extent in shape)
        inputs[spec.name] = _random(rng, spec.name, spec.datatype, shape, max_frame_bytes)
    unknown = (files.keys() | shapes.keys()) - inputs.keys()
    if unknown:
        meant = did_you_mean(min(unknown), inputs)
        raise InvalidArgument(f"{what} has no input {', '.join(sorted(unknown))}; it takes {', '.join(inputs)}{meant}")
    given = {name: (datatype_of(array.dtype), array.shape) for name, array in inputs.items()}
    check_tensors(signature, given, what=what)
    return inputs


def _random(rng: np.random.Generator, name: str, datatype: str, shape: tuple[int, ...], most: int) -> Array:
    dtype = DATATYPES[datatype]
    nbytes = math.prod(shape) * dtype.itemsize
    if nbytes > most:
        raise InvalidArgument(
            f"input {name!r} of shape {list(shape)} has {nbytes:,} bytes; the limit is {most:,} (--max-frame-bytes)"
        )
    if dtype.kind == "f":
        if dtype.itemsize == 8:
            return rng.random(shape)
        return rng.random(shape, dtype=np.float32).astype(dtype, copy=False)
    # Integers may be indices, and small ones are in range more often.
    return rng.integers(0, 2, shape, dtype=dtype)


def difference(outputs: Mapping[str, Array], expected: Mapping[str, Array]) -> str | None:
    """The first difference between outputs and expected ones, or None."""
    for name, wanted in expected.items():
        got = outputs.get(name)
        if got is None:
            return f"output {name!r} is missing"
        if got.shape != wanted.shape or got.dtype != wanted.dtype:
            return f"output {name!r} is {got.dtype}{list(got.shape)}; {wanted.dtype}{list(wanted.shape)} was expected"
        if got.dtype.kind == "f":
            same = np.allclose(got, wanted, rtol=TOLERANCE, atol=TOLERANCE, equal_nan=True)
        else:
            same = np.array_equal(got, wanted)
        if not same:
            worst = np.max(np.abs(got.astype(np.float64) - wanted.astype(np.float64)))
            return f"output {name!r} differs from the expected one by up to {worst:.3g}"
    return None
