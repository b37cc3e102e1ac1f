"""What errors of CUDA's mean for a process."""

from __future__ import annotations

from typing import Any

import pytest

from zmq_offload.common.cudaerrors import gpu_lost, out_of_memory


def test_tvms_errors_for_a_lack_of_memory_are_known() -> None:
    # As TVM 0.27 words it on an H200.
    error: Any = RuntimeError("CUDA Runtime Error: cudaErrorMemoryAllocation (2): out of memory")
    assert out_of_memory(error)
    assert not out_of_memory(RuntimeError("CUDA Runtime Error: cudaErrorInvalidDevice (101): invalid device ordinal"))


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("CUDA Runtime Error: cudaErrorIllegalAddress (700): an illegal ...", "cudaErrorIllegalAddress"),
        ("CUDALaunch Error: CUDA_ERROR_LAUNCH_FAILED\n grid=(1,1,1)", "CUDA_ERROR_LAUNCH_FAILED"),
        ("cuLaunchKernel failed with error: CUDA_ERROR_ECC_UNCORRECTABLE", "CUDA_ERROR_ECC_UNCORRECTABLE"),
        ("CUDA Runtime Error: cudaErrorUnknown (999): unknown error", "cudaErrorUnknown"),
        ("CUDA Runtime Error: cudaErrorMemoryAllocation (2): out of memory", None),
        ("CUDA Runtime Error: cudaErrorInvalidValue (1): invalid argument", None),
        ("cuModuleLoadData failed with error: CUDA_ERROR_INVALID_IMAGE", None),
        ("an extent does not fit", None),
    ],
)
def test_errors_after_which_a_process_cannot_use_the_gpu_are_known(text: str, name: str | None) -> None:
    assert gpu_lost(RuntimeError(text)) == name
