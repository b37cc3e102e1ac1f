"""How a model is served: `<repository>/<model>/config.toml`, or `config.json`.

Everything is optional, and without a file every version is served as it is. docs/operations.md explains each key.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any, Literal, TypeAlias

import msgspec

from zmq_offload.artifacts import jsonfile
from zmq_offload.artifacts.repository import Batching
from zmq_offload.common.suggest import did_you_mean
from zmq_offload.common.toml import parse as parse_toml
from zmq_offload.errors import FailedPrecondition, InvalidArgument
from zmq_offload.protocol import limits
from zmq_offload.protocol.names import check_label as check_label

CONFIG = "config.toml"
CONFIG_JSON = "config.json"

_MOST_BYTES = 256 * 1024
_MOST_LABELS = 64
_MOST_VERSIONS = 1000

Version: TypeAlias = Annotated[int, msgspec.Meta(ge=1, le=limits.VERSION)]
Count: TypeAlias = Annotated[int, msgspec.Meta(ge=1, le=2**31 - 1)]
Seconds: TypeAlias = Annotated[float, msgspec.Meta(gt=0, le=limits.BUDGET_US / 1e6)]


class Latest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The newest versions, and those that labels and the canary name."""

    latest: Count


class WarmUp(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Runs of a version before it is announced. `inputs` is what it is given: ones, zeros or random numbers, or a file
    of NumPy's (`.npz`) beside `config.toml` with an array for each input."""

    runs: Annotated[int, msgspec.Meta(ge=0, le=1000)] = 1
    inputs: str = "ones"

    def __post_init__(self) -> None:
        if self.inputs not in ("ones", "zeros", "random") and (
            not self.inputs.endswith(".npz") or "/" in self.inputs or self.inputs.startswith(".")
        ):
            raise InvalidArgument(
                f"inputs is {self.inputs!r}; expected ones, zeros, random, or the name of an .npz file beside {CONFIG}"
            )


class Queue(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How many requests for the model may wait in a broker."""

    max_queued: Count


class Cache(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Gateways keep the answers for so many seconds."""

    seconds: Seconds = 60.0


class Canary(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A version that gets a share of the requests for the latest one.

    It gets none any more if, over the last `window` seconds, after at least `min_requests` of its own and as many of
    the other versions, its share of failed requests is more than `error_margin` above theirs, or the 95th percentile of
    its compute times is more than `latency_ratio` times theirs.
    """

    version: Version
    share: Annotated[float, msgspec.Meta(ge=0, le=1)]
    min_requests: Annotated[int, msgspec.Meta(ge=10, le=10**6)] = 100
    error_margin: Annotated[float, msgspec.Meta(ge=0, le=1)] = 0.02
    latency_ratio: Annotated[float, msgspec.Meta(ge=1, le=1000)] = 1.5
    window: Annotated[float, msgspec.Meta(ge=1, le=3600)] = 60.0


class ModelConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a `config.toml` says.

    Parameters
    ----------
    versions : "all", Latest or tuple of int
        The versions to serve.
    unloaded : bool
        Serve none of them, for now.
    instances : int, optional
        How many of a supervisor's processes serve the model. None: all.
    timeout : float, optional
        The most seconds that a request for it may take; a broker shortens longer ones.
    priority : int
        Added to the priority of its requests, from -100 to 100.
    labels : dict of str to int
        Names that stand for versions.
    batching : Batching, optional
        In place of `model.json`'s.
    warmup : WarmUp, optional
        What is run before a version is announced. None: a model of float inputs runs once on ones.
    queue : Queue, optional
        Bounds of the broker's queue for it.
    cache : Cache, optional
        That gateways keep its answers.
    canary : Canary, optional
        A version that is tried out.

    Raises
    ------
    InvalidArgument
        For a value that is wrong; the message names it.
    """

    versions: Literal["all"] | Latest | tuple[Version, ...] = "all"
    unloaded: bool = False
    instances: Annotated[int, msgspec.Meta(ge=1, le=1024)] | None = None
    timeout: Seconds | None = None
    priority: Annotated[int, msgspec.Meta(ge=-limits.PRIORITY, le=limits.PRIORITY)] = 0
    labels: dict[str, Version] = {}
    batching: Batching | None = None
    warmup: WarmUp | None = None
    queue: Queue | None = None
    cache: Cache | None = None
    canary: Canary | None = None

    def __post_init__(self) -> None:
        if isinstance(self.versions, tuple) and len(self.versions) > _MOST_VERSIONS:
            raise InvalidArgument(
                f"versions lists {len(self.versions)} versions; at most {_MOST_VERSIONS} can be listed"
            )
        if len(self.labels) > _MOST_LABELS:
            raise InvalidArgument(f"labels has {len(self.labels)} labels; a model has at most {_MOST_LABELS}")
        for label in self.labels:
            check_label(label)

    @property
    def serves_none(self) -> bool:
        """Whether it serves nothing, whatever is in the repository."""
        return self.unloaded or self.versions == ()

    def serves(self, versions: Iterable[int]) -> list[int]:
        """Of the versions in the repository, those to serve, the lowest first."""
        if self.unloaded:
            return []
        there = sorted(versions)
        if self.versions == "all":
            return there
        if isinstance(self.versions, Latest):
            # A new version must not push out the one that a label stands for.
            named = {*self.labels.values(), *([] if self.canary is None else [self.canary.version])}
            kept = named.union(there[-self.versions.latest :])
            return [version for version in there if version in kept]
        return [version for version in there if version in self.versions]

    def announced(self, version: int, build: str) -> dict[str, Any]:
        """What brokers and gateways must know of a version, for the body of an Announce; empty if that is nothing.

        `build` changes when the files of the version are replaced.
        """
        labels = sorted(label for label, labeled in self.labels.items() if labeled == version)
        canary = None if self.canary is None else msgspec.to_builtins(self.canary)
        found = {
            "labels": labels,
            "timeout_us": None if self.timeout is None else max(1, int(self.timeout * 1e6)),
            "priority": self.priority,
            "max_queued": None if self.queue is None else self.queue.max_queued,
            "cache": None if self.cache is None else {"seconds": self.cache.seconds, "build": build},
            "canary": canary,
        }
        return {key: value for key, value in found.items() if value}


NO_CONFIG = ModelConfig()
"""A model without a file."""


def parse(content: bytes, toml: bool = True) -> ModelConfig:
    """The configuration that a file holds. Raises InvalidArgument, which names the key that is wrong."""
    value = parse_toml(content) if toml else jsonfile.parse(content)
    for key in value:
        if key not in ModelConfig.__struct_fields__:
            meant = did_you_mean(key, ModelConfig.__struct_fields__)
            raise InvalidArgument(
                f"key {key!r:.80} is not known{meant or '; known are ' + ', '.join(ModelConfig.__struct_fields__)}"
            )
    try:
        return jsonfile.convert(value, ModelConfig)
    except InvalidArgument as error:
        if error.message.startswith("labels[...]"):  # msgspec does not name the key
            labels = value["labels"].items()
            label, given = next((k, v) for k, v in labels if type(v) is not int or not 1 <= v <= limits.VERSION)
            raise InvalidArgument(f"label {label!r:.80} is {given!r:.80}; expected the number of a version") from None
        if not error.message.startswith("versions is "):
            said = error.message.replace("expected object", "expected a table" if toml else "expected an object")
            raise InvalidArgument(said.removesuffix(" | null")) from None
        raise InvalidArgument(
            f'versions is {value["versions"]!r:.80}; expected "all", {{latest = N}}, or a list of version numbers'
        ) from None


def read(folder: Path) -> ModelConfig:
    """The configuration of the model in a folder; `NO_CONFIG` if there is no file.

    Raises FailedPrecondition, which names the file, for one that cannot be read or is wrong, and if there are two.
    """
    found = [folder / name for name in (CONFIG, CONFIG_JSON) if _is_there(folder / name)]
    if not found:
        return NO_CONFIG
    if len(found) == 2:
        raise FailedPrecondition(f"{found[1]}: there is a {CONFIG}, too; remove one of the two")
    file = found[0]
    try:
        if file.is_fifo():  # to open it would never end
            raise InvalidArgument("it is a pipe; expected a file")
        with file.open("rb") as opened:
            content = opened.read(_MOST_BYTES + 1)
        if len(content) > _MOST_BYTES:
            raise InvalidArgument(f"it has over {_MOST_BYTES} bytes; a configuration has fewer")
        return parse(content, toml=file.name == CONFIG)
    except OSError as error:
        raise FailedPrecondition(f"{file}: {error.strerror or error}") from None
    except InvalidArgument as error:
        raise FailedPrecondition(f"{file}: {error.message}") from None


def _is_there(file: Path) -> bool:
    """Whether there is a file, or a link, even one to nothing: it must not count as no configuration, or versions that
    nobody wants would be served. Nor must a folder that cannot be looked into."""
    try:
        file.lstat()
    except FileNotFoundError:
        return False
    except OSError as error:
        raise FailedPrecondition(f"{file}: {error.strerror or error}") from None
    return True
