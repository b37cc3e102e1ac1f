"""The GPU that a library needs, and whether one can run it."""

from __future__ import annotations

import re
from typing import Annotated

import msgspec

from zmq_offload.errors import FailedPrecondition

ARCHITECTURE = r"^sm_[1-9][0-9]{1,2}$"


class GpuNeeds(msgspec.Struct, frozen=True):
    """What a library needs of a GPU: an `architecture` by NVIDIA's name, such as sm_80."""

    architecture: Annotated[str, msgspec.Meta(pattern=ARCHITECTURE)]

    @property
    def capability(self) -> tuple[int, int]:
        """The compute capability: (8, 0) for sm_80."""
        digits = self.architecture.removeprefix("sm_")
        return int(digits[:-1]), int(digits[-1])

    def check(self, what: str, device: str, has: str) -> None:
        """Raises FailedPrecondition if a GPU of compute capability `has` ("9.0") cannot run the library.

        Machine code runs on GPUs of the same major number, and of the same or a later minor one. The message calls the
        library `what` and the GPU `device`.
        """
        major, minor = self.capability
        found = re.match(r"(\d+)\.(\d+)", has)
        if found is None or int(found[1]) != major or int(found[2]) < minor:
            raise FailedPrecondition(
                f"{what} was built for a GPU of compute capability {major}.{minor}, {device} has {has}; "
                f"compile it with --target cuda-native on this machine, or with the name of this GPU"
            )
