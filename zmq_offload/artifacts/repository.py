"""The model repository: `<repository>/<model>/<version>/{subgraph.so, model.json}`.

`zmq_offload.compile` writes it and workers read it. A version is complete or absent: it is put together in a hidden
folder next to its place and then renamed, so that a worker never sees half of one.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, Any

import msgspec

from zmq_offload.artifacts import jsonfile
from zmq_offload.artifacts.batching import Batching as Batching  # also where it was before
from zmq_offload.artifacts.cpu import CpuNeeds
from zmq_offload.artifacts.gpu import GpuNeeds
from zmq_offload.common.scratch import folders_made, put_in_place, scratch_folder
from zmq_offload.errors import AlreadyExists, FailedPrecondition, InvalidArgument
from zmq_offload.protocol import limits
from zmq_offload.protocol.names import NAME_PATTERN, check_model_name
from zmq_offload.protocol.tensors import TensorSpec, check_signature

FORMAT_VERSION = 1
LIBRARY = "subgraph.so"
DESCRIPTION = "model.json"


Version = Annotated[int, msgspec.Meta(ge=1, le=limits.VERSION)]


class ModelVersion(msgspec.Struct, frozen=True, omit_defaults=True):
    """What `model.json` says of one version of a model.

    Parameters
    ----------
    name : str
        The model's name.
    version : int
        The version's number, from 1.
    inputs, outputs : tuple of TensorSpec
        The signature, in the order of the library's arguments and results.
    target : JSON-able
        The TVM target that the library is for.
    tvm_version : str
        The version of TVM that built the library.
    checksum : str
        "sha256:<hex>" of `subgraph.so`.
    cpu : CpuNeeds, optional
        What the library needs of the worker's CPU.
    batching : Batching, optional
        How requests may run together. None: one at a time.
    extra : dict, optional
        Keys of the file that this release does not know.
    gpu : GpuNeeds, optional
        The GPU that the library needs. None: it runs on the CPU.
    entry : str, default "main"
        The function of the library that computes the outputs. Models whose libraries have the same content share one
        in a worker's memory.

    Raises
    ------
    InvalidArgument
        For a name, a tensor or a combination of them that no request could carry.
    """

    name: str
    version: Version
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    target: Any
    tvm_version: str
    checksum: str
    cpu: CpuNeeds | None = None
    batching: Batching | None = None
    extra: dict[str, Any] = {}
    gpu: GpuNeeds | None = None
    entry: Annotated[str, msgspec.Meta(min_length=1)] = "main"

    def __post_init__(self) -> None:
        check_model_name(self.name)
        check_signature(self.inputs, self.outputs)
        if self.batching is not None:
            self.batching.check((*self.inputs, *self.outputs))

    def to_json(self) -> dict[str, Any]:
        """The content of `model.json`.

        Returns
        -------
        dict
        """
        known = jsonfile.to_object(self)
        extra = known.pop("extra", {})
        return {"format_version": FORMAT_VERSION, **known, **extra}

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> ModelVersion:
        """The description that a `model.json` holds.

        Parameters
        ----------
        value : dict
            The content of the file.

        Returns
        -------
        ModelVersion

        Raises
        ------
        InvalidArgument
            For another format version, or a key that is missing or wrong; the message names it.
        """
        jsonfile.check_format_version(value, FORMAT_VERSION)
        known = {key: v for key, v in value.items() if key in cls.__struct_fields__ and key != "extra"}
        extra = {key: v for key, v in value.items() if key not in known and key != "format_version"}
        return jsonfile.convert({**known, "extra": extra}, cls)


def loadable(library: Path) -> str:
    """The path by which to load a library.

    The system's loader does not open a file if a library with the same path is in use. A file that replaced another
    would therefore not be loaded. So each file gets a spelling of its path that is made from its inode: "./" for each
    bit that is 0, ".//" for each bit that is 1. A library in use keeps its inode, so no two that are in use share a
    path. (Only `tvm_ffi.load_module` passes the spelling on; `tvm.runtime.load_module` normalizes it.)
    """
    place = library.resolve()
    with contextlib.suppress(OSError):  # a missing file: loading it says so
        state = place.stat()
        bits = f"{state.st_dev:b}{state.st_ino:064b}"
        return f"{place.parent}/{''.join('.//' if bit == '1' else './' for bit in bits)}{place.name}"
    return str(library)


def checksum(path: Path) -> str:
    """ "sha256:<hex>" of a file's content."""
    digest = hashlib.sha256()
    # One small buffer: a worker keeps memory that it frees, and each of its threads has some of its own.
    chunk = memoryview(bytearray(1 << 18))
    with path.open("rb", buffering=0) as file:
        while count := file.readinto(chunk):
            digest.update(chunk[:count])
    return f"sha256:{digest.hexdigest()}"


