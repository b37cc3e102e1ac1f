"""`manifest.json` of a device bundle: `DIR/device/{device.so, manifest.json}`. No TVM in here."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from zmq_offload.artifacts.cpu import CpuNeeds
from zmq_offload.artifacts.repository import checksum
from zmq_offload.errors import FailedPrecondition, InvalidArgument
from zmq_offload.protocol.names import check_model_name, check_version
from zmq_offload.protocol.tensors import TensorSpec

FORMAT_VERSION = 1
LIBRARY = "device.so"
MANIFEST = "manifest.json"

SEND, RECEIVE = "_send", "_receive"
"""Behind the symbol of an offloaded part: the two halves of its call, which a library has where they are apart."""

VersionPolicy = int | Literal["latest"]
"""Which version of a model the device asks for: a number, or the latest that is served."""


@dataclass(frozen=True, slots=True)
class OffloadedRegion:
    """One offloaded part: the symbol by which the device's library calls it, and the model that answers."""

    symbol: str
    model: str
    version: VersionPolicy
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]

    def to_json(self) -> dict[str, Any]:
        return {
            "symbol": self.symbol,
            "model": self.model,
            "version": self.version,
            "inputs": [t.to_json() for t in self.inputs],
            "outputs": [t.to_json() for t in self.outputs],
        }

    @classmethod
    def from_json(cls, value: Any) -> OffloadedRegion:
        """Raises InvalidArgument saying what is wrong with `value`; KeyError for what is missing."""
        symbol, version = value["symbol"], check_policy(value["version"])
        if not isinstance(symbol, str) or not symbol:
            raise InvalidArgument(f"symbol {symbol!r} is not a name")
        return cls(symbol, check_model_name(value["model"]), version, _specs(value["inputs"]), _specs(value["outputs"]))


@dataclass(frozen=True, slots=True)
class Fallback:
    """The bundle's own copy of an offloaded part: which version of its model it is a copy of, the library beside the
    device's, that one's checksum, and its signature."""

    model: str
    version: int
    library: str
    checksum: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]

    def to_json(self) -> dict[str, Any]:
        return {
            "model": self.model,
            "version": self.version,
            "library": self.library,
            "checksum": self.checksum,
            "inputs": [t.to_json() for t in self.inputs],
            "outputs": [t.to_json() for t in self.outputs],
        }

    @classmethod
    def from_json(cls, value: Any) -> Fallback:
        """Raises InvalidArgument saying what is wrong with `value`; KeyError for what is missing."""
        model = check_model_name(value["model"])
        if value["library"] != fallback_library(model):
            raise InvalidArgument(f"the fallback of {model!r} is not {fallback_library(model)}: {value['library']!r}")
        if not isinstance(value["checksum"], str):
            raise InvalidArgument("checksum must be a string")
        signature = _specs(value["inputs"]), _specs(value["outputs"])
        return cls(model, check_version(value["version"]), value["library"], value["checksum"], *signature)


def fallback_library(model: str) -> str:
    """The file name of the copy of a model."""
    return f"fallback_{model}.so"


