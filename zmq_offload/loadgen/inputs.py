"""What is sent, and what must come back."""

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
"""Relative and absolute: another batch, another worker's CPU, and sums are taken in another order."""


def served_signature(models: Sequence[Mapping[str, Any]], name: str, version: int | None) -> tuple[TensorSpec, ...]:
    """The inputs of a model by what the broker says is served; raises NotFound."""
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
        raise InvalidArgument(f"shape {text!r}: use NAME=EXTENTS or NAME=EXTENTS:DATATYPE, x=1,3,320,320:FP32")
    datatype = datatype or "FP32"
    if datatype not in DATATYPES:
        raise InvalidArgument(
            f"shape {text!r}: {datatype!r} is not one of {', '.join(DATATYPES)}{did_you_mean(datatype, DATATYPES)}"
        )
    TensorSpec(name, datatype, shape).check()
    return name, datatype, shape


def parse_file(text: str) -> tuple[str, Array]:
    """Name and array of "x=features.npy". Raises FailedPrecondition naming the file that cannot be read."""
    name, _, file = text.partition("=")
    if not name or not file:
        raise InvalidArgument(f"{text!r}: use NAME=FILE.npy")
    try:
        array = np.load(Path(file), allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        reason = getattr(error, "strerror", None) or error
        raise FailedPrecondition(f"{file} cannot be read as a .npy file: {reason}") from None
    if not isinstance(array, np.ndarray):
        raise FailedPrecondition(f"{file} holds several arrays; give one .npy file for each tensor")
    return name, array


def once(option: str, pairs: Iterable[tuple[str, T]]) -> dict[str, T]:
    """What an option gives for each name. Raises InvalidArgument for a name that is given twice."""
    found: dict[str, T] = {}
    for name, value in pairs:
        if name in found:
            raise InvalidArgument(f"{option}: {name!r} is given twice")
        found[name] = value
    return found


def check_expected(expected: Mapping[str, Array], outputs: Mapping[str, Array]) -> None:
    """Raises InvalidArgument if the expected outputs could not be any results of a model that returned `outputs`."""
    for name, wanted in expected.items():
        got = outputs.get(name)
        if got is None:
            has = ", ".join(map(repr, outputs)) or "none"
            raise InvalidArgument(f"--expect: there is no output {name!r}; there is {has}{did_you_mean(name, outputs)}")
        if (got.shape, got.dtype) != (wanted.shape, wanted.dtype.newbyteorder("=")):
            raise InvalidArgument(
                f"--expect: output {name!r} is {got.dtype}{list(got.shape)}, not {wanted.dtype}{list(wanted.shape)}"
            )


def make_inputs(
    signature: Sequence[TensorSpec],
    files: Mapping[str, Array],
    shapes: Mapping[str, tuple[str, tuple[int, ...]]],
    what: str,
    seed: int = 0,
    max_frame_bytes: int = limits.MESSAGE_BYTES,
) -> dict[str, Array]:
    """Files where there are some, random data elsewhere. `shapes` say what a signature leaves open, or, where there is
    none (a model that takes anything), all.

    Raises InvalidArgument for what the model does not take, and, before it is made, for a tensor of more than
    `max_frame_bytes`.
    """
    rng = np.random.default_rng(seed)
    if not signature:
        if not files and not shapes:
            raise InvalidArgument(f"{what} takes any tensors: say which by --shape or --input")
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
            f"input {name!r} of shape {list(shape)} has {nbytes:,} bytes; the fabric takes {most:,} (--max-frame-bytes)"
        )
    if dtype.kind == "f":
        single: Any = np.float64 if dtype.itemsize == 8 else np.float32
        return rng.random(shape, dtype=single).astype(dtype, copy=False)
    # Whole numbers may be indices: small ones are the most likely to be fine.
    return rng.integers(0, 2, shape, dtype=dtype)


def difference(outputs: Mapping[str, Array], expected: Mapping[str, Array]) -> str | None:
    """How outputs are not what was expected; None if they are."""
    for name, wanted in expected.items():
        got = outputs.get(name)
        if got is None:
            return f"output {name!r} is missing"
        if got.shape != wanted.shape or got.dtype != wanted.dtype:
            return f"output {name!r} is {got.dtype}{list(got.shape)}, expected was {wanted.dtype}{list(wanted.shape)}"
        if got.dtype.kind == "f":
            same = np.allclose(got, wanted, rtol=TOLERANCE, atol=TOLERANCE, equal_nan=True)
        else:
            same = np.array_equal(got, wanted)
        if not same:
            worst = np.max(np.abs(got.astype(np.float64) - wanted.astype(np.float64)))
            return f"output {name!r} differs from what was expected by up to {worst:.3g}"
    return None
