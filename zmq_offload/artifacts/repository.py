"""The model repository: `<repository>/<model>/<version>/{subgraph.so, model.json}`.

Written by `zmq_offload.compile`, read by workers. A version is complete or absent: it is put together in a hidden
folder beside its place and renamed into it, so that a worker never sees half of one.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from zmq_offload.artifacts.cpu import CpuNeeds
from zmq_offload.common.scratch import folders_made, put_in_place, scratch_folder
from zmq_offload.errors import AlreadyExists, FailedPrecondition, InvalidArgument
from zmq_offload.protocol.names import NAME_PATTERN, check_model_name, check_version
from zmq_offload.protocol.tensors import ANY, TensorSpec, check_signature

FORMAT_VERSION = 1
LIBRARY = "subgraph.so"
DESCRIPTION = "model.json"


@dataclass(frozen=True, slots=True)
class Batching:
    """How requests of one model may run together: at most `max_batch` rows at a time (dimension 0 of every tensor), the
    first of them waiting at most `delay_us` microseconds for others."""

    max_batch: int
    delay_us: int = 0

    def __post_init__(self) -> None:
        if type(self.max_batch) is not int or self.max_batch < 1:
            raise InvalidArgument(f"max_batch {self.max_batch!r} is not a whole number of rows from 1")
        if type(self.delay_us) is not int or self.delay_us < 0:
            raise InvalidArgument(f"batch delay {self.delay_us!r} is not a whole number of microseconds from 0")

    def check(self, tensors: Iterable[TensorSpec]) -> None:
        """Raises InvalidArgument naming the first tensor that has no rows to put together."""
        for tensor in tensors:
            if not tensor.shape or tensor.shape[0] != ANY:
                raise InvalidArgument(
                    f"requests cannot run together: tensor {tensor} has no symbolic batch dimension; "
                    "compile the model with --input NAME=N,..."
                )


@dataclass(frozen=True, slots=True)
class ModelVersion:
    """What `model.json` says of one version of a model.

    `batching` is None where requests run one at a time. `cpu` is what the library needs of the CPU, `target` the TVM
    target as a JSON-able value, `checksum` "sha256:<hex>" of `subgraph.so`, `tvm_version` the version of TVM that
    built it. `extra` keeps the keys that this release does not know.
    """

    name: str
    version: int
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    target: Any
    tvm_version: str
    checksum: str
    cpu: CpuNeeds | None = None
    batching: Batching | None = None
    extra: dict[str, Any] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        return {
            "format_version": FORMAT_VERSION,
            "name": self.name,
            "version": self.version,
            "inputs": [t.to_json() for t in self.inputs],
            "outputs": [t.to_json() for t in self.outputs],
            "target": self.target,
            "tvm_version": self.tvm_version,
            "checksum": self.checksum,
            **({"cpu": self.cpu.to_json()} if self.cpu else {}),
            **({"batching": asdict(self.batching)} if self.batching else {}),
            **self.extra,
        }

    @classmethod
    def from_json(cls, value: Any) -> ModelVersion:
        """Raises InvalidArgument saying what is wrong with `value`."""
        if not isinstance(value, dict):
            raise InvalidArgument("it is not a JSON object")
        rest = dict(value)
        known = rest.pop("format_version", None)
        if known != FORMAT_VERSION:
            raise InvalidArgument(f"format_version is {known!r}, this release reads {FORMAT_VERSION}")
        try:
            name, version = check_model_name(rest.pop("name")), rest.pop("version")
            inputs, outputs = rest.pop("inputs"), rest.pop("outputs")
            target, tvm_version, checksum = rest.pop("target"), rest.pop("tvm_version"), rest.pop("checksum")
        except KeyError as missing:
            raise InvalidArgument(f"key {missing} is missing") from None
        check_version(version)
        if not isinstance(inputs, list) or not isinstance(outputs, list):
            raise InvalidArgument("inputs and outputs must be lists")
        if not isinstance(tvm_version, str) or not isinstance(checksum, str):
            raise InvalidArgument("tvm_version and checksum must be strings")
        specs = [tuple(TensorSpec.from_json(t) for t in tensors) for tensors in (inputs, outputs)]
        check_signature(*specs)
        batching = _batching(rest.pop("batching", None))
        if batching is not None:
            batching.check((*specs[0], *specs[1]))
        cpu = CpuNeeds.from_json(rest.pop("cpu")) if "cpu" in rest else None
        return cls(name, version, specs[0], specs[1], target, tvm_version, checksum, cpu, batching, rest)


def _batching(value: Any) -> Batching | None:
    if value is None:
        return None
    if not isinstance(value, dict) or not value.keys() <= {"max_batch", "delay_us"} or "max_batch" not in value:
        raise InvalidArgument(f"batching must be an object with max_batch and delay_us, not {value!r}")
    return Batching(**value)


def loadable(library: Path) -> str:
    """The name by which to load a library. The system's loader does not look at a file whose name belongs to a library
    that is still in use. So a file that replaced another gets its own spelling of the same path, made from its inode:
    "./" for each bit that is 0, ".//" for each bit that is 1. A library in use keeps its inode, so no two that are in
    use share a name. (It is for `tvm_ffi.load_module`; that of `tvm.runtime` would spell it as before.)
    """
    place = library.resolve()
    with contextlib.suppress(OSError):  # of a file that is not there: loading it says so
        state = place.stat()
        bits = f"{state.st_dev:b}{state.st_ino:064b}"
        return f"{place.parent}/{''.join('.//' if bit == '1' else './' for bit in bits)}{place.name}"
    return str(library)


def checksum(path: Path) -> str:
    """ "sha256:<hex>" of a file's content."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(1 << 24):
            digest.update(chunk)
    return f"sha256:{digest.hexdigest()}"