@dataclass(frozen=True, slots=True)
class Manifest:
    """What a device bundle is: the whole model's signature, in the model's order, and what is offloaded.

    `checksum` is "sha256:<hex>" of the library, `target` the TVM target that it is for as JSON-able data, `cpu` what
    that needs of the device's CPU. A bundle with a `fallback` is not sealed: it holds the offloaded parts, too.
    """

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    offloaded: tuple[OffloadedRegion, ...]
    target: Any
    cpu: CpuNeeds
    tvm_version: str
    checksum: str
    flops: dict[str, Any] = field(default_factory=dict)
    fallback: tuple[Fallback, ...] = ()

    def write(self, folder: Path) -> None:
        described = {
            "format_version": FORMAT_VERSION,
            "inputs": [t.to_json() for t in self.inputs],
            "outputs": [t.to_json() for t in self.outputs],
            "offloaded": [o.to_json() for o in self.offloaded],
            "sealed": not self.fallback,
            "fallback": [f.to_json() for f in self.fallback],
            "target": self.target,
            "cpu": self.cpu.to_json(),
            "tvm_version": self.tvm_version,
            "checksum": self.checksum,
            "flops": self.flops,
        }
        (folder / MANIFEST).write_text(json.dumps(described, indent=2) + "\n")

    @classmethod
    def read(cls, folder: Path) -> Manifest:
        """Raises FailedPrecondition naming the file that is missing or damaged; the library is not looked at."""
        file = folder / MANIFEST
        try:
            value = json.loads(file.read_bytes())
        except OSError as error:
            raise FailedPrecondition(f"{file}: {error.strerror or error}; is {folder} a device bundle?") from None
        except (ValueError, RecursionError) as error:
            raise FailedPrecondition(f"{file} is damaged: {error}") from None
        try:
            found = value["format_version"]
            if found != FORMAT_VERSION:
                raise InvalidArgument(f"format_version is {found!r}, this release reads {FORMAT_VERSION}")
            offloaded = tuple(map(OffloadedRegion.from_json, value["offloaded"]))
            described = _specs(value["inputs"]), _specs(value["outputs"])
            version, digest = value["tvm_version"], value["checksum"]
            if not isinstance(version, str) or not isinstance(digest, str):
                raise InvalidArgument("tvm_version and checksum must be strings")
            cpu = CpuNeeds.from_json(value["cpu"])
            flops = value.get("flops")
            fallback = tuple(map(Fallback.from_json, value.get("fallback", ())))
            if value.get("sealed", True) is not (not fallback):
                raise InvalidArgument(f"sealed is {value.get('sealed', True)!r}, with {len(fallback)} fallback entries")
            return cls(
                *described,
                offloaded,
                value["target"],
                cpu,
                version,
                digest,
                flops if isinstance(flops, dict) else {},
                fallback,
            )
        except KeyError as missing:
            raise FailedPrecondition(f"{file} is damaged: key {missing} is missing") from None
        except (InvalidArgument, TypeError) as error:
            raise FailedPrecondition(f"{file} is damaged: {error}") from None

    def check_library(self, folder: Path) -> Path:
        """The library's path. Raises FailedPrecondition if it is missing or not the one that was described."""
        return _checked(folder / LIBRARY, self.checksum)

    def check_fallback(self, folder: Path) -> dict[Fallback, Path]:
        """The copies of offloaded parts, and where they are.

        Raises FailedPrecondition if one is missing, not the one that was described, or not of an offloaded part: of
        another model, of another version than the one that is asked for, or with other inputs or outputs; or if a part
        has two.
        """
        called = {region.model: region for region in self.offloaded}
        if len({fallback.model for fallback in self.fallback}) != len(self.fallback):
            raise FailedPrecondition(f"{folder / MANIFEST} is damaged: an offloaded region has two fallbacks")
        for fallback in self.fallback:
            region = called.get(fallback.model)
            if region is None:
                raise FailedPrecondition(
                    f"{folder / fallback.library} is of {fallback.model!r}, which the device does not call"
                )
            if region.version not in ("latest", fallback.version):
                raise FailedPrecondition(
                    f"{folder}: the two halves of {fallback.model!r} differ: the fallback is of version "
                    f"{fallback.version}, "
                    f"the device asks for {region.version}; compile the bundle again"
                )
            for kind, here, there in (
                ("inputs", fallback.inputs, region.inputs),
                ("outputs", fallback.outputs, region.outputs),
            ):
                if here != there:
                    raise FailedPrecondition(
                        f"{folder}: the two halves of {fallback.model!r} differ: the fallback's {kind} are "
                        f"{_listed(here)}, the region's {_listed(there)}; compile the bundle again"
                    )
        return {fallback: _checked(folder / fallback.library, fallback.checksum) for fallback in self.fallback}


def _checked(library: Path, described: str) -> Path:
    try:
        actual = checksum(library)
    except OSError as error:
        raise FailedPrecondition(f"{library}: {error.strerror or error}") from None
    if actual != described:
        raise FailedPrecondition(f"{library} is damaged: its checksum is {actual}, {MANIFEST} says {described}")
    return library


def _listed(specs: Iterable[TensorSpec]) -> str:
    return "; ".join(map(str, specs)) or "none"


def check_policy(version: Any) -> VersionPolicy:
    """`version`, if it is "latest" or a number from 1; raises InvalidArgument otherwise."""
    if version == "latest":
        return "latest"
    if type(version) is not int:
        raise InvalidArgument(f"version {version!r} is neither a whole number from 1 nor 'latest'")
    return check_version(version)


def _specs(value: Any) -> tuple[TensorSpec, ...]:
    if not isinstance(value, list):
        raise InvalidArgument("inputs and outputs must be lists")
    return tuple(map(TensorSpec.from_json, value))