class Repository:
    """A model repository on disk. Nothing is cached: each call looks at the disk.

    Parameters
    ----------
    root : str or path
        The repository's folder. It need not exist.

    Examples
    --------
    >>> repository = Repository("dist/repository")
    >>> for name in repository.models():
    ...     print(name, repository.versions(name))
    """

    def __init__(self, root: str | os.PathLike[str]) -> None:
        self.root = Path(root)

    def path(self, name: str, version: int) -> Path:
        """The folder of one version, which need not exist.

        Parameters
        ----------
        name : str
            The model's name.
        version : int
            The version's number.

        Returns
        -------
        Path

        Raises
        ------
        InvalidArgument
            If `name` cannot be a model's name.
        """
        return self.root / check_model_name(name) / str(version)

    def models(self) -> list[str]:
        """The names of the models that have a folder.

        Returns
        -------
        list of str
            Sorted; empty if the repository does not exist.

        Raises
        ------
        FailedPrecondition
            If the folder cannot be read.
        """
        return sorted(p.name for p in _folders(self.root) if NAME_PATTERN.fullmatch(p.name))

    def versions(self, name: str) -> list[int]:
        """The versions of a model that have a folder.

        Parameters
        ----------
        name : str
            The model's name.

        Returns
        -------
        list of int
            Ascending; empty if the model does not exist.

        Raises
        ------
        InvalidArgument
            If `name` cannot be a model's name.
        FailedPrecondition
            If the folder cannot be read.
        """
        folders = _folders(self.root / check_model_name(name))
        return sorted(int(p.name) for p in folders if re.fullmatch(r"[1-9][0-9]*", p.name))

    def read(self, name: str, version: int) -> ModelVersion:
        """Read the description of one version, and check its library against the checksum.

        Parameters
        ----------
        name : str
            The model's name.
        version : int
            The version's number.

        Returns
        -------
        ModelVersion

        Raises
        ------
        FailedPrecondition
            If a file is missing, unreadable, damaged or outside the repository; the message names it.
        """
        folder = self.path(name, version)
        file, library = folder / DESCRIPTION, folder / LIBRARY
        self._check_inside(file)
        try:
            found = ModelVersion.from_json(jsonfile.parse(file.read_bytes()))
        except OSError as error:
            raise FailedPrecondition(f"{file}: {error.strerror or error}") from None
        except InvalidArgument as error:
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
        """Raises FailedPrecondition for a link that leads out of the repository, and for anything but a regular file: a
        pipe would block the reader."""
        try:
            place = file.resolve(strict=True)
        except (OSError, RuntimeError) as error:  # RuntimeError: links that lead in a circle
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
        """Add one version.

        Parameters
        ----------
        name : str
            The model's name.
        version : int
            The version's number.
        build : callable
            Gets an empty folder, writes `subgraph.so` there and returns the description. Its `checksum` is filled in
            here.
        force : bool, optional
            Replace a version that exists.

        Returns
        -------
        ModelVersion
            The description that was written.

        Raises
        ------
        AlreadyExists
            If the version exists, without `force`.
        FailedPrecondition
            If it cannot be written.
        """
        place = self.path(name, version)
        if place.exists() and not force:
            raise AlreadyExists(f"{place} exists; choose another version, or force it to be replaced")
        try:
            with folders_made(place.parent), scratch_folder(place.parent, f".{version}-") as scratch:
                draft = scratch / "new"
                draft.mkdir()
                found = msgspec.structs.replace(build(draft), checksum=checksum(draft / LIBRARY))
                (draft / DESCRIPTION).write_bytes(jsonfile.encode(found.to_json()))
                draft.chmod(0o755)
                put_in_place(draft, place)
        except OSError as error:
            raise FailedPrecondition(f"{place} cannot be written: {error.strerror or error}") from None
        return found


def _folders(root: Path) -> Iterator[Path]:
    try:
        yield from (p for p in root.iterdir() if p.is_dir())
    except (FileNotFoundError, NotADirectoryError):
        return
    except OSError as error:
        raise FailedPrecondition(f"{root} cannot be read: {error.strerror or error}") from None