class Repository:
    """A model repository on disk. Nothing is cached: what is on disk is what counts."""

    def __init__(self, root: str | os.PathLike[str]) -> None:
        self.root = Path(root)

    def path(self, name: str, version: int) -> Path:
        """The folder of one version, there or not."""
        return self.root / check_model_name(name) / str(version)

    def models(self) -> list[str]:
        """Names of the models that have a folder, sorted; an absent repository has none."""
        return sorted(p.name for p in _folders(self.root) if NAME_PATTERN.fullmatch(p.name))

    def versions(self, name: str) -> list[int]:
        """Version numbers that have a folder, ascending."""
        folders = _folders(self.root / check_model_name(name))
        return sorted(int(p.name) for p in folders if re.fullmatch(r"[1-9][0-9]*", p.name))

    def read(self, name: str, version: int) -> ModelVersion:
        """The checked description of one version, its library's checksum included.

        Raises FailedPrecondition naming the file that is missing, unreadable or damaged.
        """
        folder = self.path(name, version)
        file, library = folder / DESCRIPTION, folder / LIBRARY
        self._check_inside(file)
        try:
            found = ModelVersion.from_json(json.loads(file.read_bytes()))
        except OSError as error:
            raise FailedPrecondition(f"{file}: {error.strerror or error}") from None
        except (ValueError, RecursionError) as error:  # InvalidArgument and JSONDecodeError are ValueErrors
            raise FailedPrecondition(f"{file} is damaged: {error}") from None
        if (found.name, found.version) != (name, version):
            raise FailedPrecondition(f"{file} describes {found.name!r} version {found.version}, not what its path says")
        self._check_inside(library)
        try:
            actual = checksum(library)
        except OSError as error:
            raise FailedPrecondition(f"{library}: {error.strerror or error}") from None
        if actual != found.checksum:
            raise FailedPrecondition(
                f"{library} is damaged: its checksum is {actual}, {DESCRIPTION} says {found.checksum}"
            )
        return found

    def _check_inside(self, file: Path) -> None:
        """Raises FailedPrecondition for what a link leads out of the repository to, and for what is no file: to open a
        pipe would wait for ever."""
        try:
            place = file.resolve(strict=True)
        except (OSError, RuntimeError) as error:  # of links that lead in a circle
            raise FailedPrecondition(f"{file}: {getattr(error, 'strerror', None) or error}") from None
        if not place.is_relative_to(self.root.resolve()):
            raise FailedPrecondition(f"{file} leads out of the repository, to {place}")
        if not place.is_file():
            raise FailedPrecondition(f"{file} is not a regular file")

    def write(
        self,
        name: str,
        version: int,
        build: Callable[[Path], ModelVersion],
        *,
        force: bool = False,
    ) -> ModelVersion:
        """Add one version. `build` gets an empty folder, writes `subgraph.so` there and returns the description,
        whose `checksum` is filled in here.

        Raises AlreadyExists if the version is there and not `force`, FailedPrecondition if it cannot be written.
        """
        place = self.path(name, version)
        if place.exists() and not force:
            raise AlreadyExists(f"{place} exists; choose another version, or force it to be replaced")
        try:
            with folders_made(place.parent), scratch_folder(place.parent, f".{version}-") as scratch:
                draft = scratch / "new"
                draft.mkdir()
                found = build(draft)
                described = found.to_json() | {"checksum": checksum(draft / LIBRARY)}
                (draft / DESCRIPTION).write_text(json.dumps(described, indent=2) + "\n")
                draft.chmod(0o755)
                put_in_place(draft, place)
        except OSError as error:
            raise FailedPrecondition(f"{place} cannot be written: {error.strerror or error}") from None
        return ModelVersion.from_json(described)


def _folders(root: Path) -> Iterator[Path]:
    try:
        yield from (p for p in root.iterdir() if p.is_dir())
    except (FileNotFoundError, NotADirectoryError):
        return
    except OSError as error:
        raise FailedPrecondition(f"{root} cannot be read: {error.strerror or error}") from None
