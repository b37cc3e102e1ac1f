"""System shared memory as the protocols use it, and the files behind it.

A protocol gets a `SharedMemory` and uses it in this way; everything raises OffloadError and nothing else:

    part = part_of(name, parameters)                 # of an input or output; None: the tensor is in the request
    views = memory.read([part, ...], grant)          # all inputs of a request at once
    places = memory.places([part, ...], grant)       # its outputs, before it runs
    place.write(buffers)                             # each output; the response has no data

`Off` answers instead where shared memory is not switched on.

Files are read and written by system calls and not mapped: if a client shortens a file, access to mapped memory kills
the process (SIGBUS), and no check before it helps. The price is one copy of each tensor in the kernel.
"""

from __future__ import annotations

import os
import stat
import weakref
from collections.abc import Sequence
from typing import Protocol

import numpy as np

from zmq_offload.errors import (
    FailedPrecondition,
    Internal,
    InvalidArgument,
    OffloadError,
    ResourceExhausted,
    Unimplemented,
)
from zmq_offload.gateway.calls import Buffers
from zmq_offload.gateway.regions.table import Part, Region, Table, region_of
from zmq_offload.net.grants import Grant
from zmq_offload.protocol import limits

_FOLDER = "/dev/shm"
"""Where Linux has the files of `shm_open`."""


class Place(Protocol):
    """Room for an output in a region."""

    part: Part

    def write(self, output: Buffers) -> None:
        """Write the output. Raises InvalidArgument if it does not fit, FailedPrecondition if the file became short."""


class SharedMemory(Protocol):
    """The regions of all clients. Each method raises OffloadError only, and sees only the regions of `grant`."""

    def register(self, name: str, key: object, offset: object, byte_size: object, grant: Grant) -> None:
        """Open a file of /dev/shm, from which a region is used from now on. The values are checked here."""

    def unregister(self, name: str | None, grant: Grant) -> None:
        """Forget a region, or all. Requests that use it end as they would have; unknown names are no error."""

    def regions(self, name: str | None, grant: Grant) -> list[Region]:
        """The registered regions, or the one with a name."""

    def read(self, parts: Sequence[Part], grant: Grant) -> list[memoryview]:
        """Copies of the parts of regions that hold a request's inputs."""

    def places(self, parts: Sequence[Part], grant: Grant) -> list[Place]:
        """Where a request's outputs go. Regions that are unregistered meanwhile stay open for them."""


class Off:
    """Shared memory that is not switched on."""

    def register(self, name: str, key: object, offset: object, byte_size: object, grant: Grant) -> None:
        raise self._refusal()

    def unregister(self, name: str | None, grant: Grant) -> None:
        raise self._refusal()

    def regions(self, name: str | None, grant: Grant) -> list[Region]:
        raise self._refusal()

    def read(self, parts: Sequence[Part], grant: Grant) -> list[memoryview]:
        if parts:
            raise self._refusal()
        return []

    def places(self, parts: Sequence[Part], grant: Grant) -> list[Place]:
        if parts:
            raise self._refusal()
        return []

    def _refusal(self) -> OffloadError:
        return Unimplemented("system shared memory is switched off; start the gateway with --system-shared-memory")


