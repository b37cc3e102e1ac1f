"""Datatypes and signatures of tensors, with the names of the Open Inference Protocol (KServe v2).

A `TensorSpec` is the name, datatype and shape of one input or output of a model. An extent of `ANY` (-1, as in the Open
Inference Protocol) is symbolic: any extent fits. `ANY` at dimension 0 is the batch, which is the same in all inputs of
a request.
"""

from __future__ import annotations

import hashlib
import math
import reprlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, TypeAlias

import msgpack
import msgspec
import numpy as np
import numpy.typing as npt

from zmq_offload.errors import InvalidArgument
from zmq_offload.protocol import limits
from zmq_offload.protocol.messages import SIGNATURE_BYTES

ANY = -1

DType: TypeAlias = np.dtype[Any]

DATATYPES: dict[str, DType] = {
    "BOOL": np.dtype("bool"),
    "UINT8": np.dtype("u1"),
    "UINT16": np.dtype("<u2"),
    "UINT32": np.dtype("<u4"),
    "UINT64": np.dtype("<u8"),
    "INT8": np.dtype("i1"),
    "INT16": np.dtype("<i2"),
    "INT32": np.dtype("<i4"),
    "INT64": np.dtype("<i8"),
    "FP16": np.dtype("<f2"),
    "FP32": np.dtype("<f4"),
    "FP64": np.dtype("<f8"),
}
"""Datatype name -> NumPy dtype. Little-endian on the wire."""

_NAMES = {dtype: name for name, dtype in DATATYPES.items()}


def datatype_of(dtype: npt.DTypeLike) -> str:
    """Return the datatype name of a NumPy dtype, or of a value that `np.dtype` takes, such as "float32".

    Raises InvalidArgument for a dtype that cannot be sent: objects, strings, complex numbers, datetimes.
    """
    try:
        known = np.dtype(dtype)
    except TypeError:
        raise InvalidArgument(f"datatype {dtype!r} is not known; use one of {', '.join(DATATYPES)}") from None
    name = _NAMES.get(known.newbyteorder("<"))
    if name is None:
        raise InvalidArgument(f"datatype {known} cannot be sent; use one of {', '.join(DATATYPES)}")
    return name


