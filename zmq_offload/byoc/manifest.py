"""`manifest.json` of a device bundle: `DIR/device/{device.so, manifest.json}`. No TVM in here."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from zmq_offload.cpu import CpuNeeds
from zmq_offload.errors import FailedPrecondition, InvalidArgument
from zmq_offload.protocol.tensors import TensorSpec
from zmq_offload.repository import check_model_name, check_version, checksum

FORMAT_VERSION = 1
LIBRARY = "device.so"
MANIFEST = "manifest.json"

SEND, RECEIVE = "_send", "_receive"
"""Behind the symbol of an offloaded part: the two halves of its call, which a library has where they are apart."""

VersionPolicy = int | Literal["latest"]
"""Which version of a model the device asks for: a number, or the latest that is served."""


@dataclass(frozen=True, slots=True)
class Offloaded:
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
    def from_json(cls, value: Any) -> Offloaded:
        """Raises InvalidArgument saying what is wrong with `value`; KeyError for what is missing."""
        symbol, version = value["symbol"], check_policy(value["version"])
        if not isinstance(symbol, str) or not symbol:
            raise InvalidArgument(f"symbol {symbol!r} is not a name")
        return cls(symbol, check_model_name(value["model"]), version, _specs(value["inputs"]), _specs(value["outputs"]))


@dataclass(frozen=True, slots=True)
class Manifest:
    """What a device bundle is: the whole model's signature, in the model's order, and what is offloaded.

    `checksum` is "sha256:<hex>" of the library, `target` the TVM target that it is for as JSON-able data, `cpu` what
    that needs of the device's CPU.
    """

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    offloaded: tuple[Offloaded, ...]
    target: Any
    cpu: CpuNeeds
    tvm_version: str
    checksum: str
    flops: dict[str, Any] = field(default_factory=dict)

    def write(self, folder: Path) -> None:
        described = {
            "format_version": FORMAT_VERSION,
            "inputs": [t.to_json() for t in self.inputs],
            "outputs": [t.to_json() for t in self.outputs],
            "offloaded": [o.to_json() for o in self.offloaded],
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
            offloaded = tuple(map(Offloaded.from_json, value["offloaded"]))
            described = _specs(value["inputs"]), _specs(value["outputs"])
            version, digest = value["tvm_version"], value["checksum"]
            if not isinstance(version, str) or not isinstance(digest, str):
                raise InvalidArgument("tvm_version and checksum must be strings")
            cpu = CpuNeeds.from_json(value["cpu"])
            flops = value.get("flops")
            return cls(
                *described, offloaded, value["target"], cpu, version, digest, flops if isinstance(flops, dict) else {}
            )
        except KeyError as missing:
            raise FailedPrecondition(f"{file} is damaged: key {missing} is missing") from None
        except (InvalidArgument, TypeError) as error:
            raise FailedPrecondition(f"{file} is damaged: {error}") from None

    def check_library(self, folder: Path) -> Path:
        """The library's path. Raises FailedPrecondition if it is missing or not the one that was described."""
        library = folder / LIBRARY
        try:
            actual = checksum(library)
        except OSError as error:
            raise FailedPrecondition(f"{library}: {error.strerror or error}") from None
        if actual != self.checksum:
            raise FailedPrecondition(f"{library} is damaged: its checksum is {actual}, {MANIFEST} says {self.checksum}")
        return library


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
