"""Which regions of shared memory clients have registered, and which parts of them requests name. Pure.

Each client has names of its own, so that no client can use, see or unregister the region of another one. Clients with
the same name in the gateway's list are one client here, and so are all clients of a gateway without a list.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Generic, NamedTuple, TypeVar

from zmq_offload.errors import AlreadyExists, InvalidArgument, NotFound, ResourceExhausted

MOST = 1024
"""Regions in all. Each holds a file open."""

MOST_OF_ONE = 128
"""Regions of one client."""

_LONGEST = 255
"""Bytes of a name, as in a file system."""

_REGION, _OFFSET, _BYTE_SIZE = "shared_memory_region", "shared_memory_offset", "shared_memory_byte_size"


class Region(NamedTuple):
    """A part of a file, under a name. `key` names the file as `shm_open` does: "/frames" is /dev/shm/frames."""

    name: str
    key: str
    offset: int
    byte_size: int


class Part(NamedTuple):
    """A part of a region that holds one tensor, or has room for one."""

    region: str
    offset: int
    byte_size: int


def part_of(tensor: str, parameters: Mapping[str, object]) -> Part | None:
    """The part of a region that the parameters of an input or output name, or None if they name no region.

    Raises InvalidArgument naming the tensor.
    """
    region = parameters.get(_REGION)
    if region is None:
        for name in (_OFFSET, _BYTE_SIZE):
            if name in parameters:
                raise InvalidArgument(f"tensor {tensor!r} has the parameter {name} without {_REGION}; give both")
        return None
    if not isinstance(region, str):
        raise InvalidArgument(f"{_REGION} of tensor {tensor!r} is {region!r}; give the name of a registered region")
    if _BYTE_SIZE not in parameters:
        raise InvalidArgument(f"tensor {tensor!r} has the parameter {_REGION} without {_BYTE_SIZE}; give both")
    offset = _size(parameters.get(_OFFSET, 0), f"{_OFFSET} of tensor {tensor!r}")
    return Part(region, offset, _size(parameters[_BYTE_SIZE], f"{_BYTE_SIZE} of tensor {tensor!r}"))


def region_of(name: str, key: object, offset: object, byte_size: object) -> Region:
    """What a client wants to register, checked as far as that is possible without the file. Raises InvalidArgument."""
    if not 0 < len(name.encode(errors="surrogatepass")) <= _LONGEST:
        raise InvalidArgument(f"the name of the region has {len(name)} characters; use 1 to {_LONGEST} bytes")
    place = f"of shared memory region {name!r}"
    if not isinstance(key, str) or not _is_file_name(key.removeprefix("/")):
        raise InvalidArgument(f"key {key!r} {place} is not a name as for shm_open; use '/NAME' without another '/'")
    region = Region(name, key, _size(offset, f"offset {place}"), _size(byte_size, f"byte_size {place}"))
    if not region.byte_size:
        raise InvalidArgument(f"byte_size {place} is 0; use at least 1")
    return region


def _is_file_name(name: str) -> bool:
    try:
        length = len(name.encode())
    except UnicodeEncodeError:
        return False
    return 0 < length <= _LONGEST and name not in (".", "..") and "/" not in name and "\0" not in name


def _size(value: object, what: str) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise InvalidArgument(f"{what} is {value!r}; use a whole number of bytes from 0")
    return value


File = TypeVar("File")


class Table(Generic[File]):
    """The registered regions, each with its open file, whatever that is."""

    def __init__(self) -> None:
        self._regions: dict[str, dict[str, tuple[Region, File]]] = {}
        self._count = 0

    def check_new(self, owner: str, name: str) -> None:
        """Raise AlreadyExists or ResourceExhausted if a client cannot register a region of this name now."""
        own = self._regions.get(owner, {})
        if name in own:
            raise AlreadyExists(f"shared memory region {name!r} is registered; unregister it before")
        if len(own) >= MOST_OF_ONE or self._count >= MOST:
            which = f"{len(own)} regions of this client" if len(own) >= MOST_OF_ONE else f"{self._count} regions"
            raise ResourceExhausted(f"{which} are registered, which is the limit; unregister one before")

    def add(self, owner: str, region: Region, file: File) -> None:
        """Register a region that `check_new` lets in."""
        self._regions.setdefault(owner, {})[region.name] = (region, file)
        self._count += 1

    def find(self, owner: str, part: Part) -> tuple[Region, File]:
        """The region of a part, and its file. Raises NotFound, and InvalidArgument for a part outside of the region."""
        found = self._regions.get(owner, {}).get(part.region)
        if found is None:
            raise NotFound(f"shared memory region {part.region!r} is not registered; register it before its use")
        size = found[0].byte_size
        if part.offset + part.byte_size > size:
            raise InvalidArgument(
                f"{part.byte_size} bytes at offset {part.offset} are not inside of shared memory region "
                f"{part.region!r}, which has {size} bytes"
            )
        return found

    def list(self, owner: str, name: str | None = None) -> list[Region]:
        """The regions of a client, or the one with a name. Raises NotFound."""
        own = self._regions.get(owner, {})
        if name is not None and name not in own:
            raise NotFound(
                f"shared memory region {name!r} is not registered; registered are: {', '.join(own) or 'none'}"
            )
        return [region for region, _ in own.values() if name in (None, region.name)]

    def remove(self, owner: str, name: str | None = None) -> None:
        """Forget all regions of a client, or the one with a name; an unknown name is none to forget."""
        own = self._regions.get(owner, {})
        for gone in list(own) if name is None else [name] if name in own else []:
            del own[gone]
            self._count -= 1
        if not own:
            self._regions.pop(owner, None)