def array_of(value: object) -> npt.NDArray[Any]:
    """Convert a value with `np.asarray`.

    Raises ValueError for nested lists of different lengths, and for masked values, whose masks NumPy would drop.
    """
    if isinstance(value, np.ma.MaskedArray) and np.ma.is_masked(value):
        raise ValueError("it has masked values; replace them first, for example with filled(0)")
    return np.asarray(value)


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """One input or output of a model: name, datatype (a key of `DATATYPES`), shape (`ANY` for a symbolic extent).

    `multiples` has a number for each extent, of which it has to be a multiple; without it, all are 1. `maximums` has
    the largest that each extent may be, `ANY` where there is none; without it, there are none.
    """

    name: str
    datatype: str
    shape: tuple[int, ...]
    multiples: tuple[int, ...] | msgspec.UnsetType = field(default=msgspec.UNSET, repr=False)
    maximums: tuple[int, ...] | msgspec.UnsetType = field(default=msgspec.UNSET, repr=False)

    @property
    def dtype(self) -> DType:
        return DATATYPES[self.datatype]

    @property
    def nbytes(self) -> int:
        """Bytes of one tensor; a symbolic extent counts as 1."""
        return math.prod(1 if d == ANY else d for d in self.shape) * self.dtype.itemsize

    def fits(self, shape: tuple[int, ...]) -> bool:
        """Whether a tensor of this shape can be passed."""
        if shape == self.shape:
            return True
        return len(shape) == len(self.shape) and all(w in (ANY, d) for w, d in zip(self.shape, shape, strict=True))

    def multiple(self, axis: int) -> int:
        """The number that an extent has to be a multiple of."""
        return 1 if self.multiples is msgspec.UNSET else self.multiples[axis]

    def maximum(self, axis: int) -> int | None:
        """The largest that an extent may be; None if any fits."""
        found = ANY if self.maximums is msgspec.UNSET else self.maximums[axis]
        return None if found == ANY else found

    def usual(self, axis: int, extent: int) -> int:
        """How many multiples a symbolic extent of about `extent` has, where that is allowed."""
        most, multiple = self.maximum(axis), self.multiple(axis)
        count = -(-extent // multiple)
        return count if most is None else min(count, most // multiple)

    def __str__(self) -> str:
        whole = [f"{self.multiple(axis)}*" if self.multiple(axis) > 1 else "" for axis in range(len(self.shape))]
        dims = ",".join(f"{m}?" if d == ANY else str(d) for m, d in zip(whole, self.shape, strict=True))
        return f"{self.name} {self.datatype}[{dims}]"

    def to_json(self) -> dict[str, object]:
        known: dict[str, object] = {"name": self.name, "datatype": self.datatype, "shape": list(self.shape)}
        if self.multiples is not msgspec.UNSET:
            known["multiples"] = list(self.multiples)
        if self.maximums is not msgspec.UNSET:
            known["maximums"] = list(self.maximums)
        return known

    @classmethod
    def from_json(cls, value: object) -> TensorSpec:
        """Parse what `to_json` returns. Raises InvalidArgument, which says what is wrong."""
        if not isinstance(value, Mapping):
            raise InvalidArgument(
                f"a tensor must be an object with name, datatype and shape, not {reprlib.repr(value)}"
            )
        name, datatype, shape = value.get("name"), value.get("datatype"), value.get("shape")
        if not isinstance(name, str):
            raise InvalidArgument(f"a tensor's name must be a string, not {reprlib.repr(name)}")
        if not isinstance(datatype, str):
            raise InvalidArgument(f"tensor {name!r}: datatype must be a string, not {reprlib.repr(datatype)}")
        if not isinstance(shape, list) or not all(type(d) is int for d in shape):
            raise InvalidArgument(f"tensor {name!r}: shape {reprlib.repr(shape)} is not a list of extents (-1: any)")
        multiples = value.get("multiples", msgspec.UNSET)
        if multiples is not msgspec.UNSET and not isinstance(multiples, list):
            raise InvalidArgument(
                f"tensor {name!r}: multiples {reprlib.repr(multiples)} is not a list of numbers from 1"
            )
        maximums = value.get("maximums", msgspec.UNSET)
        if maximums is not msgspec.UNSET and not isinstance(maximums, list):
            raise InvalidArgument(
                f"tensor {name!r}: maximums {reprlib.repr(maximums)} is not a list of extents (-1: any)"
            )
        bounds = [given if given is msgspec.UNSET else tuple(given) for given in (multiples, maximums)]
        spec = cls(name, datatype, tuple(shape), *bounds)
        spec.check()
        return spec

    def check(self) -> None:
        """Raise InvalidArgument for a datatype, a name or a shape that a message cannot carry."""
        try:
            length = len(self.name.encode())
        except UnicodeEncodeError:
            raise InvalidArgument(f"tensor name {reprlib.repr(self.name)} is not valid Unicode") from None
        if not 0 < length <= limits.NAME_BYTES:
            raise InvalidArgument(
                f"a tensor's name has 1 to {limits.NAME_BYTES} bytes, not {length}: {reprlib.repr(self.name)}"
            )
        if self.datatype not in DATATYPES:
            raise InvalidArgument(
                f"tensor {self.name!r}: datatype {reprlib.repr(self.datatype)} is not one of {', '.join(DATATYPES)}"
            )
        if any(d < ANY for d in self.shape):
            raise InvalidArgument(
                f"tensor {self.name!r}: shape {reprlib.repr(list(self.shape))} is not a list of extents (-1: any)"
            )
        if self.multiples is not msgspec.UNSET and (
            len(self.multiples) != len(self.shape) or not all(type(m) is int and m > 0 for m in self.multiples)
        ):
            raise InvalidArgument(
                f"tensor {self.name!r}: multiples {reprlib.repr(list(self.multiples))} is not a number from 1 for each "
                f"extent of shape {reprlib.repr(list(self.shape))}"
            )
        if self.maximums is not msgspec.UNSET and (
            len(self.maximums) != len(self.shape)
            or not all(type(m) is int and (m > 0 or m == ANY) for m in self.maximums)
        ):
            raise InvalidArgument(
                f"tensor {self.name!r}: maximums {reprlib.repr(list(self.maximums))} is not a number from 1, or -1, "
                f"for each extent of shape {reprlib.repr(list(self.shape))}"
            )
        if len(self.shape) > limits.RANK or any(d >= limits.EXTENT for d in self.shape):
            raise InvalidArgument(
                f"tensor {self.name!r}: shape {reprlib.repr(list(self.shape))} has more than {limits.RANK} extents, or "
                f"one from 2**{limits.EXTENT.bit_length() - 1}"
            )


class Latest(NamedTuple):
    """In place of a version number: the latest version of a model that has this signature.

    A device uses it so that a new version with other inputs or outputs is never chosen for it.

    Parameters
    ----------
    signature : bytes
        16 bytes, as `signature_of` makes them from the inputs and outputs.

    Examples
    --------
    >>> inputs = [TensorSpec("image", "FP32", (1, 3, 320, 320))]
    >>> outputs = [TensorSpec("text", "INT64", (1, 80))]
    >>> client.infer("ocr", {"image": image}, version=Latest(signature_of(inputs, outputs)))
    """

    signature: bytes


def signature_of(inputs: Iterable[TensorSpec], outputs: Iterable[TensorSpec]) -> bytes:
    """Return 16 bytes that stand for the names, datatypes and shapes of a model's tensors, in any order.

    They are the start of the SHA-256 of the msgpack array `[inputs, outputs]`, each an array of
    `[name, datatype, shape]` sorted by name.
    """
    parts = [sorted([t.name, t.datatype, list(t.shape)] for t in tensors) for tensors in (inputs, outputs)]
    return hashlib.sha256(msgpack.packb(parts)).digest()[:SIGNATURE_BYTES]


def check_signature(inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec]) -> None:
    """Raise InvalidArgument for tensors that a message cannot carry."""
    for kind, tensors in (("inputs", inputs), ("outputs", outputs)):
        if len(tensors) > limits.TENSORS:
            raise InvalidArgument(f"{len(tensors)} {kind}; a message has at most {limits.TENSORS} tensors")
        names = set()
        for tensor in tensors:
            tensor.check()
            if tensor.name in names:
                raise InvalidArgument(f"two {kind} have the name {tensor.name!r}; names must differ")
            names.add(tensor.name)


def check_tensors(specs: Iterable[TensorSpec], given: Mapping[str, tuple[str, tuple[int, ...]]], *, what: str) -> None:
    """Check tensors, given as name -> (datatype, shape), against a signature.

    Raises InvalidArgument, which names the first tensor that is missing, unknown or different, and says what would be
    right. `what` begins the message, for example "model 'ocr' version 1".
    """
    wanted = {spec.name: spec for spec in specs}
    if given.keys() != wanted.keys():
        listing = "; ".join(map(str, wanted.values())) or "no tensors"
        faults = [f"input {name!r} is missing" for name in wanted if name not in given]
        faults += [f"input {name!r} is not known" for name in given if name not in wanted]
        raise InvalidArgument(f"{what}: {', '.join(faults)}; it takes {listing}")
    batch: tuple[str, int] | None = None
    for name, (datatype, shape) in given.items():
        spec = wanted[name]
        if datatype != spec.datatype:
            raise InvalidArgument(f"{what}: input {name!r} has datatype {datatype}, it takes {spec}")
        if not spec.fits(shape):
            raise InvalidArgument(f"{what}: input {name!r} has shape {list(shape)}, it takes {spec}")
        if spec.multiples is not msgspec.UNSET or spec.maximums is not msgspec.UNSET:
            _check_extents(spec, shape, what)
        if spec.shape and spec.shape[0] == ANY:
            if batch is not None and batch[1] != shape[0]:
                raise InvalidArgument(
                    f"{what}: input {name!r} has batch {shape[0]} but input {batch[0]!r} has batch {batch[1]}"
                )
            batch = name, shape[0]


def _check_extents(spec: TensorSpec, shape: Sequence[int], what: str) -> None:
    for axis, extent in enumerate(shape):
        if extent % spec.multiple(axis):
            raise InvalidArgument(
                f"{what}: dimension {axis} of input {spec.name!r} is {extent}, which is not a multiple of "
                f"{spec.multiple(axis)}; it takes {spec}"
            )
        most = spec.maximum(axis)
        if most is not None and extent > most:
            raise InvalidArgument(
                f"{what}: dimension {axis} of input {spec.name!r} is {extent}, but a table of the model ends at "
                f"{most}; it takes at most {most}"
            )