class System:
    """The files of /dev/shm that clients name.

    `largest` is for the inputs of a request, in bytes, `most` for those of all requests at once.
    """

    def __init__(self, largest: int = limits.MESSAGE_BYTES, most: int = 8 * limits.MESSAGE_BYTES) -> None:
        self._table: Table[_File] = Table()
        self._largest, self._most = largest, most
        self._held = 0

    def register(self, name: str, key: object, offset: object, byte_size: object, grant: Grant) -> None:
        region = region_of(name, key, offset, byte_size)
        self._table.check_new(grant.name, name)
        file = _File(region.key)
        if region.offset + region.byte_size > (size := file.size()):
            raise InvalidArgument(
                f"shared memory region {name!r} ends at byte {region.offset + region.byte_size} of {region.key}, "
                f"which has {size} bytes"
            )
        self._table.add(grant.name, region, file)

    def unregister(self, name: str | None, grant: Grant) -> None:
        self._table.remove(grant.name, name)

    def regions(self, name: str | None, grant: Grant) -> list[Region]:
        return self._table.list(grant.name, name)

    def read(self, parts: Sequence[Part], grant: Grant) -> list[memoryview]:
        found = [self._table.find(grant.name, part) for part in parts]
        if (total := sum(part.byte_size for part in parts)) > self._largest:
            # A file may be large without using memory; its copy would.
            raise ResourceExhausted(
                f"the inputs in shared memory have {total} bytes; at most {self._largest} are taken"
            )
        if self._held + total > self._most:
            raise ResourceExhausted(f"the gateway holds {self._held} bytes of shared memory; try again later")
        return [
            self._copy(file, region.offset + part.offset, part.byte_size)
            for part, (region, file) in zip(parts, found, strict=True)
        ]

    def _copy(self, file: _File, start: int, size: int) -> memoryview:
        copy = np.empty(size, np.uint8)
        file.read(start, copy.data)
        self._held += size
        weakref.finalize(copy, self._release, size).atexit = False  # when the request has ended, and its arrays with it
        return copy.data

    def _release(self, size: int) -> None:
        self._held -= size

    def places(self, parts: Sequence[Part], grant: Grant) -> list[Place]:
        found = [self._table.find(grant.name, part) for part in parts]
        return [_Place(part, region, file) for part, (region, file) in zip(parts, found, strict=True)]


class _Place:
    def __init__(self, part: Part, region: Region, file: _File) -> None:
        self.part = part
        self._start = region.offset + part.offset
        self._file = file

    def write(self, output: Buffers) -> None:
        size = sum(memoryview(buffer).nbytes for buffer in output)
        if size > self.part.byte_size:
            raise InvalidArgument(
                f"an output has {size} bytes, and its place in shared memory region {self.part.region!r} has "
                f"{self.part.byte_size}; give it more"
            )
        at = self._start
        for buffer in output:
            at = self._file.write(at, memoryview(buffer).cast("B"))


class _File:
    """An open file of /dev/shm, which is closed with the last reference to it."""

    def __init__(self, key: str) -> None:
        self._key = key
        # O_NOFOLLOW and the check of the kind: the file must be one of /dev/shm itself, and opening must not wait.
        flags = os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
        try:
            self._descriptor = os.open(f"{_FOLDER}/{key.removeprefix('/')}", flags)
        except OSError as error:
            self._descriptor = -1
            raise InvalidArgument(f"shared memory {key} cannot be opened: {error.strerror}") from None
        if not stat.S_ISREG(os.fstat(self._descriptor).st_mode):
            raise InvalidArgument(f"shared memory {key} is not a regular file; make it by shm_open")

    def __del__(self) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)

    def size(self) -> int:
        return os.fstat(self._descriptor).st_size

    def read(self, start: int, target: memoryview) -> None:
        end = start + target.nbytes
        self._check(end)
        while target:
            # Linux reads at most 2 GB at once; 0 bytes: the file became shorter since the check.
            if not (count := os.preadv(self._descriptor, [target], start)):
                raise self._short(end)
            target, start = target[count:], start + count

    def write(self, start: int, data: memoryview) -> int:
        # If the file becomes shorter after this check, writing makes it longer again, up to the end of the region.
        self._check(start + data.nbytes)
        try:
            while data:
                count = os.pwrite(self._descriptor, data, start)
                data, start = data[count:], start + count
        except OSError as error:
            raise Internal(f"shared memory {self._key} cannot be written: {error.strerror}") from None
        return start

    def _check(self, end: int) -> None:
        if end > self.size():
            raise self._short(end)

    def _short(self, end: int) -> OffloadError:
        return FailedPrecondition(
            f"shared memory {self._key} has {self.size()} bytes, and {end} are needed: it became shorter since it was "
            "registered"
        )
