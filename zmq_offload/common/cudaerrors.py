"""What an error of CUDA's, as TVM words it, means for the process. Pure.

CUDA's runtime and its driver have a name each for an error: cudaErrorIllegalAddress and CUDA_ERROR_ILLEGAL_ADDRESS.
"""

from __future__ import annotations

import re

_NO_MEMORY = re.compile(r"cudaErrorMemoryAllocation|CUDA_ERROR_OUT_OF_MEMORY")

_LOST = (
    # CUDA: "any further CUDA work will return the same error; the process must be terminated and relaunched"
    "Contained", "IllegalAddress", "LaunchTimeout", "Assert", "HardwareStackError", "IllegalInstruction",
    "MisalignedAddress", "InvalidAddressSpace", "InvalidPc", "LaunchFailure", "LaunchFailed", "TensorMemoryLeak",
    "MpsClientTerminated", "ExternalDevice",
    # The GPU has a fault, or is gone.
    "ECCUncorrectable", "NvlinkUncorrectable", "NoDevice", "DevicesUnavailable", "DeviceUnavailable",
    "ContextIsDestroyed", "DeviceUninitialized", "InvalidContext", "MpsConnectionFailed", "MpsRpcFailure", "Unknown",
)  # fmt: skip
_NAME = re.compile(r"\bcudaError(\w+)|\bCUDA_ERROR_(\w+)")
_FOLDED = frozenset(name.lower() for name in _LOST)


def out_of_memory(error: Exception) -> bool:
    """Whether TVM failed because a GPU has too little memory."""
    return _NO_MEMORY.search(str(error)) is not None


def gpu_lost(error: Exception) -> str | None:
    """CUDA's name for an error after which this process cannot use the GPU any more; None for other errors."""
    for match in _NAME.finditer(str(error)):
        if (match[1] or match[2]).replace("_", "").lower() in _FOLDED:
            return match[0]
    return None
