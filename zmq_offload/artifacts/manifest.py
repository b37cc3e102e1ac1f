"""`manifest.json` of a device bundle: `DIR/device/{device.so, manifest.json}`. No TVM in here."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Literal

import msgspec

from zmq_offload.artifacts import jsonfile
from zmq_offload.artifacts.cpu import CpuNeeds
from zmq_offload.artifacts.repository import Version, checksum
from zmq_offload.errors import FailedPrecondition, InvalidArgument
from zmq_offload.protocol.names import check_label, check_model_name, check_version
from zmq_offload.protocol.tensors import TensorSpec

FORMAT_VERSION = 1
LIBRARY = "device.so"
MANIFEST = "manifest.json"

SEND, RECEIVE = "_send", "_receive"
"""Appended to the symbol of a region: the two halves of its call, in a library that calls them separately."""

MOST_SPLITS = 32
"""The most splits of a bundle."""

_LABEL = "label:"

VersionPolicy = Version | str
"""Which version of a model the device asks for: a number, "latest" for the latest that is served, or "label:NAME" for
the one that a label stands for."""


class OffloadedRegion(msgspec.Struct, frozen=True):
    """One region: the symbol by which the device's library calls it, and the model that replies."""

    symbol: str
    model: str
    version: VersionPolicy
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]

    def __post_init__(self) -> None:
        if not self.symbol:
            raise InvalidArgument("symbol is empty; it names a function of the library")
        check_model_name(self.model)
        check_policy(self.version)
        _check_specs(*self.inputs, *self.outputs)

    @property
    def label(self) -> str | None:
        """The label that the device asks for, if it asks for one."""
        return self.version[len(_LABEL) :] if isinstance(self.version, str) and self.version != "latest" else None

    @property
    def pinned(self) -> int | None:
        """The number of the version that the device asks for, if it asks for one."""
        return self.version if isinstance(self.version, int) else None


class Fallback(msgspec.Struct, frozen=True):
    """A region that is compiled into the bundle, too: the model and version that it stands for, the file of its library
    in the bundle, that file's checksum, and its signature."""

    model: str
    version: Version
    library: str
    checksum: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]

    def __post_init__(self) -> None:
        right = fallback_library(check_model_name(self.model))
        if self.library != right:
            raise InvalidArgument(f"library of model {self.model!r} is {self.library!r}; expected {right!r}")
        _check_specs(*self.inputs, *self.outputs)


def fallback_library(model: str) -> str:
    """The file name of the fallback of a model."""
    return f"fallback_{model}.so"


class BundleSplit(msgspec.Struct, frozen=True):
    """One way to divide the model between device and workers.

    Parameters
    ----------
    name : str
        What people and options call it: the tensors of the cut joined by "+", then "@float16" or "@int8" if what
        crosses is encoded so. Unique in the bundle.
    cut : tuple of str
        The tensors at which the model is divided.
    until : tuple of str
        The tensors that workers compute. Empty: the model's outputs.
    wire : str
        The encoding of what crosses.
    entry : str
        The function of the device's library that runs the device's part.
    region : OffloadedRegion
        What workers compute.
    predicted : dict, optional
        Seconds that the plan predicts: of the device, the server and the rest.
    """

    name: str
    cut: tuple[str, ...]
    until: tuple[str, ...]
    wire: Literal["float32", "float16", "int8"]
    entry: str
    region: OffloadedRegion
    predicted: dict[str, Any] = {}

    def __post_init__(self) -> None:
        if not self.name or not self.entry or not self.cut:
            raise InvalidArgument("a split has a name, a cut and an entry; one of them is empty")


class Manifest(msgspec.Struct, frozen=True):
    """What `manifest.json` says of a device bundle.

    Parameters
    ----------
    inputs, outputs : tuple of TensorSpec
        The signature of the whole model, in the model's order.
    offloaded : tuple of OffloadedRegion
        The regions that workers compute.
    target : JSON-able
        The TVM target that the library is for.
    cpu : CpuNeeds
        What the library needs of the device's CPU.
    tvm_version : str
        The version of TVM that built the library.
    checksum : str
        "sha256:<hex>" of the library.
    flops : dict, optional
        Floating-point operations of the library's functions, by name.
    fallback : tuple of Fallback, optional
        The regions that the bundle holds, too. A bundle without any is sealed.
    splits : tuple of BundleSplit, optional
        Of an adaptive bundle: the ways in which it divides the model. `offloaded` has their regions, in this order.
    local : str, optional
        Of an adaptive bundle that is not sealed: the function of the library that runs the whole model.
    weights : tuple of str, optional
        Of an adaptive bundle: the weights of the model's file that the library holds, which some split needs there; as
        far as the compiler knows where tensors come from.
    """

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    offloaded: tuple[OffloadedRegion, ...]
    target: Any
    cpu: CpuNeeds
    tvm_version: str
    checksum: str
    flops: dict[str, Any] = {}
    fallback: tuple[Fallback, ...] = ()
    splits: tuple[BundleSplit, ...] = ()
    local: str = ""
    weights: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        _check_specs(*self.inputs, *self.outputs)
        _check_splits(self.splits, self.local, self.offloaded)

    @property
    def sealed(self) -> bool:
        """Whether the bundle lacks what workers compute."""
        return not (self.fallback or self.local)

    def write(self, folder: Path) -> None:
        """Write `manifest.json` into a folder.

        Parameters
        ----------
        folder : Path
            The device bundle.

        Raises
        ------
        OSError
            If the file cannot be written.
        """
        described = {"format_version": FORMAT_VERSION, **jsonfile.to_object(self), "sealed": self.sealed}
        if not self.splits:
            del described["splits"], described["local"], described["weights"]
        (folder / MANIFEST).write_bytes(jsonfile.encode(described))

    @classmethod
    def read(cls, folder: Path) -> Manifest:
        """Read the manifest of a device bundle. The library is not looked at.

        Parameters
        ----------
        folder : Path
            The device bundle.

        Returns
        -------
        Manifest

        Raises
        ------
        FailedPrecondition
            If the file is missing or damaged; the message names the file and the key.
        """
        file = folder / MANIFEST
        try:
            value = jsonfile.parse(file.read_bytes())
            jsonfile.check_format_version(value, FORMAT_VERSION)
            found = jsonfile.convert(value, cls)
            sealed = value.get("sealed", True)
            if sealed is not found.sealed:
                kept = f"local {found.local!r}" if found.local else f"{len(found.fallback)} fallback entries"
                raise InvalidArgument(f"sealed is {sealed!r}, with {kept}")
        except OSError as error:
            raise FailedPrecondition(f"{file}: {error.strerror or error}; is {folder} a device bundle?") from None
        except InvalidArgument as error:
            raise FailedPrecondition(f"{file} is damaged: {error}") from None
        return found

    def check_library(self, folder: Path) -> Path:
        """Check that the library is the one that the manifest describes.

        Parameters
        ----------
        folder : Path
            The device bundle.

        Returns
        -------
        Path
            The library.

        Raises
        ------
        FailedPrecondition
            If the library is missing, or has another checksum.
        """
        return _checked(folder / LIBRARY, self.checksum)

    def check_fallback(self, folder: Path) -> dict[Fallback, Path]:
        """Check that each fallback is the one that the manifest describes, and that it fits its region.

        Parameters
        ----------
        folder : Path
            The device bundle.

        Returns
        -------
        dict of Fallback to Path
            The library of each fallback.

        Raises
        ------
        FailedPrecondition
            If a library is missing or has another checksum; if a region has two fallbacks; if a fallback is of a model
            that the device does not call, of another version than the one it asks for, or has another signature.
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
            if region.pinned not in (None, fallback.version):
                raise FailedPrecondition(
                    f"{folder}: the two halves of {fallback.model!r} differ: the fallback is of version "
                    f"{fallback.version}, the device asks for {region.version}; compile the bundle again"
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


def _check_specs(*specs: TensorSpec) -> None:
    for spec in specs:
        spec.check()


def _check_splits(splits: Sequence[BundleSplit], local: str, offloaded: Sequence[OffloadedRegion]) -> None:
    """Raises InvalidArgument for splits that do not go together, or with the rest of the manifest."""
    if not splits:
        if local:
            raise InvalidArgument(f"local is {local!r}; only a bundle with splits has it")
        return
    if len(splits) > MOST_SPLITS:
        raise InvalidArgument(f"splits are {len(splits)}; at most {MOST_SPLITS} are possible")
    for what, found in (
        ("name", [split.name for split in splits]),
        ("entry", [*(split.entry for split in splits), local]),
        ("model", [split.region.model for split in splits]),
        ("symbol", [split.region.symbol for split in splits]),
    ):
        twice = next((one for one in found if found.count(one) > 1), None)
        if twice is not None:
            raise InvalidArgument(f"splits have the {what} {twice!r} twice")
    if tuple(offloaded) != tuple(split.region for split in splits):
        raise InvalidArgument("offloaded does not list the regions of the splits, in their order")


def _listed(specs: Iterable[TensorSpec]) -> str:
    return "; ".join(map(str, specs)) or "none"


def check_policy(version: Any) -> VersionPolicy:
    """`version`, if it is "latest", a label or a version number. Raises InvalidArgument otherwise."""
    if isinstance(version, str) and (version == "latest" or version.startswith(_LABEL)):
        if version != "latest":
            check_label(version[len(_LABEL) :])
        return version
    if type(version) is not int:
        raise InvalidArgument(
            f"version {version!r} is neither a whole number from 1 nor 'latest' nor a label such as 'label:stable'"
        )
    return check_version(version)
